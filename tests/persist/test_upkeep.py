"""Rollups, garbage collection, compaction, leases: a shard stays small and readers keep what they need."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pyarrow as pa
import pytest

from penstock.persist import (
    CorruptStateError,
    Listen,
    LocalPubSub,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    ReaderExpired,
    SeqNo,
    new_shard_id,
)
from penstock.persist.shard import Shard
from penstock.runtime import Frontier, Timestamp, Updates, VirtualClock
from tests.persist.shards import SCHEMA, Change, append, expected_at, read_until, snapshot, tally


def shard_of(client: PersistClient, shard: str) -> Shard:
    return client._shards[shard]  # type: ignore[index]


async def settled(client: PersistClient, shard: str) -> None:
    """Wait until the shard's maintenance has nothing left to do."""
    await client._maintenance[shard].idle()  # type: ignore[index]


@pytest.mark.parametrize("rows", [0, 1, 60])
def test_endless_appends_leave_a_flat_shard(rows: int) -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        c = PersistClient(blob, consensus, config=PersistConfig(inline_bytes=400, rollup_every=64))
        shard = new_shard_id()
        since = await c.open_since(shard, "controller", purpose="test")
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        listen = await reader.listen(Timestamp(0))
        upper, sizes = 1, []
        await append(writer, [], 0, 1)
        for round_ in range(5):
            for _ in range(600):
                # The same keys come and go: their number stays, however long the history.
                changes = [(k, upper, d) for k in range(rows) for d in ((1, -1) if upper > 1 else (1,))]
                await append(writer, changes, upper, upper + 1)
                upper += 1
                if upper % 50 == 0:
                    await read_until(listen, upper)
                    await since.compare_and_downgrade_since(0, 0, Frontier(upper - 5))
            await settled(c, shard)
            state = shard_of(c, shard).state
            blobs = await blob.list_prefix("")
            sizes.append((len(await consensus.scan(shard, SeqNo(0))), len(state.batches), len(blobs)))
            assert state.inline_bytes <= 20_000
            assert sum(size for _, size in blobs) < 600_000, round_
        # A rollup every 64 versions, collected up to at once; then what this round's last steps added.
        assert max(live for live, _, _ in sizes) <= 2 * 64
        assert max(batches for _, batches, _ in sizes) <= 40
        assert max(blobs for _, _, blobs in sizes) <= 200
        assert await snapshot(reader, upper - 1) == {(k, upper - 1): 1 for k in range(rows)}
        await c.close()

    asyncio.run(main())


def test_a_leased_snapshot_survives_everything() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(inline_bytes=0, rollup_every=8, hold_versions=1, cache_bytes=0, compaction_fan_in=3)
        c = PersistClient(blob, consensus, config=config)
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        abandoned = await c.open_reader(shard, SCHEMA, purpose="test")
        log: list[Change] = []
        for t in range(30):
            log.append((t, t, 1))
            await append(writer, [log[-1]], t, t + 1)
        leased = await reader.snapshot(Timestamp(29))
        version = shard_of(c, shard).state.seqno
        listen = await reader.listen(Timestamp(0))
        first = asyncio.create_task(anext(listen))
        await asyncio.sleep(0)
        (await abandoned.snapshot(Timestamp(29)))  # dropped at once: its lease goes with it
        await abandoned.downgrade_since(Frontier(29))
        for t in range(30, 300):
            await append(writer, [(t, t, 1)], t, t + 1)
        await settled(c, shard)
        held = shard_of(c, shard).state.readers[reader.reader_id].hold
        assert held <= version, "the hold stays at the leased version"
        assert tally([part async for part in leased]) == expected_at(log, 29)
        assert tally((await first).updates)
        for t in range(300, 340):
            await append(writer, [(t, t, 1)], t, t + 1)
        await settled(c, shard)
        state = shard_of(c, shard).state
        assert state.seqno_since > held, "with the lease gone the hold moves on, along with the commits"
        assert len(await consensus.scan(shard, SeqNo(0))) < 60
        await c.close()

    asyncio.run(main())


def test_reads_do_not_depend_on_compaction_rollups_or_inlining() -> None:
    async def main(**config: Any) -> list[object]:
        blob, consensus = MemBlob(), MemConsensus()
        c = PersistClient(blob, consensus, config=PersistConfig(**config))
        shard = new_shard_id()
        dice = random.Random(5)
        since = await c.open_since(shard, "controller", purpose="test")
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        answers: list[object] = []
        upper = 0
        log: list[Change] = []
        for step in range(150):
            new = upper + dice.randint(1, 4)
            changes = [
                (dice.randrange(20), dice.randrange(upper, new), dice.choice([1, -1]))
                for _ in range(dice.choice([0, 2, 30]))
            ]
            log += changes
            await append(writer, changes, upper, new)
            upper = new
            if step % 10 == 9:
                floor = max(0, upper - 20)
                await since.compare_and_downgrade_since(0, 0, Frontier(floor))
                await reader.downgrade_since(Frontier(floor))
                as_of = dice.randrange(floor, upper)
                answer = await snapshot(reader, as_of)
                assert answer == expected_at(log, as_of)
                answers.append(answer)
        fresh = PersistClient(blob, consensus)
        again = await fresh.open_reader(shard, SCHEMA, purpose="test")
        answers.append(await snapshot(again, upper - 1))
        await c.close()
        await fresh.close()
        return answers

    plain = asyncio.run(main(maintenance=False))
    small = {"rollup_every": 5, "compaction_fan_in": 2, "hold_versions": 1}
    assert asyncio.run(main(**small)) == plain
    assert asyncio.run(main(**small, inline_bytes=0, part_bytes=200)) == plain
    assert asyncio.run(main(**small, inline_bytes=0, compaction_memory_bytes=2500)) == plain
    assert asyncio.run(main(inline_total_bytes=1500, compaction_fan_in=100)) == plain


