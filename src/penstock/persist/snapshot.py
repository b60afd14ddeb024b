"""Streaming snapshots: the contents of a shard at one time, a few parts at a time, not consolidated.

Parts are fetched ahead of the reader, within a bound of memory. What the state says of a part (its times, its
statistics, the sum of its diffs) is used to fetch as few as possible.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from penstock.persist import metrics
from penstock.persist.errors import StatisticsViolated
from penstock.persist.fetching import Selection, fetch_group, grouped, stored_bytes, to_audit
from penstock.persist.lease import Pin, ReaderLease
from penstock.persist.leased_part import LeasedPart
from penstock.persist.part_cache import Located
from penstock.persist.partstore import memory_of
from penstock.persist.state import HollowPart, State
from penstock.persist.store import SeqNo
from penstock.runtime import DONE, ExternalError, Frontier, PenstockError, TaskOwner, Timestamp, Updates
from penstock.runtime.updates import times_of

_FETCHES_MAX = 4
"""Enough that reading files and decoding overlap."""
_AUDIT_PARTS = 2
"""An audit reads so many parts of the target size, besides as much as is read anyway."""

_log = structlog.get_logger("penstock.persist")

Outcome = list[Updates] | Exception


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Parts that are fetched together. `audit`: not for the reader, who has been told that nothing passes."""

    parts: list[Located]
    audit: bool = False

    @property
    def memory(self) -> int:
        return sum(memory_of(part) for _, _, part in self.parts)


@dataclass(frozen=True, slots=True)
class SnapshotStatistics:
    """What a snapshot holds at most: it may be less once its parts are read. `nbytes`: stored, of `parts` blobs."""

    rows: int
    parts: int
    nbytes: int


