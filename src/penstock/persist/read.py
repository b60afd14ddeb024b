"""Reading a shard: the handle of one leased reader. What it opens is in `snapshot` and `listen`, what it keeps
alive in `lease`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.persist.lease import ReaderLease
from penstock.persist.listen import Listen
from penstock.persist.schema import selected
from penstock.persist.snapshot import Snapshot
from penstock.persist.store import ShardId
from penstock.runtime import DONE, Frontier, Timestamp


class ReadHandle:
    """One leased reader of one shard.

    `since`: reads at or after it are possible. It follows `downgrade_since`; once the handle has a listen
    it follows that instead (just behind what was emitted), so open a reader of its own for whatever else
    must be held.
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

    def snapshot(self, as_of: Timestamp, *, columns: Sequence[str] | None = None) -> Snapshot:
        """The shard's contents at `as_of`, as updates whose times are all `as_of`; not consolidated.

        Waits until ``upper > as_of``. Use ``async for updates in reader.snapshot(t)``; awaiting the result
        first (``await reader.snapshot(t)``) waits and leases the data right away. Only `columns` are read,
        in that order. Memory is bounded by a few parts. Raises `SinceError`, `ReaderExpired`,
        `CorruptBlobError`.
        """
        return Snapshot(self.lease, selected(self.schema, columns), as_of)

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
