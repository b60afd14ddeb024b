"""Failing stores, races, crashes and damage."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from penstock.persist import (
    ClientClosed,
    CorruptBlobError,
    FileBlob,
    InvalidUsage,
    MemBlob,
    MemConsensus,
    Mismatch,
    PersistClient,
    PersistConfig,
    ReaderExpired,
    SeqNo,
    ShardId,
    SqliteConsensus,
    StoreFull,
    StoreUnusable,
    UnreliableBlob,
    UnreliableConsensus,
    WriteHandle,
    new_shard_id,
    open_blob,
    open_consensus,
)
from penstock.persist.metrics import READERS_EXPIRED
from penstock.persist.store import CasResult, Versioned
from penstock.runtime import Frontier, Indeterminate, Timestamp, VirtualClock
from tests.persist.shards import (
    SCHEMA,
    Change,
    append,
    expected_after,
    expected_at,
    read_until,
    snapshot,
    tally,
    updates,
)


async def racing_writer(writer: WriteHandle, name: int, dice: random.Random, end: int, log: list[Change]) -> None:
    """Appends random rows until the upper reaches `end`; logs what was acknowledged."""
    upper = await writer.fetch_recent_upper()
    while upper < end:
        new = Frontier(upper + dice.randint(1, 3))
        keys = range(dice.choice([0, 1, 40]))
        changes = [(1000 * name + k, dice.randrange(upper, new), dice.choice([1, 1, -1])) for k in keys]
        result = await writer.compare_and_append(updates(changes), upper, new)
        if isinstance(result, Mismatch):
            assert result.current_upper != upper
            upper = result.current_upper
        else:
            log += changes
            upper = new


@pytest.mark.parametrize("seed", range(6))
def test_every_acknowledged_append_is_there_exactly_once(seed: int) -> None:
    """Three writers race on stores that lie; snapshot plus listen is the whole history at every split."""

    async def main() -> None:
        dice = random.Random(seed)
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(
            inline_bytes=dice.choice([0, 2000, 16384]),
            part_bytes=500,
            rollup_every=16,
            poll_min_ms=1,
            poll_max_ms=5,
            hold_versions=4,
            downgrade_ms=1,
            compaction_fan_in=3,
            compaction_memory_bytes=dice.choice([3000, 1 << 20]),
        )
        faults = {"happens": 0.85, "answer_lost": 0.15}
        clients = [
            PersistClient(
                UnreliableBlob(blob, seed * 10 + n, **faults),
                UnreliableConsensus(consensus, seed * 10 + n, **faults),
                config=config,
            )
            for n in range(3)
        ]
        shard = new_shard_id()
        held = await clients[0].open_since(shard, "hold", purpose="test")
        follower = await clients[0].open_reader(shard, SCHEMA, purpose="test")
        listen = await follower.listen(Timestamp(0))
        seen = asyncio.create_task(read_until(listen, 150))
        log: list[Change] = []
        writers = [await c.open_writer(shard, SCHEMA, purpose="test") for c in clients]
        await asyncio.gather(*(racing_writer(w, n, random.Random(seed + n), 150, log) for n, w in enumerate(writers)))
        end = int(await writers[0].fetch_recent_upper())
        progress = await asyncio.wait_for(seen, 30)
        if listen.frontier < end:
            progress += await read_until(listen, end)
        assert tally(progress) == expected_after(log, 0)
        for as_of in (0, 1, 77, end - 2):
            reader = await clients[1].open_reader(shard, SCHEMA, purpose="test")
            assert await snapshot(reader, as_of) == expected_at(log, as_of)
            rest = await read_until(await reader.listen(Timestamp(as_of)), end)
            assert tally(rest) == expected_after(log, as_of)
        assert await held.compare_and_downgrade_since(0, 0, Frontier(77)) is None
        last = await clients[2].open_reader(shard, SCHEMA, purpose="test")
        whole = tally(await read_until(await last.subscribe(Timestamp(100)), end))
        assert whole == _joined(log, 100)
        for c in clients:
            await c.close()

    asyncio.run(main())


def _joined(log: list[Change], as_of: int) -> Any:
    counts = expected_after(log, as_of)
    for key, count in expected_at(log, as_of).items():
        counts[key] += count
    return counts


class OneShot:
    """A consensus whose next compare-and-set meets `fate`: "lost answer" or "late" (it lands when `land` is called)."""

    def __init__(self, inner: MemConsensus) -> None:
        self.inner = inner
        self.fate = ""
        self.late: tuple[str, Versioned] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        fate, self.fate = self.fate, ""
        if fate == "late":
            self.late = (key, new)
        elif fate == "lost answer":
            await self.inner.compare_and_set(key, new)
        if fate:
            raise Indeterminate(f"injected: {fate}")
        return await self.inner.compare_and_set(key, new)

    async def land(self) -> CasResult:
        assert self.late is not None
        return await self.inner.compare_and_set(*self.late)


@pytest.mark.parametrize("fate", ["lost answer", "late"])
@pytest.mark.parametrize("competitor", [False, True])
def test_an_unknown_outcome_is_decided(fate: str, competitor: bool) -> None:
    async def main() -> None:
        inner = MemConsensus()
        consensus = OneShot(inner)
        blob = MemBlob()
        c = PersistClient(blob, consensus)  # type: ignore[arg-type]
        other = PersistClient(blob, inner)
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        rival = await other.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        consensus.fate = fate
        attempt = asyncio.create_task(writer.compare_and_append(updates([(2, 1, 1)]), Frontier(1), Frontier(2)))
        raced = await rival.compare_and_append(updates([(3, 1, 1)]), Frontier(1), Frontier(2)) if competitor else None
        result = await attempt
        if fate == "late":
            assert await consensus.land() is CasResult.MISMATCH, "its seqno is taken"
        winners = [key for key, lost in ((2, result), (3, raced if competitor else Mismatch(Frontier(0)))) if not lost]
        assert len(winners) == 1
        reader = await other.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 1) == {(1, 1): 1, (winners[0], 1): 1}
        await c.close()
        await other.close()

    asyncio.run(main())


def test_a_cancelled_append_happens_or_not() -> None:
    async def main() -> None:
        c = PersistClient(MemBlob(), MemConsensus())  # without threads each step of the loop is reproducible
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        upper, log = Frontier(0), []
        for steps in range(40):
            change = (steps, int(upper), 1)
            task = asyncio.create_task(writer.compare_and_append(updates([change]), upper, Frontier(upper + 1)))
            for _ in range(steps % 8):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            reached = await writer.fetch_recent_upper()
            if reached != upper:
                log.append(change)
                upper = reached
        assert upper > 0
        await append(writer, [(99, int(upper), 1)], int(upper), int(upper) + 1)
        assert await snapshot(reader, int(upper)) == expected_at([*log, (99, int(upper), 1)], int(upper))
        await c.close()

    asyncio.run(main())


def test_two_clients_race_on_sqlite_and_files(tmp_path: Path) -> None:
    async def main() -> None:
        log: list[Change] = []
        shard = new_shard_id()
        stores = [(FileBlob(tmp_path / "blob"), SqliteConsensus(tmp_path / "c.db")) for _ in range(2)]
        config = PersistConfig(rollup_every=16, inline_bytes=700, poll_max_ms=20)
        clients = [PersistClient(*pair, config=config) for pair in stores]
        writers = [await c.open_writer(shard, SCHEMA, purpose="test") for c in clients]
        await asyncio.gather(*(racing_writer(w, n, random.Random(n), 120, log) for n, w in enumerate(writers)))
        for c in clients:
            reader = await c.open_reader(shard, SCHEMA, purpose="test")
            assert await snapshot(reader, 119) == expected_at(log, 119)
        for c in clients:
            await c.close()
        for blob, consensus in stores:
            await blob.close()
            await consensus.close()

    asyncio.run(main())


def test_a_crash_between_upload_and_link_leaves_an_orphan_that_is_swept() -> None:
    async def main() -> None:
        blob, consensus, clock = MemBlob(), MemConsensus(), VirtualClock(1_000_000)
        c = PersistClient(blob, consensus, clock=clock, config=PersistConfig(inline_bytes=0))
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        orphan = await writer.batch(updates([(2, 1, 1)]), Frontier(1), Frontier(2))
        pending = await writer.batch(updates([(3, 1, 1)]), Frontier(1), Frontier(2))
        # The process dies here: neither batch was appended, `pending` is known to a log of its own.
        again = PersistClient(blob, consensus, clock=clock, config=PersistConfig(inline_bytes=0))
        assert await again.sweep(shard, older_than_ms=1000) == [], "it may still be about to be linked"
        clock.advance(2)
        assert await again.sweep(shard, older_than_ms=1000, keep=frozenset(pending.keys)) == orphan.keys
        successor = await again.open_writer(shard, SCHEMA, purpose="test")
        assert await successor.compare_and_append_batches([pending], Frontier(1), Frontier(2)) is None
        reader = await again.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 1) == {(1, 1): 1, (3, 1): 1}
        await c.close()
        await again.close()

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_blob_names_itself_and_harms_no_other_shard(damage: str) -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(inline_bytes=0, cache_bytes=0, compaction_fan_in=3)
        c = PersistClient(blob, consensus, config=config)
        shards = [new_shard_id(), new_shard_id()]
        writers = [await c.open_writer(shard, SCHEMA, purpose="test") for shard in shards]
        readers = [await c.open_reader(shard, SCHEMA, purpose="test") for shard in shards]
        for writer in writers:
            await append(writer, [(1, 0, 1)], 0, 1)
        [(key, _)] = await blob.list_prefix(f"{shards[0]}/")
        data = await blob.get(key)
        assert data is not None
        if damage == "missing":
            await blob.delete(key)
        else:
            await blob.set(key, data[:-7] if damage == "truncated" else data[:50] + b"\xff" + data[51:])
        with pytest.raises(CorruptBlobError) as error:
            await snapshot(readers[0], 0)
        assert shards[0] in str(error.value)
        assert key in str(error.value)
        assert "Restore" in str(error.value)
        listen = await readers[0].subscribe(Timestamp(0))
        with pytest.raises(CorruptBlobError):
            await anext(listen)
        with pytest.raises(InvalidUsage):  # and never an event that claims the snapshot is complete
            await anext(listen)
        for t in range(1, 12):  # compaction meets the damage, gives that batch up and goes on with the rest
            for writer in writers:
                await append(writer, [(1, t, 1)], t, t + 1)
        assert await snapshot(readers[1], 11) == {(1, 11): 12}
        after = await readers[0].listen(Timestamp(0))
        assert len(tally(await read_until(after, 12))) == 11
        await blob.set(key, data)
        assert await snapshot(readers[0], 11) == {(1, 11): 12}
        await c.close()

    asyncio.run(main())


class Full:
    """A store whose writes find no room while `full`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.full = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if self.full and name in ("set", "compare_and_set"):

            async def refuse(*_: object) -> None:
                raise StoreFull("no room; make some")

            return refuse
        return method


