"""Blobs that crashes leave behind are found and deleted; whatever somebody may still come to refer to is not."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import (
    BatchTooOld,
    CorruptStateError,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    SeqNo,
    ShardId,
    Sweeper,
    Versioned,
    new_shard_id,
)
from penstock.persist.commands import Applied
from penstock.persist.compact import compact
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Frontier, Timestamp, VirtualClock
from tests.persist.shards import SCHEMA, append, snapshot, updates
from tests.persist.txn.cluster import contents, rows

HOUR_S = 3600.0
CONFIG = PersistConfig(inline_bytes=0, cache_bytes=0, link_ms=12 * 3_600_000, sweep_pause_ms=60_000, maintenance=False)


class World:
    def __init__(self) -> None:
        self.blob, self.consensus, self.clock = MemBlob(), MemConsensus(), VirtualClock(1_000_000_000)

    def client(self) -> PersistClient:
        return PersistClient(self.blob, self.consensus, clock=self.clock, config=CONFIG)

    async def keys(self, shard: ShardId) -> set[str]:
        return {key.partition("/")[2] for key, _ in await self.blob.list_prefix(f"{shard}/")}


async def nothing(_: ShardId) -> frozenset[str]:
    return frozenset()


def test_every_shard_has_its_turn_and_only_old_orphans_go() -> None:
    async def main() -> None:
        world = World()
        client = world.client()
        shards = [new_shard_id() for _ in range(3)]
        orphans = {}
        for shard in shards:
            writer = await client.open_writer(shard, SCHEMA, purpose="test")
            await append(writer, [(1, 0, 1)], 0, 1)
            orphans[shard] = set((await writer.batch(updates([(2, 1, 1)]), Frontier(1), Frontier(2))).keys)
            await world.blob.set(f"{shard}/somebody-elses", b"not ours to judge")
        await client.close()  # the process dies before it links them
        coordinator = world.client()
        sweeper = Sweeper(coordinator, nothing)
        for _ in range(6):
            world.clock.advance(60)
            assert await sweeper.turn() == []
        world.clock.advance(24 * HOUR_S)
        swept: set[str] = set()
        for _ in range(3):
            world.clock.advance(60)
            swept |= set(await sweeper.turn())
        assert swept == set().union(*orphans.values())
        for shard in shards:
            left = await world.keys(shard)
            assert orphans[shard].isdisjoint(left)
            assert "somebody-elses" in left
            reader = await coordinator.open_reader(shard, SCHEMA, purpose="test")
            assert await snapshot(reader, 0) == {(1, 0): 1}
        assert len(coordinator.cached_states()) == 3, "only what was opened is kept: sweeping keeps no states"
        await coordinator.close()

    asyncio.run(main())


def test_a_batch_that_may_have_been_swept_is_not_appended() -> None:
    async def main() -> None:
        world = World()
        client = world.client()
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        batch = await writer.batch(updates([(1, 0, 1)]), Frontier(0), Frontier(1))
        world.clock.advance(11 * HOUR_S)
        late = await writer.batch(updates([(2, 0, 1)]), Frontier(0), Frontier(1))
        world.clock.advance(2 * HOUR_S)
        with pytest.raises(BatchTooOld, match="write its updates again"):
            await writer.compare_and_append_batches([late, batch], Frontier(0), Frontier(1))
        assert await client.sweep(shard, older_than_ms=24 * 3_600_000) == [], "hours lie between the two limits"
        assert await writer.compare_and_append_batches([late], Frontier(0), Frontier(1)) is None
        await client.close()

    asyncio.run(main())


def test_writes_that_only_the_transaction_log_knows_are_kept() -> None:
    async def main() -> None:
        world = World()
        client = world.client()
        txns, shard = new_shard_id(), new_shard_id()
        writer = await TxnsWriter.open(client, txns)
        assert await writer.register({shard: SCHEMA}, Timestamp(1)) is None
        other = world.client()
        unaware = await TxnsWriter.open(other, txns)  # a second coordinator, that hears of no commits by itself
        assert await writer.commit_at({shard: [rows(2, (7, "large"))]}, Timestamp(2)) is None
        stored = await world.keys(shard)
        assert len(stored) == 1
        assert unaware.unapplied_keys(shard) == frozenset()
        kept = asyncio.create_task(unaware.keys_to_keep(shard))
        while not kept.done():
            world.clock.advance(0.1)
            await asyncio.sleep(0)
        assert await kept == stored
        world.clock.advance(48 * HOUR_S)
        sweeper = Sweeper(other, unaware.keys_to_keep)
        for _ in range(4):
            world.clock.advance(60)
            assert await sweeper.turn() == []
        await writer.apply_le(Timestamp(2))
        for _ in range(4):
            world.clock.advance(60)
            assert await sweeper.turn() == [], "now the shard itself refers to it"
        reader = await TxnsReader.open(other, txns)
        handle = await reader.open_reader(shard, SCHEMA, purpose="test")
        assert await contents(handle, 2) == {(7, "large"): 1}
        for closing in (reader, writer, unaware, other, client):
            await closing.close()

    asyncio.run(main())


def test_a_damaged_shard_stops_no_sweep_and_no_setting_means_no_sweep() -> None:
    async def main() -> None:
        world = World()
        client = world.client()
        damaged, fine = sorted(new_shard_id() for _ in range(2))
        for shard in (damaged, fine):
            writer = await client.open_writer(shard, SCHEMA, purpose="test")
            await writer.batch(updates([(1, 0, 1)]), Frontier(0), Frontier(1))
        world.consensus._logs[damaged] = [Versioned(SeqNo(0), b"\xffdamaged")]
        await client.close()
        world.clock.advance(48 * HOUR_S)
        coordinator = world.client()
        sweeper = Sweeper(coordinator, nothing)

        async def two_turns() -> None:
            for _ in range(2):
                world.clock.advance(60)
                await sweeper.turn()

        with pytest.raises(CorruptStateError):
            await two_turns()
        running = asyncio.create_task(sweeper.run())
        for _ in range(60):
            world.clock.advance(20)
            for _ in range(20):
                await asyncio.sleep(0)
        assert not running.done()
        assert await world.keys(fine) == set()
        assert len(await world.keys(damaged)) == 1, "nobody knows what it refers to"
        running.cancel()
        await coordinator.close()
        off = PersistClient(MemBlob(), MemConsensus(), config=PersistConfig(sweep=False))
        await asyncio.wait_for(Sweeper(off, nothing).run(), 5)
        await off.close()

    asyncio.run(main())


def test_what_collection_will_remove_is_no_reason_to_commit_anything() -> None:
    async def main() -> None:
        world = World()
        client = world.client()
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        for time in range(4):
            await append(writer, [(time, time, 1)], time, time + 1)
        opened = await client._open(shard)
        assert await compact(opened, opened.state.batches) is Applied.YES
        before = (await opened.fetch()).seqno
        assert len(await world.keys(shard)) > 1, "the inputs are still there"
        world.clock.advance(48 * HOUR_S)
        for _ in range(3):
            world.clock.advance(60)
            assert await Sweeper(client, nothing).turn() == []
        assert (await opened.fetch()).seqno == before
        await client.close()

    asyncio.run(main())
