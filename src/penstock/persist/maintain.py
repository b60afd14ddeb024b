"""Upkeep of a shard: rollups, garbage collection, compaction, and the sweep of what crashes left behind.

Whoever committed is asked to do what that commit made due, in the background. Every step may be skipped,
interrupted, repeated or done by two processes at once; only the size of the shard depends on it, never what
it contains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog

from penstock.persist import commands, metrics
from penstock.persist.commands import Applied
from penstock.persist.compact import Policy, compact
from penstock.persist.errors import CorruptBlobError, CorruptStateError
from penstock.persist.partstore import part_time_ms
from penstock.persist.retry import patiently
from penstock.persist.shard import Shard
from penstock.persist.state import LinkedBatch, Rollup, State, decode_diff, decode_rollup, encode_rollup
from penstock.persist.store import SeqNo
from penstock.runtime import Determinate, ExternalError, random_uuid

_log = structlog.get_logger("penstock.persist")

_SCAN_LIMIT = 1024
_PAUSE_AFTER_FAILURE_S = 5.0

T = TypeVar("T")


class Maintenance:
    """Runs one step at a time for one shard, as long as something is due."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._policy = Policy(shard.config.compaction_fan_in, shard.config.inline_total_bytes)
        self._running: asyncio.Task[None] | None = None
        self._resume_s = 0.0
        self._doing = ""

    def poke(self, state: State) -> None:
        """See whether the commit of `state` made anything due. Cheap; never waits."""
        if self._running is not None and not self._running.done():
            return  # it looks again before it ends
        if self._shard.clock.monotonic() < self._resume_s:
            return
        if self._rollup_due(state) or self._collectable(state) is not None or self._to_merge(state):
            self._running = self._shard.tasks.spawn(self._run(), f"maintain {self._shard.id}")

    async def _run(self) -> None:
        try:
            more = True
            while more:
                more = await self._step(self._shard.state)
        except ExternalError as error:  # a commit after a pause pokes again
            metrics.UPKEEP.labels(self._doing, "failed").inc()
            self._pause()
            _log.warning("maintenance interrupted", shard=self._shard.id, error=error.message)
        except CorruptStateError as error:
            metrics.UPKEEP.labels(self._doing, "failed").inc()
            self._pause()
            _log.error("maintenance stopped", shard=self._shard.id, error=error.message)

    def _pause(self) -> None:
        self._resume_s = self._shard.clock.monotonic() + _PAUSE_AFTER_FAILURE_S

    async def _step(self, state: State) -> bool:
        """Do what is due first; False when nothing is."""
        if state.tombstone:
            return False
        if self._rollup_due(state):
            self._doing = "rollup"
            _count("rollup", await roll_up(self._shard, state))
            return True
        collectable = self._collectable(state)
        if collectable is not None:
            self._doing = "collection"
            await collect_garbage(self._shard, collectable)
            metrics.UPKEEP.labels("collection", "done").inc()
            return True
        inputs = self._to_merge(state)
        if inputs:
            self._doing = "compaction"
            await self._compact(inputs)
        return bool(inputs)

    def _rollup_due(self, state: State) -> bool:
        return state.seqno - state.latest_rollup >= self._rollup_every() and not state.tombstone

    def _rollup_every(self) -> int:
        """Processes that only read leave the upkeep to the writers', unless these fall behind."""
        every = self._shard.config.rollup_every
        return every if self._shard.writers else 2 * every

    def _to_merge(self, state: State) -> tuple[LinkedBatch, ...]:
        if self._shard.writers or len(state.batches) > self._policy.batches_max:
            return self._policy.choose(state)
        return ()

    def _collectable(self, state: State) -> SeqNo | None:
        """The version below which everything can go: the newest rollup that no reader's hold is before."""
        since = state.seqno_since
        usable = max((seqno for seqno in state.rollups if seqno <= since), default=0)
        slack = 0 if self._shard.writers else self._rollup_every()
        return SeqNo(usable) if usable > state.collected + slack else None

    async def _compact(self, inputs: tuple[LinkedBatch, ...]) -> None:
        ids = {batch.id for batch in inputs}
        try:
            _count("compaction", await compact(self._shard, inputs))
            metrics.COMPACTED_ROWS.inc(sum(batch.rows for batch in inputs))
        except CorruptBlobError as error:
            newest = await self._shard.fetch()
            if not ids <= {batch.id for batch in newest.batches}:
                _count("compaction", Applied.NO)
                return  # another process compacted them first and their blobs were collected
            damaged = {batch.id for batch in inputs if any(error.key.endswith(key) for key in batch.keys)}
            self._policy.unreadable |= damaged or ids
            metrics.UPKEEP.labels("compaction", "failed").inc()
            _log.error("cannot compact", shard=self._shard.id, error=error.message)


