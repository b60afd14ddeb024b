"""A part that cannot be read stops its source at that time, although everything after it could be read.

Elsewhere, after a failed part a later result was taken for it, and the frontier moved past the missing data.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa

from penstock.dataflow import Dataflow, Worker
from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, new_shard_id
from penstock.runtime import DONE, Frontier, SystemClock, TaskOwner, Timestamp, Updates
from penstock.storage import ShardSource

SCHEMA = pa.schema([pa.field("a", pa.int64())])


class Reports:
    def __init__(self) -> None:
        self.stalled = asyncio.Event()
        self.message = ""

    def source_frontier(self, name: str, frontier: Frontier) -> None:
        pass

    def source_stalled(self, name: str, message: str) -> None:
        self.message = message
        self.stalled.set()


def rows(value: int, time: int) -> Updates:
    batch = pa.RecordBatch.from_arrays([pa.array([value])], schema=SCHEMA)
    return Updates(batch, np.array([time], np.uint64), np.array([1], np.int64))


def test_the_frontier_stays_at_the_missing_part() -> None:
    async def main() -> None:
        tasks, blob, shard = TaskOwner("test"), MemBlob(), new_shard_id()
        client = PersistClient(blob, MemConsensus(), config=PersistConfig(inline_bytes=0, maintenance=False))
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        seen: list[tuple[int, int]] = []

        def collect(oks: Updates, errs: Updates, frontier: Frontier) -> None:
            seen.extend(zip(oks.rows.column(0).to_pylist(), oks.times.tolist(), strict=True))

        dataflow, worker, reports = Dataflow("test", Timestamp(0)), Worker(), Reports()
        feed, collection = dataflow.input("in", SCHEMA)
        collection.inspect(collect)
        worker.install(dataflow)

        assert await writer.compare_and_append(rows(0, 0), Frontier(0), Frontier(1)) is None
        source = ShardSource(
            "in",
            lambda: client.open_reader(shard, SCHEMA, purpose="test"),
            SCHEMA,
            has_errors=False,
            as_of=Timestamp(0),
            until=DONE,
            feed=feed,
            reports=reports,
            clock=SystemClock(),
        )
        before = {key for key, _ in await blob.list_prefix("")}
        other = PersistClient(blob, client._consensus, config=client.config)  # without the writer's cache of parts
        second = await other.open_writer(shard, SCHEMA, purpose="test")
        assert await second.compare_and_append(rows(1, 1), Frontier(1), Frontier(2)) is None
        (damaged,) = {key for key, _ in await blob.list_prefix("")} - before
        await blob.set(damaged, b"no part")
        assert await second.compare_and_append(rows(2, 2), Frontier(2), Frontier(3)) is None

        tasks.spawn(source.run(), "source")
        async with asyncio.timeout(20):
            await reports.stalled.wait()
        while worker.step():
            pass
        assert shard in reports.message
        assert feed.frontier <= 1
        assert all(time < 1 for _, time in seen)
        await tasks.close()
        await other.close()
        await client.close()

    asyncio.run(main())
