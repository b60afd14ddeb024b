"""Reads that leave out what is not needed, hand parts on, or consolidate; on stores in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace
from prometheus_client import Counter as Metric

from penstock.persist import (
    ClientClosed,
    Compare,
    CorruptBlobError,
    InvalidUsage,
    LeaseLost,
    LocalPubSub,
    MemBlob,
    MemConsensus,
    Operator,
    PersistClient,
    PersistConfig,
    ReaderExpired,
    SinceError,
    StatisticsViolated,
    UnreliableConsensus,
    fetching,
    metrics,
    new_shard_id,
)
from penstock.persist.snapshot import parts_up_to
from penstock.persist.state import HollowPart, State
from penstock.runtime import DONE, Determinate, Frontier, InternalError, Timestamp, Updates, VirtualClock
from tests.persist.shards import SCHEMA, append, client, read_until, snapshot, tally

HOLLOW = PersistConfig(inline_bytes=0, stats_from_bytes=0, cache_bytes=0, maintenance=False)


class CountingBlob(MemBlob):
    def __init__(self) -> None:
        super().__init__()
        self.gets: list[str] = []

    async def get(self, key: str) -> bytes | None:
        self.gets.append(key)
        return await super().get(key)


def counted(metric: Metric, outcome: str) -> float:
    return float(metric.labels(outcome)._value.get())


# Time, statistics, projection, counting


def test_filters_leave_parts_out_unread() -> None:
    async def main() -> None:
        blob = CountingBlob()
        c, shard = PersistClient(blob, MemConsensus(), config=HOLLOW), new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        for time in range(10):
            await append(writer, [(10 * time + i, time, 1) for i in range(10)], time, time + 1)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        wanted = Compare("k", Operator.GE, 75)
        before = {outcome: counted(metrics.READ_PARTS, outcome) for outcome in ("filtered", "fetched")}
        parts = [part async for part in reader.snapshot(Timestamp(9), filter_=wanted)]
        assert tally(parts) == {(key, 9): 1 for key in range(70, 100)}, "of the parts that are kept all rows come"
        assert len(blob.gets) == 3
        assert counted(metrics.READ_PARTS, "filtered") - before["filtered"] == 7
        assert counted(metrics.READ_PARTS, "fetched") - before["fetched"] == 3
        blob.gets.clear()
        only = [
            part async for part in reader.snapshot(Timestamp(9), columns=["v"], filter_=Compare("k", Operator.EQ, 5))
        ]
        assert [part.rows.to_pydict() for part in only] == [{"v": [f"v{i}" for i in range(10)]}]
        assert len(blob.gets) == 1, "the filter may be on a column that is not read"
        stats = await reader.snapshot_stats(Timestamp(9), filter_=wanted)
        assert (stats.rows, stats.parts) == (30, 3)
        assert (await reader.snapshot_stats(Timestamp(4))).rows == 50
        blob.gets.clear()
        assert await snapshot(reader, 2) == {(key, 2): 1 for key in range(30)}
        assert len(blob.gets) == 3, "later parts are not read"
        with pytest.raises(KeyError):
            reader.snapshot(Timestamp(9), filter_=Compare("nope", Operator.EQ, 1))
        await c.close()

    asyncio.run(main())


def test_parts_from_before_a_column_are_left_out_by_a_filter_on_it() -> None:
    async def main() -> None:
        blob = CountingBlob()
        c, shard = PersistClient(blob, MemConsensus(), config=HOLLOW), new_shard_id()
        await append(await c.open_writer(shard, SCHEMA, purpose="test"), [(1, 0, 1)], 0, 1)
        grown = pa.schema([*SCHEMA, ("n", pa.int64())])
        await c.compare_and_evolve_schema(shard, 0, grown)  # type: ignore[arg-type]
        writer = await c.open_writer(shard, grown, purpose="test")
        rows = pa.RecordBatch.from_pydict({"k": [2], "v": ["v2"], "n": [7]}, schema=grown)
        assert await writer.compare_and_append(Updates.at(rows, Timestamp(1)), Frontier(1), Frontier(2)) is None
        reader = await c.open_reader(shard, grown, purpose="test")
        parts = [part async for part in reader.snapshot(Timestamp(1), filter_=Compare("n", Operator.EQ, 7))]
        assert tally(parts) == {(2, 1): 1}
        assert len(blob.gets) == 1
        await c.close()

    asyncio.run(main())


@pytest.mark.parametrize("percent", [0, 100])
def test_an_audit_finds_wrong_statistics(percent: int) -> None:
    async def main() -> None:
        blob, consensus, shard = CountingBlob(), MemConsensus(), new_shard_id()
        config = PersistConfig(**{**vars(HOLLOW), "stats_audit_percent": percent})
        c = PersistClient(blob, consensus, config=config)
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(5, 0, 1)], 0, 1)
        await append(writer, [(6, 1, 1)], 1, 2)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        right = Compare("k", Operator.EQ, 6)
        assert tally([part async for part in reader.snapshot(Timestamp(1), filter_=right)]) == {(6, 1): 1}
        assert len(blob.gets) == 1 + bool(percent), "what was left out is read too, and agrees"
        one, two = c._shards[shard].state.batches
        lying = replace(one.parts[0], stats=two.parts[0].stats)
        cached = c._shards[shard]
        cached.state = replace(cached.state, batches=(replace(one, parts=(lying,)), two))
        wrong = Compare("k", Operator.EQ, 5)
        if percent == 0:
            assert [part async for part in reader.snapshot(Timestamp(1), filter_=wrong)] == []
        else:
            with pytest.raises(StatisticsViolated, match=rf"{lying.key}.*Compare.*k.*5") as caught:
                [part async for part in reader.snapshot(Timestamp(1), filter_=wrong)]
            assert caught.value.shard == shard
        await c.close()

    asyncio.run(main())


def test_audits_are_bounded() -> None:
    parts = [(0, i, replace(_hollow(), key=f"k{i}", size=100)) for i in range(1000)]
    assert len(fetching.to_audit(parts, 100, 10**9)) == 1000
    assert 10 < len(fetching.to_audit(parts, 5, 10**9)) < 100
    assert fetching.to_audit(parts, 5, 10**9) == fetching.to_audit(parts, 5, 10**9)
    assert len(fetching.to_audit(parts, 100, 950)) == 9
    assert fetching.to_audit(parts, 0, 10**9) == []


def _hollow() -> HollowPart:
    return HollowPart("k", "parquet", 1, 1, 1, 1, 0, 0)


def test_counting_reads_only_what_straddles() -> None:
    async def main() -> None:
        blob, shard = CountingBlob(), new_shard_id()
        c = PersistClient(blob, MemConsensus(), config=HOLLOW)
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1), (2, 1, 2), (3, 2, 1)], 0, 3)
        await append(writer, [(1, 3, -1), (4, 5, 2)], 3, 6)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        assert [await reader.count(Timestamp(2)), len(blob.gets)] == [4, 0]
        assert [await reader.count(Timestamp(3)), len(blob.gets)] == [3, 1], "one part has later rows too"
        assert [await reader.count(Timestamp(5)), len(blob.gets)] == [5, 1]
        waiting = asyncio.create_task(reader.count(Timestamp(6)))
        await append(writer, [(9, 6, 1)], 6, 7)
        assert await waiting == 6
        await reader.downgrade_since(Frontier(5))
        with pytest.raises(SinceError):
            await reader.count(Timestamp(4))
        assert not reader.lease._leases
        await c.close()

    asyncio.run(main())


# Cursors and streams


@pytest.mark.parametrize("memory", [20_000, 60_000, 1 << 30])
@pytest.mark.parametrize("columns", [None, ["v"], []])
def test_streaming_consolidate(memory: int, columns: list[str] | None, tmp_path: Path) -> None:
    """A cursor gives each row once, whatever fits into memory; a stream gives every update."""

    async def main() -> None:
        rng = np.random.default_rng(memory)
        spill = PersistConfig(**{**vars(HOLLOW), "snapshot_memory_bytes": memory, "spill_directory": str(tmp_path)})
        c, shard = PersistClient(MemBlob(), MemConsensus(), config=spill), new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        expected: Counter[Any] = Counter()
        for time in range(8):
            keys, diffs = rng.integers(0, 3000, 2000), rng.integers(-1, 2, 2000)
            rows = pa.RecordBatch.from_arrays([pa.array(keys), pa.array([f"v{k % 700}" for k in keys])], schema=SCHEMA)
            batch = Updates(rows, np.full(2000, time, dtype=np.uint64), diffs)
            assert await writer.compare_and_append(batch, Frontier(time), Frontier(time + 1)) is None
            if time < 6:
                for key, diff in zip(keys.tolist(), diffs.tolist(), strict=True):
                    full = {"k": key, "v": f"v{key % 700}"}
                    expected[tuple(full[name] for name in (columns if columns is not None else full))] += diff
        expected = Counter({row: count for row, count in expected.items() if count})
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        spilled = metrics.SPILLED_BYTES._value.get()
        found: Counter[Any] = Counter()
        async for chunk in reader.snapshot_cursor(Timestamp(5), columns=columns):
            assert set(chunk.times.tolist()) == {5}
            for row, diff in zip(chunk.rows.to_pylist() or [{}] * len(chunk), chunk.diffs.tolist(), strict=True):
                key = tuple(row.values())
                assert key not in found, "it came before"
                found[key] = diff
        assert found == expected
        if columns is None or memory > 1 << 20:
            assert (metrics.SPILLED_BYTES._value.get() > spilled) == (memory < 1 << 20)
        assert not reader.lease._leases
        await c.close()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == [], "no file stays"


def test_a_cursor_that_is_left_releases_all() -> None:
    async def main() -> None:
        c = client(inline_bytes=0, maintenance=False, snapshot_memory_bytes=1)
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        for time in range(3):
            await append(writer, [(key, time, 1) for key in range(500)], time, time + 1)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        unread, left = (reader.snapshot_cursor(Timestamp(2)) for _ in range(2))
        assert len(reader.lease._pins) == 2
        await anext(left)
        assert not reader.lease._leases, "all of the shard has been read before the first row is known to be whole"
        for cursor in (left, unread):
            await cursor.aclose()
            await cursor.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(cursor)
        assert not reader.lease._pins
        waiting = asyncio.create_task(anext(cancelled := reader.snapshot_cursor(Timestamp(3))))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert not reader.lease._pins
        await cancelled.aclose()
        await c.close()

    asyncio.run(main())


def test_snapshot_and_stream() -> None:
    """A stream keeps so many bytes in flight and no more, and each update comes once."""

    async def main() -> None:
        class Gated(MemBlob):
            reading = most = 0

            async def get(self, key: str) -> bytes | None:
                Gated.reading += 1
                Gated.most = max(Gated.most, Gated.reading)
                for _ in range(5):
                    await asyncio.sleep(0)
                Gated.reading -= 1
                return await super().get(key)

        for prefetch, at_most in ((1, 1), (1 << 30, 4)):
            Gated.most = 0
            config = PersistConfig(**{**vars(HOLLOW), "prefetch_bytes": prefetch})
            c, shard = PersistClient(Gated(), MemConsensus(), config=config), new_shard_id()
            writer = await c.open_writer(shard, SCHEMA, purpose="test")
            for time in range(6):
                keys = np.arange(40_000)
                rows = pa.RecordBatch.from_arrays([pa.array(keys), pa.array(["x"] * 40_000)], schema=SCHEMA)
                one = Updates.at(rows, Timestamp(time))
                assert await writer.compare_and_append(one, Frontier(time), Frontier(time + 1)) is None
            reader = await c.open_reader(shard, SCHEMA, purpose="test")
            assert sum([len(part) async for part in reader.snapshot(Timestamp(5))]) == 240_000
            assert 1 <= Gated.most <= at_most
            assert not reader.lease._leases
            await c.close()

    asyncio.run(main())


# Parts that travel, and leases


def test_parts_are_fetched_by_another_process() -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        here, there = (PersistClient(blob, consensus, config=HOLLOW) for _ in range(2))
        writer = await here.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1), (2, 1, 1)], 0, 2)
        reader = await here.open_reader(shard, SCHEMA, purpose="test")
        parts = await reader.snapshot_parts(Timestamp(0), columns=["k"])
        assert [part.rows for part in parts] == [2]
        (fetched,) = [await there.fetch(part.to_bytes()) for part in parts]
        assert tally([fetched]) == {(1, 0): 1}
        assert fetched.schema.names == ["k"]
        listen = await reader.listen(Timestamp(0))
        await append(writer, [(3, 2, 1)], 2, 3)
        step = await listen.next_parts()
        assert step.progress == listen.frontier == 3
        moved = [await there.fetch(part.to_bytes()) for part in step.parts]
        assert tally(moved) == {(2, 1): 1, (3, 2): 1}
        waiting = asyncio.create_task(listen.next_parts())
        await append(writer, [(4, 3, 1)], 3, 4)
        assert tally([await there.fetch(part.to_bytes()) for part in (await waiting).parts]) == {(4, 3): 1}
        await append(writer, [(5, 4, 1)], 4, DONE)
        assert (await anext(listen)).progress == DONE
        with pytest.raises(StopAsyncIteration):
            await listen.next_parts()
        with pytest.raises(InvalidUsage):
            await listen.next_parts()
        subscribed = await (await here.open_reader(shard, SCHEMA, purpose="x")).subscribe(Timestamp(1))
        first, second = await subscribed.next_parts(), await subscribed.next_parts()
        assert (first.progress, second.progress) == (2, DONE)
        assert tally([await there.fetch(part.to_bytes()) for part in first.parts]) == {(1, 1): 1, (2, 1): 1}
        with pytest.raises(InternalError, match="unknown format"):
            await there.fetch(b"\x09...")
        with pytest.raises(InternalError, match="cannot be decoded"):
            await there.fetch(b"\x01...")
        await here.close()
        await there.close()

    asyncio.run(main())


def test_seqno_leases() -> None:
    """The hold stays until the last lease of its version is back, whoever returns them in whatever order."""

    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        c = PersistClient(blob, consensus, config=PersistConfig(**{**vars(HOLLOW), "hold_versions": 1}))
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1), (2, 0, 1)], 0, 1)
        await append(writer, [(3, 1, 1)], 1, 2)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")

        async def hold_after_a_while() -> int:
            nonlocal upper
            for _ in range(4):
                await append(writer, [], upper, upper + 1)
                upper += 1
            await reader.lease.renew()
            return c._shards[shard].state.readers[reader.reader_id].hold

        upper = 2
        early = await reader.snapshot_parts(Timestamp(1))
        at = c._shards[shard].state.seqno
        assert len(early) == 2
        await hold_after_a_while()
        late = await reader.snapshot_parts(Timestamp(1))
        later = c._shards[shard].state.seqno
        assert later > at
        early[0].release()
        early[0].release()
        assert await hold_after_a_while() == at, "one is out"
        late[0].release()
        assert await hold_after_a_while() == at
        del early  # dropping returns it too
        assert await hold_after_a_while() == later
        late[1].release()
        assert await hold_after_a_while() > later
        await c.close()

    asyncio.run(main())


def test_a_lost_lease_is_told_from_a_lost_blob() -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        here, there = (PersistClient(blob, consensus, config=HOLLOW) for _ in range(2))
        writer = await here.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        reader = await here.open_reader(shard, SCHEMA, purpose="test")
        (part,) = await reader.snapshot_parts(Timestamp(0))
        (key,) = [key for key, _ in await blob.list_prefix(f"{shard}/w")]
        stored = await blob.get(key)
        assert stored is not None
        await blob.delete(key)
        with pytest.raises(CorruptBlobError):
            await there.fetch(part.to_bytes())
        await reader.expire()
        with pytest.raises(CorruptBlobError):
            await there.fetch(part.to_bytes())  # the newest version refers to it: no lease is needed for it to be there
        await blob.set(key, stored)
        compacting = PersistClient(blob, consensus, config=PersistConfig(compaction_fan_in=2, rollup_every=4))
        rewriting = await compacting.open_writer(shard, SCHEMA, purpose="test")
        for time in range(1, 20):
            await append(rewriting, [(time, time, 1)], time, time + 1)
            await compacting._maintenance[shard].idle()
        assert await blob.get(key) is None, "nobody held it"
        with pytest.raises(LeaseLost, match=reader.reader_id):
            await there.fetch(part.to_bytes())
        for c in (here, there, compacting):
            await c.close()

    asyncio.run(main())


# Waiting


def test_regression_blocking_reads() -> None:
    """Snapshots and listens at times to come wait for them; a listen begins strictly after its time."""

    async def main() -> None:
        c, shard = client(), new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        listen = await (await c.open_reader(shard, SCHEMA, purpose="test")).listen(Timestamp(1))
        reads: list[Callable[[], Any]] = [
            lambda: snapshot(reader, 1),
            lambda: reader.count(Timestamp(1)),
            lambda: reader.snapshot_stats(Timestamp(1)),
            lambda: reader.snapshot_parts(Timestamp(1)),
            lambda: anext(reader.snapshot_cursor(Timestamp(1))),
            lambda: anext(listen),
        ]
        tasks = [asyncio.create_task(read()) for read in reads]
        await append(writer, [(1, 0, 1)], 0, 1)
        await c._shards[shard].wait_until(lambda state: state.upper == 1)
        assert not any(task.done() for task in tasks)
        await append(writer, [(2, 1, 1)], 1, 2)
        async with asyncio.timeout(10):
            found = await asyncio.gather(*tasks[:-1])
        assert found[0] == {(1, 1): 1, (2, 1): 1}
        assert found[1] == found[2].rows == 2
        assert not tasks[-1].done()
        await append(writer, [(3, 2, 1)], 2, 3)
        assert tally((await tasks[-1]).updates) == {(3, 2): 1}
        await c.close()

    asyncio.run(main())


def test_skip_consensus_fetch_optimization() -> None:
    """A listen that hears of everything by push works while consensus is down."""

    async def main() -> None:
        backing, pubsub, shard, blob = MemConsensus(), LocalPubSub(), new_shard_id(), MemBlob()
        down = UnreliableConsensus(backing, 0, happens=1.0, answer_lost=0.0)
        config = PersistConfig(poll_max_ms=3_600_000)
        there = PersistClient(blob, down, pubsub=pubsub, config=config)
        reader = await there.open_reader(shard, SCHEMA, purpose="test")
        listen = await reader.listen(Timestamp(0))
        down.faults.happens = 0.0
        with pytest.raises(Determinate):
            await down.head(shard)
        here = PersistClient(blob, backing, pubsub=pubsub, config=config)
        writer = await here.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [], 0, 1)
        for time in range(1, 30):
            await append(writer, [(time, time, 1)], time, time + 1)
            async with asyncio.timeout(10):
                assert tally(await read_until(listen, time + 1)) == {(time, time): 1}
        down.faults.happens = 1.0
        await here.close()
        await there.close()

    asyncio.run(main())


# Dropping


def test_drop_unused_subscribe() -> None:
    """A subscription that nobody reads holds nothing once it is dropped."""

    async def main() -> None:
        c, shard = client(), new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 10)
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        unread = await reader.subscribe(Timestamp(3))
        begun = reader.snapshot(Timestamp(5))
        await begun
        assert reader.lease._pins
        assert reader.lease._leases
        del unread, begun
        assert not reader.lease._pins
        assert not reader.lease._leases
        await reader.downgrade_since(Frontier(8))
        assert reader.since == 8
        await c.close()

    asyncio.run(main())


def test_heartbeat_task_shutdown() -> None:
    """Nothing beats for a reader that has ended, and nothing at all for a client that is closed."""

    async def main() -> None:
        clock = VirtualClock(1_000_000)
        c = PersistClient(MemBlob(), MemConsensus(), clock=clock, config=PersistConfig(reader_lease_ms=1000))
        shard = new_shard_id()
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        ended = await c.open_reader(shard, SCHEMA, purpose="test")

        def state() -> State:
            return c._shards[shard].state

        async def beat() -> int:
            before = state().readers[reader.reader_id].heartbeat_ms
            async with asyncio.timeout(10):
                while state().readers[reader.reader_id].heartbeat_ms == before:
                    clock.advance(0.25)
                    await asyncio.sleep(0.001)
            return before

        await beat()
        await ended.expire()
        for _ in range(5):
            await beat()
        assert set(state().readers) == {reader.reader_id}
        assert ended.reader_id not in c._readers
        with pytest.raises(ReaderExpired):
            await snapshot(ended, 0)
        heartbeat = c._heartbeat
        await c.close()
        assert heartbeat is not None
        assert heartbeat.done()
        assert state().readers == {}
        with pytest.raises(ClientClosed):
            await c.open_reader(shard, SCHEMA, purpose="test")

    asyncio.run(main())


# Which version, which batches


def test_snapshot_takes_batches_up_to_its_time() -> None:
    async def main() -> None:
        c, shard = client(inline_bytes=0), new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 5)
        await append(writer, [], 5, 10)
        await append(writer, [(2, 10, 1)], 10, 15)
        state = c._shards[shard].state
        assert [len(parts_up_to(state, Timestamp(as_of))) for as_of in (0, 4, 9, 10, 14, 99)] == [1, 1, 1, 2, 2, 2]
        await c.close()

    asyncio.run(main())


@pytest.mark.parametrize("as_of", range(12))
def test_next_listen_batch(as_of: int) -> None:
    """A listen may begin anywhere inside a batch: it brings what is after that."""

    async def main() -> None:
        c, shard = client(inline_bytes=0), new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        log = [(1, 0, 1), (2, 3, 1), (3, 5, 1), (4, 9, 1), (5, 11, 1)]
        await append(writer, log[:2], 0, 5)
        await append(writer, log[2:], 5, 12)
        listen = await (await c.open_reader(shard, SCHEMA, purpose="test")).listen(Timestamp(as_of))
        if as_of < 11:
            event = await anext(listen)
            assert (event.progress, tally(event.updates)) == (12, {(k, t): 1 for k, t, _ in log if t > as_of})
        nothing = asyncio.create_task(anext(listen))
        await append(writer, [(6, 12, 1)], 12, 13)
        assert tally((await nothing).updates) == {(6, 12): 1}
        await c.close()

    asyncio.run(main())
