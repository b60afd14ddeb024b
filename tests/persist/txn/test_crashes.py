"""What each interruption leaves behind, step by step, and that it is put right."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from penstock.persist import FileBlob, ShardId, SqliteConsensus, new_shard_id
from penstock.persist.schema import encode_schema
from penstock.persist.txn import TooLate, TxnsWriter, listen
from penstock.persist.txn.rows import TXNS_SCHEMA, Registration
from penstock.runtime import Frontier, Timestamp
from tests.persist.txn.cluster import SCHEMA, Cluster, Followed, Row, cluster, contents, count, rows, table


async def killed(writer: TxnsWriter) -> None:
    """End a writer without letting it finish or tell anything."""
    await writer._tasks.close()
    await writer._log._tasks.close()


async def stored(c: Cluster, shard: ShardId) -> Counter[Row]:
    """What is in the shard itself, at its newest time."""
    reader = await c.client().open_reader(shard, SCHEMA, purpose="test")
    found: Counter[Row] = Counter()
    async for updates in reader.snapshot(Timestamp(reader.upper - 1)):
        count(found, updates)
    return found


def test_killed_between_commit_and_apply() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a, b = await table(writer, 1), await table(writer, 2)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            await writer.commit_at({a: [rows(3, (1, "x"))], b: [rows(3, (2, "y"))]}, Timestamp(3))
            await killed(writer)
            assert await contents(handle, 3) == {(1, "x"): 1}
            await c.writer()
            assert await stored(c, a) == {(1, "x"): 1}
            assert await stored(c, b) == {(2, "y"): 1}
            assert await contents(handle, 3) == {(1, "x"): 1}

    asyncio.run(main())


def test_killed_between_apply_and_tidy() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            listened = Followed(await handle.subscribe(Timestamp(1)), 1)
            await writer.commit_at({a: [rows(3, (1, "x"))]}, Timestamp(3))
            await writer.apply_le(Timestamp(3))
            await killed(writer)
            writer = await c.writer()
            assert [write.ts for write in writer._log.unapplied(a)] == [3]
            await writer.commit_at({a: [rows(4, (2, "y"))]}, Timestamp(4))
            await writer.commit_at({}, Timestamp(5))
            assert [write.ts for write in writer._log.unapplied(a)] == [4]
            await writer.apply_le(Timestamp(5))
            assert await contents(handle, 5) == await stored(c, a) == {(1, "x"): 1, (2, "y"): 1}
            assert (await listened.until(6)).history == {3: {(1, "x"): 1}, 4: {(2, "y"): 1}}

    asyncio.run(main())


def test_killed_while_registering_and_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            shard = new_shard_id()
            registration = Registration.new(shard, Timestamp(3), encode_schema(SCHEMA))
            await writer._advance([registration], Frontier(4))  # then killed, before the log
            await killed(writer)
            writer = await c.writer()
            assert await writer.register({shard: SCHEMA}, Timestamp(2)) == TooLate(Frontier(4))
            assert await writer.register({shard: SCHEMA}, Timestamp(3)) is None
            await writer.commit_at({shard: [rows(5, (1, "x"))]}, Timestamp(5))

            async def nothing(_: object) -> None:
                """Killed after the log, before the shard."""

            monkeypatch.setattr(writer, "_end", nothing)
            assert await writer.forget([shard], Timestamp(9)) is None
            await killed(writer)
            handle = await (await c.reader()).open_reader(shard, SCHEMA, purpose="test")
            reading = asyncio.ensure_future(contents(handle, 9))
            writer = await c.writer()
            assert await reading == {(1, "x"): 1}
            assert writer.registered == {}
            await writer.commit_at({}, Timestamp(10))
            await writer.commit_at({}, Timestamp(11))
            assert not writer._log.endings

    asyncio.run(main())


def test_a_table_can_be_forgotten_and_registered_again() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            listened = Followed(await handle.subscribe(Timestamp(1)), 1)
            await writer.commit_at({a: [rows(3, (1, "x"))]}, Timestamp(3))
            assert await writer.forget([a, new_shard_id()], Timestamp(5)) is None
            await listened.until(6)
            direct = await c.client().open_writer(a, SCHEMA, purpose="test")
            assert await direct.compare_and_append(rows(7, (2, "y")), Frontier(6), Frontier(8)) is None
            await listened.until(8)
            assert await writer.register({a: SCHEMA}, Timestamp(10)) is None
            await writer.commit_at({a: [rows(12, (3, "z"))]}, Timestamp(12))
            everything = {(1, "x"): 1, (2, "y"): 1, (3, "z"): 1}
            assert (await listened.until(13)).at(12) == everything
            assert await contents(handle, 12) == everything
            assert await contents(handle, 4) == {(1, "x"): 1}

    asyncio.run(main())


def test_of_two_writers_each_commit_has_one_winner() -> None:
    async def main() -> None:
        async with cluster() as c:
            first, second = await c.writer(), await c.writer()
            a = await table(first, 1)
            expected: Counter[Row] = Counter()
            for ts in range(2, 40):
                results = await asyncio.gather(
                    first.commit_at({a: [rows(ts, (ts, "first"))]}, Timestamp(ts)),
                    second.commit_at({a: [rows(ts, (ts, "second"))]}, Timestamp(ts)),
                )
                assert results.count(None) == 1, results
                expected[ts, "first" if results[0] is None else "second"] += 1
                await asyncio.gather(first.apply_le(Timestamp(ts)), second.apply_le(Timestamp(ts)))
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            assert await contents(handle, 39) == await stored(c, a) == expected

    asyncio.run(main())


def test_a_slow_listener_reads_the_shard_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "QUEUE_BYTES_MAX", 2_000)

    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a = await table(writer, 1)
            handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
            slow = Followed(await handle.listen(Timestamp(1)), 2)
            for ts in range(2, 60):
                await writer.commit_at({a: [rows(ts, (ts, "x"))]}, Timestamp(ts))
                await writer.apply_le(Timestamp(ts))
                assert slow.listen._queued_bytes <= 2_000
            assert (await slow.until(60)).history == {ts: {(ts, "x"): 1} for ts in range(2, 60)}

    asyncio.run(main())


def test_the_log_stays_small() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            a, b = await table(writer, 1), await table(writer, 2)
            largest = 0
            for ts in range(3, 600):
                await writer.commit_at({a: [rows(ts, (ts, "x"))], b: [rows(ts, (ts, "y"))]}, Timestamp(ts))
                await writer.apply_le(Timestamp(ts))
                if ts % 20 == 0:
                    await writer.compact_to(Timestamp(ts))
                state = writer._writer._shard.state
                if ts > 300:
                    largest = max(largest, len(state.batches))
                assert sum(len(writer._log.unapplied(shard)) for shard in (a, b)) <= 4
                assert len(writer._tidy) <= 4
            assert largest < 80  # a few of each size class, and what comes while a compaction is under way
            reader = await c.client().open_reader(c.txns, TXNS_SCHEMA, purpose="test")
            held = 0
            async for updates in reader.snapshot(Timestamp(599)):
                held += len(updates.consolidate())
            assert held < 400

    asyncio.run(main())


COMMITTER = """
import asyncio, sys
from penstock.persist import FileBlob, PersistClient, ShardId, SqliteConsensus
from penstock.persist.txn import TxnsWriter
from penstock.runtime import Timestamp
from tests.persist.txn.cluster import SCHEMA, rows