class Snapshot:
    """See `ReadHandle.snapshot`. An async iterator; `aclose` releases what an unfinished one holds.

    After the store's error it may be called again and goes on where it was; any other error is its last answer. Never
    does it end early: whoever reads to the end has read everything.
    """

    def __init__(self, lease: ReaderLease, selection: Selection, as_of: Timestamp) -> None:
        self._lease = lease
        self._selection = selection
        self._as_of = as_of
        self._groups: deque[_Group] | None = None
        self._seqno: SeqNo | None = None
        self._owner: TaskOwner | None = None
        self._fetching: deque[tuple[_Group, asyncio.Task[Outcome]]] = deque()
        self._fetching_bytes = 0
        self._ended = False
        self._failure: Exception | None = None
        self.sufficient_upper = DONE
        """Enough of an upper for whoever knows that nothing was, or will be, written from it up to `as_of`."""
        self.upper = Frontier(0)
        """Upper of the version that is read, once it was chosen."""
        self._pin = Pin(follows=False)
        lease.pin(self._pin, Frontier(as_of))

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
            self._fetching_bytes -= group.memory
            outcome = task.result()
            if isinstance(outcome, ExternalError):
                assert self._groups is not None
                self._groups.appendleft(group)  # without its rows nobody may come to the end
                raise outcome
            if isinstance(outcome, Exception):
                await self._fail(outcome)
                raise outcome
            updates = at_as_of(outcome, self._as_of)
            if updates is not None:
                return updates
        raise StopAsyncIteration

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to be fetched."""
        return self._ended or (self._groups is not None and not self._groups and not self._fetching)

    async def leased_parts(self) -> list[LeasedPart]:
        """All that would be read, as parts to be fetched elsewhere, each with a lease of its own. Ends the snapshot."""
        await self._open()
        assert self._seqno is not None
        groups, self._groups = self._groups or deque(), deque()
        parts = [
            LeasedPart(self._lease, self._seqno, located, self._selection.wanted, as_of=self._as_of)
            for group in groups
            if not group.audit
            for located in group.parts
        ]
        await self.aclose()
        return parts

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
        self._lease.unpin(self._pin)
        if self._seqno is not None:
            self._lease.give_back(self._seqno)
            self._seqno = None

    async def _fail(self, error: Exception) -> None:
        self._failure = error
        await self.aclose()

    async def _open(self) -> Snapshot:
        if self._failure is not None:
            raise self._failure
        if self._groups is not None or self._ended:
            return self
        try:
            state = await readable_version(self._lease, self._as_of, self.sufficient_upper)
        except ExternalError:
            raise
        except PenstockError as error:
            await self._fail(error)
            raise
        self._seqno = self._lease.take(state)
        self.upper = Frontier(state.upper)
        self._groups = deque(self._plan(parts_up_to(state, self._as_of)))
        self._lease.unpin(self._pin)
        return self

    def _plan(self, parts: list[Located]) -> list[_Group]:
        """What to fetch of the `parts` of the version that is read."""
        shard = self._lease.shard
        kept: list[Located] = []
        discarded: list[Located] = []
        for located in parts:
            (kept if self._selection.needs(shard, located[2]) else discarded).append(located)
        groups = [_Group(group) for group in grouped(kept, shard.config.prefetch_bytes)]
        _counted("fetched", kept)
        _counted("filtered", discarded)
        if shard.config.stats_audit_percent and discarded:
            limit = _AUDIT_PARTS * shard.config.part_bytes + sum(stored_bytes(part) for _, _, part in kept)
            audited = to_audit(discarded, shard.config.stats_audit_percent, limit)
            _counted("audited", audited)
            groups += [_Group([located], audit=True) for located in audited]
        return groups

    def _prefetch(self) -> None:
        assert self._groups is not None
        if self._owner is None:
            self._owner = TaskOwner(f"snapshot of {self._lease.id}")
        while self._groups and len(self._fetching) < _FETCHES_MAX:
            memory = self._groups[0].memory
            if self._fetching and self._fetching_bytes + memory > self._lease.shard.config.prefetch_bytes:
                break
            group = self._groups.popleft()
            self._fetching_bytes += memory
            self._fetching.append((group, self._owner.spawn(self._outcome(group), "fetch")))

    async def _outcome(self, group: _Group) -> Outcome:
        """What fetching `group` came to. A failure is a result too: it waits for whoever reads on, and only they
        can say whether it matters.
        """
        try:
            if group.audit:
                await self._audit(group.parts[0])
                return []
            return await fetch_group(self._lease, self._selection.wanted, group.parts, self._as_of)
        except Exception as error:
            return error

    async def _audit(self, located: Located) -> None:
        part = located[2]
        assert isinstance(part, HollowPart)
        passing = await self._selection.passing(self._lease.shard, located)
        if passing:
            violation = StatisticsViolated(self._lease.id, part.key, self._selection.filter, passing)
            _log.error("statistics are wrong", shard=self._lease.id, error=violation.message)
            raise violation


class Count(Snapshot):
    """The number of rows at `as_of`, each as often as it occurs. What the state knows is not fetched."""

    def __init__(self, lease: ReaderLease, selection: Selection, as_of: Timestamp) -> None:
        super().__init__(lease, selection, as_of)
        self.known = 0
        """Sum of the diffs of parts that are within the time as a whole; valid once opened."""

    def _plan(self, parts: list[Located]) -> list[_Group]:
        whole = [located for located in parts if located[2].time_max <= self._as_of]
        _counted("counted", whole)
        self.known = sum(part.diff_sum for _, _, part in whole)
        return super()._plan([located for located in parts if located[2].time_max > self._as_of])


async def total(snapshot: Count) -> int:
    """Read `snapshot` to its end; the number of rows."""
    await snapshot
    straddling = [int(updates.diffs.sum()) async for updates in snapshot]
    return snapshot.known + sum(straddling)


async def readable_version(lease: ReaderLease, as_of: Timestamp, sufficient_upper: Frontier = DONE) -> State:
    """The first known version that is complete at `as_of`. Raises `SinceError`, `ReaderExpired`, the store's error."""
    lease.check_readable(as_of)
    state = await lease.shard.wait_until(
        lambda state: state.upper > as_of or state.upper >= sufficient_upper or lease.reader_id not in state.readers
    )
    lease.check_readable(as_of)
    return state


def parts_up_to(state: State, as_of: Timestamp) -> list[Located]:
    """The parts of `state` with updates at or before `as_of`."""
    return [
        (batch.id, index, part)
        for batch in state.batches
        if batch.lower <= as_of
        for index, part in enumerate(batch.parts)
        if part.time_min <= as_of
    ]


def at_as_of(parts: Sequence[Updates], as_of: Timestamp) -> Updates | None:
    """The updates of `parts` up to `as_of`, as if they were at that time; None when there are none."""
    if not parts:
        return None
    updates = Updates.concat(parts)
    if len(updates) and int(updates.times.max()) > as_of:
        updates = updates.filter(updates.times <= np.uint64(as_of))
    if not len(updates):
        return None
    return Updates(updates.rows, times_of(as_of, len(updates)), updates.diffs)


def _counted(outcome: str, parts: Sequence[Located]) -> None:
    if parts:
        metrics.READ_PARTS.labels(outcome).inc(len(parts))
        metrics.READ_PART_BYTES.labels(outcome).inc(sum(stored_bytes(part) for _, _, part in parts))
