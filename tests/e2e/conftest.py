"""A real `penstock serve` in a process of its own, on a free port and a fresh directory."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from tools.serving import Server, serving

T = TypeVar("T")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a module; each test uses names of its own (`name`)."""
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may stop, kill and start again."""
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def db(server: Server) -> Iterator[psycopg.Connection]:
    """A connection in autocommit mode."""
    with server.connect() as connection:
        yield connection


@pytest.fixture
def name() -> str:
    """A name that no other test of the module uses."""
    return f"n{next(_numbers)}"


@pytest.fixture
def eventually() -> Callable[[Callable[[], T]], T]:
    """Calls a function until its answer is true; AssertionError after 30 seconds."""

    def wait(check: Callable[[], T], within_s: float = 30.0) -> T:
        deadline = time.monotonic() + within_s
        while not (answer := check()):
            assert time.monotonic() < deadline, f"still {answer!r} after {within_s} s"
            threading.Event().wait(0.02)
        return answer

    return wait