def _count(step: str, outcome: Applied) -> None:
    metrics.UPKEEP.labels(step, "superseded" if outcome is Applied.NO else "done").inc()


async def roll_up(shard: Shard, state: State) -> Applied:
    """Store `state` as a blob and list it."""
    data = await shard.parts.run(lambda: encode_rollup(state))
    rollup = Rollup(f"v{state.seqno}/r{random_uuid()}", len(data))
    await _patiently(shard, lambda: shard.parts.blob.set(f"{shard.id}/{rollup.key}", data), "write a rollup")
    outcome = Applied.NO
    try:
        outcome = await shard.commit(
            lambda current, attempt: commands.add_rollup(
                current, seqno=state.seqno, rollup=rollup, uncertain=attempt.uncertain
            )
        )
    except Determinate:
        await shard.parts.delete(shard.id, [rollup.key])
        raise
    if outcome is Applied.NO:
        await shard.parts.delete(shard.id, [rollup.key])
    return outcome


async def collect_garbage(shard: Shard, seqno: SeqNo) -> None:
    """Delete blobs that only versions below `seqno` refer to, then those versions. `seqno` must be that of
    a rollup.

    The order matters: a crash after the deletions repeats them, a crash after a truncation that came first
    would forget which blobs to delete.
    """
    rollup = shard.state.rollups.get(seqno)
    if rollup is None:
        return  # collected by another process
    data = await _patiently(shard, lambda: shard.parts.blob.get(f"{shard.id}/{rollup.key}"), "read a rollup")
    if data is None or decode_rollup(shard.id, data).seqno != seqno:
        raise CorruptStateError(shard.id, f"rollup {rollup.key} is missing or another's: nothing is collected")
    removed = await _removed_keys(shard, SeqNo(seqno + 1))
    garbage = sorted(removed - shard.state.keys())
    await shard.parts.delete(shard.id, garbage)
    metrics.COLLECTED_BLOBS.inc(len(garbage))
    await _patiently(shard, lambda: shard.consensus.truncate(shard.id, seqno), "truncate")
    await shard.commit(lambda state, _: commands.collect(state, seqno=seqno))


async def _removed_keys(shard: Shard, end: int | None) -> set[str]:
    """Keys that live diffs below `end` (None: all) stopped referring to."""
    keys: set[str] = set()
    start = SeqNo(0)
    while True:
        scan = partial(shard.consensus.scan, shard.id, start, _SCAN_LIMIT)
        versions = await _patiently(shard, scan, "scan")
        for version in versions:
            if end is not None and version.seqno >= end:
                return keys
            diff = decode_diff(shard.id, version.data)
            keys.update(diff.removed_rollups)
            if diff.replace is not None:
                keys.update(diff.replace.removed)
        if len(versions) < _SCAN_LIMIT:
            return keys
        start = SeqNo(versions[-1].seqno + 1)


async def remove_all(shard: Shard) -> None:
    """Delete whatever a finalized shard has stored, but for its tombstone."""
    state = shard.state
    assert state.tombstone, f"{shard.id} is not finalized"
    blobs = await _patiently(shard, lambda: shard.parts.blob.list_prefix(f"{shard.id}/"), "list")
    await shard.parts.delete(shard.id, [key.partition("/")[2] for key, _ in blobs])
    await _patiently(shard, lambda: shard.consensus.truncate(shard.id, SeqNo(state.seqno)), "truncate")


async def sweep_orphans(shard: Shard, older_than_ms: int, keep: frozenset[str]) -> list[str]:
    """See `PersistClient.sweep`. Blobs are listed before the state is read, so that none is linked unseen
    in between.
    """
    blobs = await _patiently(shard, lambda: shard.parts.blob.list_prefix(f"{shard.id}/"), "list")
    state = await shard.fetch()
    referenced = state.keys() | await _removed_keys(shard, None) | keep
    deadline_ms = shard.clock.now_ms() - older_than_ms
    orphans = []
    for key, _ in blobs:
        own = key.partition("/")[2]
        written_ms = part_time_ms(own.rpartition("/")[2])
        stale_rollup = own.startswith("v") and _rollup_seqno(own) < state.latest_rollup
        old = written_ms < deadline_ms if written_ms is not None else stale_rollup
        if old and own not in referenced:
            orphans.append(own)
    await shard.parts.delete(shard.id, orphans)
    return orphans


def _rollup_seqno(key: str) -> int:
    number = key.partition("/")[0][1:]
    return int(number) if number.isdigit() else 2**63


async def _patiently(shard: Shard, operation: Callable[[], Awaitable[T]], what: str) -> T:
    return await patiently(operation, shard.clock, shard.config.store_retry_ms, f"{what} of {shard.id}")
