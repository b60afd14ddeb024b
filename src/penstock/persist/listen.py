"""Listens: every update of a shard after some time, at its own time, as it is appended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import pyarrow as pa

from penstock.persist import fetching
from penstock.persist.errors import InvalidUsage, SinceError
from penstock.persist.fetching import fetch_group
from penstock.persist.lease import Pin, ReaderLease
from penstock.persist.leased_part import LeasedPart, LeasedStep
from penstock.persist.part_cache import Located
from penstock.persist.partstore import memory_of
from penstock.persist.snapshot import Snapshot
from penstock.persist.store import SeqNo, ShardId
from penstock.runtime import DONE, ExternalError, Frontier, InternalError, Timestamp, Updates, step_back


@dataclass(frozen=True, slots=True)
class ListenEvent:
    """`updates`, in no order and not consolidated. All updates below `progress` have been emitted by now."""

    updates: list[Updates]
    progress: Frontier


class Contents(Protocol):
    """A snapshot: the first part of a subscription."""

    async def __anext__(self) -> Updates: ...
    @property
    def exhausted(self) -> bool: ...
    async def aclose(self) -> None: ...


class EventStream(ABC):
    """What all listens have in common: they may begin with a snapshot, they advance, and they end.

    Never does an error in the snapshot pass as its end: whoever sees progress beyond `as_of` has seen all of it.
    """

    def __init__(self, shard: ShardId, as_of: Timestamp, snapshot: Contents | None) -> None:
        self._shard = shard
        self._as_of = as_of
        self._snapshot = snapshot
        self._frontier = Frontier(as_of + 1)
        self._closed = False

    @property
    def frontier(self) -> Frontier:
        """All updates after the `as_of` and below this have been emitted."""
        return self._frontier

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ListenEvent:
        if self._closed:
            raise InvalidUsage(f"a listen on {self._shard} was used after it was closed")
        if self._snapshot is not None:
            return await self._next_of_snapshot(self._snapshot)
        return await self._next()

    async def aclose(self) -> None:
        """End the listen and release what it holds. May be called twice."""
        self._closed = True
        if self._snapshot is not None:
            snapshot, self._snapshot = self._snapshot, None
            await snapshot.aclose()
        self._let_go()

    def __del__(self) -> None:
        self._let_go()

    async def _next_of_snapshot(self, snapshot: Contents) -> ListenEvent:
        try:
            updates = [await anext(snapshot)]
        except StopAsyncIteration:
            updates = []
        except ExternalError:
            raise  # called again, it goes on with what is missing
        except Exception:
            # The snapshot has ended with this; going on as if it had ended well would pass what is missing.
            await self.aclose()
            raise
        if updates and not snapshot.exhausted:
            return ListenEvent(updates, Frontier(self._as_of))
        await snapshot.aclose()
        self._snapshot = None
        return ListenEvent(updates, self._frontier)

    @abstractmethod
    async def _next(self) -> ListenEvent:
        """The next event after the snapshot."""

    @abstractmethod
    def _let_go(self) -> None:
        """Release what is held. More than once is harmless; also called when the listen is dropped."""


class Listen(EventStream):
    """An async iterator of `ListenEvent`. Ends only after the event with the progress `DONE`.

    A cancelled ``__anext__`` loses nothing: the next call gives the same event. Raises `ReaderExpired` when
    the lease was lost, `CorruptBlobError`, or the store's error; it may be called again after the latter.
    After any other error in the snapshot of a `subscribe` it has closed itself, and one subscribes anew.
    """

    def __init__(self, lease: ReaderLease, schema: pa.Schema, as_of: Timestamp, snapshot: Snapshot | None) -> None:
        self._lease = lease
        self._schema = schema
        self._from = Frontier(as_of + 1)
        self._groups: deque[tuple[list[Located], Frontier]] = deque()
        self._seqno: SeqNo | None = None
        self._pin = Pin(follows=True)
        super().__init__(lease.id, as_of, snapshot)
        lease.pin(self._pin, Frontier(as_of))

    @property
    def even(self) -> bool:
        """Whether nothing at or beyond `frontier` has been emitted: not so between events that share one version."""
        return not self._groups

    async def _next(self) -> ListenEvent:
        if not self._groups:
            if self._frontier == DONE:
                await self.aclose()
                raise StopAsyncIteration
            await self._plan()
        group, progress = self._groups[0]
        parts = await fetch_group(self._lease, self._schema, group, step_back(self._frontier))
        self._groups.popleft()  # from here to the return nothing waits: fetched and emitted are one
        updates = [part for part in map(self._after_frontier, parts) if len(part)]
        self._advance(progress)
        return ListenEvent(updates, progress)

    async def next_parts(self) -> LeasedStep:
        """Instead of the next event, what it is made of: parts that can be fetched elsewhere, each with a lease.

        Waits like the next event. Raises `StopAsyncIteration` after the progress `DONE`, `InvalidUsage` when the
        listen was closed or events that share one version have been read in part.
        """
        if self._closed or self._groups or not isinstance(self._snapshot, Snapshot | None):
            raise InvalidUsage(f"parts of a listen on {self._shard} were asked for between events, or after its end")
        if self._snapshot is not None:
            parts = await self._snapshot.leased_parts()
            self._snapshot = None
            return LeasedStep(parts, self._frontier)
        if self._frontier == DONE:
            await self.aclose()
            raise StopAsyncIteration
        await self._plan()
        parts = [
            LeasedPart(self._lease, self._seqno, located, self._schema, lower=self._from)
            for group, _ in self._groups
            for located in group
            if self._seqno is not None
        ]
        progress = self._groups[-1][1]
        self._groups.clear()
        self._advance(progress)
        return LeasedStep(parts, progress)

    def _let_go(self) -> None:
        if self._seqno is not None:
            self._lease.give_back(self._seqno)
            self._seqno = None
        self._lease.unpin(self._pin)

    async def _plan(self) -> None:
        """Wait for progress, then lease that version and list what to fetch from it."""
        lease, frontier = self._lease, self._frontier
        state = await lease.shard.wait_until(
            lambda state: state.upper > frontier or lease.reader_id not in state.readers
        )
        if state.tombstone:
            raise SinceError(lease.id, step_back(frontier), DONE)
        lease.check_live(state)
        parts: list[Located] = []
        rows, nbytes, progress = 0, 0, frontier
        bytes_max = min(fetching.GROUP_BYTES, lease.shard.config.prefetch_bytes)
        for position, batch in enumerate(state.batches):
            upper = state.batch_upper(position)
            if upper <= frontier:
                continue
            if batch.since >= frontier:
                raise InternalError(
                    f"shard {lease.id}: batch {batch.id} is compacted to {batch.since}, "
                    f"reader {lease.reader_id} is at {frontier}"
                )
            for index, part in enumerate(batch.parts):
                if part.time_max < frontier:
                    continue
                memory = memory_of(part)
                if rows and (rows + part.rows > fetching.GROUP_ROWS or nbytes + memory > bytes_max):
                    self._groups.append((parts, progress))
                    parts, rows, nbytes = [], 0, 0
                parts.append((batch.id, index, part))
                rows += part.rows
                nbytes += memory
            progress = upper
        self._groups.append((parts, Frontier(state.upper)))
        self._from = frontier
        if any(group for group, _ in self._groups):
            self._seqno = lease.take(state)

    def _after_frontier(self, updates: Updates) -> Updates:
        if int(updates.times.min()) >= self._from:
            return updates
        return updates.filter(updates.times >= np.uint64(self._from))

    def _advance(self, progress: Frontier) -> None:
        self._frontier = progress
        if not self._groups and self._seqno is not None:
            self._lease.give_back(self._seqno)
            self._seqno = None
        # Detail just below the frontier must stay: later updates are told apart from what was emitted by it.
        self._lease.pin(self._pin, Frontier(step_back(progress)))
        self._lease.followed()
