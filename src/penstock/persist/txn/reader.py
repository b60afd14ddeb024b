"""`TxnsReader`: one subscription to the txns shard gives all tables of a process their progress.

A table's shard is written to only when somebody writes to the table, so its own upper may be hours old
while the table is complete up to the log's upper. `TxnsReadHandle` joins the two: its frontiers are the
log's; rows come from the shard below the upper of the version that was read, and from the log above.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import pyarrow as pa

from penstock.persist.client import PersistClient
from penstock.persist.cursor import SnapshotCursor
from penstock.persist.fetching import Selection
from penstock.persist.filter import Filter
from penstock.persist.read import ReadHandle
from penstock.persist.schema import selected
from penstock.persist.snapshot import Count, Snapshot, total
from penstock.persist.state import Part
from penstock.persist.store import ShardId
from penstock.persist.txn.direct import fetch_part
from penstock.persist.txn.listen import TxnsListen
from penstock.persist.txn.log import TxnsLog
from penstock.persist.txn.rows import Write
from penstock.runtime import Frontier, Timestamp, Updates
from penstock.runtime.updates import times_of


class TxnsReader:
    """Opens readers of tables. One per process; belongs to its client's event loop."""

    def __init__(self, client: PersistClient, txns_shard: ShardId, log: TxnsLog) -> None:
        self._client = client
        self._txns_shard = txns_shard
        self._log = log
        self._reopening = asyncio.Lock()

    @staticmethod
    async def open(client: PersistClient, txns_shard: ShardId) -> TxnsReader:
        """Subscribe to the log; returns when everything in it now has been read."""
        return TxnsReader(client, txns_shard, await _open_log(client, txns_shard))

    @property
    def upper(self) -> Frontier:
        """The logical upper of all registered shards, as far as this process knows."""
        return self._log.progress

    async def wait_for_upper_past(self, frontier: Frontier) -> Frontier:
        """Wait until `upper` is greater than `frontier`; returns it. One wait for all tables of a process."""
        await self._log.wait_past(Timestamp(frontier))
        return self._log.progress

    def is_registered(self, shard: ShardId) -> bool:
        """Whether `shard` is a table, as of `upper`."""
        return shard in self._log.registrations

    async def open_reader(self, shard: ShardId, schema: pa.Schema, *, purpose: str) -> TxnsReadHandle:
        """A leased reader of a shard that is, was or will be registered; for any other it acts like the
        shard's own.

        After this process has lost its lease on the log (it was stopped for longer than a lease) all its
        readers fail with `ReaderExpired`; those opened then stand on a new subscription.
        """
        async with self._reopening:
            if self._log.failed:
                await self._log.close()
                self._log = await _open_log(self._client, self._txns_shard)
        # The log first, then the shard: what the log no longer holds is in the version of the shard found
        # here.
        return TxnsReadHandle(await self._client.open_reader(shard, schema, purpose=purpose), self._log)

    async def close(self) -> None:
        """End the subscription. Readers that are still open fail from now on. May be called twice."""
        await self._log.close()


