"""Reading a shard: the handle of one leased reader. What it opens is in `snapshot`, `cursor` and `listen`, what it
keeps alive in `lease`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.persist.cursor import SnapshotCursor
from penstock.persist.fetching import Selection, stored_bytes
from penstock.persist.filter import Filter
from penstock.persist.lease import ReaderLease
from penstock.persist.leased_part import LeasedPart
from penstock.persist.listen import Listen
from penstock.persist.snapshot import Count, Snapshot, SnapshotStatistics, parts_up_to, readable_version, total
from penstock.persist.store import ShardId
from penstock.runtime import DONE, Frontier, Timestamp


class ReadHandle:
    """One leased reader of one shard.

    `since`: reads at or after it are possible. It follows `downgrade_since`; once the handle has a listen
    it follows that instead (just behind what was emitted), so open a reader of its own for whatever else
    must be held.

    Reads at a time wait until it is complete (``upper > as_of``). They raise `SinceError` when it is below `since`,
    `ReaderExpired` when the lease was lost, `CorruptBlobError`, or the store's error.
    """

    def __init__(self, lease: ReaderLease, schema: pa.Schema) -> None:
        self.lease = lease
        """For this room only."""
        self.schema = schema

    @property
    def shard(self) -> ShardId:
        return self.lease.id

    @property
    def reader_id(self) -> str:
        return self.lease.reader_id

    @property
    def since(self) -> Frontier:
        return self.lease.readable_since

    @property
    def upper(self) -> Frontier:
        """The newest upper this process knows of."""
        return Frontier(self.lease.shard.state.upper)

    async def wait_for_upper_past(self, frontier: Frontier) -> Frontier:
        """Wait until the upper is greater than `frontier` (at once for `DONE`); returns it."""
        state = await self.lease.shard.wait_until(lambda state: state.upper > frontier or state.upper == DONE)
        return Frontier(state.upper)

    def snapshot(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> Snapshot:
        """The shard's contents at `as_of`, as updates whose times are all `as_of`; not consolidated.

        Use ``async for updates in reader.snapshot(t)``; awaiting the result first (``await reader.snapshot(t)``) waits
        and leases the data right away. Memory is bounded by `prefetch_bytes`, or a few parts if they are larger.

        Only `columns` are read, in that order. Of parts whose statistics say that no row passes `filter_` nothing is
        read; of the others all rows come, so the caller filters them. Raises `KeyError` for an unknown column.
        """
        return Snapshot(self.lease, Selection(self.schema, columns, filter_), as_of)

    def snapshot_cursor(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> SnapshotCursor:
        """`snapshot`, consolidated: no row comes twice. What does not fit into memory goes to temporary files."""
        return SnapshotCursor(self.snapshot(as_of, columns=columns, filter_=filter_), self.lease.shard.parts)

    async def snapshot_parts(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> list[LeasedPart]:
        """`snapshot` as parts to be fetched by any process (`PersistClient.fetch`) while they live here."""
        return await self.snapshot(as_of, columns=columns, filter_=filter_).leased_parts()

    async def snapshot_stats(self, as_of: Timestamp, *, filter_: Filter | None = None) -> SnapshotStatistics:
        """What a snapshot would bring at most, without reading it. For a given time it can only get less."""
        selection = Selection(self.schema, [], filter_)
        state = await readable_version(self.lease, as_of)
        parts = [part for _, _, part in parts_up_to(state, as_of) if selection.needs(self.lease.shard, part)]
        sizes = [stored_bytes(part) for part in parts]
        return SnapshotStatistics(sum(part.rows for part in parts), sum(size > 0 for size in sizes), sum(sizes))

    async def count(self, as_of: Timestamp) -> int:
        """The number of rows at `as_of`, each as often as it occurs. Reads only parts that reach beyond `as_of`."""
        return await total(Count(self.lease, Selection(self.schema, []), as_of))

    async def listen(self, as_of: Timestamp) -> Listen:
        """All updates after `as_of`, at their own times. Does not wait.

        Raises `SinceError`, `ReaderExpired`.
        """
        self.lease.check_readable(as_of)
        return Listen(self.lease, self.schema, as_of, None)

    async def subscribe(self, as_of: Timestamp) -> Listen:
        """A listen that first brings the snapshot at `as_of`, the last event of which has progress ``as_of + 1``.

        Does not wait. Raises `SinceError`, `ReaderExpired`.
        """
        self.lease.check_readable(as_of)
        return Listen(self.lease, self.schema, as_of, self.snapshot(as_of))

    async def downgrade_since(self, since: Frontier) -> None:
        """Give up reads below `since`, durably. Never goes back, nor past what a listen of this handle
        needs.
        """
        await self.lease.downgrade_since(since)

    async def expire(self) -> None:
        """End this reader and its lease; its snapshots and listens fail from now on. May be called twice."""
        await self.lease.expire()
