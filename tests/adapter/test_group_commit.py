"""Group commit: one time per group, answered only when durable, nothing acknowledged lost whatever the store does."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from penstock.adapter.group_commit import Delta, FencedError, GroupCommitter
from penstock.adapter.oracle import TimestampOracle
from penstock.persist import ShardId
from penstock.runtime import Determinate, Indeterminate, SqlError, SystemClock, Timestamp, Updates

SCHEMA = pa.schema([("v", pa.int64())])
T, U = ShardId("s1"), ShardId("s2")


def row(value: int) -> Delta:
    return Delta.insert(pa.record_batch([[value]], schema=SCHEMA))


@dataclass
class TooLate:
    upper: int


@dataclass
class FakeTxns:
    """A transactions shard in memory. `trouble(ts)` may raise before or return "lost" to fail after the commit."""

    upper: int = 0
    rows: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    trouble: Callable[[int], str | None] = lambda ts: None
    times: list[int] = field(default_factory=list)
    busy: asyncio.Event = field(default_factory=asyncio.Event)

    async def commit_at(self, writes: dict[ShardId, list[Updates]], ts: Timestamp) -> TooLate | None:
        self.busy.set()
        await asyncio.sleep(0.001)
        verdict = self.trouble(ts)
        if ts < self.upper:
            return TooLate(self.upper)
        for shard, parts in writes.items():
            for part in parts:
                values = part.rows.column(0).to_pylist()
                self.rows.setdefault(shard, []).extend(zip(values, part.times.tolist(), strict=True))
        self.upper = ts + 1
        self.times.append(ts)
        if verdict == "lost":
            raise Indeterminate("no answer")
        return None

    async def register(self, shards: dict[ShardId, pa.Schema], ts: Timestamp) -> TooLate | None:
        return await self.commit_at({}, ts)

    async def forget(self, shards: list[ShardId], ts: Timestamp) -> TooLate | None:
        return await self.commit_at({}, ts)

    async def apply_le(self, ts: Timestamp) -> None:
        return None


async def no_fence() -> None:
    return None


def committer(txns: FakeTxns, **options: Any) -> GroupCommitter:
    clock = SystemClock()
    made = GroupCommitter(
        txns=txns,
        oracle=TimestampOracle(clock, Timestamp(0)),
        clock=clock,
        fence=options.pop("fence", no_fence),
        **{"tick_s": 60.0, **options},
    )
    made.known({T: SCHEMA, U: SCHEMA})
    return made


def running(ours: GroupCommitter, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(ours.run())
        try:
            async with asyncio.timeout(20):
                await body()
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(main())


def test_writes_that_wait_together_share_one_time_and_reads_see_them() -> None:
    txns = FakeTxns()
    ours = committer(txns)

    async def body() -> None:
        times = await asyncio.gather(*(ours.write({T: [row(i)]}) for i in range(500)))
        assert len(set(times)) <= 3
        assert ours.oracle.read_ts() == max(times)
        assert sorted(txns.rows[T]) == [(i, t) for i, t in enumerate(times)]

    running(ours, body)


def test_a_write_over_two_tables_is_one_commit() -> None:
    txns = FakeTxns()
    ours = committer(txns)

    async def body() -> None:
        time = await ours.write({T: [row(1)], U: [row(2)]})
        assert txns.rows == {T: [(1, time)], U: [(2, time)]}
        assert len(txns.times) == 1

    running(ours, body)


def test_an_empty_commit_closes_time_when_nobody_writes() -> None:
    txns = FakeTxns()
    ours = committer(txns, tick_s=0.01)

    async def body() -> None:
        while len(txns.times) < 3:
            await ours.oracle.wait_until_read(Timestamp(ours.oracle.read_ts() + 1))
        assert txns.rows == {}

    running(ours, body)


def test_a_shard_that_ran_ahead_is_overtaken() -> None:
    far = SystemClock().now_ms() + 300
    txns = FakeTxns(upper=far)
    ours = committer(txns)

    async def body() -> None:
        assert await ours.write({T: [row(1)]}) >= far

    running(ours, body)


@pytest.mark.parametrize(
    ("error", "sqlstate"),
    [(OSError(errno.ENOSPC, "No space left on device"), "53100"), (Determinate("refused"), "58030")],
)
def test_a_definite_failure_answers_all_its_writers_and_the_next_write_works(error: Exception, sqlstate: str) -> None:
    broken = True

    def trouble(ts: int) -> None:
        if broken:
            raise error

    txns = FakeTxns(trouble=trouble)
    ours = committer(txns)

    async def body() -> None:
        nonlocal broken
        answers = await asyncio.gather(*(ours.write({T: [row(i)]}) for i in range(5)), return_exceptions=True)
        assert [a.sqlstate for a in answers if isinstance(a, SqlError)] == [sqlstate] * 5
        broken = False
        await ours.write({T: [row(9)]})
        assert [value for value, _ in txns.rows[T]] == [9]

    running(ours, body)


@pytest.mark.parametrize("happened", [True, False])
def test_an_unknown_outcome_is_found_out_and_never_written_twice(happened: bool) -> None:
    calls = 0

    def trouble(ts: int) -> str | None:
        nonlocal calls
        calls += 1
        if calls == 1 and not happened:
            raise Indeterminate("no answer")
        return "lost" if calls == 1 else None

    txns = FakeTxns(trouble=trouble)
    ours = committer(txns)

    async def body() -> None:
        time = await ours.write({T: [row(7)]})
        assert txns.rows[T] == [(7, time)]

    running(ours, body)


def test_a_fenced_coordinator_fails_before_it_writes_and_stops() -> None:
    async def fence() -> None:
        raise FencedError("another coordinator (epoch 2) has taken over from this one (epoch 1)")

    txns = FakeTxns()
    ours = committer(txns, fence=fence)

    async def body() -> None:
        for _ in range(2):
            with pytest.raises(SqlError) as caught:
                await ours.write({T: [row(1)]})
            assert caught.value.sqlstate == "57P02"
        assert txns.times == []

    running(ours, body)


def test_writes_behind_the_end_of_their_table_are_refused_and_others_go_on() -> None:
    txns = FakeTxns()
    ours = committer(txns)

    async def body() -> None:
        forgotten = asyncio.ensure_future(ours.forget([T]))
        await asyncio.sleep(0)
        late, other = await asyncio.gather(ours.write({T: [row(1)]}), ours.write({U: [row(2)]}), return_exceptions=True)
        await forgotten
        assert isinstance(late, SqlError)
        assert late.sqlstate == "42P01"
        assert txns.rows == {U: [(2, other)]}

    running(ours, body)


def test_a_write_cancelled_in_the_queue_did_not_happen_and_one_under_way_is_settled() -> None:
    txns = FakeTxns()
    ours = committer(txns)

    async def body() -> None:
        under_way = asyncio.ensure_future(ours.write({T: [row(1)]}))
        await txns.busy.wait()
        queued = asyncio.ensure_future(ours.write({T: [row(2)]}))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        await under_way
        await ours.write({T: [row(3)]})
        assert [value for value, _ in txns.rows[T]] == [1, 3]

    running(ours, body)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_store_does_acknowledged_writes_are_there_once(seed: int) -> None:
    dice = random.Random(seed)

    def trouble(ts: int) -> str | None:
        roll = dice.random()
        if roll < 0.1:
            raise Determinate("refused")
        if roll < 0.2:
            raise Indeterminate("no answer, not done")
        return "lost" if roll < 0.3 else None

    txns = FakeTxns(trouble=trouble)
    ours = committer(txns)

    async def body() -> None:
        async def writer(name: int) -> None:
            for turn in range(10):
                value = name * 100 + turn
                (answer,) = await asyncio.gather(ours.write({T: [row(value)]}), return_exceptions=True)
                if isinstance(answer, SqlError):
                    assert answer.sqlstate == "58030"
                    assert value not in [v for v, _ in txns.rows.get(T, [])]
                else:
                    assert txns.rows[T].count((value, answer)) == 1
                    assert ours.oracle.read_ts() >= answer

        await asyncio.gather(*(writer(name) for name in range(5)))

    running(ours, body)