@pytest.mark.parametrize("which", ["blob", "consensus"])
def test_a_full_disk_is_reported_at_once_and_poisons_nothing(which: str) -> None:
    async def main() -> None:
        stores = {"blob": Full(MemBlob()), "consensus": Full(MemConsensus())}
        c = PersistClient(stores["blob"], stores["consensus"], config=PersistConfig(inline_bytes=0))
        shard = new_shard_id()
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        reader = await c.open_reader(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        stores[which].full = True
        for _ in range(3):
            with pytest.raises(StoreFull):
                await writer.compare_and_append(updates([(2, 1, 1)]), Frontier(1), Frontier(2))
        assert await snapshot(reader, 0) == {(1, 0): 1}
        stores[which].full = False
        await append(writer, [(2, 1, 1)], 1, 2)
        assert await snapshot(reader, 1) == {(1, 1): 1, (2, 1): 1}
        await c.close()

    asyncio.run(main())


def test_unusable_stores_are_reported_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "not-a-database").write_bytes(b"something else entirely, and long enough" * 100)
        with pytest.raises(StoreUnusable):
            SqliteConsensus(tmp_path / "not-a-database")
        with pytest.raises(StoreUnusable):
            SqliteConsensus(tmp_path / "missing" / "c.db")
        blob = FileBlob(tmp_path / "blob")
        (tmp_path / "blob" / "s1").write_bytes(b"a file where a directory should be")
        c = PersistClient(blob, MemConsensus(), config=PersistConfig(inline_bytes=0))
        shard = ShardId("s1")
        writer = await c.open_writer(shard, SCHEMA, purpose="test")
        with pytest.raises(StoreUnusable):
            await writer.compare_and_append(updates([(1, 0, 1)]), Frontier(0), Frontier(1))
        await c.close()
        with pytest.raises(ClientClosed):
            await c.open_writer(shard, SCHEMA, purpose="test")
        with pytest.raises(ClientClosed):
            await writer.wait_for_upper_past(Frontier(5))
        await blob.close()

    asyncio.run(main())