def test_state_is_rebuilt_when_the_newest_rollup_is_lost() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        c = PersistClient(blob, consensus, config=PersistConfig(rollup_every=10))
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        # A reader whose lease does not move keeps the older versions, and so an older rollup.
        other = PersistClient(blob, consensus)
        await other.open_reader(shard, SCHEMA, purpose="test")
        for t in range(95):
            await append(writer, [(t, t, 1)], t, t + 1)
        await settled(c, shard)
        await c.close()
        rollups = shard_of(c, shard).state.rollups
        newest = rollups[max(rollups)]
        for damage in (b"", b"PSR1garbage"):
            await blob.set(f"{shard}/{newest.key}", damage)
            fresh = PersistClient(blob, consensus)
            reader = await fresh.open_reader(shard, SCHEMA, purpose="test")
            assert len(await snapshot(reader, 94)) == 95
            await fresh.close()
        versions = await consensus.scan(shard, SeqNo(0))
        await consensus.truncate(shard, SeqNo(versions[-1].seqno))
        lost = PersistClient(blob, consensus)
        for rollup in rollups.values():
            await blob.delete(f"{shard}/{rollup.key}")
        with pytest.raises(CorruptStateError, match="Restore"):
            await lost.open_reader(shard, SCHEMA, purpose="test")
        await other.close()
        await lost.close()

    asyncio.run(main())


def test_a_lagging_client_catches_up_past_a_truncation() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(rollup_every=8, poll_min_ms=1, poll_max_ms=1)
        c, lagging = (PersistClient(blob, consensus, config=config) for _ in range(2))
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        behind = await lagging.open_writer(shard, SCHEMA, purpose="test")
        for t in range(100):
            await append(writer, [(t, t, 1)], t, t + 1)
        await settled(c, shard)
        assert (await consensus.scan(shard, SeqNo(0)))[0].seqno > 50
        assert await behind.wait_for_upper_past(Frontier(99)) == 100
        await append(behind, [(7, 100, 1)], 100, 101)
        await c.close()
        await lagging.close()

    asyncio.run(main())


def test_an_expired_reader_gets_a_typed_error_and_holds_nothing() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        asleep, awake = VirtualClock(10_000), VirtualClock(10_000)
        config = PersistConfig(reader_lease_ms=1000, rollup_every=8, inline_bytes=0, cache_bytes=0)
        sleeper = PersistClient(blob, consensus, clock=asleep, config=config)
        c = PersistClient(blob, consensus, clock=awake, config=config)
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await sleeper.open_reader(shard, SCHEMA, purpose="test")
        keeper = await c.open_reader(shard, SCHEMA, purpose="test")
        await append(writer, [(0, 0, 1)], 0, 1)
        listen = await reader.listen(Timestamp(0))
        pending = asyncio.create_task(anext(listen))
        awake.advance(0.9)
        await append(writer, [(1, 1, 1)], 1, 2)
        assert reader.reader_id in shard_of(c, shard).state.readers
        for t in range(2, 60):
            awake.advance(0.1)
            await append(writer, [(t, t, 1)], t, t + 1)
        state = shard_of(c, shard).state
        assert reader.reader_id not in state.readers
        assert keeper.reader_id in state.readers, "readers of a live process are renewed along with its commits"
        assert state.since == 0, "expiry moves no since"
        await keeper.downgrade_since(Frontier(50))
        await settled(c, shard)
        asleep.advance(2)
        with pytest.raises(ReaderExpired):
            await asyncio.wait_for(pending, 5)
        with pytest.raises(ReaderExpired):
            await snapshot(reader, 0)
        fresh = await sleeper.open_reader(shard, SCHEMA, purpose="test")
        assert len(await snapshot(fresh, 59)) == 60
        await c.close()
        await sleeper.close()

    asyncio.run(main())


