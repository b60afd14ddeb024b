"""The pure core: commands and diffs, without stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from msgspec.structs import replace

from penstock.persist import CorruptStateError, Fenced, InvalidUsage, Mismatch, commands
from penstock.persist.commands import Appended, Applied, Step
from penstock.persist.snapshot import parts_up_to
from penstock.persist.state import (
    Diff,
    HollowPart,
    InlinePart,
    Part,
    Rollup,
    State,
    apply,
    decode_diff,
    decode_rollup,
    encode_diff,
    encode_rollup,
)
from penstock.runtime import DONE, Frontier, InternalError, Timestamp

R = TypeVar("R")


class Machine:
    """Applies commands the way a shard does, checking that every diff survives its encoding."""

    def __init__(self) -> None:
        self.state = State()
        self.committed = 0

    def run(self, command: Callable[[State], Step[R]]) -> R:
        step = command(self.state)
        if step.diff is not None:
            diff = replace(step.diff, seqno=self.state.seqno + 1, rollup=step.diff.rollup or self.state.rollup)
            after = apply(self.state, diff)
            assert apply(self.state, decode_diff("s", encode_diff(diff))) == after
            assert decode_rollup("s", encode_rollup(after)) == after
            self.state = after
            self.committed += 1
        return step.result

    def append(self, lower: int, upper: int, parts: tuple[Part, ...] = (), token: bytes = b"") -> Appended | Mismatch:
        return self.run(
            lambda state: commands.append(
                state,
                writer="w",
                token=token or b"%d" % upper,
                expected=Frontier(lower),
                new=Frontier(upper),
                parts=parts,
                now_ms=7,
                lease_ms=10,
            )
        )


def inline(rows: int = 1, size: int = 10, diff_sum: int | None = None) -> InlinePart:
    return InlinePart(bytes(size), 0, rows, rows if diff_sum is None else diff_sum, 0, 0)


def hollow(key: str, rows: int = 1) -> HollowPart:
    return HollowPart(key, "parquet", 100, 1, rows, rows, 0, 0)


def test_compare_and_append() -> None:
    machine = Machine()
    assert machine.append(0, 5, (inline(),)) == Appended()
    assert machine.append(0, 6) == Mismatch(Frontier(5))
    assert machine.append(0, 5) == Appended(), "the same token again: it was committed"
    assert machine.append(5, 9) == Appended()
    assert machine.append(9, DONE, (hollow("a"),)) == Appended()
    assert machine.committed == 3
    assert [(b.id, b.lower) for b in machine.state.batches] == [(0, 0), (2, 9)]
    assert machine.state.batch_upper(0) == 9
    assert machine.state.batch_upper(1) == DONE
    assert machine.state.inline_bytes == 10


def test_progress_leaves_nothing_behind() -> None:
    machine = Machine()
    for time in range(1000):
        machine.append(time, time + 1)
    assert len(machine.state.batches) == 1
    assert len(encode_rollup(machine.state)) < 300


def test_replace() -> None:
    machine = Machine()
    for time in range(4):
        machine.append(time, time + 1, (hollow(f"p{time}"), inline()))
    ids = tuple(batch.id for batch in machine.state.batches)

    def merge(ids: tuple[int, ...], parts: tuple[Part, ...], uncertain: bool = False) -> Applied:
        return machine.run(
            lambda state: commands.replace_batches(state, ids=ids, since=Frontier(0), parts=parts, uncertain=uncertain)
        )

    assert merge((ids[0], ids[2]), (hollow("m", 4),)) is Applied.NO, "not consecutive"
    with pytest.raises(InvalidUsage, match="sum of diffs"):
        merge(ids[1:3], (hollow("m", 5),))
    assert merge(ids[1:3], (hollow("m", 4),)) is Applied.YES
    assert [(b.id, b.lower) for b in machine.state.batches] == [(0, 0), (4, 1), (3, 3)]
    assert machine.state.inline_bytes == 20
    assert merge(ids[1:3], (hollow("m", 4),)) is Applied.YES, "recognizes its own output"
    assert merge(ids[1:3], (hollow("n", 4),)) is Applied.NO
    assert merge(ids[1:3], (hollow("n", 4),), uncertain=True) is Applied.UNKNOWN


def test_downgrade_since() -> None:
    machine = Machine()

    def register(reader: str) -> int:
        return machine.run(
            lambda s: commands.register_reader(s, reader=reader, schema=b"", now_ms=1, lease_ms=9, purpose="")
        ).since

    def downgrade(reader: str, since: int, hold: int = 0) -> int | None:
        entry = machine.run(
            lambda s: commands.downgrade_reader(s, reader=reader, since=Frontier(since), hold=hold, now_ms=2)
        )
        return None if entry is None else entry.since

    register("a")
    register("b")
    assert downgrade("a", 5) == 5
    assert machine.state.since == 0
    assert downgrade("b", 3) == 3
    assert machine.state.since == 3
    assert downgrade("a", 4) == 5, "never back"
    machine.run(lambda s: commands.expire_reader(s, reader="b"))
    assert machine.state.since == 3, "expiry moves nothing"
    assert register("c") == 3
    assert downgrade("nobody", 9) is None
    assert downgrade("c", 9) == 9
    assert machine.state.since == 5


def test_compare_and_downgrade_since() -> None:
    machine = Machine()
    machine.run(lambda s: commands.register_critical(s, reader="c", opaque=1, purpose=""))

    def downgrade(expected: int, new: int, since: int, uncertain: bool = False) -> tuple[int, int] | Fenced:
        result = machine.run(
            lambda s: commands.downgrade_critical(
                s,
                reader="c",
                expected_opaque=expected,
                new_opaque=new,
                since=Frontier(since),
                uncertain=uncertain,
            )
        )
        return result if isinstance(result, Fenced) else (result.opaque, result.since)

    assert downgrade(1, 2, 5) == (2, 5)
    assert machine.state.since == 5
    assert downgrade(1, 2, 6) == Fenced(2, Frontier(5))
    assert downgrade(1, 2, 5, uncertain=True) == (2, 5), "an earlier attempt of its own"
    assert downgrade(2, 3, 4) == (3, 5), "the opaque is stored, the since stays"
    committed = machine.committed
    assert downgrade(3, 3, 5) == (3, 5)
    assert machine.committed == committed


def test_expire_writer() -> None:
    """The others go on, its appends stay; what it sends late counts as sent by a writer that nobody knows."""
    machine = Machine()
    machine.append(0, 5, (inline(),), token=b"mine")
    machine.run(
        lambda state: commands.append(
            state,
            writer="other",
            token=b"other",
            expected=Frontier(5),
            new=Frontier(6),
            parts=(inline(),),
            now_ms=7,
            lease_ms=10,
        )
    )
    machine.run(lambda state: commands.expire_writer(state, writer="w"))
    assert set(machine.state.writers) == {"other"}
    assert len(machine.state.batches) == 2
    committed = machine.committed
    machine.run(lambda state: commands.expire_writer(state, writer="w"))
    assert machine.committed == committed, "expiring again changes nothing"
    assert machine.append(0, 5, (inline(),), token=b"mine") == Mismatch(Frontier(6)), "its token is forgotten"
    assert machine.append(6, 7) == Appended(), "it may register anew by appending"
    assert set(machine.state.writers) == {"other", "w"}


def test_snapshot() -> None:
    """Which parts a read at a time needs: none that begins after it, all that reach into it, empty batches too."""
    machine = Machine()
    machine.append(0, 5, (hollow("a"),))
    machine.append(5, 6)
    machine.append(6, 9, (HollowPart("b", "parquet", 100, 1, 1, 1, 6, 8),))
    state = machine.state
    assert [part.key for _, _, part in parts_up_to(state, Timestamp(4)) if isinstance(part, HollowPart)] == ["a"]
    assert [part.key for _, _, part in parts_up_to(state, Timestamp(5)) if isinstance(part, HollowPart)] == ["a"]
    for as_of in (6, 8):
        found = parts_up_to(state, Timestamp(as_of))
        assert [part.key for _, _, part in found if isinstance(part, HollowPart)] == ["a", "b"]


def test_fence() -> None:
    """A version that changes nothing but its number; none of a shard that is finalized or was never there."""
    machine = Machine()
    machine.run(commands.fence)
    assert machine.committed == 0
    machine.append(0, 5, (hollow("a"),))
    before = machine.state
    machine.run(commands.fence)
    assert machine.state == replace(before, seqno=before.seqno + 1)
    machine.run(commands.finalize)
    committed = machine.committed
    machine.run(commands.fence)
    assert machine.committed == committed


def test_rollups_stay_few() -> None:
    machine = Machine()
    machine.run(lambda s: commands.register_reader(s, reader="r", schema=b"", now_ms=0, lease_ms=100, purpose=""))
    for time in range(40):
        machine.append(time, time + 1)
        rollup = Rollup(f"v{machine.state.seqno}/r", 1)
        at = machine.state.seqno
        done = machine.run(lambda s: commands.add_rollup(s, seqno=at, rollup=rollup, uncertain=False))  # noqa: B023
        assert done is Applied.YES
        assert machine.state.rollup == rollup.key
    assert len(machine.state.rollups) == commands.ROLLUPS_MAX
    assert 1 in machine.state.rollups, "the oldest anchors the oldest version"
    late = Rollup("late", 1)
    assert machine.run(lambda s: commands.add_rollup(s, seqno=3, rollup=late, uncertain=False)) is Applied.NO
    newest = machine.state.latest_rollup
    machine.run(lambda s: commands.collect(s, seqno=newest))
    assert set(machine.state.rollups) == {newest}


def test_tombstone_needs_its_diff_alone() -> None:
    machine = Machine()
    machine.append(0, 5, (hollow("a"),))
    machine.run(commands.finalize)
    diff = Diff(tombstone=True, seqno=41)
    assert apply(State(seqno=40), diff).tombstone
    assert (machine.state.since, machine.state.upper, machine.state.keys()) == (DONE, DONE, set())
    assert machine.append(5, 6) == Mismatch(DONE)


def test_damage_is_recognized() -> None:
    with pytest.raises(CorruptStateError):
        decode_diff("s", b"\x02what")
    with pytest.raises(CorruptStateError):
        decode_diff("s", b"\x01\xc1")
    encoded = bytearray(encode_rollup(State(seqno=3)))
    encoded[-1] ^= 1
    with pytest.raises(CorruptStateError):
        decode_rollup("s", bytes(encoded))
    with pytest.raises(InternalError):
        apply(State(seqno=3), Diff(seqno=5))
