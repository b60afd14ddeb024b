"""A shard as a dataflow input: exact times, back-pressure, and what happens when the stores fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pyarrow as pa
import pytest

from penstock.dataflow import Dataflow, Worker
from penstock.persist import (
    Listen,
    ListenEvent,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    ReaderExpired,
    ReadHandle,
    WriteHandle,
    new_shard_id,
)
from penstock.runtime import DONE, Determinate, Frontier, SystemClock, TaskOwner, Timestamp, Updates
from penstock.storage import ShardSource

SCHEMA = pa.schema([pa.field("a", pa.int64())])


class Reports:
    def __init__(self) -> None:
        self.frontiers: list[Frontier] = []
        self.events: list[str] = []
        self.moved = asyncio.Event()

    def source_frontier(self, name: str, frontier: Frontier) -> None:
        assert not self.frontiers or frontier >= self.frontiers[-1]
        self.frontiers.append(frontier)
        self.moved.set()

    def source_stalled(self, name: str, message: str) -> None:
        self._event(f"stalled: {message}")

    def source_running(self, name: str) -> None:
        self._event("running")

    def source_broken(self, name: str, message: str) -> None:
        self._event(f"broken: {message}")

    def _event(self, text: str) -> None:
        self.events.append(text)
        self.moved.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.moved.clear()
                await self.moved.wait()


class Harness:
    """A shard, a dataflow that collects it, and a source between them."""

    def __init__(self, tasks: TaskOwner, *, buffer_bytes_max: int | None = None) -> None:
        self.tasks = tasks
        self.blob = MemBlob()
        config = PersistConfig(inline_bytes=0, maintenance=False)
        self.client = PersistClient(self.blob, MemConsensus(), config=config)
        self.shard = new_shard_id()
        self.reports = Reports()
        self.seen: list[tuple[int, int, int]] = []
        self.computed = Frontier(0)
        self.dataflow = Dataflow("test", Timestamp(0))
        self.feed, collection = self.dataflow.input("in", SCHEMA, buffer_bytes_max=buffer_bytes_max)
        collection.inspect(self._collect)
        self.worker = Worker()
        self.worker.install(self.dataflow)

    async def writer(self) -> WriteHandle:
        return await self.client.open_writer(self.shard, SCHEMA, purpose="test")

    def source(self, as_of: int = 0, until: Frontier = DONE, open_reader: Callable | None = None) -> ShardSource:
        source = ShardSource(
            "in",
            open_reader or self.open_reader,
            SCHEMA,
            has_errors=False,
            as_of=Timestamp(as_of),
            until=until,
            feed=self.feed,
            reports=self.reports,
            clock=SystemClock(),
        )
        self.task = self.tasks.spawn(source.run(), "source")
        return source

    async def open_reader(self) -> ReadHandle:
        return await self.client.open_reader(self.shard, SCHEMA, purpose="test")

    async def computed_to(self, frontier: int) -> None:
        async with asyncio.timeout(20):
            while self.computed < frontier:
                if not self.worker.step():
                    await asyncio.sleep(0.001)

    def _collect(self, oks: Updates, errs: Updates, frontier: Frontier) -> None:
        rows = oks.rows.column(0).to_pylist()
        self.seen += zip(rows, oks.times.tolist(), oks.diffs.tolist(), strict=True)
        self.computed = frontier


def run(body: Callable[[TaskOwner], Awaitable[None]]) -> None:
    async def main() -> None:
        tasks = TaskOwner("test")
        try:
            async with asyncio.timeout(40):
                await body(tasks)
        finally:
            await tasks.close()

    asyncio.run(main())


def rows(*updates: tuple[int, int]) -> Updates:
    values, times = zip(*updates, strict=True)
    batch = pa.RecordBatch.from_arrays([pa.array(values, pa.int64())], schema=SCHEMA)
    return Updates(batch, np.array(times, np.uint64), np.ones(len(times), np.int64))


def test_exact_times_and_an_eager_frontier() -> None:
    async def body(tasks: TaskOwner) -> None:
        harness = Harness(tasks)
        harness.source(as_of=3)
        await harness.reports.until(lambda: harness.reports.frontiers == [3])
        writer = await harness.writer()
        await writer.compare_and_append(rows((1, 0), (2, 4), (3, 7)), Frontier(0), Frontier(8))
        await harness.computed_to(8)
        assert sorted(harness.seen) == [(1, 3, 1), (2, 4, 1), (3, 7, 1)]
        await writer.compare_and_append(Updates.empty(SCHEMA), Frontier(8), Frontier(42))
        await harness.computed_to(42)
        assert harness.reports.events == []

    run(body)


def test_it_ends_at_until() -> None:
    async def body(tasks: TaskOwner) -> None:
        harness = Harness(tasks)
        writer = await harness.writer()
        await writer.compare_and_append(rows((1, 0)), Frontier(0), Frontier(5))
        source = harness.source(until=Frontier(5))
        await harness.task
        assert source.frontier == 5

    run(body)


def test_back_pressure_bounds_what_waits_for_the_worker() -> None:
    async def body(tasks: TaskOwner) -> None:
        harness = Harness(tasks, buffer_bytes_max=1000)
        writer = await harness.writer()
        for time in range(20):
            batch = rows(*((i, time) for i in range(100)))
            await writer.compare_and_append(batch, Frontier(time), Frontier(time + 1))
        harness.source()
        await harness.reports.until(lambda: len(harness.reports.frontiers) > 1)
        for _ in range(200):
            await asyncio.sleep(0)
        waiting = harness.reports.frontiers[-1]
        assert waiting < 20, "the source did not pause"
        await harness.computed_to(20)
        assert len(harness.seen) == 2000

    run(body)


def test_an_as_of_below_the_since_freezes() -> None:
    async def body(tasks: TaskOwner) -> None:
        harness = Harness(tasks)
        writer = await harness.writer()
        since = await harness.client.open_since(harness.shard, "test", purpose="test")
        await writer.compare_and_append(rows((1, 0)), Frontier(0), Frontier(9))
        await since.compare_and_downgrade_since(0, 0, Frontier(5))
        harness.source(as_of=3)
        await harness.reports.until(lambda: bool(harness.reports.events))
        assert "5" in harness.reports.events[0]
        assert harness.feed.frontier == 3

    run(body)


class Flaky:
    """A reader whose subscriptions fail before, between and within the events of a snapshot."""

    def __init__(self, reader: ReadHandle, fail_after: list[int], error: Callable[[], Exception]) -> None:
        self._reader, self._fail_after, self._error = reader, fail_after, error

    async def subscribe(self, as_of: Timestamp) -> FlakyEvents:
        return FlakyEvents(await self._reader.subscribe(as_of), self._fail_after, self._error)

    async def listen(self, as_of: Timestamp) -> FlakyEvents:
        return FlakyEvents(await self._reader.listen(as_of), self._fail_after, self._error)

    async def expire(self) -> None:
        await self._reader.expire()


class FlakyEvents:
    def __init__(self, listen: Listen, fail_after: list[int], error: Callable[[], Exception]) -> None:
        self._listen, self._fail_after, self._error, self._count = listen, fail_after, error, 0

    async def __anext__(self) -> ListenEvent:
        if self._fail_after and self._count == self._fail_after[0]:
            self._fail_after.pop(0)
            raise self._error()
        self._count += 1
        return await anext(self._listen)


@pytest.mark.parametrize("error", [lambda: Determinate("down"), lambda: ReaderExpired("s", "r")])
def test_transient_failures_are_survived(error: Callable[[], Exception]) -> None:
    async def body(tasks: TaskOwner) -> None:
        harness = Harness(tasks)
        writer = await harness.writer()
        await writer.compare_and_append(rows((1, 0)), Frontier(0), Frontier(1))

        async def open_reader() -> Flaky:
            return Flaky(await harness.open_reader(), fail_after, error)

        fail_after = [0, 1, 2]
        harness.source(open_reader=open_reader)
        for time in range(1, 6):
            await writer.compare_and_append(rows((time, time)), Frontier(time), Frontier(time + 1))
            await harness.computed_to(time + 1)
        assert fail_after == []
        assert len(harness.seen) == len(set(harness.seen)) == 6
        assert harness.reports.events.count("running") == len(harness.reports.events) / 2

    run(body)


def test_a_snapshot_that_breaks_off_half_way_is_reported_as_broken() -> None:
    async def body(tasks: TaskOwner) -> None:
        harness = Harness(tasks)
        writer = await harness.writer()
        for time in range(3):
            big = rows(*((i, time) for i in range(70_000)))
            await writer.compare_and_append(big, Frontier(time), Frontier(time + 1))

        async def open_reader() -> Flaky:
            return Flaky(await harness.open_reader(), [1], lambda: Determinate("down"))

        harness.source(as_of=2, open_reader=open_reader)
        await harness.reports.until(lambda: bool(harness.reports.events))
        assert harness.reports.events[0].startswith("broken")
        assert harness.feed.frontier == 2

    run(body)
