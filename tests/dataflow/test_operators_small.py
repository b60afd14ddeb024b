"""The operator tests again, with every limit so small that the paths for much data are taken by little."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from tests.dataflow.test_operators import *  # noqa: F403

LIMITS = [
    ("arrangement", "_SMALL_ROWS", 2),
    ("arrangement", "_GROWTH", 2),
    ("arrangement", "_RUNS_MAX", 3),
    ("arrangement", "EAGER_ROWS", 3),
    ("reduce", "EAGER_ROWS", 3),
    ("reduce", "PIECE_ROWS", 2),
    ("reduce", "_GROUPS_PER_SLICE", 2),
    ("groups", "_SORT_ROWS_MAX", 2),
    ("join", "_PAIRS_PER_SLICE", 3),
    ("join", "_COALESCE_ROWS", 2),
    ("linear", "_SLICE_ROWS", 2),
    ("run", "MERGE_SLICE_ROWS", 2),
    ("run", "_CANCEL_ROWS_MIN", 0),
    ("run", "_DIRECTORY_ROWS_MIN", 2),
    ("run", "_DIRECTORY_PROBES_MIN", 0),
    ("temporal", "_PIECE_ROWS", 2),
    ("top_k", "_PIECE_ROWS", 2),
    ("top_k", "_GROUPS_PER_SLICE", 2),
    ("trace", "_PIECE_ROWS", 2),
    ("ordered", "MERGE_SLICE_ROWS", 2),
    ("ordered", "_SLACK_ROWS", 0),
]


@pytest.fixture(autouse=True, scope="module")
def small_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in LIMITS:
            owner = importlib.import_module(f"penstock.dataflow.{module}")
            assert hasattr(owner, name)
            patch.setattr(owner, name, value)
        yield
