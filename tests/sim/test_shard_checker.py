"""The observer of a shard, fed with hand-made versions and deletions: it reports each mistake, and only mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.persist import SeqNo, ShardId, Versioned
from penstock.persist.parts import encode_inline, encode_object
from penstock.persist.schema import encode_schema
from penstock.persist.state import Critical, Diff, LinkedBatch, Part, Reader, Replace, Rollup, Writer, encode_diff
from sim.actors.rows import SCHEMA, to_updates
from sim.checkers.appends import Update
from sim.checkers.shard import ShardHistory
from sim.stores import ObjectStore
from sim.world import Process, World

SHARD = ShardId("s-test")
LEASE_MS = 1000


class Observed:
    """A shard whose versions are written by hand. `problems`: what the observer said."""

    def __init__(self) -> None:
        self.world = World(0)
        self.objects = ObjectStore()
        self.problems: list[str] = []
        self.reached: list[str] = []
        self.history = ShardHistory(SHARD, self.objects, self.problems.append, self.reached.append)
        self.one, self.other = self.world.start("p"), self.world.start("p")
        self.commit(schema=encode_schema(SCHEMA))

    def commit(self, process: Process | None = None, **changes: Any) -> None:
        seqno = self.history.state.seqno + 1
        changes.setdefault("walltime_ms", seqno + 1)
        diff = Diff(seqno=seqno, rollup=changes.pop("rollup", self.history.state.rollup), **changes)
        self.history.commit(process or self.one, Versioned(SeqNo(seqno), encode_diff(diff)))

    def append(self, upper: int, *updates: Update, blob: str = "", id_: int | None = None) -> None:
        lower = self.history.state.upper
        number = self.history.state.seqno + 1 if id_ is None else id_
        parts = (self.part(*updates, blob=blob),) if updates else ()
        batch = LinkedBatch(number, lower, 0, parts) if parts else None
        self.commit(upper=upper, append=batch, writers={"w": Writer(b"t", upper, self.now_ms, LEASE_MS)})

    def part(self, *updates: Update, blob: str = "") -> Part:
        if blob:
            data, part = encode_object(to_updates(updates), blob)
            self.objects.set(f"{SHARD}/{blob}", data)
            return part
        inline = encode_inline(to_updates(updates), 100_000)
        assert inline is not None
        return inline

    def replace(self, ids: tuple[int, ...], since: int, *updates: Update, removed: tuple[str, ...] = ()) -> None:
        batch = LinkedBatch(self.history.state.seqno + 1, 0, since, (self.part(*updates),))
        self.commit(replace=Replace(ids, batch, removed))

    def reader(self, hold: int, since: int, heartbeat_ms: int | None = None) -> Reader:
        return Reader(hold, since, self.now_ms if heartbeat_ms is None else heartbeat_ms, LEASE_MS, "test")

    @property
    def now_ms(self) -> int:
        return self.one.clock.now_ms()


A: Update = (1, (1, "a"), 1)
B: Update = (2, (2, "b"), 1)


@pytest.fixture
def seen() -> Observed:
    return Observed()


def test_an_ordinary_life_is_fine(seen: Observed) -> None:
    seen.append(3, A, B)
    seen.append(5, (3, (1, "a"), -1), blob="w1/p")
    first, second = (batch.id for batch in seen.history.state.batches)
    seen.commit(readers={"r": seen.reader(4, 0)})
    seen.commit(readers={"r": seen.reader(5, 4)}, since=4)
    seen.replace((first, second), 4, (4, (2, "b"), 1), removed=("w1/p",))
    seen.commit(readers={"r": None})
    seen.history.deleted(seen.one, "w1/p")
    assert seen.problems == []
    assert seen.history.at(2) == {(1, "a"): 1, (2, "b"): 1}
    assert seen.history.at(4) == {(2, "b"): 1}
    assert seen.history.between(2, 4) == {((2, "b"), 2): 1, ((1, "a"), 3): -1}
    assert [one.updates for one in seen.history.committed] == [(A, B), ((3, (1, "a"), -1),)]


def test_frontiers_that_go_back(seen: Observed) -> None:
    seen.append(5)
    seen.commit(upper=4)
    assert "goes back" in seen.problems[0]


def test_a_since_past_a_hold(seen: Observed) -> None:
    seen.append(9)
    seen.commit(readers={"r": seen.reader(2, 3)}, criticals={"c": Critical(7, 0, "")})
    seen.commit(since=5, criticals={"c": Critical(8, 0, "")})
    assert "past a hold at 3" in seen.problems[0]


def test_a_since_that_an_expiry_raises(seen: Observed) -> None:
    seen.append(9)
    seen.commit(readers={"r": seen.reader(2, 3)}, criticals={"c": Critical(7, 0, "")})
    seen.commit(readers={"r": None}, since=7)
    assert "nobody gave anything up" in seen.problems[0]


def test_a_reader_expired_before_its_time(seen: Observed) -> None:
    seen.commit(readers={"r": seen.reader(0, 0)})
    seen.commit(seen.other, readers={"r": None})
    assert "before its lease has lapsed" in seen.problems[0]


def test_a_lease_that_lapsed_may_be_ended_by_anybody(seen: Observed) -> None:
    seen.commit(readers={"r": seen.reader(0, 0, heartbeat_ms=seen.now_ms - LEASE_MS - 1)})
    seen.commit(seen.other, readers={"r": None})
    assert seen.problems == []
    assert "lease of a running process expired" in seen.reached


def test_a_reader_that_is_moved_back(seen: Observed) -> None:
    seen.commit(readers={"r": seen.reader(1, 5)})
    seen.commit(readers={"r": seen.reader(1, 4)})
    assert "moves reader r back" in seen.problems[0]


def test_a_holder_that_was_fenced(seen: Observed) -> None:
    seen.history.opaque_owners.update({1: seen.one.name, 2: seen.other.name})
    seen.append(9)
    seen.commit(seen.one, criticals={"c": Critical(0, 1, "")})
    seen.commit(seen.other, criticals={"c": Critical(2, 2, "")})
    assert seen.problems == []
    seen.commit(seen.one, criticals={"c": Critical(3, 2, "")})
    assert "has fenced" in seen.problems[0]


def test_a_holder_that_comes_back(seen: Observed) -> None:
    seen.history.opaque_owners.update({1: seen.one.name, 2: seen.other.name})
    seen.append(9)
    seen.commit(seen.one, criticals={"c": Critical(0, 1, "")})
    seen.commit(seen.other, criticals={"c": Critical(2, 2, "")})
    seen.commit(seen.one, criticals={"c": Critical(3, 1, "")})
    assert "was fenced before" in seen.problems[0]


def test_an_append_outside_its_bounds(seen: Observed) -> None:
    seen.append(2, B)
    assert "outside [0, 2)" in seen.problems[0]


def test_a_blob_that_is_not_there(seen: Observed) -> None:
    part = seen.part(A, blob="w1/p")
    seen.objects.delete(f"{SHARD}/w1/p")
    seen.commit(upper=2, append=LinkedBatch(1, 0, 0, (part,)))
    assert "does not exist" in seen.problems[0]


def test_a_blob_deleted_while_it_is_needed(seen: Observed) -> None:
    seen.append(2, A, blob="w1/p")
    seen.history.deleted(seen.one, "w1/p")
    assert "which version 1 refers to" in seen.problems[0]


def test_a_blob_deleted_while_a_reader_holds_it(seen: Observed) -> None:
    seen.append(2, A, blob="w1/p")
    seen.commit(readers={"r": seen.reader(1, 0)})
    seen.replace((1,), 0, A, removed=("w1/p",))
    seen.history.deleted(seen.one, "w1/p")
    assert "1 is held" in seen.problems[0]


def test_compaction_that_changes_contents(seen: Observed) -> None:
    seen.append(3, A, B)
    seen.replace((1,), 0, A)
    assert "other contents" in seen.problems[0]


def test_compaction_beyond_the_since(seen: Observed) -> None:
    seen.append(3, A)
    seen.replace((1,), 2, (2, (1, "a"), 1))
    assert "beyond the since" in seen.problems[0]


def test_a_log_cut_off_from_its_rollups(seen: Observed) -> None:
    for upper in range(1, 6):
        seen.append(upper)
    seen.objects.set(f"{SHARD}/v3/r", b"state")
    seen.commit(rollups={3: Rollup("v3/r", 5)}, rollup="v3/r")
    seen.history.truncated(3)
    assert seen.problems == []
    seen.history.truncated(5)
    assert "no full state leads there" in seen.problems[0]


def test_a_log_whose_oldest_full_state_is_dropped(seen: Observed) -> None:
    for upper in range(1, 6):
        seen.append(upper)
    for at in (3, 5):
        seen.objects.set(f"{SHARD}/v{at}/r", b"state")
        seen.commit(rollups={at: Rollup(f"v{at}/r", 5)}, rollup=f"v{at}/r")
    seen.history.truncated(4)
    assert seen.problems == []
    seen.commit(rollups={3: None}, removed_rollups=("v3/r",))
    assert "all later than version 4" in seen.problems[0]


def test_a_change_to_a_finalized_shard(seen: Observed) -> None:
    seen.commit(tombstone=True)
    assert seen.problems == []
    seen.commit(writers={"w": Writer(b"t", 5, 0, 0)})
    assert "changes a finalized shard" in seen.problems[0]
