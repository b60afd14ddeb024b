"""`TxnsListen`: the changes of a table, straight from the log where possible.

Two ways lead to the same rows. The *direct* one takes writes from the log as they are committed, before
anyone has applied them. The *stored* one reads the shard, and serves what the log cannot: history from
before the log was opened, large writes (the log only points to them), and what a slow consumer left behind
when its queue was full.

`_direct_from` says where one ends and the other begins: all rows below it come from the shard, all rows
from it on are in the queue or will be. The listen reads the shard while its frontier is below, and the
queue once it is not. Rows cannot be lost in between, because only a frontier decides; they cannot be
doubled, because what the shard has emitted (everything below its upper) is dropped from the queue.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from penstock.persist.lease import Pin
from penstock.persist.listen import EventStream, Listen, ListenEvent
from penstock.persist.read import ReadHandle
from penstock.persist.txn.log import TxnsLog
from penstock.persist.txn.rows import Write
from penstock.runtime import DONE, Frontier, Timestamp, Updates, step_back

if TYPE_CHECKING:
    from penstock.persist.txn.reader import TxnsSnapshot

QUEUE_BYTES_MAX = 16 << 20
"""Payloads that wait for a slow consumer; beyond this it reads them from the shard later."""
EVENT_BYTES_MAX = 1 << 20
"""Payloads in one event."""


class TxnsListen(EventStream):
    """An async iterator of `ListenEvent`, like `Listen`. A cancelled ``__anext__`` loses nothing."""

    def __init__(
        self,
        handle: ReadHandle,
        log: TxnsLog,
        as_of: Timestamp,
        opened_at: Frontier,
        snapshot: TxnsSnapshot | None,
    ) -> None:
        self._handle = handle
        self._log = log
        self._queue: deque[Write] = deque()
        self._queued_bytes = 0
        self._stored: Listen | None = None
        self._pin = Pin(follows=True)
        super().__init__(handle.shard, as_of, snapshot)
        handle.lease.pin(self._pin, Frontier(as_of))
        self._direct_from = DONE
        if handle.shard in log.registrations:
            self._direct_from = max(log.settled(handle.shard), opened_at)
            for write in log.unapplied(handle.shard):
                self.wrote(write)
        log.follow(handle.shard, self)

    async def _next(self) -> ListenEvent:
        while True:
            if self._frontier == DONE:
                await self.aclose()
                raise StopAsyncIteration
            if self._frontier < self._direct_from or (self._stored is not None and not self._stored.even):
                return await self._next_stored()
            if self._stored is not None:
                stored, self._stored = self._stored, None
                await stored.aclose()
            elif self._log.progress > self._frontier:
                return self._next_direct()
            else:
                await self._log.wait_for_progress(self, self._frontier)

    async def aclose(self) -> None:
        """End the listen and release what it holds. May be called twice."""
        await super().aclose()
        if self._stored is not None:
            await self._stored.aclose()

    def _let_go(self) -> None:
        self._log.unfollow(self._handle.shard, self)
        self._drop_queue()
        self._handle.lease.unpin(self._pin)

    # What the log tells (`Follower`)

    def wrote(self, write: Write) -> None:
        if write.ts < self._frontier or write.ts < self._direct_from:
            return
        if not write.inline or self._queued_bytes + len(write.payload) > QUEUE_BYTES_MAX:
            self._drop_queue()
            self._direct_from = Frontier(write.ts + 1)
            return
        self._queue.append(write)
        self._queued_bytes += len(write.payload)

    def registered(self, ts: Timestamp) -> None:
        self._direct_from = Frontier(ts + 1)

    def forgotten(self) -> None:
        self._drop_queue()
        self._direct_from = DONE

    # Emitting

    async def _next_stored(self) -> ListenEvent:
        if self._stored is None:
            self._stored = await self._handle.listen(step_back(self._frontier))
        event = await anext(self._stored)
        while self._queue and self._queue[0].ts < event.progress:
            self._queued_bytes -= len(self._queue.popleft().payload)
        self._advance(event.progress)
        return event

    def _next_direct(self) -> ListenEvent:
        updates: list[Updates] = []
        nbytes = 0
        progress = self._log.progress
        while self._queue:
            write = self._queue[0]
            if nbytes and nbytes + len(write.payload) > EVENT_BYTES_MAX:
                progress = Frontier(write.ts)
                break
            updates += write.updates(self._handle.schema)
            self._queue.popleft()
            nbytes += len(write.payload)
        self._queued_bytes -= nbytes
        self._advance(progress)
        return ListenEvent(updates, progress)

    def _advance(self, progress: Frontier) -> None:
        self._frontier = progress
        self._handle.lease.pin(self._pin, Frontier(step_back(progress)))
        if self._handle.upper > self._handle.since:  # else the shard has nothing that could be compacted
            self._handle.lease.followed()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
