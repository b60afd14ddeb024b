"""`TxnsListen`: the changes of a table, straight from the log where possible.

Two ways lead to the same rows. The *direct* one takes writes from the log as they are committed, before
anyone has applied them; of large ones the log has pointers to blobs, which a lease on a version of the shard
from before the write keeps. The *stored* one reads the shard, and serves what the log cannot: history from
before the log was opened, and what a slow consumer left behind when its queue was full.

`_direct_from` says where one ends and the other begins: all rows below it come from the shard, all rows
from it on are in the queue or will be. The listen reads the shard while its frontier is below, and the
queue once it is not. Rows cannot be lost in between, because only a frontier decides; they cannot be
doubled, because what the shard has emitted (everything below its upper) is dropped from the queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from penstock.persist.lease import Pin
from penstock.persist.listen import EventStream, Listen, ListenEvent
from penstock.persist.partstore import inline_updates
from penstock.persist.read import ReadHandle
from penstock.persist.state import InlinePart, Part, State
from penstock.persist.store import SeqNo
from penstock.persist.txn.direct import fetch_part
from penstock.persist.txn.log import TxnsLog
from penstock.persist.txn.rows import Write
from penstock.persist.txn.snapshot import TxnsSnapshot
from penstock.runtime import DONE, Frontier, Timestamp, Updates, step_back

QUEUE_BYTES_MAX = 16 << 20
"""Payloads that wait for a slow consumer; beyond this it reads them from the shard later."""
EVENT_BYTES_MAX = 1 << 20
"""Payloads in one event."""


@dataclass(frozen=True, slots=True)
class _Queued:
    """A write that waits to be emitted. `leased`: version of the shard that keeps the blobs of a large one."""

    write: Write
    leased: SeqNo | None


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
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._large: _Queued | None = None
        """A large write of which `_large_parts` remain to be emitted: come what may, it is finished this way."""
        self._large_parts: deque[Part] = deque()
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
            if self._large is not None:
                return await self._next_of_large(self._large)
            if self._frontier == DONE:
                await self.aclose()
                raise StopAsyncIteration
            if self._frontier < self._direct_from or (self._stored is not None and not self._stored.even):
                if self._stored is None or self._stored.even:
                    await self._shard_or_log()
                    if self._frontier >= self._direct_from:
                        continue
                return await self._next_stored()
            if self._stored is not None:
                stored, self._stored = self._stored, None
                await stored.aclose()
            elif self._queue and not self._queue[0].write.inline:
                self._large = self._pop()
                self._large_parts.extend(self._large.write.batch.parts)
            elif self._queue and not self._queue_is_readable():
                await self._handle.lease.shard.fetch()
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
        if self._large is not None:
            self._release(self._large)
            self._large = None
        self._handle.lease.unpin(self._pin)

    # What the log tells (`Follower`)

    def wrote(self, write: Write) -> None:
        if write.ts < self._frontier or write.ts < self._direct_from:
            return
        known = self._handle.lease.shard.state
        if _compacted(write, known) or self._queued_bytes + len(write.payload) > QUEUE_BYTES_MAX:
            self._drop_queue()
            self._direct_from = Frontier(write.ts + 1)
            return
        self._queue.append(_Queued(write, None if write.inline else self._handle.lease.take(known)))
        self._queued_bytes += len(write.payload)

    def registered(self, ts: Timestamp) -> None:
        self._direct_from = Frontier(ts + 1)
        self._handle.lease.shard.look_again()

    def forgotten(self) -> None:
        self._drop_queue()
        self._direct_from = DONE

    def log_failed(self) -> None:
        self._handle.lease.shard.look_again()

    # Emitting

    async def _shard_or_log(self) -> None:
        """Wait for the shard to move on, or for a registration after which it need not: an idle table's shard stays
        where it is for ever. Without a log, nobody would hear of that.
        """
        reader_id = self._handle.reader_id
        await self._handle.lease.shard.wait_until(
            lambda state: (
                state.upper > self._frontier
                or self._frontier >= self._direct_from
                or self._log.failed
                or reader_id not in state.readers
            )
        )
        self._log.check()

    async def _next_stored(self) -> ListenEvent:
        if self._stored is None:
            self._stored = await self._handle.listen(step_back(self._frontier))
        event = await anext(self._stored)
        while self._queue and self._queue[0].write.ts < event.progress:
            self._release(self._pop())
        self._advance(event.progress)
        return event

    def _next_direct(self) -> ListenEvent:
        """All that is queued, up to a bound or a large write. Waits for nothing: what is taken is emitted."""
        updates: list[Updates] = []
        nbytes = 0
        progress = self._log.progress
        shard, wanted = self._handle.lease.shard, self._handle.schema
        while self._queue:
            write = self._queue[0].write
            if not write.inline or (nbytes and nbytes + len(write.payload) > EVENT_BYTES_MAX):
                progress = Frontier(write.ts)
                break
            for part in write.batch.parts:
                assert isinstance(part, InlinePart)
                written = shard.written_with(part)
                updates.append(inline_updates(part, written, wanted))
            self._pop()
            nbytes += len(write.payload)
        self._advance(progress)
        return ListenEvent(updates, progress)

    async def _next_of_large(self, large: _Queued) -> ListenEvent:
        """One more part of a large write; the last one brings the progress."""
        lease = self._handle.lease
        updates = await fetch_part(lease, self._large_parts[0], self._handle.schema)
        self._large_parts.popleft()
        if self._large_parts:
            return ListenEvent([updates], self._frontier)
        self._large = None
        self._release(large)
        self._advance(Frontier(large.write.ts + 1))
        return ListenEvent([updates], self._frontier)

    def _queue_is_readable(self) -> bool:
        """Whether the schemas of all that is queued are known here."""
        schemas = len(self._handle.lease.shard.state.schemas)
        return all(part.schema < schemas for queued in self._queue for part in queued.write.batch.parts)

    def _advance(self, progress: Frontier) -> None:
        self._frontier = progress
        self._handle.lease.pin(self._pin, Frontier(step_back(progress)))
        if self._handle.upper > self._handle.since:  # else the shard has nothing that could be compacted
            self._handle.lease.followed()

    def _pop(self) -> _Queued:
        queued = self._queue.popleft()
        self._queued_bytes -= len(queued.write.payload)
        return queued

    def _release(self, queued: _Queued) -> None:
        if queued.leased is not None:
            self._handle.lease.give_back(queued.leased)

    def _drop_queue(self) -> None:
        while self._queue:
            self._release(self._pop())


def _compacted(write: Write, state: State) -> bool:
    """Whether the shard has got a large write and its blobs are no longer what the rows are in."""
    if write.inline or state.upper <= write.ts:
        return False
    return not state.keys().issuperset(write.batch.keys)
