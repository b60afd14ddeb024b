"""Compaction: many small batches become one bigger one (`policy` says which), with times advanced to the shard's since
and equal rows summed.

The backlog is the state itself: what is due follows from the batches that are there, so whoever commits next
finds what a crash left undone. A claim in the state keeps two processes from doing the same; it ends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from penstock.persist import commands
from penstock.persist.commands import Applied, Step
from penstock.persist.config import PersistConfig
from penstock.persist.merge import Merge, sorted_and_consolidated, write_run
from penstock.persist.parts import encode_inline
from penstock.persist.partstore import age_ms
from penstock.persist.policy import memory_of_all
from penstock.persist.schema import SchemaId, SchemaVersion
from penstock.persist.shard import Attempt, Shard
from penstock.persist.state import HollowPart, LinkedBatch, Part, State
from penstock.runtime import Determinate, ExternalError, Frontier, PenstockError, Timestamp

_LEASE_PER_LIMIT = 1.5
_LIMIT_MAX_S = 6 * 3600.0
OWNER = "compaction"
"""Where the blobs of its output are: ``<shard>/compaction/``."""

_log = structlog.get_logger("penstock.persist")


async def compact(shard: Shard, inputs: Sequence[LinkedBatch], claimant: str = "") -> Applied:
    """Merge `inputs`, consecutive batches, and put the result in their place.

    May be run by several processes at once: one of them wins. Work that is worth it is claimed as `claimant` before it
    is begun; NO: somebody else has it, or has done it. Raises `CorruptBlobError` when an input cannot be read, or the
    store's error. Cancelled, it leaves blobs that the sweep finds.
    """
    ids = tuple(batch.id for batch in inputs)
    if claimant and _is_worth_a_claim(shard.config, inputs):
        lease_ms = round(1000 * _LEASE_PER_LIMIT * limit_s(shard.config, inputs))
        if not await shard.commit(
            lambda state, attempt: commands.claim(
                state, ids=ids, claimant=claimant, now_ms=attempt.now_ms, lease_ms=lease_ms
            ),
            "claim",
        ):
            return Applied.NO
    since = Frontier(shard.state.since)
    parts = await _merge(shard, inputs, since)

    def replace(state: State, attempt: Attempt) -> Step[Applied]:
        step = commands.replace_batches(state, ids=ids, since=since, parts=parts, uncertain=attempt.uncertain)
        if step.diff is not None and age_ms(parts, attempt.now_ms) > shard.config.link_ms:
            return Step(Applied.UNKNOWN if attempt.uncertain else Applied.NO)  # a sweep may have deleted it
        return step

    outcome = Applied.NO
    try:
        outcome = await shard.commit(replace, "replace_batches")
    except Determinate:
        await _delete(shard, parts)
        raise
    if outcome is Applied.NO:
        await _delete(shard, parts)
    else:
        shard.parts.cache.forget(shard.id, inputs)
    return outcome


def _is_worth_a_claim(config: PersistConfig, inputs: Sequence[LinkedBatch]) -> bool:
    rows = sum(batch.rows for batch in inputs)
    return rows >= config.compaction_claim_rows or memory_of_all(inputs) > config.compaction_small_bytes


def limit_s(config: PersistConfig, inputs: Sequence[LinkedBatch]) -> float:
    """How long compacting `inputs` may take, in seconds: a second for each MiB, but not less than configured."""
    stored = sum(part.size for batch in inputs for part in batch.parts if isinstance(part, HollowPart))
    return min(max(config.compaction_timeout_ms / 1000, stored / 2**20), _LIMIT_MAX_S)


async def _delete(shard: Shard, parts: Sequence[Part]) -> None:
    await shard.parts.delete(shard.id, [part.key for part in parts if isinstance(part, HollowPart)])


async def _merge(shard: Shard, inputs: Sequence[LinkedBatch], since: Frontier) -> tuple[Part, ...]:
    """The consolidated content of `inputs`: in the state where it is small, else in sorted runs."""
    config = shard.config
    if not any(batch.parts for batch in inputs):
        return ()
    written = newest_schema(shard, inputs)
    if memory_of_all(inputs) <= min(config.compaction_small_bytes, config.compaction_memory_bytes):
        return await _merge_small(shard, written, inputs, Timestamp(since))
    merge = Merge(shard, OWNER, written, since, config.compaction_memory_bytes)
    try:
        return tuple(await merge.run(inputs))
    except PenstockError:
        await _delete_quietly(shard, merge.written)
        raise


def newest_schema(shard: Shard, inputs: Sequence[LinkedBatch]) -> SchemaVersion:
    """What their output is written with: an older one would lose columns, a newer one nobody has written yet."""
    newest = max((part for batch in inputs for part in batch.parts), key=lambda part: part.schema)
    return SchemaVersion(SchemaId(newest.schema), shard.written_with(newest))


async def _merge_small(
    shard: Shard, written: SchemaVersion, inputs: Sequence[LinkedBatch], since: Timestamp
) -> tuple[Part, ...]:
    config, store = shard.config, shard.stores.short_merges
    parts = [(batch.id, index, part) for batch in inputs for index, part in enumerate(batch.parts)]
    updates = await shard.fetch_to_merge(store, parts, written.schema)
    merged = await store.run(lambda: sorted_and_consolidated(updates, since), updates.nbytes)
    if len(merged) == 0:
        return ()
    inline = encode_inline(merged, config.inline_bytes, written.id)
    if inline is not None and shard.state.inline_bytes <= config.inline_total_bytes // 2:
        return (inline,)
    return tuple(await write_run(store, shard.id, OWNER, merged, written.id, 1, config.part_bytes))


async def _delete_quietly(shard: Shard, parts: Sequence[HollowPart]) -> None:
    """On the way out with an error that matters more: what stays is found by the sweep."""
    try:
        await _delete(shard, parts)
    except ExternalError as error:
        _log.warning("output of a failed compaction stays behind", shard=shard.id, error=error.message)
