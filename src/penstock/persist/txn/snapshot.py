"""`TxnsSnapshot`: what a table holds at a time, from its shard and from the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

import pyarrow as pa

from penstock.persist.read import ReadHandle
from penstock.persist.snapshot import Snapshot
from penstock.persist.state import Part
from penstock.persist.txn.direct import fetch_part
from penstock.persist.txn.log import TxnsLog
from penstock.persist.txn.rows import Write
from penstock.runtime import Timestamp, Updates
from penstock.runtime.updates import times_of


class TxnsSnapshot:
    """See `TxnsReadHandle.snapshot`. An async iterator; `aclose` releases what an unfinished one holds."""

    def __init__(self, handle: ReadHandle, log: TxnsLog, as_of: Timestamp, stored: Snapshot, wanted: pa.Schema) -> None:
        """`stored`: of the shard of `handle` alone, not opened yet."""
        self._handle = handle
        self._log = log
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
            updates = await fetch_part(self._handle.lease, self._fresh[0], self._wanted)
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
        handle, log, shard = self._handle, self._log, self._handle.shard
        if handle.upper <= self._as_of:
            reader_id = handle.reader_id
            await log.wait_past_or(
                self._as_of,
                handle.lease.shard,
                lambda state: state.upper > self._as_of or reader_id not in state.readers,
            )
            if handle.upper <= self._as_of and shard in log.registrations:
                self._writes = [write for write in log.unapplied(shard) if write.ts <= self._as_of]
                settled = log.settled(shard)
                self._stored.sufficient_upper = settled
                if handle.upper < settled:
                    await handle.lease.shard.fetch()
        self._writes = self._writes or []