async def main(path, a, b):
    client = PersistClient(FileBlob(path + "/blob"), SqliteConsensus(path + "/c.db"))
    writer = await TxnsWriter.open(client, ShardId("s-txns"))
    ts = int(writer.upper)
    assert await writer.register({ShardId(a): SCHEMA, ShardId(b): SCHEMA}, Timestamp(ts)) is None
    while True:
        ts += 1
        row = (ts, "x" * (20_000 if ts % 7 == 0 else 3))
        assert await writer.commit_at({ShardId(a): [rows(ts, row)], ShardId(b): [rows(ts, row)]}, Timestamp(ts)) is None
        print(ts, flush=True)
        await writer.apply_le(Timestamp(ts))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.crash
def test_kill_nine_loses_nothing_acknowledged_and_splits_no_commit(tmp_path: Path) -> None:
    a, b = new_shard_id(), new_shard_id()
    acknowledged: set[int] = set()
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(tmp_path), a, b], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged.add(int(line))
            if len(acknowledged) >= 25 * (round_ + 1):
                process.kill()
        process.wait()
        process.stdout.close()

    async def main() -> None:
        store = SqliteConsensus(tmp_path / "c.db")
        c = Cluster(FileBlob(tmp_path / "blob"), store)
        c.txns = ShardId("s-txns")
        writer = await c.writer()
        last = int(writer.upper) - 1
        found = [await stored(c, shard) for shard in (a, b)]
        assert found[0] == found[1], "each commit is in both tables"
        assert set(found[0].values()) == {1}
        times = {ts for ts, _ in found[0]}
        assert acknowledged <= times
        assert len(times - acknowledged) <= 4, "at most one commit per kill was not heard of"
        handle = await (await c.reader()).open_reader(a, SCHEMA, purpose="test")
        assert await contents(handle, last) == found[0]
        await c.close()
        await store.close()

    asyncio.run(main())
