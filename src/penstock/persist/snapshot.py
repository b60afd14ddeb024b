"""Streaming snapshots: the contents of a shard at one time, a few parts at a time, not consolidated."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.persist.fetching import fetch_group, grouped
from penstock.persist.lease import Pin, ReaderLease
from penstock.persist.partstore import Located
from penstock.persist.store import SeqNo
from penstock.runtime import DONE, ExternalError, Frontier, PenstockError, TaskOwner, Timestamp, Updates

_PREFETCH_GROUPS = 4
"""Parts of at most `PersistConfig.part_bytes` each: enough that reading files and decoding overlap."""

Outcome = list[Updates] | Exception


class Snapshot:
    """See `ReadHandle.snapshot`. An async iterator; `aclose` releases what an unfinished one holds.

    After the store's error it may be called again and goes on where it was; any other error is its last answer. Never
    does it end early: whoever reads to the end has read everything.
    """

    def __init__(self, lease: ReaderLease, schema: pa.Schema, as_of: Timestamp) -> None:
        self._lease = lease
        self._schema = schema
        self._as_of = as_of
        self._groups: deque[list[Located]] | None = None
        self._seqno: SeqNo | None = None
        self._owner: TaskOwner | None = None
        self._fetching: deque[tuple[list[Located], asyncio.Task[Outcome]]] = deque()
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
            outcome = task.result()
            if isinstance(outcome, ExternalError):
                assert self._groups is not None
                self._groups.appendleft(group)  # without its rows nobody may come to the end
                raise outcome
            if isinstance(outcome, Exception):
                await self._fail(outcome)
                raise outcome
            updates = self._at_as_of(outcome)
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
        lease, as_of = self._lease, self._as_of
        try:
            lease.check_readable(as_of)
            state = await lease.shard.wait_until(
                lambda state: (
                    state.upper > as_of or state.upper >= self.sufficient_upper or lease.reader_id not in state.readers
                )
            )
            lease.check_readable(as_of)
        except ExternalError:
            raise
        except PenstockError as error:
            await self._fail(error)
            raise
        self._seqno = lease.take(state)
        self.upper = Frontier(state.upper)
        parts = [
            (batch.id, index, part)
            for batch in state.batches
            if batch.lower <= as_of
            for index, part in enumerate(batch.parts)
            if part.time_min <= as_of
        ]
        self._groups = deque(grouped(parts))
        lease.unpin(self._pin)
        return self

    def _prefetch(self) -> None:
        assert self._groups is not None
        if self._owner is None:
            self._owner = TaskOwner(f"snapshot of {self._lease.id}")
        while self._groups and len(self._fetching) < _PREFETCH_GROUPS:
            group = self._groups.popleft()
            self._fetching.append((group, self._owner.spawn(self._outcome(group), "fetch")))

    async def _outcome(self, group: list[Located]) -> Outcome:
        """What fetching `group` came to. A failure is a result too: it waits for whoever reads on, and only they
        can say whether it matters.
        """
        try:
            return await fetch_group(self._lease, self._schema, group, self._as_of)
        except Exception as error:
            return error

    def _at_as_of(self, parts: list[Updates]) -> Updates:
        updates = Updates.concat(parts)
        if int(updates.times.max()) > self._as_of:
            updates = updates.filter(updates.times <= np.uint64(self._as_of))
        times = np.full(len(updates), self._as_of, dtype=np.uint64)
        return Updates(updates.rows, times, updates.diffs)
