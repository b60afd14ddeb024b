"""All 22 queries of TPC-H as maintained views, equal to DataFusion's answer under random changes in all
tables.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import tpch_data
from view_oracle import View, context, lower, rows_of

from bench.tpch import QUERIES
from penstock.runtime import Timestamp, Updates

pytestmark = pytest.mark.skipif(not tpch_data.available(), reason="the TPC-H generator is not installed")

ROUNDS = 4


class Database:
    """The present contents of all tables, and random changes to them."""

    def __init__(self, tables: dict[str, pa.Table], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.all = {name: table.combine_chunks().to_batches()[0] for name, table in tables.items()}
        self.present = {name: np.ones(batch.num_rows, dtype=bool) for name, batch in self.all.items()}

    def tables(self) -> dict[str, pa.Table]:
        return {
            name: pa.Table.from_batches([batch.filter(pa.array(self.present[name]))])
            for name, batch in self.all.items()
        }

    def change(self, share: float, time: int) -> dict[str, Updates]:
        """Take away a random `share` of the rows and bring back half of those away before; returns the
        changes.
        """
        changes = {}
        for name, batch in self.all.items():
            chances = np.where(self.present[name], share, 0.5)
            flipped = np.flatnonzero(self._rng.random(batch.num_rows) < chances)
            before = self.present[name][flipped]
            self.present[name][flipped] = ~before
            diffs = np.where(before, -1, 1).astype(np.int64)
            changes[name] = Updates(batch.take(pa.array(flipped)), np.full(len(flipped), time, np.uint64), diffs)
        return changes


@pytest.mark.parametrize("name", QUERIES)
def test_the_view_equals_the_query_after_every_round_of_changes(name: str) -> None:
    database = Database(tpch_data.load(), seed=int(name[1:]))
    schemas = {table: batch.schema for table, batch in database.all.items()}
    view = View(lower(QUERIES[name], schemas), schemas)
    for table, contents in database.tables().items():
        view.send(table, Updates.at(contents.to_batches()[0], Timestamp(0)))
    seen = 0
    for time in range(1, ROUNDS + 1):
        view.advance(time)
        want: Counter[tuple[object, ...]] = Counter()
        for batch in context(database.tables()).sql(QUERIES[name]).collect():
            want.update(rows_of(batch))
        assert not view.errors_at(time - 1)
        got = view.at(time - 1)
        assert got == want, f"round {time}: missing {want - got} surplus {got - want}"
        seen += len(want)
        for table, updates in database.change(0.05, time).items():
            view.send(table, updates)
    assert seen, f"{name} never selects anything: it tests nothing"
