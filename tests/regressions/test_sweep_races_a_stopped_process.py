"""A process that is stopped for a day just before it commits must not refer to blobs that were swept meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from penstock.persist import (
    CasResult,
    MemConsensus,
    PersistConfig,
    ShardId,
    Sweeper,
    Versioned,
    new_shard_id,
)
from penstock.persist.commands import Applied
from penstock.persist.compact import compact
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Frontier, Timestamp
from tests.persist.shards import SCHEMA, append, expected_at, snapshot, updates
from tests.persist.stopped import TwoProcesses
from tests.persist.txn.cluster import contents, rows

T = TypeVar("T")
WEEK_MS = 7 * 24 * 3_600_000
CONFIG = PersistConfig(
    inline_bytes=0,
    cache_bytes=0,
    sweep_pause_ms=60_000,
    maintenance=False,
    reader_lease_ms=WEEK_MS,
    writer_lease_ms=WEEK_MS,
)
LOG = [(time % 3, time, 1) for time in range(4)]


class Stopping(MemConsensus):
    """The process behind it is stopped with its next compare-and-set of `key` on the way, until `resumed` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.key: str | None = None
        self.stopped, self.resumed = asyncio.Event(), asyncio.Event()

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        if key == self.key:
            self.key = None
            self.stopped.set()
            await self.resumed.wait()
        return await super().compare_and_set(key, new)


class World(TwoProcesses[Stopping]):
    def __init__(self) -> None:
        super().__init__(Stopping(), CONFIG)

    async def blobs(self, shard: ShardId) -> set[str]:
        return {key.partition("/")[2] for key, _ in await self.blob.list_prefix(f"{shard}/")}

    async def stop(self, work: Awaitable[T], at: ShardId) -> asyncio.Future[T]:
        """`work` of the first process, stopped at its next commit to `at`."""
        self.stopping.key = at
        running = asyncio.ensure_future(work)
        await self.stopping.stopped.wait()
        return running

    async def sweep(self, sweeper: Sweeper, shards: int) -> set[str]:
        """What the second process sweeps a day and a half later."""
        self.clock.advance(36 * 3600)
        swept: set[str] = set()
        for _ in range(shards):
            self.clock.advance(60)
            swept |= set(await self.patiently(sweeper.turn()))
        return swept


async def nothing(_: ShardId) -> frozenset[str]:
    return frozenset()


def test_an_append_stores_its_updates_anew() -> None:
    async def main() -> None:
        world, shard = World(), new_shard_id()
        writer = await world.first.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, LOG, 0, 4)
        before = await world.blobs(shard)
        late = await world.stop(writer.compare_and_append(updates([(7, 4, 1)]), Frontier(4), Frontier(5)), shard)
        stored = await world.blobs(shard) - before
        assert await world.sweep(Sweeper(world.second, nothing), 1) == stored != set()
        world.stopping.resumed.set()
        assert await world.patiently(late) is None
        reader = await world.second.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 4) == expected_at([*LOG, (7, 4, 1)], 4)
        await world.close()

    asyncio.run(main())


def test_a_compaction_is_given_up() -> None:
    async def main() -> None:
        world, shard = World(), new_shard_id()
        writer = await world.first.open_writer(shard, SCHEMA, purpose="test")
        for change in LOG:
            await append(writer, [change], change[1], change[1] + 1)
        before = await world.blobs(shard)
        shared = await world.first._open(shard)
        late = await world.stop(compact(shared, shared.state.batches), shard)
        outputs = await world.blobs(shard) - before
        assert await world.sweep(Sweeper(world.second, nothing), 1) == outputs != set()
        world.stopping.resumed.set()
        assert await world.patiently(late) is Applied.NO
        reader = await world.second.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 3) == expected_at(LOG, 3)
        await world.close()

    asyncio.run(main())


def test_a_transaction_stores_its_writes_anew() -> None:
    async def main() -> None:
        world, shard, txns = World(), new_shard_id(), new_shard_id()
        writer = await TxnsWriter.open(world.first, txns)
        assert await writer.register({shard: SCHEMA}, Timestamp(1)) is None
        other = await TxnsWriter.open(world.second, txns)
        commit = writer.commit_at({shard: [rows(2, (7, "large"))]}, Timestamp(2))
        late = await world.stop(commit, txns)
        stored = await world.blobs(shard)
        assert await world.sweep(Sweeper(world.second, other.keys_to_keep), 2) >= stored != set()
        world.stopping.resumed.set()
        assert await world.patiently(late) is None
        assert await world.patiently(writer.commit_at({shard: [rows(3, (8, "again"))]}, Timestamp(3))) is None
        await world.patiently(writer.apply_le(Timestamp(3)))
        reader = await TxnsReader.open(world.second, txns)
        handle = await reader.open_reader(shard, SCHEMA, purpose="test")
        assert await world.patiently(contents(handle, 3)) == {(7, "large"): 1, (8, "again"): 1}
        for closing in (reader, other, writer):
            await closing.close()
        await world.close()

    asyncio.run(main())