CHILD = """
import asyncio, sys
from penstock.persist import PersistClient, PersistConfig, ShardId, open_blob, open_consensus
from penstock.runtime import Frontier
from tests.persist.shards import SCHEMA, updates

async def main():
    blob, consensus = open_blob("file:" + sys.argv[1] + "/b"), open_consensus("sqlite:" + sys.argv[1] + "/c.db")
    client = PersistClient(blob, consensus, config=PersistConfig(inline_bytes=900, rollup_every=16))
    writer = await client.open_writer(ShardId("s1"), SCHEMA, purpose="child")
    upper = await writer.fetch_recent_upper()
    while True:
        rows = updates([(upper * 100 + n, upper, 1) for n in range(upper % 50)])
        assert await writer.compare_and_append(rows, upper, Frontier(upper + 1)) is None
        print(upper, flush=True)
        upper = Frontier(upper + 1)

asyncio.run(main())
"""


def test_nothing_acknowledged_is_lost_by_a_kill(tmp_path: Path) -> None:
    acknowledged = -1
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        try:
            for _ in range(60 + 7 * round_):
                acknowledged = int(child.stdout.readline())
        finally:
            child.kill()
            acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
            child.wait()

    async def main() -> None:
        blob, consensus = open_blob(f"file:{tmp_path}/b"), open_consensus(f"sqlite:{tmp_path}/c.db")
        c = PersistClient(blob, consensus)
        reader = await c.open_reader(ShardId("s1"), SCHEMA, purpose="test")
        assert reader.upper >= acknowledged + 1
        whole = await snapshot(reader, int(reader.upper) - 1)
        assert whole == {
            (t * 100 + n, int(reader.upper) - 1): 1 for t in range(int(reader.upper)) for n in range(t % 50)
        }
        for store in (c, blob, consensus):
            await store.close()

    asyncio.run(main())


