"""Processes of an environment, as persist clients over shared stores, and what tests ask of tables."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from penstock.persist import (
    Blob,
    Consensus,
    ListenEvent,
    LocalPubSub,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    PubSub,
    ShardId,
    new_shard_id,
)
from penstock.persist.txn import TxnsListen, TxnsReader, TxnsReadHandle, TxnsWriter
from penstock.runtime import Clock, SystemClock, Timestamp, Updates

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])
FAST = PersistConfig(poll_min_ms=1, poll_max_ms=5)
Row = tuple[int, str]


def rows(ts: int, *values: Row, diff: int = 1) -> Updates:
    """`values` at `ts`."""
    columns = [pa.array([k for k, _ in values], pa.int64()), pa.array([v for _, v in values], pa.string())]
    return Updates.at(pa.RecordBatch.from_arrays(columns, schema=SCHEMA), Timestamp(ts), diff)


class Cluster:
    """Shared stores; `client` makes a process. All of them are closed at the end."""

    def __init__(
        self,
        blob: Blob | None = None,
        consensus: Consensus | None = None,
        config: PersistConfig = FAST,
        pubsub: PubSub | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.blob: Blob = blob if blob is not None else MemBlob()
        self.consensus: Consensus = consensus if consensus is not None else MemConsensus()
        self.config = config
        self.pubsub = pubsub
        self.clock = clock or SystemClock()
        self.txns = new_shard_id()
        self._closing: list[Callable[[], Any]] = []

    def client(self) -> PersistClient:
        client = PersistClient(self.blob, self.consensus, clock=self.clock, config=self.config, pubsub=self.pubsub)
        self._closing.append(client.close)
        return client

    async def writer(self, client: PersistClient | None = None) -> TxnsWriter:
        writer = await TxnsWriter.open(client or self.client(), self.txns)
        self._closing.append(writer.close)
        return writer

    async def reader(self, client: PersistClient | None = None) -> TxnsReader:
        reader = await TxnsReader.open(client or self.client(), self.txns)
        self._closing.append(reader.close)
        return reader

    async def close(self) -> None:
        for close in reversed(self._closing):
            await close()


@asynccontextmanager
async def cluster(**options: Any) -> AsyncIterator[Cluster]:
    one = Cluster(**{"pubsub": LocalPubSub(), **options})
    try:
        async with asyncio.timeout(60):
            yield one
    finally:
        await one.close()


def count(into: Counter[Row], updates: Updates) -> None:
    for row, diff in zip(updates.rows.to_pylist(), updates.diffs.tolist(), strict=True):
        key = (row["k"], row["v"])
        into[key] += diff
        if not into[key]:
            del into[key]


async def contents(handle: TxnsReadHandle, as_of: int) -> Counter[Row]:
    """The snapshot at `as_of`."""
    found: Counter[Row] = Counter()
    async for updates in handle.snapshot(Timestamp(as_of)):
        assert set(updates.times.tolist()) <= {as_of}
        count(found, updates)
    return found


class Followed:
    """What a listen has emitted: checks its contract, keeps the contents and the history by time."""

    def __init__(self, listen: TxnsListen, after: int) -> None:
        self.listen = listen
        self.progress = after
        self.history: dict[int, Counter[Row]] = {}

    def take(self, event: ListenEvent) -> None:
        for updates in event.updates:
            times = updates.times.tolist()
            assert not times or min(times) >= self.progress, (min(times), self.progress)
            for time in set(times):
                count(self.history.setdefault(time, Counter()), updates.filter(updates.times == time))
        assert event.progress >= self.progress
        self.progress = int(event.progress)

    async def until(self, progress: int) -> Followed:
        while self.progress < progress:
            self.take(await anext(self.listen))
        return self

    def at(self, time: int) -> Counter[Row]:
        """Contents at `time`, if this followed from the beginning or subscribed."""
        total: Counter[Row] = Counter()
        for when, change in self.history.items():
            if when <= time:
                total.update(change)
        return Counter({row: n for row, n in total.items() if n})


async def table(writer: TxnsWriter, ts: int, schema: pa.Schema = SCHEMA) -> ShardId:
    """A new registered shard."""
    shard = new_shard_id()
    assert await writer.register({shard: schema}, Timestamp(ts)) is None
    return shard
