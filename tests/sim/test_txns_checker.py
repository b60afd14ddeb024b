"""The observer of the transaction log: steps in the wrong order, or something else than was committed."""

from __future__ import annotations

import pytest

from penstock.persist import SeqNo, ShardId, Versioned
from penstock.persist.parts import encode_inline
from penstock.persist.schema import encode_schema
from penstock.persist.state import Diff, LinkedBatch, encode_diff
from penstock.persist.txn.rows import TXNS_SCHEMA, Entry, Registration, Write, encode
from penstock.persist.write import Batch
from penstock.runtime import Frontier, Timestamp, Updates
from sim.actors.rows import SCHEMA, to_updates
from sim.checkers.appends import Update
from sim.checkers.shard import ShardHistory
from sim.checkers.txns import TxnsHistory
from sim.stores import ObjectStore
from sim.world import World

TABLE = ShardId("s-table")


class Observed:
    """A log and one table, written by hand."""

    def __init__(self) -> None:
        world, objects = World(0), ObjectStore()
        self.problems: list[str] = []
        self.reached: list[str] = []
        self.one, self.other = world.start("p"), world.start("p")
        self.log = ShardHistory(ShardId("s-log"), objects, self.problems.append, self.reached.append)
        self.table = ShardHistory(TABLE, objects, self.problems.append, self.reached.append)
        self.txns = TxnsHistory(self.log, lambda _: self.table, self.problems.append, self.reached.append)
        self._commit(self.log, schema=encode_schema(TXNS_SCHEMA))
        self._commit(self.table, schema=encode_schema(SCHEMA))
        self.table_to(1)
        self.to_log([Registration.new(TABLE, Timestamp(0), encode_schema(SCHEMA))], [], 0)

    def _commit(self, history: ShardHistory, process: object = None, **changes: object) -> None:
        seqno = history.state.seqno + 1
        diff = Diff(seqno=seqno, walltime_ms=seqno + 1, **changes)  # type: ignore[arg-type]
        history.commit(process or self.one, Versioned(SeqNo(seqno), encode_diff(diff)))  # type: ignore[arg-type]

    def _append(self, history: ShardHistory, updates: Updates, upper: int, process: object = None) -> None:
        state = history.state
        part = encode_inline(updates, 100_000) if len(updates) else None
        batch = LinkedBatch(state.seqno + 1, state.upper, 0, (part,)) if part is not None else None
        self._commit(history, process, upper=upper, append=batch)

    def to_log(self, added: list[Entry], gone: list[Entry], ts: int, process: object = None) -> None:
        self._append(self.log, encode(added, gone, Timestamp(ts)), ts + 1, process)

    def table_to(self, upper: int, *updates: Update, process: object = None) -> None:
        self._append(self.table, to_updates(updates), upper, process)

    def write(self, ts: int, *updates: Update) -> Write:
        part = encode_inline(to_updates(updates), 100_000)
        assert part is not None
        return Write.new(Batch(TABLE, Frontier(ts), Frontier(ts + 1), (part,)))


ROW: Update = (3, (1, "a"), 1)


@pytest.fixture
def seen() -> Observed:
    return Observed()


def test_commit_apply_tidy(seen: Observed) -> None:
    write = seen.write(3, ROW)
    seen.to_log([write], [], 3)
    seen.table_to(4, ROW, process=seen.other)
    seen.to_log([], [write], 5, process=seen.other)
    assert seen.problems == []
    assert seen.txns.at(TABLE, 2) == {}
    assert seen.txns.at(TABLE, 3) == {(1, "a"): 1}
    assert seen.txns.between(TABLE, 0, 9) == {((1, "a"), 3): 1}
    assert seen.reached == ["transaction applied by another process", "transaction tidied by another process"]


def test_applied_before_it_was_committed(seen: Observed) -> None:
    seen.table_to(4, ROW)
    assert "the log has {}" in seen.problems[0]


def test_applied_with_other_rows(seen: Observed) -> None:
    seen.to_log([seen.write(3, ROW)], [], 3)
    seen.table_to(4, (3, (1, "b"), 1))
    assert "the log has" in seen.problems[0]


def test_passed_over(seen: Observed) -> None:
    seen.to_log([seen.write(3, ROW)], [], 3)
    seen.table_to(4)
    assert "the log has" in seen.problems[0]


def test_tidied_before_it_was_applied(seen: Observed) -> None:
    write = seen.write(3, ROW)
    seen.to_log([write], [], 3)
    seen.to_log([], [write], 4)
    assert "before it was applied" in seen.problems[0]


def test_tidied_twice(seen: Observed) -> None:
    write = seen.write(3, ROW)
    seen.to_log([write], [], 3)
    seen.table_to(4, ROW)
    seen.to_log([], [write], 4)
    seen.to_log([], [write], 5)
    assert "twice" in seen.problems[0]


def test_rows_at_another_time_than_their_commit(seen: Observed) -> None:
    seen.to_log([seen.write(3, (2, (1, "a"), 1))], [], 3)
    assert "in a commit at 3" in seen.problems[0]


def test_a_write_to_a_table_that_is_not_registered(seen: Observed) -> None:
    seen.to_log([], [Registration.new(TABLE, Timestamp(0), encode_schema(SCHEMA))], 2)
    seen.to_log([seen.write(3, ROW)], [], 3)
    assert "not registered" in seen.problems[0]


def test_a_since_that_passes_a_write(seen: Observed) -> None:
    seen.to_log([seen.write(3, ROW)], [], 3)
    seen._commit(seen.log, since=4)
    seen.to_log([], [], 4)
    assert any("a write at 3 is in it" in problem for problem in seen.problems)