def test_a_gap_in_pushed_versions_that_cannot_be_fetched_fails_no_task() -> None:
    async def main() -> None:
        consensus = UnreliableConsensus(MemConsensus(), 1, happens=1, answer_lost=0)
        c = PersistClient(MemBlob(), consensus, config=PersistConfig(store_retry_ms=1))
        shard = await c._open(new_shard_id())
        consensus.faults.happens = 0
        with capture_logs() as logs:
            shard._on_diff(Versioned(SeqNo(7), b""))
            assert shard._fetching is not None
            await shard._fetching
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == []
        assert "pushed versions not fetched" in [entry["event"] for entry in logs]
        await c.close()

    asyncio.run(main())


def test_a_reader_reports_once_that_it_has_expired() -> None:
    async def main() -> None:
        clock = VirtualClock()
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(reader_lease_ms=1000)
        one = PersistClient(blob, consensus, clock=clock, config=config)
        other = PersistClient(blob, consensus, clock=clock, config=config)
        shard = new_shard_id()
        reader = await one.open_reader(shard, SCHEMA, purpose="test")
        writer = await other.open_writer(shard, SCHEMA, purpose="test")
        clock._now_s += 5  # whoever holds the lease sleeps
        await append(writer, [(1, 0, 1)], 0, 1)
        await one._shards[shard].fetch()
        before = READERS_EXPIRED._value.get()
        with capture_logs() as logs:
            for _ in range(3):
                reader.lease.heartbeat()
                if reader.lease._renewing is not None:
                    await reader.lease._renewing
        assert [entry["event"] for entry in logs].count("reader has expired") == 1
        assert READERS_EXPIRED._value.get() == before + 1
        with pytest.raises(ReaderExpired):
            await snapshot(reader, 0)
        await one.close()
        await other.close()

    asyncio.run(main())
