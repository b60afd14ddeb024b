"""Rollups, and the removal of what no version needs any more.

All of it may be skipped, interrupted anywhere, repeated, or done by several processes at once: only the size of the
shard depends on it, never what it contains.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from penstock.persist import commands, metrics
from penstock.persist.commands import Applied
from penstock.persist.errors import CorruptStateError
from penstock.persist.retry import patiently
from penstock.persist.shard import Shard
from penstock.persist.state import Rollup, State, decode_diff, decode_rollup, encode_rollup
from penstock.persist.store import SeqNo
from penstock.runtime import Determinate, random_uuid

_SCAN_LIMIT = 1024

T = TypeVar("T")


async def roll_up(shard: Shard, state: State) -> Applied:
    """Store `state` as a blob and list it."""
    data = await shard.parts.run(lambda: encode_rollup(state))
    rollup = Rollup(f"v{state.seqno}/r{random_uuid()}", len(data))
    await store_patiently(shard, lambda: shard.parts.blob.set(f"{shard.id}/{rollup.key}", data), "write a rollup")
    outcome = Applied.NO
    try:
        outcome = await shard.commit(
            lambda current, attempt: commands.add_rollup(
                current, seqno=state.seqno, rollup=rollup, uncertain=attempt.uncertain
            ),
            "add_rollup",
        )
    except Determinate:
        await shard.parts.delete(shard.id, [rollup.key])
        raise
    if outcome is Applied.NO:
        await shard.parts.delete(shard.id, [rollup.key])
    return outcome


def collectable(state: State, versions_max: int) -> SeqNo | None:
    """How far one step of collection may go: to a rollup that no reader's hold is before, None when there is none.

    It covers at most `versions_max` versions, or those between two rollups where these are farther apart.
    """
    usable = sorted(seqno for seqno in state.rollups if state.collected < seqno <= state.seqno_since)
    if not usable:
        return None
    near = [seqno for seqno in usable if seqno - state.collected <= versions_max]
    return SeqNo(near[-1] if near else usable[0])


async def collect_garbage(shard: Shard, seqno: SeqNo) -> Applied:
    """Delete blobs that only versions below `seqno` refer to, then those versions. `seqno` must be that of
    a rollup.

    The order matters: a crash after the deletions repeats them, a crash after a truncation that came first
    would forget which blobs to delete. Memory: a thousand diffs, however many there are. NO: somebody else did it.
    """
    rollup = shard.state.rollups.get(seqno)
    if rollup is None:
        return Applied.NO
    key = f"{shard.id}/{rollup.key}"
    data = await store_patiently(shard, lambda: shard.parts.blob.get(key), "read a rollup")
    if data is None or decode_rollup(shard.id, data).seqno != seqno:
        if seqno not in (await shard.fetch()).rollups:
            return Applied.NO  # another collector was here, and has gone on past it
        raise CorruptStateError(shard.id, f"rollup {rollup.key} is missing or another's: nothing is collected")
    async for removed in removed_keys(shard, SeqNo(seqno + 1)):
        garbage = sorted(removed - shard.state.keys())
        await shard.parts.delete(shard.id, garbage)
        metrics.COLLECTED_BLOBS.inc(len(garbage))
    truncated = await store_patiently(shard, lambda: shard.consensus.truncate(shard.id, seqno), "truncate")
    metrics.COLLECTED_VERSIONS.inc(truncated)
    await shard.commit(lambda state, _: commands.collect(state, seqno=seqno), "collect")
    return Applied.YES


async def removed_keys(shard: Shard, end: int | None) -> AsyncIterator[set[str]]:
    """Keys that live diffs below `end` (None: all) stopped referring to, a page of diffs at a time."""
    start = SeqNo(0)
    while True:
        versions = await store_patiently(shard, partial(shard.consensus.scan, shard.id, start, _SCAN_LIMIT), "scan")
        keys: set[str] = set()
        for version in versions:
            if end is not None and version.seqno >= end:
                yield keys
                return
            diff = decode_diff(shard.id, version.data)
            keys.update(diff.removed_rollups)
            if diff.replace is not None:
                keys.update(diff.replace.removed)
        yield keys
        if len(versions) < _SCAN_LIMIT:
            return
        start = SeqNo(versions[-1].seqno + 1)


async def remove_all(shard: Shard) -> None:
    """Delete whatever a finalized shard has stored, but for its tombstone."""
    state = shard.state
    assert state.tombstone, f"{shard.id} is not finalized"
    blobs = await store_patiently(shard, lambda: shard.parts.blob.list_prefix(f"{shard.id}/"), "list")
    await shard.parts.delete(shard.id, [key.partition("/")[2] for key, _ in blobs])
    await store_patiently(shard, lambda: shard.consensus.truncate(shard.id, SeqNo(state.seqno)), "truncate")


async def store_patiently(shard: Shard, operation: Callable[[], Awaitable[T]], what: str) -> T:
    """An idempotent operation on a store of `shard`, repeated while the store fails."""
    return await patiently(operation, shard.clock, shard.config.store_retry_ms, f"{what} of {shard.id}")
