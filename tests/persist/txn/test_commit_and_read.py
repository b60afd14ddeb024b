"""Commits, and what readers in the same and in other processes see of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from penstock.persist import (
    CasResult,
    InvalidUsage,
    MemBlob,
    MemConsensus,
    PersistConfig,
    ReaderExpired,
    SchemaMismatch,
    SinceError,
    Versioned,
    new_shard_id,
)
from penstock.persist.txn import TooLate
from penstock.runtime import Frontier, Timestamp, Updates
from tests.persist.txn.cluster import FAST, SCHEMA, Followed, cluster, contents, rows, table


def test_a_commit_is_seen_whole_at_its_time() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a, b = await table(writer, 1), await table(writer, 2)
            reader = await c.reader()
            in_a = await reader.open_reader(a, SCHEMA, purpose="test")
            in_b = await reader.open_reader(b, SCHEMA, purpose="test")
            assert (
                await writer.commit_at(
                    {a: [rows(10, (1, "x")), rows(10, (2, "y"))], b: [rows(10, (3, "z"))]}, Timestamp(10)
                )
                is None
            )
            assert await writer.commit_at({a: [rows(20, (1, "x"), diff=-1)]}, Timestamp(20)) is None
            for _ in range(2):  # before and after the rows are in their shards
                assert await contents(in_a, 9) == await contents(in_b, 9) == {}
                assert await contents(in_a, 10) == {(1, "x"): 1, (2, "y"): 1}
                assert await contents(in_b, 10) == {(3, "z"): 1}
                assert await contents(in_a, 20) == {(2, "y"): 1}
                assert await contents(in_b, 20) == {(3, "z"): 1}
                await writer.apply_le(Timestamp(20))
            assert in_b.upper == 21

    asyncio.run(main())


def test_too_late() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 5)
            assert await writer.commit_at({}, Timestamp(9)) is None
            for ts in (3, 9):
                assert await writer.commit_at({a: [rows(ts, (1, "x"))]}, Timestamp(ts)) == TooLate(Frontier(10))
                assert await writer.register({new_shard_id(): SCHEMA}, Timestamp(ts)) == TooLate(Frontier(10))
                assert await writer.forget([a], Timestamp(ts)) == TooLate(Frontier(10))
            assert writer.upper == 10
            assert (await c.blob.list_prefix("")) == []

    asyncio.run(main())


def test_misuse_is_refused_and_nothing_happens() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            with pytest.raises(InvalidUsage, match="not registered"):
                await writer.commit_at({a: [rows(5, (1, "x"))], new_shard_id(): [rows(5, (1, "x"))]}, Timestamp(5))
            with pytest.raises(InvalidUsage, match="times"):
                await writer.commit_at({a: [rows(6, (1, "x"))]}, Timestamp(5))
            with pytest.raises(SchemaMismatch):
                await writer.register({a: pa.schema([("other", pa.int8())])}, Timestamp(5))
            assert writer.upper == 2
            assert await writer.commit_at({a: []}, Timestamp(5)) is None
            assert await writer.commit_at({a: [Updates.empty(SCHEMA)]}, Timestamp(6)) is None
            reader = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            assert await contents(reader, 6) == {}
            assert writer.registered == {a: SCHEMA}

    asyncio.run(main())


class CountingConsensus(MemConsensus):
    def __init__(self) -> None:
        super().__init__()
        self.sets: Counter[str] = Counter()

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        self.sets[key] += 1
        return await super().compare_and_set(key, new)


def test_idle_tables_advance_and_are_read_without_a_write_to_them() -> None:
    async def main() -> None:
        store = CountingConsensus()
        async with cluster(consensus=store) as c:
            writer = await c.writer()
            shards = [new_shard_id() for _ in range(50)]
            assert await writer.register(dict.fromkeys(shards, SCHEMA), Timestamp(1)) is None
            await writer.commit_at({shards[0]: [rows(2, (1, "x"))]}, Timestamp(2))
            await writer.apply_le(Timestamp(2))
            reader = await c.reader()
            handles = [await reader.open_reader(shard, SCHEMA, purpose="test") for shard in shards]
            listens = [Followed(await handle.subscribe(Timestamp(2)), 2) for handle in handles]
            for listen in listens:
                await listen.until(3)
            store.sets.clear()
            for ts in range(1_000, 1_010):
                await writer.commit_at({}, Timestamp(ts))
            for listen in listens:
                await listen.until(1_010)
            for handle in handles:
                assert await contents(handle, 1_009) == ({(1, "x"): 1} if handle.shard == shards[0] else {})
            assert store.sets.keys() == {c.txns}
            assert store.sets[c.txns] <= 12

    asyncio.run(main())


def test_small_commits_reach_listeners_before_they_are_applied() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            listen = Followed(await handle.listen(Timestamp(1)), 2)
            for ts in range(2, 10):
                await writer.commit_at({a: [rows(ts, (ts, "x"))]}, Timestamp(ts))
                await listen.until(ts + 1)
                assert listen.history[ts] == {(ts, "x"): 1}
            assert handle.inner.upper == 2, "nothing was applied"
            await writer.apply_le(Timestamp(9))
            await writer.commit_at({}, Timestamp(20))
            await handle.inner.wait_for_upper_past(Frontier(9))
            await listen.until(21)
            assert listen.history == {ts: {(ts, "x"): 1} for ts in range(2, 10)}
            late = Followed(await handle.listen(Timestamp(4)), 5)
            assert (await late.until(21)).history == {ts: {(ts, "x"): 1} for ts in range(5, 10)}

    asyncio.run(main())


@pytest.mark.parametrize("inline_bytes", [0, 16 * 1024], ids=["pointers", "inline"])
def test_large_writes_go_by_reference(inline_bytes: int) -> None:
    async def main() -> None:
        async with cluster(config=PersistConfig(poll_min_ms=1, poll_max_ms=5, inline_bytes=inline_bytes)) as c:
            writer = await c.writer()
            a = await table(writer, 1)
            reader = await c.reader()
            handle = await reader.open_reader(a, SCHEMA, purpose="test")
            listen = Followed(await handle.subscribe(Timestamp(1)), 1)
            big = pa.RecordBatch.from_arrays(
                [pa.array(np.arange(100_000)), pa.array(np.arange(100_000).astype(str))], schema=SCHEMA
            )
            await writer.commit_at({a: [rows(2, (1, "before"))]}, Timestamp(2))
            await writer.commit_at({a: [Updates.at(big, Timestamp(3)), rows(3, (-1, "with it"))]}, Timestamp(3))
            await writer.commit_at({a: [rows(4, (4, "after"))]}, Timestamp(4))
            expected = {(i, str(i)): 1 for i in range(100_000)} | {
                (1, "before"): 1,
                (-1, "with it"): 1,
                (4, "after"): 1,
            }
            assert await contents(handle, 4) == expected, "before it is applied"
            await listen.until(3)
            await writer.apply_le(Timestamp(4))
            assert await contents(handle, 4) == expected
            assert (await listen.until(5)).at(4) == expected
            assert {time: len(change) for time, change in listen.history.items()} == {2: 1, 3: 100_001, 4: 1}

    asyncio.run(main())


def test_snapshots_of_some_columns() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            await writer.commit_at({a: [rows(2, (1, "x"))]}, Timestamp(2))
            await writer.apply_le(Timestamp(2))
            await writer.commit_at({a: [rows(3, (2, "y"))]}, Timestamp(3))
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            for columns, expected in ((["v"], [{"v": "x"}, {"v": "y"}]), ([], [{}, {}])):
                found = []
                async for updates in handle.snapshot(Timestamp(3), columns=columns):
                    found += updates.rows.to_pylist()
                assert sorted(found, key=str) == expected

    asyncio.run(main())


def test_reads_below_the_since_are_refused() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            await writer.commit_at({a: [rows(5, (1, "x"))]}, Timestamp(5))
            await writer.commit_at({}, Timestamp(100))
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            since = await c.client().open_since(a, "controller", purpose="test")
            await since.compare_and_downgrade_since(0, 0, Frontier(90))
            await handle.downgrade_since(Frontier(90))
            with pytest.raises(SinceError):
                await handle.listen(Timestamp(80))
            with pytest.raises(SinceError):
                await contents(handle, 80)
            assert await contents(handle, 95) == {(1, "x"): 1}, "the since is beyond the shard's own upper"
            other = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            assert await contents(other, 90) == {(1, "x"): 1}
            listen = Followed(await other.subscribe(Timestamp(92)), 92)
            assert (await listen.until(93)).at(92) == {(1, "x"): 1}

    asyncio.run(main())


def test_waiting_reads_can_be_cancelled_and_repeated() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            listen = await handle.listen(Timestamp(1))
            snapshot = handle.snapshot(Timestamp(7))
            for _ in range(3):
                for waiting in (anext(listen), anext(snapshot), handle.wait_for_upper_past(Frontier(7))):
                    task = asyncio.ensure_future(waiting)
                    await asyncio.sleep(0)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
            await writer.commit_at({a: [rows(7, (1, "x"))]}, Timestamp(7))
            assert (await anext(snapshot)).rows.to_pylist() == [{"k": 1, "v": "x"}]
            event = await anext(listen)
            assert event.progress == 8
            assert [updates.times.tolist() for updates in event.updates] == [[7]]
            await listen.aclose()
            with pytest.raises(InvalidUsage):
                await anext(listen)

    asyncio.run(main())


@pytest.mark.parametrize("registered", [False, True])
def test_a_snapshot_waits_for_the_log_or_for_the_shard_whichever_passes_first(registered: bool) -> None:
    """A coordinator that dies while it registers a table leaves its shard ahead of a log that may stay for ever."""

    async def main() -> None:
        async with cluster(config=FAST) as c:
            txns = await c.writer()
            other = await table(txns, 1)
            assert await txns.commit_at({other: []}, Timestamp(2)) is None
            a, client = new_shard_id(), c.client()
            writer = await client.open_writer(a, SCHEMA, purpose="test")
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            snapshot = handle.snapshot(Timestamp(5))
            waiting = asyncio.ensure_future(anext(snapshot))
            while not handle.inner.lease.shard._waiters:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert await writer.compare_and_append(rows(0, (1, "x")), Frontier(0), Frontier(3)) is None
            if registered:
                assert await txns.register({a: SCHEMA}, Timestamp(3)) is None
                assert await txns.commit_at({}, Timestamp(8)) is None
            else:
                assert await writer.compare_and_append(rows(4, (2, "y")), Frontier(3), Frontier(7)) is None
            async with asyncio.timeout(10):
                assert (await waiting).rows.to_pylist()[0] == {"k": 1, "v": "x"}
            await snapshot.aclose()
            assert not handle.log._waiting

    asyncio.run(main())


def test_a_snapshot_that_waits_hears_that_its_log_has_failed() -> None:
    async def main() -> None:
        async with cluster(config=FAST) as c:
            a = await table(await c.writer(), 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            waiting = asyncio.ensure_future(anext(handle.snapshot(Timestamp(9))))
            while not handle.inner.lease.shard._waiters:  # noqa: ASYNC110
                await asyncio.sleep(0)
            handle.log._fail(ReaderExpired(c.txns, "the log's"))
            async with asyncio.timeout(10):
                with pytest.raises(ReaderExpired):
                    await waiting

    asyncio.run(main())


def test_a_dropped_listen_is_forgotten() -> None:
    async def main() -> None:
        async with cluster(config=FAST) as c:
            writer = await c.writer()
            a = await table(writer, 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            listen = await handle.listen(Timestamp(1))
            assert handle.log._followers[a]
            del listen
            assert not handle.log._followers.get(a)
            assert not handle.inner.lease._pins

    asyncio.run(main())


def test_a_listen_goes_on_when_a_forgotten_table_is_registered_again_and_stays_idle() -> None:
    async def main() -> None:
        async with cluster(config=FAST) as c:
            writer = await c.writer()
            a = await table(writer, 1)
            b = await table(writer, 2)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            followed = Followed(await handle.listen(Timestamp(2)), 3)
            assert await writer.forget([a], Timestamp(3)) is None
            await followed.until(4)
            waiting = asyncio.ensure_future(followed.until(7))  # on the shard, which ended its time with the log at 4
            await handle.wait_for_upper_past(Frontier(3))
            assert await writer.register({a: SCHEMA}, Timestamp(4)) is None
            while handle.inner.upper < 5 or followed.progress < 5:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert await writer.commit_at({b: [rows(5, (1, "x"))]}, Timestamp(5)) is None
            assert await writer.commit_at({}, Timestamp(6)) is None
            async with asyncio.timeout(10):
                await waiting

    asyncio.run(main())


def test_a_listen_on_a_table_that_is_not_registered_hears_that_its_log_has_failed() -> None:
    async def main() -> None:
        async with cluster(config=FAST) as c:
            writer = await c.writer()
            a = await table(writer, 1)
            assert await writer.forget([a], Timestamp(2)) is None
            reader = await c.reader()
            handle = await reader.open_reader(a, SCHEMA, purpose="test")
            listen = await handle.listen(Timestamp(2))
            waiting = asyncio.ensure_future(anext(listen))
            while not handle.inner.lease.shard._waiters:  # noqa: ASYNC110
                await asyncio.sleep(0)
            handle.log._fail(ReaderExpired(c.txns, "the log's"))
            async with asyncio.timeout(10):
                with pytest.raises(ReaderExpired):
                    await waiting
            with pytest.raises(ReaderExpired):
                await anext(listen)

    asyncio.run(main())


def test_a_commit_to_a_table_that_is_forgotten_meanwhile_comes_too_late_and_leaves_nothing() -> None:
    class Gated(MemBlob):
        gated = "no shard"

        def __init__(self) -> None:
            super().__init__()
            self.gate = asyncio.Event()
            self.waiting = asyncio.Event()

        async def set(self, key: str, value: bytes) -> None:
            if key.startswith(self.gated):
                self.waiting.set()
                await self.gate.wait()
            await super().set(key, value)

    async def main() -> None:
        blob = Gated()
        async with cluster(blob=blob, config=replace(FAST, inline_bytes=0, maintenance=False)) as c:
            writer, rival = await c.writer(), await c.writer()
            a = await table(writer, 1)
            blob.gated = a
            before = await blob.list_prefix(f"{a}/")
            committing = asyncio.ensure_future(writer.commit_at({a: [rows(2, (1, "x"))]}, Timestamp(2)))
            await blob.waiting.wait()  # it is storing the rows
            while await rival.forget([a], Timestamp(max(2, rival.upper))) is not None:
                await rival._writer.fetch_recent_upper()
            await writer.apply_le(Timestamp(2))  # behind the commits; it lets go of the table
            assert a not in writer._shards
            blob.gate.set()
            assert isinstance(await committing, TooLate)
            assert await blob.list_prefix(f"{a}/") == before

    asyncio.run(main())
