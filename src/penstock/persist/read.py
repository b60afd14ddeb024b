"""Reading a shard: leased readers, snapshots, listens.

Two things keep what a reader needs. Its *since* (durable) keeps the shard from forgetting detail at and
after a time. Its *hold* (durable) keeps garbage collection from deleting blobs that some version refers to:
while parts of version v are being fetched, v is leased, and the hold never passes the oldest leased
version. A lease is always taken before the since may move on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from penstock.persist import commands, metrics
from penstock.persist.errors import CorruptBlobError, InvalidUsage, ReaderExpired, SinceError
from penstock.persist.parts import project_schema
from penstock.persist.shard import Shard
from penstock.persist.state import Part, Reader, State
from penstock.persist.store import SeqNo, ShardId
from penstock.runtime import (
    DONE,
    ExternalError,
    Frontier,
    InternalError,
    PenstockError,
    TaskOwner,
    Timestamp,
    Updates,
    step_back,
)

_log = structlog.get_logger("penstock.persist")

_GROUP_ROWS = 64 * 1024
_PREFETCH_GROUPS = 2
_EXPIRE_TIMEOUT_S = 2.0

Located = tuple[int, int, Part]
"""(batch id, index in the batch, part)."""


class _Pin:
    """Names what a snapshot or a listen needs, without keeping that object alive.

    `follows`: the handle's since moves along with it.
    """

    def __init__(self, follows: bool) -> None:
        self.follows = follows


class ReadHandle:
    """One leased reader of one shard.

    `since`: reads at or after it are possible. It follows `downgrade_since`; once the handle has a listen
    it follows that instead (just behind what was emitted), so open a reader of its own for whatever else
    must be held.
    """

    def __init__(
        self,
        shard: Shard,
        reader_id: str,
        schema: pa.Schema,
        entry: Reader,
        *,
        on_expire: Callable[[str], None],
    ) -> None:
        self._shard = shard
        self.reader_id = reader_id
        self.schema = schema
        self._last_since = Frontier(entry.since)
        self._requested = Frontier(entry.since)
        self._given_up = Frontier(entry.since)
        self._pins: dict[_Pin, Frontier] = {}
        self._leases: Counter[int] = Counter()
        self._on_expire = on_expire
        self._renewing: asyncio.Task[None] | None = None
        self._renewed_ms = entry.heartbeat_ms
        self._expired = False
        shard.readers[reader_id] = self

    @property
    def shard(self) -> ShardId:
        return self._shard.id

    @property
    def since(self) -> Frontier:
        if self._shard.state.tombstone:
            return DONE
        entry = self._shard.state.readers.get(self.reader_id)
        if entry is not None:
            self._last_since = Frontier(entry.since)
        return self._last_since

    @property
    def upper(self) -> Frontier:
        """The newest upper this process knows of."""
        return Frontier(self._shard.state.upper)

    async def wait_for_upper_past(self, frontier: Frontier) -> Frontier:
        """Wait until the upper is greater than `frontier` (at once for `DONE`); returns it."""
        state = await self._shard.wait_until(lambda state: state.upper > frontier or state.upper == DONE)
        return Frontier(state.upper)

    def snapshot(self, as_of: Timestamp, *, columns: Sequence[str] | None = None) -> Snapshot:
        """The shard's contents at `as_of`, as updates whose times are all `as_of`; not consolidated.

        Waits until ``upper > as_of``. Use ``async for updates in reader.snapshot(t)``; awaiting the result
        first (``await reader.snapshot(t)``) waits and leases the data right away. Only `columns` are read,
        in that order. Memory is bounded by a few parts. Raises `SinceError`, `ReaderExpired`,
        `CorruptBlobError`.
        """
        project_schema(self.schema, columns)  # an unknown column is refused here and now
        return Snapshot(self, as_of, columns)

    async def listen(self, as_of: Timestamp) -> Listen:
        """All updates after `as_of`, at their own times. Does not wait.

        Raises `SinceError`, `ReaderExpired`.
        """
        self._check_readable(as_of)
        return Listen(self, as_of, None)

    async def subscribe(self, as_of: Timestamp) -> Listen:
        """A listen that first brings the snapshot at `as_of`, the last event of which has progress ``as_of + 1``.

        Does not wait. Raises `SinceError`, `ReaderExpired`.
        """
        self._check_readable(as_of)
        return Listen(self, as_of, Snapshot(self, as_of, None))

    async def downgrade_since(self, since: Frontier) -> None:
        """Give up reads below `since`, durably. Never goes back, nor past what a listen of this handle
        needs.
        """
        self._requested = max(self._requested, since)
        if self.wanted_since() > self.since:
            await self.renew()
            self._check_live(self._shard.state)

    async def expire(self) -> None:
        """End this reader and its lease; its snapshots and listens fail from now on. May be called twice."""
        if self._expired:
            return
        self._expired = True
        self._shard.readers.pop(self.reader_id, None)
        self._on_expire(self.reader_id)
        await self._shard.commit(lambda state, _: commands.expire_reader(state, reader=self.reader_id))

    async def expire_best_effort(self) -> None:
        """`expire`, where a failing or slow store is no error: the durable entry ends with its lease."""
        try:
            async with asyncio.timeout(_EXPIRE_TIMEOUT_S):
                await self.expire()
        except (PenstockError, TimeoutError) as error:
            _log.warning("reader not expired", shard=self.shard, reader=self.reader_id, error=repr(error))

    # What the shard asks of a reader of this process

    def hold(self, state: State) -> SeqNo:
        return SeqNo(min(min(self._leases, default=state.seqno), state.seqno))

    def wanted_since(self) -> Frontier:
        if not self._pins:
            return self._requested
        pinned = min(self._pins.values())
        following = any(pin.follows for pin in self._pins)
        return pinned if following else min(pinned, self._requested)

    def give_up(self) -> Frontier:
        """`wanted_since`, for a commit that begins now: from here on, before it is durable, reads below it are
        refused.
        """
        self._given_up = max(self._given_up, self.wanted_since())
        return self._given_up

    def advanced(self, state: State) -> None:
        """Called for each new version: make the hold durable when it has fallen far behind."""
        entry = state.readers.get(self.reader_id)
        if entry is not None and self.hold(state) >= entry.hold + 4 * self._shard.config.hold_versions:
            self._renew_soon()

    def heartbeat(self) -> None:
        """Called a few times per lease: renew it in the background unless a commit did so in passing."""
        entry = self._shard.state.readers.get(self.reader_id)
        lease_ms = self._shard.config.reader_lease_ms
        if entry is None or entry.heartbeat_ms + lease_ms // 8 < self._shard.clock.now_ms():
            self._renew_soon()

    async def renew(self) -> None:
        """Commit the current hold, since and heartbeat."""
        entry = await self._shard.commit(
            lambda state, attempt: commands.downgrade_reader(
                state,
                reader=self.reader_id,
                since=self.give_up(),
                hold=self.hold(state),
                now_ms=attempt.now_ms,
            )
        )
        self._renewed_ms = self._shard.clock.now_ms()
        if entry is None and not self._expired and not self._shard.state.tombstone:
            metrics.READERS_EXPIRED.inc()
            _log.warning("reader has expired", shard=self.shard, reader=self.reader_id)

    def _renew_soon(self) -> None:
        if (self._renewing is None or self._renewing.done()) and not self._expired:
            self._renewing = self._shard.tasks.spawn(self._renew_in_background(), f"renew {self.reader_id}")

    async def _renew_in_background(self) -> None:
        try:
            await self.renew()
        except PenstockError as error:
            _log.warning("lease not renewed", shard=self.shard, reader=self.reader_id, error=error.message)

    # What snapshots and listens ask of their handle

    def _check_live(self, state: State) -> None:
        if self._expired or (self.reader_id not in state.readers and not state.tombstone):
            raise ReaderExpired(self.shard, self.reader_id)

    def _check_readable(self, as_of: Timestamp) -> None:
        self._check_live(self._shard.state)
        since = max(self.since, self._given_up)
        if as_of < since:
            raise SinceError(self.shard, as_of, since)

    def _pin(self, pin: _Pin, since: Frontier) -> None:
        self._pins[pin] = since

    def _unpin(self, pin: _Pin) -> None:
        since = self._pins.pop(pin, None)
        if since is not None and pin.follows:
            self._requested = max(self._requested, since)

    def _lease(self, state: State) -> SeqNo:
        self._leases[state.seqno] += 1
        return SeqNo(state.seqno)

    def _release(self, seqno: SeqNo) -> None:
        self._leases[seqno] -= 1
        if self._leases[seqno] <= 0:
            del self._leases[seqno]

    def _followed(self) -> None:
        """A listen has moved on: let the durable since follow, now and then."""
        overdue = self._shard.clock.now_ms() >= self._renewed_ms + self._shard.config.downgrade_ms
        if overdue and self.wanted_since() > self.since:
            self._renewed_ms = self._shard.clock.now_ms()
            self._renew_soon()

    async def _fetch(self, group: Sequence[Located], columns: Sequence[str] | None) -> list[Updates]:
        try:
            return [
                await self._shard.parts.fetch(self.shard, self.schema, batch_id, index, part, columns)
                for batch_id, index, part in group
            ]
        except CorruptBlobError:
            # Without the lease the blob may have been collected rightfully: that is another error.
            self._check_live(await self._shard.fetch())
            raise


class Snapshot:
    """See `ReadHandle.snapshot`. An async iterator; `aclose` releases what an unfinished one holds.

    After the store's error it may be called again and goes on where it was; any other error is its last answer. Never
    does it end early: whoever reads to the end has read everything.
    """

    def __init__(self, handle: ReadHandle, as_of: Timestamp, columns: Sequence[str] | None) -> None:
        self._handle = handle
        self._as_of = as_of
        self._columns = columns
        self._groups: deque[list[Located]] | None = None
        self._seqno: SeqNo | None = None
        self._owner: TaskOwner | None = None
        self._fetching: deque[tuple[list[Located], asyncio.Task[list[Updates]]]] = deque()
        self._ended = False
        self._failure: Exception | None = None
        self.sufficient_upper = DONE
        """Enough of an upper for whoever knows that nothing was, or will be, written from it up to `as_of`."""
        self.upper = Frontier(0)
        """Upper of the version that is read, once it was chosen."""
        self._pinned = _Pin(follows=False)
        handle._pin(self._pinned, Frontier(as_of))

    def __await__(self) -> Generator[Any, None, Snapshot]:
        return self._open().__await__()

    def __aiter__(self) -> Snapshot:
        return self

    async def __anext__(self) -> Updates:
        await self._open()
        while not self._ended:
            self._prefetch()
            if not self._fetching:
                await self.aclose()
                break
            group, task = self._fetching[0]
            await asyncio.wait({task})  # unlike awaiting the task, survives a cancellation of this call
            self._fetching.popleft()
            try:
                parts = task.result()
            except ExternalError:
                assert self._groups is not None
                self._groups.appendleft(group)  # without its rows nobody may come to the end
                raise
            except Exception as error:
                await self._fail(error)
                raise
            updates = self._at_as_of(parts)
            if len(updates):
                return updates
        raise StopAsyncIteration

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to be fetched."""
        return self._ended or (self._groups is not None and not self._groups and not self._fetching)

    async def aclose(self) -> None:
        """Stop fetching and release the lease. May be called twice."""
        self._ended = True
        if self._owner is not None:
            owner, self._owner = self._owner, None
            await owner.close()
        self._let_go()

    def __del__(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self._handle._unpin(self._pinned)
        if self._seqno is not None:
            self._handle._release(self._seqno)
            self._seqno = None

    async def _fail(self, error: Exception) -> None:
        self._failure = error
        await self.aclose()

    async def _open(self) -> Snapshot:
        if self._failure is not None:
            raise self._failure
        if self._groups is not None or self._ended:
            return self
        handle, as_of = self._handle, self._as_of
        try:
            handle._check_readable(as_of)
            state = await handle._shard.wait_until(
                lambda state: (
                    state.upper > as_of or state.upper >= self.sufficient_upper or handle.reader_id not in state.readers
                )
            )
            handle._check_readable(as_of)
        except ExternalError:
            raise
        except PenstockError as error:
            await self._fail(error)
            raise
        self._seqno = handle._lease(state)
        self.upper = Frontier(state.upper)
        parts = [
            (batch.id, index, part)
            for batch in state.batches
            if batch.lower <= as_of
            for index, part in enumerate(batch.parts)
            if part.time_min <= as_of
        ]
        self._groups = deque(_grouped(parts))
        handle._unpin(self._pinned)
        return self

    def _prefetch(self) -> None:
        assert self._groups is not None
        if self._owner is None:
            self._owner = TaskOwner(f"snapshot of {self._handle.shard}")
        while self._groups and len(self._fetching) < _PREFETCH_GROUPS:
            group = self._groups.popleft()
            self._fetching.append((group, self._owner.spawn(self._handle._fetch(group, self._columns), "fetch")))

    def _at_as_of(self, parts: list[Updates]) -> Updates:
        updates = Updates.concat(parts)
        if int(updates.times.max()) > self._as_of:
            updates = updates.filter(updates.times <= np.uint64(self._as_of))
        times = np.full(len(updates), self._as_of, dtype=np.uint64)
        return Updates(updates.rows, times, updates.diffs)


@dataclass(frozen=True, slots=True)
class ListenEvent:
    """`updates`, in no order and not consolidated. All updates below `progress` have been emitted by now."""

    updates: list[Updates]
    progress: Frontier


class Listen:
    """An async iterator of `ListenEvent`. Ends only after the event with the progress `DONE`.

    A cancelled ``__anext__`` loses nothing: the next call gives the same event. Raises `ReaderExpired` when
    the lease was lost, `CorruptBlobError`, or the store's error; it may be called again after the latter.
    After any other error in the snapshot of a `subscribe` it has closed itself, and one subscribes anew.
    """

    def __init__(self, handle: ReadHandle, as_of: Timestamp, snapshot: Snapshot | None) -> None:
        self._handle = handle
        self._as_of = as_of
        self._snapshot = snapshot
        self._frontier = Frontier(as_of + 1)
        self._from = self._frontier
        self._groups: deque[tuple[list[Located], Frontier]] = deque()
        self._seqno: SeqNo | None = None
        self._closed = False
        self._pinned = _Pin(follows=True)
        handle._pin(self._pinned, Frontier(as_of))

    @property
    def frontier(self) -> Frontier:
        """All updates after the `as_of` and below this have been emitted."""
        return self._frontier

    @property
    def even(self) -> bool:
        """Whether nothing at or beyond `frontier` has been emitted: not so between events that share one version."""
        return not self._groups

    def __aiter__(self) -> Listen:
        return self

    async def __anext__(self) -> ListenEvent:
        if self._closed:
            raise InvalidUsage(f"a listen on {self._handle.shard} was used after it was closed")
        if self._snapshot is not None:
            return await self._next_of_snapshot(self._snapshot)
        if not self._groups:
            if self._frontier == DONE:
                await self.aclose()
                raise StopAsyncIteration
            await self._plan()
        group, progress = self._groups[0]
        parts = await self._handle._fetch(group, None)
        self._groups.popleft()  # from here to the return nothing waits: fetched and emitted are one
        updates = [part for part in map(self._after_frontier, parts) if len(part)]
        self._advance(progress)
        return ListenEvent(updates, progress)

    async def aclose(self) -> None:
        """End the listen and release what it holds. May be called twice."""
        self._closed = True
        if self._snapshot is not None:
            snapshot, self._snapshot = self._snapshot, None
            await snapshot.aclose()
        self._let_go()

    def __del__(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._seqno is not None:
            self._handle._release(self._seqno)
            self._seqno = None
        self._handle._unpin(self._pinned)

    async def _next_of_snapshot(self, snapshot: Snapshot) -> ListenEvent:
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

    async def _plan(self) -> None:
        """Wait for progress, then lease that version and list what to fetch from it."""
        handle, frontier = self._handle, self._frontier
        state = await handle._shard.wait_until(
            lambda state: state.upper > frontier or handle.reader_id not in state.readers
        )
        if state.tombstone:
            raise SinceError(handle.shard, step_back(frontier), DONE)
        handle._check_live(state)
        parts: list[Located] = []
        rows, progress = 0, frontier
        for position, batch in enumerate(state.batches):
            upper = state.batch_upper(position)
            if upper <= frontier:
                continue
            if batch.since >= frontier:
                raise InternalError(
                    f"shard {handle.shard}: batch {batch.id} is compacted to {batch.since}, "
                    f"reader {handle.reader_id} is at {frontier}"
                )
            for index, part in enumerate(batch.parts):
                if part.time_max < frontier:
                    continue
                if rows and rows + part.rows > _GROUP_ROWS:
                    self._groups.append((parts, progress))
                    parts, rows = [], 0
                parts.append((batch.id, index, part))
                rows += part.rows
            progress = upper
        self._groups.append((parts, Frontier(state.upper)))
        self._from = frontier
        if any(group for group, _ in self._groups):
            self._seqno = handle._lease(state)

    def _after_frontier(self, updates: Updates) -> Updates:
        if int(updates.times.min()) >= self._from:
            return updates
        return updates.filter(updates.times >= np.uint64(self._from))

    def _advance(self, progress: Frontier) -> None:
        self._frontier = progress
        if not self._groups and self._seqno is not None:
            self._handle._release(self._seqno)
            self._seqno = None
        # Detail just below the frontier must stay: later updates are told apart from what was emitted by it.
        self._handle._pin(self._pinned, Frontier(step_back(progress)))
        self._handle._followed()


def _grouped(parts: list[Located]) -> list[list[Located]]:
    """Parts in groups of some ten thousand rows: many small parts become one batch for the consumer."""
    groups: list[list[Located]] = []
    rows = 0
    for located in parts:
        if not groups or rows + located[2].rows > _GROUP_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(located)
        rows += located[2].rows
    return groups
