"""Upkeep of a shard: rollups, garbage collection, compaction.

Whoever committed is asked to do what that commit made due, in the background. What is due follows from the state
alone, so nothing is lost with a process: the next commit of anybody finds it again. Each kind of step has a lane of
its own, with a limit of time, a share of the process's slots, and growing pauses after failures; a step that
hangs, fails or is wrong holds up neither the other lanes nor other shards, nor itself for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from penstock.persist import commands, metrics
from penstock.persist.collect import collect_garbage, collectable, roll_up
from penstock.persist.commands import Applied
from penstock.persist.compact import compact, limit_s
from penstock.persist.config import PersistConfig
from penstock.persist.errors import ClientClosed, CorruptBlobError
from penstock.persist.policy import Policy, Size
from penstock.persist.shard import Shard
from penstock.persist.state import LinkedBatch, State
from penstock.persist.store import SeqNo
from penstock.runtime import PenstockError, random_uuid

W = TypeVar("W")

_log = structlog.get_logger("penstock.persist")

_PAUSE_S = 5.0
_PAUSE_MAX_S = 300.0
_PATIENCE_MAX = 64
_OUTCOMES = {Applied.YES: "applied", Applied.NO: "superseded", Applied.UNKNOWN: "unknown"}


class Kind(StrEnum):
    """Kinds of steps; their names in metrics and logs."""

    ROLLUP = "rollup"
    COLLECTION = "collection"
    COMPACTION = "compaction"


class Slots:
    """How many steps of each kind, and compactions of each size, a process takes at a time. Whoever waits for one is a
    lane: at most one per shard.
    """

    def __init__(self, config: PersistConfig) -> None:
        self.rollups = asyncio.Semaphore(config.upkeep_concurrency)
        self.collections = asyncio.Semaphore(config.upkeep_concurrency)
        self.compactions = {size: asyncio.Semaphore(config.compaction_concurrency) for size in Size}


class Overdue(PenstockError):
    """A step of upkeep was given up after its limit of time."""


class _Lane(Generic[W]):
    """One kind of step for one shard, one at a time, as long as `due` finds work in the newest state."""

    def __init__(
        self,
        kind: Kind,
        shard: Shard,
        slots: asyncio.Semaphore,
        due: Callable[[State], W | None],
        step: Callable[[State, W], Awaitable[Applied]],
        limit_s: Callable[[W], float],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._kind, self._shard, self._slots = kind, shard, slots
        self._due, self._step, self._limit_s, self._after = due, step, limit_s, after
        self._failures = 0
        self._patience = 1
        self.running: asyncio.Task[None] | None = None
        self.work: W | None = None
        """What it is at."""

    def poke(self, state: State) -> None:
        """See whether `state` makes anything due. Cheap; never waits."""
        if self.running is not None and not self.running.done():
            return  # it looks again before it ends
        if self._due(state) is not None:
            metrics.UPKEEP.labels(self._kind, "requested").inc()
            self.running = self._shard.tasks.spawn(self._run(), f"{self._kind} of {self._shard.id}")

    async def _run(self) -> None:
        while self._due(self._shard.state) is not None:
            with metrics.UPKEEP_WAITING.labels(self._kind).track_inprogress():
                await self._slots.acquire()
            try:
                failed = await self._one()
            except ClientClosed:
                return
            finally:
                self._slots.release()
            self._after()
            self._failures = self._failures + 1 if failed else 0
            if failed:
                pause_s = min(_PAUSE_S * 2 ** (self._failures - 1), _PAUSE_MAX_S)
                await self._shard.clock.sleep(pause_s)

    async def _one(self) -> bool:
        """One step; whether it failed. Nothing but cancellation comes out of it."""
        state = self._shard.state
        self.work = work = self._due(state)
        if work is None:
            return False
        metrics.UPKEEP.labels(self._kind, "started").inc()
        began_s = self._shard.clock.monotonic()
        try:
            outcome = await self._within(self._limit_s(work) * self._patience, lambda: self._step(state, work))
        except Overdue as error:
            self._patience = min(2 * self._patience, _PATIENCE_MAX)  # it may be too much work, rather than hang
            return self._failed("timed_out", error.message)
        except ClientClosed:
            raise
        except PenstockError as error:
            return self._failed("failed", error.message)
        except Exception as error:  # a defect in a step must not stop the upkeep of the shard for good
            _log.error("defect in upkeep", kind=self._kind, shard=self._shard.id, exc_info=error)
            return self._failed("failed", repr(error))
        finally:
            self.work = None
            metrics.UPKEEP_SECONDS.labels(self._kind).observe(self._shard.clock.monotonic() - began_s)
        metrics.UPKEEP.labels(self._kind, _OUTCOMES[outcome]).inc()
        return False

    def _failed(self, outcome: str, message: str) -> bool:
        metrics.UPKEEP.labels(self._kind, outcome).inc()
        _log.warning("upkeep interrupted", kind=self._kind, shard=self._shard.id, error=message)
        return True

    async def _within(self, limit_s: float, step: Callable[[], Awaitable[Applied]]) -> Applied:
        """Await `step` for `limit_s` seconds at most. Raises `Overdue`, without waiting for its cancellation."""
        clock, tasks = self._shard.clock, self._shard.tasks

        async def run() -> Applied | Exception:
            try:
                return await step()
            except Exception as error:  # raised again below, by whoever waits
                return error

        work = tasks.spawn(run(), f"step of {self._kind}")
        timer = tasks.spawn(clock.sleep(limit_s), "limit")
        try:
            await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Overdue(f"{self._kind} of shard {self._shard.id} has not ended within {limit_s:.0f} s")
        finally:
            timer.cancel()
            work.cancel()
        outcome = work.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Maintenance:
    """The lanes of one shard in this process.

    Compactions have one for each size. While a long one is at work, for minutes perhaps, the small batches that come
    in must go on being merged: until they are, they fill the room in the state that spares appends the blob store.
    """

    def __init__(self, shard: Shard, slots: Slots) -> None:
        self._shard = shard
        self._claimant = random_uuid().hex[:12]
        config = shard.config
        self._policy = Policy(config)
        self._chosen_for: tuple[int, frozenset[int]] | None = None
        self._chosen: Mapping[Size, tuple[LinkedBatch, ...]] = {}
        limit = config.upkeep_timeout_ms / 1000
        self._compactions = tuple(
            _Lane(
                Kind.COMPACTION,
                shard,
                slots.compactions[size],
                partial(self._to_merge, size=size),
                lambda _, inputs: self._compact(inputs),
                lambda inputs: limit_s(config, inputs),
                self._merge_what_is_free,
            )
            for size in Size
        )
        self._lanes: tuple[_Lane[Any], ...] = (
            _Lane(
                Kind.ROLLUP,
                shard,
                slots.rollups,
                self._rollup_due,
                lambda state, _: roll_up(shard, state),
                lambda _: limit,
            ),
            _Lane(
                Kind.COLLECTION,
                shard,
                slots.collections,
                self._collectable,
                lambda _, seqno: collect_garbage(shard, seqno),
                lambda _: limit,
            ),
            *self._compactions,
        )

    def poke(self, state: State) -> None:
        """See whether the commit of `state` made anything due. Cheap; never waits."""
        for lane in self._lanes:
            lane.poke(state)

    async def idle(self) -> None:
        """Return when nothing is under way. Cancellable."""
        while running := [one.running for one in self._lanes if one.running is not None and not one.running.done()]:
            await asyncio.wait(running)

    def _rollup_due(self, state: State) -> bool | None:
        return (state.seqno - state.latest_rollup >= self._rollup_every() and not state.tombstone) or None

    def _rollup_every(self) -> int:
        """Processes that only read leave the upkeep to the writers', unless these fall behind."""
        every = self._shard.config.rollup_every
        return every if self._shard.writers else 2 * every

    def _collectable(self, state: State) -> SeqNo | None:
        slack = 0 if self._shard.writers else self._rollup_every()
        seqno = None if state.tombstone else collectable(state, self._shard.config.collect_versions)
        return seqno if seqno is not None and seqno > state.collected + slack else None

    def _to_merge(self, state: State, size: Size) -> tuple[LinkedBatch, ...] | None:
        if not self._shard.writers and len(state.batches) <= self._policy.batches_max:
            return None
        now_ms = self._shard.clock.now_ms()
        claimed = commands.claimed(state, claimant=self._claimant, now_ms=now_ms) if state.claims else frozenset()
        ours = frozenset(batch.id for lane in self._compactions for batch in lane.work or ())
        question = (state.seqno, claimed | ours)
        if question != self._chosen_for:  # all lanes ask at each commit
            self._chosen_for, self._chosen = question, self._policy.by_size(state, claimed | ours)
        return self._chosen.get(size)

    def _merge_what_is_free(self) -> None:
        """What one lane leaves, done or not, may be due in another size: no commit need tell that lane."""
        for lane in self._compactions:
            lane.poke(self._shard.state)

    async def _compact(self, inputs: tuple[LinkedBatch, ...]) -> Applied:
        ids = {batch.id for batch in inputs}
        try:
            outcome = await compact(self._shard, inputs, self._claimant)
        except CorruptBlobError as error:
            newest = await self._shard.fetch()
            if not ids <= {batch.id for batch in newest.batches}:
                return Applied.NO  # another process compacted them first and their blobs were collected
            damaged = {batch.id for batch in inputs if any(error.key.endswith(key) for key in batch.keys)}
            self._policy.unreadable |= damaged or ids
            self._chosen_for = None
            metrics.UPKEEP.labels(Kind.COMPACTION, "damaged").inc()
            _log.error("cannot compact", shard=self._shard.id, error=error.message)
            return Applied.UNKNOWN
        if outcome is Applied.YES:
            metrics.COMPACTED_ROWS.inc(sum(batch.rows for batch in inputs))
        elif outcome is Applied.NO:
            await self._shard.fetch()  # what was chosen from is behind, or somebody else has the work
        return outcome