class TxnsReadHandle:
    """A `ReadHandle` of a table. `since` is the durable one, `upper` the logical one."""

    def __init__(self, inner: ReadHandle, log: TxnsLog) -> None:
        self.inner = inner
        self.log = log
        self.opened_at = inner.upper
        """The shard's own upper after the log was read: the log knows all later writes, or retracted them
        since.
        """

    @property
    def shard(self) -> ShardId:
        return self.inner.shard

    @property
    def schema(self) -> pa.Schema:
        return self.inner.schema

    @property
    def reader_id(self) -> str:
        return self.inner.reader_id

    @property
    def since(self) -> Frontier:
        return self.inner.since

    @property
    def upper(self) -> Frontier:
        """The newest upper this process knows of."""
        if self.shard in self.log.registrations:
            return max(self.log.progress, self.inner.upper)
        return self.inner.upper

    async def wait_for_upper_past(self, frontier: Frontier) -> Frontier:
        """Wait until the upper is greater than `frontier`; returns it."""
        if self.shard in self.log.registrations:
            await self.log.wait_past(Timestamp(frontier))
            return self.upper
        return await self.inner.wait_for_upper_past(frontier)

    def snapshot(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> TxnsSnapshot:
        """Like `ReadHandle.snapshot`: waits until the logical upper is past `as_of`. Writes nothing."""
        stored = self.inner.snapshot(as_of, columns=columns, filter_=filter_)
        return TxnsSnapshot(self, as_of, stored, selected(self.schema, columns))

    def snapshot_cursor(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> SnapshotCursor:
        """Like `ReadHandle.snapshot_cursor`."""
        return SnapshotCursor(self.snapshot(as_of, columns=columns, filter_=filter_), self.inner.lease.shard.parts)

    async def count(self, as_of: Timestamp) -> int:
        """Like `ReadHandle.count`."""
        counting = Count(self.inner.lease, Selection(self.schema, []), as_of)
        snapshot = await TxnsSnapshot(self, as_of, counting, self.schema)
        fresh = sum(part.diff_sum for part in snapshot.take_fresh())
        return fresh + await total(counting)

    async def listen(self, as_of: Timestamp) -> TxnsListen:
        """Like `ReadHandle.listen`: all updates after `as_of`, and progress with every commit to any table."""
        self.inner.lease.check_readable(as_of)
        return TxnsListen(self.inner, self.log, as_of, self.opened_at, None)

    async def subscribe(self, as_of: Timestamp) -> TxnsListen:
        """Like `ReadHandle.subscribe`: the snapshot at `as_of`, then a listen."""
        self.inner.lease.check_readable(as_of)
        return TxnsListen(self.inner, self.log, as_of, self.opened_at, self.snapshot(as_of))

    async def downgrade_since(self, since: Frontier) -> None:
        """Like `ReadHandle.downgrade_since`."""
        await self.inner.downgrade_since(since)

    async def expire(self) -> None:
        """End this reader and its lease. May be called twice."""
        await self.inner.expire()


class TxnsSnapshot:
    """See `TxnsReadHandle.snapshot`. An async iterator; `aclose` releases what an unfinished one holds."""

    def __init__(self, handle: TxnsReadHandle, as_of: Timestamp, stored: Snapshot, wanted: pa.Schema) -> None:
        self._handle = handle
        self._as_of = as_of
        self._wanted = wanted
        self._stored = stored
        self._writes: list[Write] | None = None
        """What the log held when it was asked; the version of the shard that is read is at least as new."""
        self._fresh: deque[Part] | None = None
        """Parts that this version does not have yet; the snapshot's lease on it keeps their blobs."""

    def __await__(self) -> Generator[Any, None, TxnsSnapshot]:
        return self._open().__await__()

    def __aiter__(self) -> TxnsSnapshot:
        return self

    async def __anext__(self) -> Updates:
        await self._open()
        assert self._fresh is not None
        if self._fresh:
            updates = await fetch_part(self._handle.inner.lease, self._fresh[0], self._wanted)
            self._fresh.popleft()
            return Updates(updates.rows, times_of(self._as_of, len(updates)), updates.diffs)
        return await anext(self._stored)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to be fetched."""
        return not self._fresh and self._stored.exhausted

    def take_fresh(self) -> list[Part]:
        """The parts of this opened snapshot that are not in the shard yet, for whoever reads the rest elsewhere."""
        taken, self._fresh = list(self._fresh or ()), deque()
        return taken

    async def aclose(self) -> None:
        """Stop fetching and release what is held. May be called twice."""
        self._fresh = deque()
        await self._stored.aclose()

    async def _open(self) -> TxnsSnapshot:
        if self._fresh is not None:
            return self
        if self._writes is None:
            await self._ask_log()
        await self._stored
        writes = [write for write in self._writes or [] if write.ts >= self._stored.upper]
        self._fresh = deque(part for write in writes for part in write.batch.parts)
        return self

    async def _ask_log(self) -> None:
        """Wait for the log to pass the time, then note what it holds and which version of the shard goes with that.

        Once the shard has passed the time it has everything by itself; the log may never: nobody need commit to it.
        """
        handle, log, shard = self._handle, self._handle.log, self._handle.shard
        if handle.inner.upper <= self._as_of:
            reader_id = handle.reader_id
            await log.wait_past_or(
                self._as_of,
                handle.inner.lease.shard,
                lambda state: state.upper > self._as_of or reader_id not in state.readers,
            )
            if handle.inner.upper <= self._as_of and shard in log.registrations:
                self._writes = [write for write in log.unapplied(shard) if write.ts <= self._as_of]
                settled = log.settled(shard)
                self._stored.sufficient_upper = settled
                if handle.inner.upper < settled:
                    await handle.inner.lease.shard.fetch()
        self._writes = self._writes or []


async def _open_log(client: PersistClient, txns_shard: ShardId) -> TxnsLog:
    return await TxnsLog.open(client, txns_shard, purpose="transaction reader")