def test_idle_readers_are_kept_alive_by_heartbeats() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        clock = VirtualClock(10_000)
        c = PersistClient(blob, consensus, clock=clock, config=PersistConfig(reader_lease_ms=1000))
        shard = new_shard_id()
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        before = len(await consensus.scan(shard, SeqNo(0)))
        for _ in range(40):
            clock.advance(0.25)
            for _ in range(20):
                await asyncio.sleep(0)
        assert len(await consensus.scan(shard, SeqNo(0))) >= before + 39
        entry = shard_of(c, shard).state.readers[reader.reader_id]
        assert entry.heartbeat_ms + entry.lease_ms > clock.now_ms()
        await c.close()

    asyncio.run(main())


def test_interrupted_collection_is_taken_up_again() -> None:
    async def main() -> None:
        class Stubborn(MemConsensus):
            broken = True

            async def truncate(self, key: str, seqno: SeqNo) -> int:
                if self.broken:
                    raise asyncio.CancelledError  # the process is killed between the deletions and the truncation
                return await super().truncate(key, seqno)

        blob, consensus = MemBlob(), Stubborn()
        config = PersistConfig(rollup_every=8, inline_bytes=0, compaction_fan_in=2)
        c = PersistClient(blob, consensus, config=config)
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        for t in range(50):
            await append(writer, [(t, t, 1)], t, t + 1)
        await settled(c, shard)
        await c.close()
        consensus.broken = False
        again = PersistClient(blob, consensus, config=config)
        writer = await again.open_writer(shard, SCHEMA, purpose="test")
        for t in range(50, 80):
            await append(writer, [(t, t, 1)], t, t + 1)
        await settled(again, shard)
        assert len(await consensus.scan(shard, SeqNo(0))) < 40
        reader = await again.open_reader(shard, SCHEMA, purpose="test")
        assert len(await snapshot(reader, 79)) == 80
        await again.close()

    asyncio.run(main())


def test_a_listen_of_much_data_comes_in_bounded_events() -> None:
    async def main() -> None:
        c = PersistClient(MemBlob(), MemConsensus(), config=PersistConfig(part_bytes=500_000))
        shard = new_shard_id()
        schema = pa.schema([("n", pa.int64())])
        writer = await c.open_writer(shard, schema, purpose="test")
        reader = await c.open_reader(shard, schema, purpose="test")
        rows = pa.record_batch([pa.array(range(300_000), pa.int64())], schema=schema)
        big = Updates.at(rows, Timestamp(5))
        assert await writer.compare_and_append(big, Frontier(0), Frontier(6)) is None
        await append_one(writer, schema, 6)
        for listen, start in ((await reader.listen(Timestamp(4)), 5), (await reader.subscribe(Timestamp(5)), 5)):
            await drain(listen, start)
        await c.close()

    async def append_one(writer: Any, schema: pa.Schema, time: int) -> None:
        one = Updates.at(pa.record_batch([pa.array([-1], pa.int64())], schema=schema), Timestamp(time))
        assert await writer.compare_and_append(one, Frontier(time), Frontier(time + 1)) is None

    async def drain(listen: Listen, start: int) -> None:
        rows, progress = 0, []
        async for event in listen:
            count = sum(len(part) for part in event.updates)
            assert count <= 70_000
            rows += count
            progress.append(event.progress)
            if event.progress == 7:
                break
        assert rows == 300_001
        assert progress == sorted(progress)
        assert progress[0] == start
        assert len(progress) >= 5

    asyncio.run(main())


def test_batches_beyond_the_inline_budget_go_to_blobs() -> None:
    async def main() -> None:
        blob = MemBlob()
        c = PersistClient(blob, MemConsensus(), config=PersistConfig(inline_total_bytes=3000, maintenance=False))
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        for t in range(40):
            await append(writer, [(t, t, 1)], t, t + 1)
        assert shard_of(c, shard).state.inline_bytes <= 3000
        assert len(await blob.list_prefix("")) > 5
        await c.close()

    asyncio.run(main())


@pytest.mark.parametrize("pushed", [True, False])
def test_a_reader_in_another_process_does_not_hold_up_collection(pushed: bool) -> None:
    async def main() -> None:
        blob, consensus, pubsub = MemBlob(), MemConsensus(), LocalPubSub() if pushed else None
        config = PersistConfig(rollup_every=16, hold_versions=4, poll_min_ms=1, poll_max_ms=2, downgrade_ms=50)
        writing, reading = (PersistClient(blob, consensus, pubsub=pubsub, config=config) for _ in range(2))
        shard = new_shard_id()
        writer = await writing.open_writer(shard, SCHEMA, purpose="test")
        listen = await (await reading.open_reader(shard, SCHEMA, purpose="test")).listen(Timestamp(0))
        await append(writer, [], 0, 1)
        for t in range(1, 601):
            await append(writer, [(t, t, 1)], t, t + 1)
            if t % 20 == 0:
                seen = await asyncio.wait_for(read_until(listen, t + 1), 10)
                assert tally(seen) == {(key, key): 1 for key in range(t - 19, t + 1)}
        await settled(writing, shard)
        assert len(await consensus.scan(shard, SeqNo(0))) < 150
        assert shard_of(writing, shard).state.rollups.keys() - {0}
        await writing.close()
        await reading.close()

    asyncio.run(main())
