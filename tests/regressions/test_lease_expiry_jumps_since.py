"""A reader that expires moves no since: that is left to those who are still there, with a downgrade of their own."""

from __future__ import annotations

import asyncio

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, WriteHandle, new_shard_id
from penstock.runtime import Frontier, VirtualClock
from tests.persist.shards import SCHEMA, append, expected_at, snapshot

LEASE_MS = 1_000


class Shard:
    """One shard; a client that lives, and readers of processes that are gone as soon as they have opened one."""

    def __init__(self) -> None:
        self.id = new_shard_id()
        self.clock = VirtualClock(10_000)
        self.stores = MemBlob(), MemConsensus()
        self.config = PersistConfig(reader_lease_ms=LEASE_MS, maintenance=False)
        self.alive = PersistClient(*self.stores, clock=self.clock, config=self.config)

    async def abandoned_reader(self, since: int) -> None:
        stopped = VirtualClock(self.clock.now_ms())
        client = PersistClient(*self.stores, clock=stopped, config=self.config)
        reader = await client.open_reader(self.id, SCHEMA, purpose="test")
        await reader.downgrade_since(Frontier(since))

    async def filled(self) -> WriteHandle:
        writer = await self.alive.open_writer(self.id, SCHEMA, purpose="test")
        for time in range(10):
            await append(writer, [(time, time, 1)], time, time + 1)
        return writer

    async def readable_at(self, as_of: int) -> None:
        fresh = await self.alive.open_reader(self.id, SCHEMA, purpose="test")
        assert await snapshot(fresh, as_of) == expected_at([(time, time, 1) for time in range(10)], as_of)


def test_readers_that_expire_one_after_the_other_leave_the_since() -> None:
    async def main() -> None:
        shard = Shard()
        writer = await shard.filled()
        await shard.abandoned_reader(2)
        shard.clock.advance(0.6 * LEASE_MS / 1000)
        await shard.abandoned_reader(8)
        for time in (10, 11):
            shard.clock.advance(0.6 * LEASE_MS / 1000)
            await append(writer, [], time, time + 1)
        await shard.readable_at(2)
        await shard.alive.close()

    asyncio.run(main())


def test_a_reader_that_is_expired_by_its_owner_leaves_the_since() -> None:
    async def main() -> None:
        shard = Shard()
        await shard.filled()
        ending = await shard.alive.open_reader(shard.id, SCHEMA, purpose="test")
        await shard.abandoned_reader(8)
        await ending.downgrade_since(Frontier(2))
        await ending.expire()
        await shard.readable_at(2)
        await shard.alive.close()

    asyncio.run(main())
