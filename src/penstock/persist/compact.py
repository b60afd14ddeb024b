"""Compaction: many small batches become one bigger one, with times advanced to the shard's since and equal
rows summed.

Policy: a batch of n rows is of level ``floor(log_f n)`` for the fan-in f. As soon as f batches of one level
lie in a run of consecutive batches of at most that level, the run is merged; the result is (unless rows
cancelled out) of a higher level, so each row is rewritten at most once per level, O(log n) times in all.
The number of batches in a row of one level stays below f; a cap on their total covers adversarial patterns. A
batch whose runs did not fit into memory together is merged by itself, when nothing else is due, until it is one run.

The backlog is the state itself: what is due follows from the batches that are there, so whoever commits next
finds what a crash left undone. A claim in the state keeps two processes from doing the same; it ends by itself.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from itertools import accumulate

import structlog

from penstock.persist import commands
from penstock.persist.commands import Applied, Step
from penstock.persist.config import PersistConfig
from penstock.persist.merge import Merge, sorted_and_consolidated, write_run
from penstock.persist.parts import encode_inline
from penstock.persist.partstore import age_ms, memory_of
from penstock.persist.schema import SchemaId, SchemaVersion
from penstock.persist.shard import Attempt, Shard
from penstock.persist.state import HollowPart, LinkedBatch, Part, State
from penstock.runtime import Determinate, ExternalError, Frontier, PenstockError, Timestamp

_BATCHES_MAX_PER_FAN_IN = 8
_LEASE_PER_LIMIT = 1.5
_LIMIT_MAX_S = 6 * 3600.0
OWNER = "compaction"
"""Where the blobs of its output are: ``<shard>/compaction/``."""

_log = structlog.get_logger("penstock.persist")


class Size(Enum):
    """Sizes of merges, by the bytes that their inputs may have in memory, in multiples of what is called small. Those
    that fall due often do not wait for those that take long.
    """

    SMALL = 1
    MEDIUM = 32
    LARGE = sys.maxsize


class Policy:
    """Chooses what to merge. Remembers levels by batch id, and which batches cannot be read."""

    def __init__(self, config: PersistConfig) -> None:
        self._fan_in = config.compaction_fan_in
        self._inline_total_bytes = config.inline_total_bytes
        self._small_bytes = config.compaction_small_bytes
        self._levels: dict[int, int] = {}
        self._pieces: dict[int, bool] = {}
        self.batches_max = self._fan_in * _BATCHES_MAX_PER_FAN_IN
        self.unreadable: set[int] = set()

    def by_size(self, state: State, claimed: frozenset[int] = frozenset()) -> Mapping[Size, tuple[LinkedBatch, ...]]:
        """Of each size the most urgent merge that is due; a batch may be in several of them."""
        chosen: dict[Size, tuple[LinkedBatch, ...]] = {}
        for inputs, least in self.due(state, claimed):
            totals = list(accumulate(sum(memory_of(part) for part in batch.parts) for batch in inputs))
            fitting = ((size, bisect_right(totals, size.value * self._small_bytes)) for size in Size)
            smallest, count = next((size, count) for size, count in fitting if count >= least)
            chosen.setdefault(smallest, inputs[:count])
        return chosen

    def due(self, state: State, claimed: frozenset[int] = frozenset()) -> Iterator[tuple[tuple[LinkedBatch, ...], int]]:
        """What to merge, the most urgent first: consecutive batches of `state`, and how many of them are worth it at
        the least. Merges may overlap. `claimed`: batches that somebody else is at.
        """
        batches = state.batches
        if len(self._pieces) > 4 * len(batches) + 64:
            self._pieces.clear()
        if (
            len(batches) < self._fan_in
            and state.inline_bytes <= self._inline_total_bytes // 2
            and not any(self._in_pieces(batch) for batch in batches)
        ):
            return
        barred = self.unreadable | claimed
        levels = self._levels_of(batches, barred)
        often = (level for level, count in Counter(levels).items() if level is not None and count >= self._fan_in)
        for level in sorted(often):
            run = _run_of_level(levels, level, self._fan_in)
            if run is not None:
                exact = [number for number, one in enumerate(levels[run], start=1) if one == level]
                yield batches[run], exact[self._fan_in - 1]
        if state.inline_bytes > self._inline_total_bytes // 2 and (inline := self._inline_run(batches, barred)):
            yield inline, 1
        if len(batches) > self.batches_max and (window := self._cheapest_window(batches, barred)):
            yield window, len(window)
        for batch in batches:
            if batch.id not in barred and self._in_pieces(batch):
                yield (batch,), 1

    def _in_pieces(self, batch: LinkedBatch) -> bool:
        """Whether an earlier compaction had to leave several runs, over which equal rows are not summed."""
        known = self._pieces.get(batch.id)
        if known is None:
            runs = {part.run for part in batch.parts if isinstance(part, HollowPart)}
            known = self._pieces[batch.id] = len(runs) > 1 and 0 not in runs
        return known

    def _levels_of(self, batches: Sequence[LinkedBatch], barred: Set[int]) -> list[int | None]:
        """Level of each batch, None for those that cannot be read and so end every run."""
        known = self._levels
        if len(known) > 4 * len(batches) + 64:
            self._levels = known = {batch.id: known[batch.id] for batch in batches if batch.id in known}
        for batch in batches:
            if batch.id not in known:
                known[batch.id] = _level(batch.rows, self._fan_in)
        return [None if batch.id in barred else known[batch.id] for batch in batches]

    def _inline_run(self, batches: Sequence[LinkedBatch], barred: Set[int]) -> tuple[LinkedBatch, ...]:
        """The run of batches with inline parts that frees the most."""
        best: list[LinkedBatch] = []
        current: list[LinkedBatch] = []
        for batch in batches:
            if batch.inline_bytes and batch.id not in barred:
                current.append(batch)
            else:
                current = []
            if sum(one.inline_bytes for one in current) > sum(one.inline_bytes for one in best):
                best = list(current)
        return tuple(best)

    def _cheapest_window(self, batches: Sequence[LinkedBatch], barred: Set[int]) -> tuple[LinkedBatch, ...]:
        windows = [
            batches[start : start + self._fan_in]
            for start in range(len(batches) - self._fan_in + 1)
            if not any(batch.id in barred for batch in batches[start : start + self._fan_in])
        ]
        return tuple(min(windows, key=lambda window: sum(batch.rows for batch in window), default=()))


def _level(rows: int, fan_in: int) -> int:
    level = 0
    while rows >= fan_in:
        rows //= fan_in
        level += 1
    return level


def _run_of_level(levels: Sequence[int | None], level: int, count: int) -> slice | None:
    """The first maximal run of levels at most `level` with `count` of exactly that level."""
    start, exact = 0, 0
    for index, one in enumerate([*levels, None]):
        if one is not None and one <= level:
            exact += one == level
            continue
        if exact >= count:
            return slice(start, index)
        start, exact = index + 1, 0
    return None


async def compact(shard: Shard, inputs: Sequence[LinkedBatch], claimant: str = "") -> Applied:
    """Merge `inputs`, consecutive batches, and put the result in their place.

    May be run by several processes at once: one of them wins. Work that is worth it is claimed as `claimant` before it
    is begun; NO: somebody else has it, or has done it. Raises `CorruptBlobError` when an input cannot be read, or the
    store's error. Cancelled, it leaves blobs that the sweep finds.
    """
    ids = tuple(batch.id for batch in inputs)
    if claimant and sum(batch.rows for batch in inputs) >= shard.config.compaction_claim_rows:
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
    return outcome


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
    if sum(memory_of(part) for batch in inputs for part in batch.parts) <= min(
        config.compaction_small_bytes, config.compaction_memory_bytes
    ):
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
    config, store = shard.config, shard.parts
    parts = [(batch.id, index, part) for batch in inputs for index, part in enumerate(batch.parts)]
    updates = await shard.fetch_to_merge(parts, written.schema)
    merged = await store.run(lambda: sorted_and_consolidated(updates, since))
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
