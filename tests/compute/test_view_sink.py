"""The sink of a materialized view: alone, racing copies of itself, on stores that fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import pyarrow as pa
import pytest

from penstock.compute.view_sink import ViewWriter
from penstock.dataflow import ERRORS_SCHEMA
from penstock.persist import (
    MemBlob,
    MemConsensus,
    PersistClient,
    ShardId,
    UnreliableBlob,
    UnreliableConsensus,
    new_shard_id,
)
from penstock.runtime import DONE, Frontier, SystemClock, TaskOwner, Timestamp, Updates
from penstock.storage import split_shard_updates, view_schema

SCHEMA = pa.schema([pa.field("a", pa.int64(), nullable=False)])
Rows = dict[int, int]


class Reports:
    def __init__(self) -> None:
        self.written = Frontier(0)
        self.stalls: list[str] = []
        self.moved = asyncio.Event()

    def sink_written(self, written: Frontier) -> None:
        assert written >= self.written
        self.written = written
        self.moved.set()

    def sink_stalled(self, message: str) -> None:
        self.stalls.append(message)
        self.moved.set()

    def sink_running(self) -> None:
        pass

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.moved.clear()
                await self.moved.wait()


def view(client: PersistClient, shard: ShardId, as_of: int = 0) -> tuple[ViewWriter, Reports]:
    reports = Reports()
    schema = view_schema(SCHEMA)
    writer = ViewWriter(
        "v",
        SCHEMA,
        lambda: client.open_writer(shard, schema, purpose="test"),
        lambda: client.open_reader(shard, schema, purpose="test"),
        as_of=Timestamp(as_of),
        reports=reports,
        clock=SystemClock(),
    )
    return writer, reports


def changes(*updates: tuple[int, int, int]) -> Updates:
    rows, times, diffs = zip(*updates, strict=True) if updates else ((), (), ())
    return Updates(
        pa.RecordBatch.from_arrays([pa.array(rows, pa.int64())], schema=SCHEMA),
        np.array(times, np.uint64),
        np.array(diffs, np.int64),
    )


def failures(*updates: tuple[str, int, int]) -> Updates:
    texts, times, diffs = zip(*updates, strict=True) if updates else ((), (), ())
    rows = pa.RecordBatch.from_arrays(
        [pa.array(["22012"] * len(texts), pa.string()), pa.array(texts, pa.string())], schema=ERRORS_SCHEMA
    )
    return Updates(rows, np.array(times, np.uint64), np.array(diffs, np.int64))


NO_ROWS, NO_ERRORS = changes(), failures()


async def contents(client: PersistClient, shard: ShardId, at: int) -> tuple[Rows, list[str]]:
    reader = await client.open_reader(shard, view_schema(SCHEMA), purpose="check")
    rows: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    async for updates in reader.snapshot(Timestamp(at)):
        oks, errs = split_shard_updates(updates, SCHEMA)
        for row, diff in zip(oks.rows.column(0).to_pylist(), oks.diffs.tolist(), strict=True):
            rows[row] += diff
        for text, diff in zip(errs.rows.column(1).to_pylist(), errs.diffs.tolist(), strict=True):
            errors[text] += diff
    await reader.expire()
    return {row: n for row, n in rows.items() if n}, sorted(text for text, n in errors.items() if n)


def run(body: Callable[[TaskOwner], Awaitable[None]]) -> None:
    async def main() -> None:
        tasks = TaskOwner("test")
        try:
            async with asyncio.timeout(60):
                await body(tasks)
        finally:
            await tasks.close()

    asyncio.run(main())


def test_rows_and_errors_become_durable_with_the_frontier() -> None:
    async def body(tasks: TaskOwner) -> None:
        client, shard = PersistClient(MemBlob(), MemConsensus()), new_shard_id()
        sink, reports = view(client, shard, as_of=10)
        tasks.spawn(sink.run(), "sink")
        sink.allow_writes()
        sink.on_data(NO_ROWS, NO_ERRORS, Frontier(10))
        sink.on_data(changes((1, 10, 1), (2, 12, 2)), failures(("bad", 12, 1)), Frontier(13))
        await reports.until(lambda: reports.written == 13)
        assert await contents(client, shard, 11) == ({1: 1}, [])
        assert await contents(client, shard, 12) == ({1: 1, 2: 2}, ["bad"])
        sink.on_data(changes((2, 14, -1)), failures(("bad", 14, -1)), Frontier(15))
        sink.on_data(NO_ROWS, NO_ERRORS, Frontier(20))
        await reports.until(lambda: reports.written == 20)
        assert await contents(client, shard, 19) == ({1: 1, 2: 1}, [])
        sink.on_data(NO_ROWS, NO_ERRORS, DONE)
        await reports.until(lambda: reports.written == DONE)
        await client.close()

    run(body)


def test_nothing_is_written_up_to_the_as_of() -> None:
    async def body(tasks: TaskOwner) -> None:
        client, shard = PersistClient(MemBlob(), MemConsensus()), new_shard_id()
        sink, reports = view(client, shard, as_of=10)
        tasks.spawn(sink.run(), "sink")
        sink.allow_writes()
        sink.on_data(NO_ROWS, NO_ERRORS, Frontier(10))
        watcher = await client.open_writer(shard, view_schema(SCHEMA), purpose="watch")
        for _ in range(20):
            await asyncio.sleep(0)
        assert await watcher.fetch_recent_upper() == 0
        sink.on_data(NO_ROWS, NO_ERRORS, Frontier(11))
        await reports.until(lambda: reports.written == 11)

    run(body)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_sink_that_starts_corrects_what_is_there(wrong: bool) -> None:
    async def body(tasks: TaskOwner) -> None:
        client, shard = PersistClient(MemBlob(), MemConsensus()), new_shard_id()
        first, reports = view(client, shard)
        task = tasks.spawn(first.run(), "first")
        first.allow_writes()
        first.on_data(changes((1, 0, 1), (9 if wrong else 2, 3, 1)), NO_ERRORS, Frontier(5))
        await reports.until(lambda: reports.written == 5)
        task.cancel()
        second, reports = view(client, shard, as_of=4)
        tasks.spawn(second.run(), "second")
        second.allow_writes()
        second.on_data(changes((1, 4, 1), (2, 4, 1), (3, 6, 1)), NO_ERRORS, Frontier(8))
        await reports.until(lambda: reports.written == 8)
        assert await contents(client, shard, 4) == ({1: 1, 9 if wrong else 2: 1}, [])
        assert await contents(client, shard, 5) == ({1: 1, 2: 1}, [])
        assert await contents(client, shard, 7) == ({1: 1, 2: 1, 3: 1}, [])

    run(body)


def test_a_read_only_sink_follows_and_keeps_nothing() -> None:
    async def body(tasks: TaskOwner) -> None:
        client, shard = PersistClient(MemBlob(), MemConsensus()), new_shard_id()
        (leader, led), (follower, followed) = view(client, shard), view(client, shard)
        tasks.spawn(leader.run(), "leader")
        tasks.spawn(follower.run(), "follower")
        leader.allow_writes()
        for time in range(50):
            for sink in (follower, leader):
                sink.on_data(changes((time, time, 1)), NO_ERRORS, Frontier(time + 1))
            await followed.until(lambda time=time: followed.written == time + 1)
        assert led.written == 50
        sink_rows = len(await follower._correction(Frontier(50), Frontier(51)))
        assert sink_rows == 0
        follower.allow_writes()
        follower.on_data(NO_ROWS, NO_ERRORS, Frontier(60))
        await followed.until(lambda: followed.written == 60)

    run(body)


@pytest.mark.parametrize("seed", range(6))
def test_racing_writers_on_unreliable_stores(seed: int) -> None:
    """Three copies of a sink, fed at different speeds, one of them restarted: the shard is right at every
    time.
    """

    async def body(tasks: TaskOwner) -> None:
        random = np.random.default_rng(seed)
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()

        def client(number: int) -> PersistClient:
            return PersistClient(
                UnreliableBlob(blob, seed=seed * 10 + number), UnreliableConsensus(consensus, seed=seed * 10 + number)
            )

        last = 60
        history = [(int(random.integers(0, 5)), time, 1) for time in range(last) for _ in range(2)]
        live = list(history)
        retractions = []
        for row, time, _ in live:
            if random.random() < 0.5:
                retractions.append((row, int(random.integers(time, last)), -1))
        updates = sorted(history + retractions, key=lambda update: update[1])

        async def feed(sink: ViewWriter, as_of: int, speed: int) -> None:
            pause = np.random.default_rng(speed)
            sink.allow_writes()
            done = as_of
            while done < last:
                upto = min(last, done + int(pause.integers(1, 6)))
                part = [(row, max(time, as_of), diff) for row, time, diff in updates if done <= max(time, as_of) < upto]
                sink.on_data(changes(*part).consolidate(), NO_ERRORS, Frontier(upto))
                done = upto
                await asyncio.sleep(0.001 * int(pause.integers(0, 4)))

        sinks = []
        for number in range(3):
            sink, reports = view(client(number), shard)
            sinks.append((tasks.spawn(sink.run(), f"sink-{number}"), reports))
            tasks.spawn(feed(sink, 0, seed + number), f"feed-{number}")
        await sinks[0][1].until(lambda: sinks[0][1].written > 20)
        sinks[0][0].cancel()
        as_of = int(sinks[0][1].written) - 1
        late, late_reports = view(client(7), shard, as_of=as_of)
        tasks.spawn(late.run(), "late")
        tasks.spawn(feed(late, as_of, seed + 7), "feed-late")
        for reports in (sinks[1][1], sinks[2][1], late_reports):
            await reports.until(lambda reports=reports: reports.written == last or bool(reports.stalls))
            assert reports.written == last, reports.stalls

        check = PersistClient(blob, consensus)
        reader = await check.open_reader(shard, view_schema(SCHEMA), purpose="check")
        for at in range(int(reader.since), last):
            expected: Counter[int] = Counter()
            for row, time, diff in updates:
                if time <= at:
                    expected[row] += diff
            assert (await contents(check, shard, at))[0] == {row: n for row, n in expected.items() if n}, at

    run(body)
