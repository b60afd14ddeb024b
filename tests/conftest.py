"""What the whole suite stands on: a floor under the number of tests that ran, and the servers that tests share.

A filter that matches nothing, a directory that is not collected or a guard that skips half of the suite must not
look like success. `make test` asks for the floor; a run of a few tests by hand does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers

FLOOR = Path(__file__).parent / "floor.txt"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not os.environ.get("PENSTOCK_TEST_FLOOR") or hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    passed = len(reporter.stats.get("passed", []))
    floor = int(FLOOR.read_text())
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and passed < floor:
        reporter.write_line(f"only {passed} tests passed where {floor} must (tests/floor.txt)", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL for all tests of this process; its URL ends in a query: add settings with ``&``."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 for all tests of this process, with the bucket `servers.S3_BUCKET`."""
    with servers.s3() as endpoint:
        yield endpoint


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a server run in one worker, so that it starts once."""
    for item in items:
        if {"postgres_url", "s3_endpoint"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("servers"))
