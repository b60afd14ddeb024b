"""Answers on their way from replicas to whoever asked: peeks and subscribes.

All replicas of a cluster compute the same. Of their answers to a peek the first one wins; the batches of a subscribe
are merged by time, each time delivered once, whichever replica was first to close it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from penstock.control.holds import ReadHold
from penstock.control.specs import ReplicaId, SubscribeEvent
from penstock.replica import compute_pb2 as pb
from penstock.replica.wire import from_ipc, updates_from_ipc
from penstock.runtime import DONE, DataError, Frontier, SqlError, Updates

PEEK_CREDIT_CHUNKS = 4
_SUBSCRIBE_BYTES_MAX = 256 << 20


class PeekStream:
    """The rows of one peek. An async iterator; `aclose` cancels, and is needed unless it was read to its end.

    It survives replicas that die, as long as nothing has been delivered: a second run may give the rows in another
    order.
    """

    def __init__(
        self,
        uuid: bytes,
        holds: Sequence[ReadHold],
        grant: Callable[[ReplicaId], None],
        finish: Callable[[PeekStream], None],
    ) -> None:
        """`grant(replica)`: it may send one more chunk. `finish(stream)`, once: tell replicas, forget the peek."""
        self.uuid = uuid
        self.winner: ReplicaId | None = None
        self._holds = list(holds)
        self._grant, self._finish = grant, finish
        self._chunks: deque[bytes] = deque()
        self._batches: deque[pa.RecordBatch] = deque()
        self._delivered = False
        self._complete = False
        self._error: SqlError | None = None
        self._refused: dict[ReplicaId, SqlError] = {}
        self._news = asyncio.Event()
        self._finished = False

    def __aiter__(self) -> PeekStream:
        return self

    async def __anext__(self) -> pa.RecordBatch:
        while not self._batches:
            if self._chunks:
                self._delivered = True
                self._batches.extend(b for b in from_ipc(self._chunks.popleft()).to_batches() if b.num_rows)
                if self.winner is not None and not self._complete:
                    self._grant(self.winner)
            elif self._error is not None:
                await self.aclose()
                raise self._error
            elif self._complete:
                await self.aclose()
                raise StopAsyncIteration
            else:
                self._news.clear()
                await self._news.wait()
        return self._batches.popleft()

    async def aclose(self) -> None:
        """Cancel first, then release what was held for it."""
        self.end()

    def end(self) -> None:
        """The same at once. May be called twice."""
        if self._finished:
            return
        self._finished = True
        self._finish(self)
        for hold in self._holds:
            hold.release()
        if self._error is None and not self._complete:
            self.fail(SqlError("the read was cancelled", sqlstate="57014"))

    def fail(self, error: SqlError) -> None:
        """No replica will answer."""
        self._error = error
        self._news.set()

    def rows(self, replica: ReplicaId, ipc: bytes) -> bool:
        """A chunk from `replica`. False: another replica was first."""
        if self.winner is None:
            self.winner = replica
        if self.winner != replica:
            return False
        self._chunks.append(ipc)
        self._news.set()
        return True

    def ended(self, replica: ReplicaId, end: pb.PeekEnd, others: bool) -> bool:
        """The last word of `replica`; `others`: further replicas are at it. True when the peek is decided."""
        if self.winner not in (None, replica):
            return False
        kind = end.WhichOneof("kind")
        if kind == "canceled":
            return False
        if kind == "error":
            error = decode_error(end.error)
            if not end.error.definite and not self._delivered:
                self._refused[replica] = error
                self._forget(replica)
                if others:
                    return False
            self._chunks.clear()
            self.fail(error)
        else:
            self._complete = True
            self._news.set()
        self.winner = replica
        return True

    def lost(self, replica: ReplicaId) -> None:
        """The connection to `replica` is gone; the peek is sent to it again when it is back."""
        if self.winner != replica or self._complete or self._error is not None:
            return
        if self._delivered:
            self.fail(
                SqlError(
                    "the replica restarted while its answer was being sent",
                    sqlstate="40001",
                    hint="Repeat the query.",
                )
            )
            return
        self._forget(replica)

    def refused_by(self) -> set[ReplicaId]:
        """Replicas that have answered with trouble of their own."""
        return set(self._refused)

    def _forget(self, replica: ReplicaId) -> None:
        if self.winner == replica:
            self.winner = None
            self._chunks.clear()


class SubscribeStream:
    """The events of one SUBSCRIBE. An async iterator; `aclose` ends it, and is needed unless it was read to its
    end.
    """

    def __init__(self, as_of: Frontier, finish: Callable[[SubscribeStream], None]) -> None:
        self._emitted = as_of
        self._finish = finish
        self._events: deque[tuple[SubscribeEvent, int]] = deque()
        self._bytes = 0
        self._complete = False
        self._error: SqlError | None = None
        self._news = asyncio.Event()
        self._finished = False

    @property
    def emitted(self) -> Frontier:
        """Everything below was handed to the reader's queue."""
        return self._emitted

    def __aiter__(self) -> SubscribeStream:
        return self

    async def __anext__(self) -> SubscribeEvent:
        while not self._events:
            if self._error is not None:
                await self.aclose()
                raise self._error
            if self._complete:
                await self.aclose()
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event, size = self._events.popleft()
        self._bytes -= size
        return event

    async def aclose(self) -> None:
        """End it and let its dataflow go."""
        self.end()

    def end(self) -> None:
        """The same at once. May be called twice."""
        if self._finished:
            return
        self._finished = True
        self._finish(self)
        if not self._complete:
            self.fail(SqlError("the subscription was cancelled", sqlstate="57014"))

    def fail(self, error: SqlError) -> None:
        """Nothing more will come."""
        self._error = self._error or error
        self._news.set()

    def batch(self, batch: pb.SubscribeBatch) -> None:
        """What one replica computed. Times that another one was first to close are dropped."""
        upper = Frontier(batch.upper)
        if upper <= self._emitted or self._complete or self._error is not None:
            return
        lower, self._emitted = self._emitted, upper
        content: Updates | DataError
        if batch.WhichOneof("content") == "error":
            error = decode_error(batch.error)
            content = DataError(error.message, sqlstate=error.sqlstate)
            self._complete = True
        else:
            content = updates_from_ipc(batch.updates_ipc)
            if batch.lower < lower:
                content = content.filter(content.times >= np.uint64(lower))
            self._complete = upper == DONE
        size = content.nbytes if isinstance(content, Updates) else 0
        self._bytes += size
        self._events.append((SubscribeEvent(lower, upper, content), size))
        if self._bytes > _SUBSCRIBE_BYTES_MAX and len(self._events) > 1:
            self.fail(
                SqlError(
                    f"the subscriber is too slow: {self._bytes >> 20} MiB of changes wait for it",
                    sqlstate="53400",
                    hint="Read faster, or subscribe to less.",
                )
            )
        self._news.set()


def decode_error(error: pb.Error) -> SqlError:
    """The error of a replica as this process raises it."""
    kind = DataError if error.definite else SqlError
    return kind(error.message, sqlstate=error.sqlstate, detail=error.detail or None, hint=error.hint or None)
