"""Coalescing of compare-and-sets: what has gathered goes to the store as one statement.

A compare-and-set on its own costs a store one transaction, with its flush to disk and its round trips; that bounds a
store near a few thousand a second. Here changes queue and up to `BATCH_MAX` of them, of different shards, share one.

* No delay when idle: a batch leaves as soon as there is something to send, with what has gathered by then. It grows
  only because it had to wait for others.
* Each member has its own result; one that mismatches does not fail its neighbours. When a whole batch fails
  determinately because the store could not serialize it, its halves are tried, down to single changes. When its
  outcome is unknown, every member's is.
* At most one change of a shard is on its way. The next one waits for it, and is refused without asking the store
  when it is then known to be behind.
* What waits is bounded, in changes and bytes; callers beyond the bound wait for their turn.

It knows nothing of gRPC: simulations drive it as it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from penstock.committer import metrics
from penstock.committer.cache import ShardCache
from penstock.persist import CasResult, Versioned
from penstock.persist.store import BATCH_MAX, BatchingConsensus, StoreFailure
from penstock.runtime import Clock, Determinate, ExternalError, Indeterminate, TaskOwner

BATCH_BYTES_MAX = 16 << 20
"""A batch is not filled beyond this; a single larger change goes alone."""

BATCHES_MAX = 16
"""Batches on their way to the store."""

GATHER_MAX = 16
_GATHER_PER_CALLER = 2
"""With n batches on their way another one leaves when more than n times this, for each process that calls, have
gathered (n times `GATHER_MAX` at most). The store's log is flushed once for all that wait for it: a small batch that
sets out during a flush is done no sooner than the larger one that waits for its end, and costs a statement more, and
each process a message more. What few processes send comes in few messages anyway, and gains by an early start.
"""

BACKLOG_MAX = 16_384
BACKLOG_BYTES_MAX = 256 << 20

_CONFLICTS = {"40001", "40P01"}
"""SQLSTATEs that say "not serializable at this moment": to try again is the remedy."""


Settle: TypeAlias = Callable[["CasResult | ExternalError"], None]


class Change:
    """One queued compare-and-set. `settle` is called once with its result or error, unless it was withdrawn."""

    __slots__ = ("key", "new", "settle", "withdrawn")

    def __init__(self, key: str, new: Versioned, settle: Settle) -> None:
        self.key = key
        self.new = new
        self.settle = settle
        self.withdrawn = False

    def withdraw(self) -> None:
        """Nobody waits for it any more: if it has not left yet, it does not happen."""
        self.withdrawn = True


class Coalescer:
    """Queues compare-and-sets in front of `store`. Belongs to one event loop.

    `cache` says which changes are known to be behind; `on_decided(key, new, result)` is called for each result of the
    store, before the next change of that shard is looked at.
    """

    def __init__(
        self,
        store: BatchingConsensus,
        cache: ShardCache,
        on_decided: Callable[[str, Versioned, CasResult], None],
        clock: Clock,
        *,
        batch_max: int = BATCH_MAX,
        batches_max: int = BATCHES_MAX,
        backlog_max: int = BACKLOG_MAX,
    ) -> None:
        self._store = store
        self._cache = cache
        self._on_decided = on_decided
        self._clock = clock
        self._batch_max = batch_max
        self._batches_max = batches_max
        self._backlog_max = backlog_max
        self._backlog = 0
        self._backlog_bytes = 0
        self._admission: deque[asyncio.Future[None]] = deque()
        self._ready: deque[Change] = deque()
        """Changes that may go: at most one per shard, and none of a shard with one on its way."""
        self._following: dict[str, deque[Change] | None] = {}
        """Shards with a change that is ready or on its way, and what waits behind it."""
        self._batches = 0
        self._gather = GATHER_MAX
        self._pump_is_due = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = TaskOwner("coalescer")
        metrics.QUEUED.set_function(lambda: self._backlog)

    def called_by(self, processes: int) -> None:
        """So many processes send changes: their answers travel in as many messages."""
        self._gather = max(1, min(_GATHER_PER_CALLER * processes, GATHER_MAX))

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        """As `Consensus.compare_and_set`. A cancelled call that has not left yet does not happen."""
        await self.room()
        done: asyncio.Future[CasResult] = asyncio.get_running_loop().create_future()

        def settle(outcome: CasResult | ExternalError) -> None:
            if done.done():
                return
            if isinstance(outcome, CasResult):
                done.set_result(outcome)
            else:
                done.set_exception(outcome)

        change = self.offer(key, new, settle)
        try:
            return await done
        except asyncio.CancelledError:
            change.withdraw()
            raise

    async def room(self) -> None:
        """Return when the queue has room. Whoever goes on to `offer` may exceed the bound by that much."""
        while self._full() or (self._admission and not self._closed):
            metrics.QUEUE_WAITS.inc()
            turn = asyncio.get_running_loop().create_future()
            self._admission.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._admit_next()  # the turn was given, and is passed on
                raise
            if not self._full():
                return

    def offer(self, key: str, new: Versioned, settle: Settle) -> Change:
        """Queue a change. `settle` gets its `CasResult`, or the error; on the event loop, never before this returns."""
        change = Change(key, new, settle)
        self._backlog += 1
        self._backlog_bytes += len(new.data)
        if self._closed:
            asyncio.get_running_loop().call_soon(self._refuse, change)
        elif key not in self._following:
            self._following[key] = None
            self._ready.append(change)
            self._pump_soon()
        elif (waiting := self._following[key]) is None:
            self._following[key] = deque([change])
        else:
            waiting.append(change)
        return change

    async def close(self) -> None:
        """Refuse what has not left yet, and wait for what has, which is bounded by the store's own timeouts.

        Cancelled, it abandons that: then its outcome is unknown.
        """
        self._closed = True
        refused = [*self._ready, *(c for waiting in self._following.values() for c in waiting or ())]
        self._ready.clear()
        for key in self._following:
            self._following[key] = None
        for change in refused:
            self._refuse(change)
        try:
            await self._idle.wait()
        finally:
            await self._tasks.close()

    def _refuse(self, change: Change) -> None:
        self._done(change, Determinate(f"cannot set {change.key} at seqno {change.new.seqno}: the committer is closed"))

    # The bound

    def _full(self) -> bool:
        return self._backlog >= self._backlog_max or self._backlog_bytes >= BACKLOG_BYTES_MAX

    def _admit_next(self) -> None:
        while self._admission and not self._full():
            turn = self._admission.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _done(self, change: Change, outcome: CasResult | ExternalError) -> None:
        self._backlog -= 1
        self._backlog_bytes -= len(change.new.data)
        if self._admission:
            self._admit_next()
        if not change.withdrawn:
            change.settle(outcome)

    # The queue

    def _pump_soon(self) -> None:
        """After this turn of the event loop, so that all changes of one message share a batch."""
        if not self._pump_is_due and self._batches < self._batches_max:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        while self._batches < self._batches_max and len(self._ready) > self._batches * self._gather:
            batch = self._take()
            if not batch:
                return
            self._batches += 1
            self._idle.clear()
            self._tasks.spawn(self._send(batch), f"batch of {len(batch)}")

    def _take(self) -> list[Change]:
        batch: list[Change] = []
        nbytes = 0
        while self._ready and len(batch) < self._batch_max:
            change = self._ready[0]
            if batch and nbytes + len(change.new.data) > BATCH_BYTES_MAX:
                break
            self._ready.popleft()
            if change.withdrawn:
                self._done(change, CasResult.MISMATCH)
                self._next_of(change.key)
                continue
            nbytes += len(change.new.data)
            batch.append(change)
        return batch

    def _next_of(self, key: str) -> None:
        """The change of `key` that was ahead is decided: let the next one go, or refuse it."""
        waiting = self._following[key]
        while waiting:
            change = waiting.popleft()
            if not change.withdrawn:
                if not self._cache.is_behind(key, change.new.seqno):
                    self._ready.append(change)
                    self._pump_soon()
                    return
                metrics.CAS_REFUSED.inc()
            self._done(change, CasResult.MISMATCH)
        del self._following[key]

    # The store

    async def _send(self, batch: list[Change]) -> None:
        try:
            await self._attempt(batch)
        finally:
            self._batches -= 1
            if not self._batches:
                self._idle.set()
            if self._ready and not self._closed:
                self._pump_soon()

    async def _attempt(self, batch: list[Change]) -> None:
        started = self._clock.monotonic()
        try:
            outcomes = await self._ask(batch)
        except asyncio.CancelledError:
            self._fail(batch, Indeterminate("the committer stopped before the store answered"))
            raise
        except Exception as error:
            if len(batch) > 1 and isinstance(error, Determinate) and is_conflict(error):
                metrics.BATCH_SPLITS.inc()
                middle = len(batch) // 2
                await self._attempt(batch[:middle])
                await self._attempt(batch[middle:])
                return
            self._fail(batch, error)
            return
        metrics.BATCH_SIZE.observe(len(batch))
        seconds = self._clock.monotonic() - started
        metrics.BATCH_SECONDS.observe(seconds)
        _BACKING_SET.observe(seconds)
        for change, outcome in zip(batch, outcomes, strict=True):
            self._settle(change, outcome)

    async def _ask(self, batch: list[Change]) -> Sequence[CasResult | StoreFailure]:
        if len(batch) == 1:
            return [await self._store.compare_and_set(batch[0].key, batch[0].new)]
        outcomes = await self._store.compare_and_set_many([(change.key, change.new) for change in batch])
        if len(outcomes) != len(batch):
            raise Indeterminate(f"the store gave {len(outcomes)} results for {len(batch)} changes")
        return outcomes

    def _fail(self, batch: list[Change], error: Exception) -> None:
        for change in batch:
            self._settle(change, error)

    def _settle(self, change: Change, outcome: CasResult | Exception) -> None:
        if isinstance(outcome, CasResult):
            self._on_decided(change.key, change.new, outcome)
            self._done(change, outcome)
        else:
            self._done(change, _own(outcome, change))
        self._next_of(change.key)


def _own(error: Exception, change: Change) -> ExternalError:
    """An error object for one member: shared ones would collect the tracebacks of all waiters."""
    what = f"cannot set {change.key} at seqno {change.new.seqno}"
    kind = type(error) if isinstance(error, ExternalError) else Indeterminate
    own = kind(f"{what}: {error}")
    own.__cause__ = error
    return own


def is_conflict(error: BaseException) -> bool:
    """Whether the store could only not serialize the operation: no fault of any member's."""
    seen = 0
    current: BaseException | None = error
    while current is not None and seen < 16:
        if getattr(current, "sqlstate", None) in _CONFLICTS:
            return True
        current = current.__cause__
        seen += 1
    return False


_BACKING_SET = metrics.BACKING_SECONDS.labels("compare_and_set")
