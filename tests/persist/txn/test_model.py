"""Random histories against a model: tables come and go, writers race and are killed at any await, stores
fail.

The model is the list of commits that happened. Every read, at any time a reader may ask for, in any
process, must agree with it; so must every long-lived listen, time by time, at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from penstock.persist import (
    LocalPubSub,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    ShardId,
    SinceError,
    UnreliableBlob,
    UnreliableConsensus,
    new_shard_id,
)
from penstock.persist.txn import TooLate, TxnsReader, TxnsReadHandle, TxnsWriter, listen
from penstock.runtime import Frontier, Timestamp, Updates
from tests.persist.txn.cluster import SCHEMA, Cluster, Followed, Row, contents, count, rows

SEEDS = int(os.environ.get("PENSTOCK_TXN_SEEDS", "12"))
STEPS = 120

CONFIG = PersistConfig(
    poll_min_ms=1,
    poll_max_ms=3,
    inline_bytes=900,
    inline_total_bytes=5_000,
    part_bytes=2_000,
    compaction_fan_in=3,
    rollup_every=8,
    hold_versions=4,
    downgrade_ms=5,
)


@dataclass
class Table:
    """What happened to one shard. `lives`: (registered at, forgotten at or None)."""

    shard: ShardId
    changes: dict[int, Counter[Row]] = field(default_factory=dict)
    lives: list[tuple[int, int | None]] = field(default_factory=list)
    since: int = 0

    @property
    def alive(self) -> bool:
        return bool(self.lives) and self.lives[-1][1] is None

    def at(self, time: int) -> Counter[Row]:
        total: Counter[Row] = Counter()
        for when, change in self.changes.items():
            if when <= time:
                total.update(change)
        return Counter({row: n for row, n in total.items() if n})


class Process:
    """One client with what it has open. `kill` ends it as SIGKILL would: nothing is expired or flushed."""

    def __init__(self, cluster: Cluster) -> None:
        self.client: PersistClient = cluster.client()
        self.cluster = cluster
        self.writer: TxnsWriter | None = None
        self.reader: TxnsReader | None = None

    async def start_writer(self) -> TxnsWriter:
        self.writer = await TxnsWriter.open(self.client, self.cluster.txns)
        return self.writer

    async def start_reader(self) -> TxnsReader:
        self.reader = await TxnsReader.open(self.client, self.cluster.txns)
        return self.reader

    async def kill(self) -> None:
        for owner in (self.writer, self.reader):
            if owner is not None:
                await owner._log._tasks.close()
        if self.writer is not None:
            await self.writer._tasks.close()
        await self.client._tasks.close()
        for shard in self.client._shards.values():
            shard.close()


class History:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pubsub = LocalPubSub() if self.random.random() < 0.6 else None
        unreliable = self.random.random() < 0.5
        blob, consensus = MemBlob(), MemConsensus()
        if unreliable:
            lost = self.random.choice([0.02, 0.1])
            self.cluster = Cluster(
                UnreliableBlob(blob, seed, happens=1 - lost, answer_lost=lost),
                UnreliableConsensus(consensus, seed, happens=1 - lost, answer_lost=lost),
                CONFIG,
                self.pubsub,
            )
        else:
            self.cluster = Cluster(blob, consensus, CONFIG, self.pubsub)
        self.tables: list[Table] = []
        self.now = 1
        self.follows: list[tuple[Table, int, Followed]] = []
        self.handles: dict[tuple[int, ShardId], TxnsReadHandle] = {}
        self.writers: list[Process] = []
        self.readers: list[Process] = []

    @property
    def upper(self) -> int:
        return self.now

    def time(self) -> Timestamp:
        return Timestamp(self.now + self.random.randrange(3))

    def living(self) -> list[Table]:
        return [table for table in self.tables if table.alive]

    async def run(self, steps: int) -> None:
        for _ in range(2):
            self.readers.append(Process(self.cluster))
            await self.readers[-1].start_reader()
        self.writers.append(Process(self.cluster))
        await self.writers[0].start_writer()
        for _ in range(steps):
            await self.step()
        await self.finish()

    async def step(self) -> None:
        choices = {
            self.register: 2 if len(self.tables) < 6 else 0.5,
            self.commit: 10,
            self.forget: 0.5,
            self.apply: 3,
            self.compact: 1,
            self.replace_writer: 1,
            self.add_writer: 0.5,
            self.read: 4,
            self.follow: 2,
            self.advance_follows: 3,
            self.forgo: 1,
            self.replace_reader: 0.5,
        }
        step = self.random.choices(list(choices), list(choices.values()))[0]
        await step()

    # Writing. An operation may be killed at any await; then its writer's process is gone, and the log tells.

    async def attempt(self, operation: str, *arguments: object) -> bool:
        """Whether it happened. `arguments` end with its time."""
        process = self.random.choice(self.writers)
        writer = process.writer
        assert writer is not None
        ts = arguments[-1]
        assert isinstance(ts, int)
        task = asyncio.ensure_future(getattr(writer, operation)(*arguments))
        if self.random.random() < 0.2:
            for _ in range(self.random.randrange(40)):
                await asyncio.sleep(0)
            if not task.done():
                task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            await process.kill()
            self.writers.remove(process)
            fresh = Process(self.cluster)
            happened = int((await fresh.start_writer()).upper) == ts + 1
            self.writers.append(fresh)
        else:
            result = task.result()
            if isinstance(result, TooLate):
                assert result.upper > ts or len(self.writers) > 1 or operation == "register", (operation, ts, result)
            happened = result is None
        if happened:
            assert ts >= self.now
            self.now = ts + 1
        return happened

    async def register(self) -> None:
        dead = [table for table in self.tables if not table.alive]
        table = self.random.choice(dead) if dead and self.random.random() < 0.5 else Table(new_shard_id())
        ts = self.time()
        if await self.attempt("register", {table.shard: SCHEMA}, ts):
            table.lives.append((ts, None))
            if table not in self.tables:
                self.tables.append(table)

    async def forget(self) -> None:
        if not self.living():
            return
        table = self.random.choice(self.living())
        ts = self.time()
        if await self.attempt("forget", [table.shard], ts):
            table.lives[-1] = (table.lives[-1][0], ts)

    async def commit(self) -> None:
        living = self.living()
        tables = self.random.sample(living, min(len(living), self.random.randrange(4)))
        ts = self.time()
        writes: dict[ShardId, list[Updates]] = {}
        changes: dict[ShardId, Counter[Row]] = {}
        for table in tables:
            change: Counter[Row] = Counter()
            parts = []
            present = table.at(self.now)
            if present and self.random.random() < 0.4:
                gone = self.random.sample(sorted(present), min(len(present), 2))
                parts.append(rows(ts, *gone, diff=-1))
                change.subtract(gone)
            size = self.random.choice([1, 1, 30, 700])
            new = [
                (self.random.randrange(50), "x" * self.random.randrange(size)) for _ in range(self.random.randrange(4))
            ]
            new += [(i, os.urandom(40).hex()) for i in range(20)] if self.random.random() < 0.1 else []
            parts.append(rows(ts, *new))
            change.update(new)
            writes[table.shard] = parts
            changes[table.shard] = change
        if await self.attempt("commit_at", writes, ts):
            for table in tables:
                table.changes[ts] = Counter({row: n for row, n in changes[table.shard].items() if n})

    async def apply(self) -> None:
        writer = self.random.choice(self.writers).writer
        assert writer is not None
        await writer.apply_le(Timestamp(max(0, self.now - self.random.randrange(10))))

    async def compact(self) -> None:
        writer = self.random.choice(self.writers).writer
        assert writer is not None
        await writer.compact_to(Timestamp(max(0, self.now - self.random.randrange(5))))

    async def replace_writer(self) -> None:
        process = self.random.choice(self.writers)
        await process.kill()
        self.writers.remove(process)
        self.writers.append(Process(self.cluster))
        await self.writers[-1].start_writer()

    async def add_writer(self) -> None:
        if len(self.writers) < 2:
            self.writers.append(Process(self.cluster))
            await self.writers[-1].start_writer()

    # Reading

    async def handle(self, table: Table) -> TxnsReadHandle:
        process = self.random.choice(self.readers)
        assert process.reader is not None
        key = (id(process), table.shard)
        if key not in self.handles or self.random.random() < 0.2:
            self.handles[key] = await process.reader.open_reader(table.shard, SCHEMA, purpose="test")
        return self.handles[key]

    def readable(self, table: Table, handle: TxnsReadHandle) -> int | None:
        """A time at which `table` can be read without waiting for ever."""
        last = self.now - 1 if table.alive else table.lives[-1][1]
        assert last is not None
        first = max(table.since, int(handle.since))
        return self.random.randint(first, last) if first <= last else None

    async def read(self) -> None:
        if not self.tables:
            return
        table = self.random.choice(self.tables)
        handle = await self.handle(table)
        as_of = self.readable(table, handle)
        if as_of is not None:
            reading = asyncio.ensure_future(contents(handle, as_of))
            if self.random.random() < 0.3:
                await self.commit()
            with contextlib.suppress(SinceError):  # a listen of the same handle has moved on meanwhile
                assert await self.helped(reading) == table.at(as_of), (table.shard, as_of)

    async def follow(self) -> None:
        if not self.tables:
            return
        table = self.random.choice(self.tables)
        handle = await self.handle(table)
        as_of = self.readable(table, handle)
        if as_of is None or len(self.follows) > 8:
            return
        with contextlib.suppress(SinceError):  # another listen of the same handle has moved on
            if self.random.random() < 0.5:
                self.follows.append((table, as_of, Followed(await handle.subscribe(Timestamp(as_of)), as_of)))
            else:
                listened = Followed(await handle.listen(Timestamp(as_of)), as_of + 1)
                listened.history[as_of] = table.at(as_of)
                self.follows.append((table, as_of, listened))

    async def advance_follows(self) -> None:
        for table, as_of, followed in self.follows:
            if self.random.random() < 0.5:
                continue
            last = self.now if table.alive else (table.lives[-1][1] or 0) + 1
            await self.helped(
                asyncio.ensure_future(followed.until(min(last, followed.progress + self.random.randrange(20))))
            )
            self.check(table, as_of, followed)

    async def helped(self, reading: asyncio.Future) -> object:  # type: ignore[type-arg]
        """Let a read finish; large writes reach it when somebody has applied them, which coordinators
        always do.
        """
        done, _ = await asyncio.wait([reading], timeout=0.01)
        if not done:
            writer = self.random.choice(self.writers).writer
            assert writer is not None
            await writer.apply_le(Timestamp(self.now - 1))
        async with asyncio.timeout(20):
            return await reading

    def check(self, table: Table, as_of: int, followed: Followed) -> None:
        for time in (as_of, followed.progress - 1):
            if as_of <= time < followed.progress:
                assert followed.at(time) == table.at(time), (table.shard, as_of, time, followed.progress)
        for time, change in followed.history.items():
            if as_of < time < followed.progress:
                assert change == table.changes.get(time, Counter()), (table.shard, as_of, time)

    async def forgo(self) -> None:
        """A controller lets go of old times, possibly beyond the shard's own upper; readers of its own keep
        theirs.
        """
        if not self.living():
            return
        table = self.random.choice(self.living())
        critical = await self.readers[0].client.open_since(table.shard, "controller", purpose="test")
        to = self.random.randint(table.since, self.now - 1)
        assert await critical.compare_and_downgrade_since(0, 0, Frontier(to)) is None
        table.since = to

    async def replace_reader(self) -> None:
        process = self.random.choice(self.readers)
        gone = process.reader
        assert gone is not None
        self.follows = [one for one in self.follows if one[2].listen._log is not gone._log]
        self.handles = {key: handle for key, handle in self.handles.items() if key[0] != id(process)}
        await process.kill()
        self.readers.remove(process)
        self.readers.append(Process(self.cluster))
        await self.readers[-1].start_reader()

    async def finish(self) -> None:
        writer = self.writers[0].writer
        assert writer is not None
        while not await self.attempt("commit_at", {}, Timestamp(self.now)):
            pass
        writer = self.writers[0].writer
        assert writer is not None
        await writer.apply_le(Timestamp(self.now - 1))
        for table, as_of, followed in self.follows:
            await followed.until(self.now if table.alive else (table.lives[-1][1] or 0) + 1)
            self.check(table, as_of, followed)
        for table in self.tables:
            plain = await self.cluster.client().open_reader(table.shard, SCHEMA, purpose="test")
            last = int(plain.upper) - 1
            written = max((time for time, change in table.changes.items() if change), default=-1)
            assert last >= written, "everything is applied in the end"
            if last >= plain.since:
                found: Counter[Row] = Counter()
                async for updates in plain.snapshot(Timestamp(last)):
                    count(found, updates)
                assert found == table.at(last)
            for process in self.readers:
                assert process.reader is not None
                handle = await process.reader.open_reader(table.shard, SCHEMA, purpose="test")
                last = self.now - 1 if table.alive else (table.lives[-1][1] or 0)
                try:
                    assert await contents(handle, last) == table.at(last)
                except SinceError:
                    assert last < table.since


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_read_agrees_with_the_commits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "QUEUE_BYTES_MAX", 1_500)
    monkeypatch.setattr(listen, "EVENT_BYTES_MAX", 600)

    async def main() -> None:
        history = History(seed)
        try:
            async with asyncio.timeout(60):
                await history.run(STEPS)
        finally:
            for process in [*history.writers, *history.readers]:
                await process.kill()

    asyncio.run(main())
