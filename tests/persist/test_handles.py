"""What the handles promise, on stores in memory."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from penstock.persist import (
    Fenced,
    InvalidUsage,
    LocalPubSub,
    MemBlob,
    MemConsensus,
    Mismatch,
    PersistClient,
    PersistConfig,
    SchemaMismatch,
    SinceError,
    new_shard_id,
)
from penstock.runtime import DONE, Frontier, Timestamp
from tests.persist.shards import SCHEMA, append, client, read_until, snapshot, tally, updates


def test_write_snapshot_listen() -> None:
    async def main() -> None:
        c = client()
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1), (2, 1, 1), (3, 2, 1)], 0, 3)
        await append(writer, [(1, 3, -1), (4, 4, 2)], 3, 5)
        assert writer.upper == 5
        assert await snapshot(reader, 1) == {(1, 1): 1, (2, 1): 1}
        assert await snapshot(reader, 4) == {(2, 4): 1, (3, 4): 1, (4, 4): 2}
        listen = await reader.listen(Timestamp(1))
        assert tally(await read_until(listen, 5)) == {(3, 2): 1, (1, 3): -1, (4, 4): 2}
        subscribed = await (await c.open_reader(shard, SCHEMA, purpose="x")).subscribe(Timestamp(2))
        first = await anext(subscribed)
        assert first.progress == 3
        assert tally(first.updates) == {(1, 2): 1, (2, 2): 1, (3, 2): 1}
        assert tally((await anext(subscribed)).updates) == {(1, 3): -1, (4, 4): 2}
        await c.close()

    asyncio.run(main())


def test_mismatch_is_a_result_and_changes_nothing() -> None:
    async def main() -> None:
        c = client()
        shard = new_shard_id()
        one, two = [await c.open_writer(shard, SCHEMA, purpose="test") for _ in range(2)]
        await append(one, [(1, 0, 1)], 0, 5)
        rows = updates([(2, 3, 1)])
        assert await two.compare_and_append(rows, Frontier(0), Frontier(9)) == Mismatch(Frontier(5))
        assert await two.compare_and_append(updates([]), Frontier(6), Frontier(9)) == Mismatch(Frontier(5))
        assert await two.compare_and_append(updates([]), Frontier(5), Frontier(5)) is None
        await append(two, [(2, 5, 1)], 5, 6)
        assert await one.fetch_recent_upper() == 6
        with pytest.raises(InvalidUsage):
            await one.compare_and_append(updates([(1, 6, 1)]), Frontier(7), Frontier(8))
        with pytest.raises(InvalidUsage):
            await one.compare_and_append(updates([(1, 8, 1)]), Frontier(6), Frontier(8))
        with pytest.raises(InvalidUsage):
            await one.compare_and_append(updates([]), Frontier(6), Frontier(5))
        with pytest.raises(SchemaMismatch):
            await c.open_writer(shard, pa.schema([("k", pa.int32())]), purpose="test")
        await c.close()

    asyncio.run(main())


def test_reads_wait_for_the_upper() -> None:
    async def main() -> None:
        c = client()
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        waiting = asyncio.create_task(snapshot(reader, 3))
        past = asyncio.create_task(writer.wait_for_upper_past(Frontier(3)))
        listen = await reader.listen(Timestamp(3))
        event = asyncio.create_task(anext(listen))
        await append(writer, [(1, 2, 1)], 0, 3)
        await append(writer, [], 3, 4)
        assert await asyncio.wait_for(waiting, 5) == {(1, 3): 1}
        assert await past == 4
        assert not event.done()
        event.cancel()
        await asyncio.wait({event})
        await append(writer, [(7, 5, 1)], 4, 6)
        assert tally((await anext(listen)).updates) == {(7, 5): 1}, "a cancelled wait loses nothing"
        await append(writer, [], 6, DONE)
        assert (await anext(listen)).progress == DONE
        with pytest.raises(StopAsyncIteration):
            await anext(listen)
        await c.close()

    asyncio.run(main())


def test_since_holds_what_is_read() -> None:
    async def main() -> None:
        c = client()
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        critical = await c.open_since(shard, "controller", purpose="test", opaque=1)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 20)
        await reader.downgrade_since(Frontier(10))
        assert reader.since == 10
        with pytest.raises(SinceError) as refused:
            await snapshot(reader, 9)
        assert refused.value.since == 10
        other = await c.open_reader(shard, SCHEMA, purpose="starts where the critical reader is")
        assert other.since == 0
        assert await critical.compare_and_downgrade_since(1, 2, Frontier(5)) is None
        assert await critical.compare_and_downgrade_since(1, 3, Frontier(9)) == Fenced(2, Frontier(5))
        assert await critical.compare_and_downgrade_since(2, 2, Frontier(3)) is None
        assert critical.since == 5
        assert (await c.open_reader(shard, SCHEMA, purpose="test")).since == 5
        again = await c.open_since(shard, "controller", purpose="test", opaque=7)
        assert (again.since, again.opaque) == (5, 2)
        await c.close()

    asyncio.run(main())


def test_batches_are_appended_together_or_deleted() -> None:
    async def main() -> None:
        c = client(inline_bytes=0)
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        one = await writer.batch(updates([(1, 2, 1)]), Frontier(2), Frontier(3))
        two = await writer.batch(updates([(2, 2, 1)]), Frontier(2), Frontier(3))
        lost = await writer.batch(updates([(3, 2, 1)]), Frontier(2), Frontier(3))
        shipped = type(one).from_bytes(one.to_bytes())
        assert shipped == one
        result = await writer.compare_and_append_batches([shipped, two], Frontier(1), Frontier(3))
        assert result == Mismatch(Frontier(0))
        assert await writer.compare_and_append_batches([shipped, two], Frontier(0), Frontier(3)) is None
        await writer.delete_batch(lost)
        with pytest.raises(InvalidUsage):
            await writer.compare_and_append_batches([two], Frontier(3), Frontier(4))
        assert await snapshot(reader, 2) == {(1, 2): 1, (2, 2): 1}
        await c.close()

    asyncio.run(main())


def test_projection() -> None:
    async def main() -> None:
        for inline_bytes in (0, 16384):
            c = client(inline_bytes=inline_bytes)
            shard = new_shard_id()
            writer = await c.open_writer(shard, SCHEMA, purpose="test")
            reader = await c.open_reader(shard, SCHEMA, purpose="test")
            await append(writer, [(1, 0, 1), (2, 0, 1)], 0, 1)
            for columns in ([], ["v"], ["v", "k"]):
                parts = [p async for p in await reader.snapshot(Timestamp(0), columns=columns)]
                assert [p.schema.names for p in parts] == [columns]
                assert sum(len(p) for p in parts) == 2
            with pytest.raises(KeyError):
                reader.snapshot(Timestamp(0), columns=["nope"])
            await c.close()

    asyncio.run(main())


@pytest.mark.parametrize("pushed", [True, False])
def test_two_clients_see_each_other(pushed: bool) -> None:
    async def main() -> None:
        blob, consensus, pubsub = MemBlob(), MemConsensus(), LocalPubSub() if pushed else None
        config = PersistConfig(poll_max_ms=60_000 if pushed else 20, poll_min_ms=60_000 if pushed else 5)
        one, two = (PersistClient(blob, consensus, pubsub=pubsub, config=config) for _ in range(2))
        shard = new_shard_id()
        writer = await one.open_writer(shard, SCHEMA, purpose="test")
        reader = await two.open_reader(shard, SCHEMA, purpose="test")
        listen = await reader.listen(Timestamp(0))
        for t in range(1, 50):
            await append(writer, [(t, t, 1)], t if t > 1 else 0, t + 1)
            seen = await asyncio.wait_for(read_until(listen, t + 1), 10)
            assert tally(seen) == {(t, t): 1}
        await one.close()
        await two.close()

    asyncio.run(main())


def test_finalize_leaves_a_tombstone() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        c = PersistClient(blob, consensus, config=PersistConfig(inline_bytes=0))
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        await c.finalize(shard)
        await c.finalize(shard)
        assert await blob.list_prefix("") == []
        assert len(await consensus.scan(shard, 0)) == 1  # type: ignore[arg-type]
        assert await writer.compare_and_append(updates([]), Frontier(1), Frontier(2)) == Mismatch(DONE)
        with pytest.raises(SinceError):
            await snapshot(reader, 0)
        other = PersistClient(blob, consensus)
        assert (await other.open_writer(shard, SCHEMA, purpose="test")).upper == DONE
        assert (await other.open_reader(shard, SCHEMA, purpose="test")).since == DONE
        await c.close()
        await other.close()

    asyncio.run(main())


def test_nothing_is_appended_beyond_the_end_of_time() -> None:
    async def main() -> None:
        c = client()
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await c.finalize(shard)
        assert writer.upper == DONE
        before = await c._consensus.head(shard)
        with pytest.raises(InvalidUsage, match="too great"):
            await writer.compare_and_append(updates([]), DONE, Frontier(DONE + 1))
        assert await writer.compare_and_append(updates([]), DONE, DONE) is None
        assert await c._consensus.head(shard) == before
        await c.close()

    asyncio.run(main())


@pytest.mark.parametrize("inline_bytes", [0, 10_000])
@pytest.mark.parametrize("same_process", [True, False])
def test_a_read_of_a_shard_that_is_finalized_meanwhile_is_no_corruption(inline_bytes: int, same_process: bool) -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(inline_bytes=inline_bytes, cache_bytes=0)
        one = PersistClient(blob, consensus, config=config)
        two = one if same_process else PersistClient(blob, consensus, config=config)
        shard = new_shard_id()
        await append(await one.open_writer(shard, SCHEMA, purpose="test"), [(1, 0, 1)], 0, 1)
        reader = await two.open_reader(shard, SCHEMA, purpose="test")
        reading = await reader.snapshot(Timestamp(0))
        listen = await (await two.open_reader(shard, SCHEMA, purpose="test")).subscribe(Timestamp(0))
        await one.finalize(shard)
        if inline_bytes and not same_process:
            assert tally([await anext(reading)]) == {(1, 0): 1}, "it has all that it needs"
        else:
            with pytest.raises(SinceError):
                await anext(reading)
            with pytest.raises(SinceError):
                await anext(listen)
        await one.close()
        await two.close()

    asyncio.run(main())


def test_whatever_since_a_reader_names_can_be_read() -> None:
    async def main() -> None:
        c = client()
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1), (2, 3, 1)], 0, 5)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        moving = asyncio.ensure_future(reader.downgrade_since(Frontier(3)))
        while not moving.done():
            reader.lease.check_readable(Timestamp(reader.since))
            await asyncio.sleep(0)
        assert reader.since == 3
        await c.close()

    asyncio.run(main())
