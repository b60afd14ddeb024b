"""`TxnsReader`: one subscription to the txns shard gives all tables of a process their progress.

A table's shard is written to only when somebody writes to the table, so its own upper may be hours old
while the table is complete up to the log's upper. `TxnsReadHandle` joins the two: its frontiers are the
log's; rows come from the shard below the upper of the version that was read, and from the log above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from penstock.persist.client import PersistClient
from penstock.persist.cursor import SnapshotCursor
from penstock.persist.fetching import Selection
from penstock.persist.filter import Filter
from penstock.persist.read import ReadHandle
from penstock.persist.schema import selected
from penstock.persist.snapshot import Count, total
from penstock.persist.store import ShardId
from penstock.persist.txn.listen import TxnsListen
from penstock.persist.txn.log import TxnsLog
from penstock.persist.txn.snapshot import TxnsSnapshot
from penstock.runtime import Frontier, Timestamp


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
        return TxnsSnapshot(self.inner, self.log, as_of, stored, selected(self.schema, columns))

    def snapshot_cursor(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> SnapshotCursor:
        """Like `ReadHandle.snapshot_cursor`."""
        return SnapshotCursor(self.snapshot(as_of, columns=columns, filter_=filter_), self.inner.lease.shard.parts)

    async def count(self, as_of: Timestamp) -> int:
        """Like `ReadHandle.count`."""
        counting = Count(self.inner.lease, Selection(self.schema, []), as_of)
        snapshot = await TxnsSnapshot(self.inner, self.log, as_of, counting, self.schema)
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


async def _open_log(client: PersistClient, txns_shard: ShardId) -> TxnsLog:
    return await TxnsLog.open(client, txns_shard, purpose="transaction reader")
