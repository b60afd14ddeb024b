"""Compaction: many small batches become one bigger one, with times advanced to the shard's since and equal
rows summed.

Policy: a batch of n rows is of level ``floor(log_f n)`` for the fan-in f. As soon as f batches of one level
lie in a run of consecutive batches of at most that level, the run is merged; the result is (unless rows
cancelled out) of a higher level, so each row is rewritten at most once per level, O(log n) times in all.
The number of batches in a row of one level stays below f; a cap on their total covers adversarial patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from penstock.persist import commands
from penstock.persist.commands import Applied
from penstock.persist.parts import decode_schema, encode_inline
from penstock.persist.partstore import batch_parts
from penstock.persist.shard import Shard
from penstock.persist.state import HollowPart, LinkedBatch, Part, State
from penstock.runtime import Determinate, Frontier, Timestamp, Updates, hash_columns

_BATCHES_MAX_PER_FAN_IN = 8
_OWNER = "compaction"


class Policy:
    """Chooses what to merge. Remembers levels by batch id, and which batches cannot be read."""

    def __init__(self, fan_in: int, inline_total_bytes: int) -> None:
        self._fan_in = fan_in
        self._inline_total_bytes = inline_total_bytes
        self._levels: dict[int, int] = {}
        self.batches_max = fan_in * _BATCHES_MAX_PER_FAN_IN
        self.unreadable: set[int] = set()

    def choose(self, state: State) -> tuple[LinkedBatch, ...]:
        """Consecutive batches of `state` to merge now; empty when there is nothing to do."""
        batches = state.batches
        if len(batches) < self._fan_in and state.inline_bytes <= self._inline_total_bytes // 2:
            return ()
        levels = self._levels_of(batches)
        for level in sorted({one for one in levels if one is not None}):
            run = _run_of_level(levels, level, self._fan_in)
            if run is not None:
                return batches[run.start : run.stop]
        if state.inline_bytes > self._inline_total_bytes // 2:
            return self._inline_run(batches)
        if len(batches) > self.batches_max:
            return self._cheapest_window(batches)
        return ()

    def _levels_of(self, batches: Sequence[LinkedBatch]) -> list[int | None]:
        """Level of each batch, None for those that cannot be read and so end every run."""
        known = self._levels
        if len(known) > 4 * len(batches) + 64:
            self._levels = known = {batch.id: known[batch.id] for batch in batches if batch.id in known}
        levels: list[int | None] = []
        for batch in batches:
            if batch.id in self.unreadable:
                levels.append(None)
                continue
            level = known.get(batch.id)
            if level is None:
                level = known[batch.id] = _level(batch.rows, self._fan_in)
            levels.append(level)
        return levels

    def _inline_run(self, batches: Sequence[LinkedBatch]) -> tuple[LinkedBatch, ...]:
        """The run of batches with inline parts that frees the most."""
        best: list[LinkedBatch] = []
        current: list[LinkedBatch] = []
        for batch in batches:
            if batch.inline_bytes and batch.id not in self.unreadable:
                current.append(batch)
            else:
                current = []
            if sum(one.inline_bytes for one in current) > sum(one.inline_bytes for one in best):
                best = list(current)
        return tuple(best)

    def _cheapest_window(self, batches: Sequence[LinkedBatch]) -> tuple[LinkedBatch, ...]:
        windows = [
            batches[start : start + self._fan_in]
            for start in range(len(batches) - self._fan_in + 1)
            if not any(batch.id in self.unreadable for batch in batches[start : start + self._fan_in])
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


async def compact(shard: Shard, inputs: Sequence[LinkedBatch]) -> Applied:
    """Merge `inputs` and put the result in their place. May be run by several processes at once: one of
    them wins.

    Raises `CorruptBlobError` when an input cannot be read, or the store's error.
    """
    since = Frontier(shard.state.since)
    parts = await _merge(shard, inputs, since)
    outcome = Applied.NO
    try:
        outcome = await shard.commit(
            lambda state, attempt: commands.replace_batches(
                state,
                ids=tuple(batch.id for batch in inputs),
                since=since,
                parts=parts,
                uncertain=attempt.uncertain,
            )
        )
    except Determinate:
        await _delete(shard, parts)
        raise
    if outcome is Applied.NO:
        await _delete(shard, parts)
    return outcome


async def _delete(shard: Shard, parts: Sequence[Part]) -> None:
    await shard.parts.delete(shard.id, [part.key for part in parts if isinstance(part, HollowPart)])


async def _merge(shard: Shard, inputs: Sequence[LinkedBatch], since: Frontier) -> tuple[Part, ...]:
    """The consolidated content of `inputs`. Memory is bounded: large inputs are read once per slice of the
    rows' hashes.
    """
    config, store = shard.config, shard.parts
    assert shard.state.schema is not None, f"{shard.id} has batches but no schema"
    schema = decode_schema(shard.state.schema)
    located = [one for batch in inputs for one in batch_parts(batch)]
    if not located:
        return ()
    size = sum(part.size if isinstance(part, HollowPart) else len(part.data) for _, _, part in located)
    passes = max(1, -(-size // config.compaction_memory_bytes))
    output: list[Part] = []
    for turn in range(passes):
        gathered: list[Updates] = []
        for batch_id, index, part in located:
            updates = await store.fetch(shard.id, schema, batch_id, index, part)
            if passes > 1:
                updates = await store.run(partial(_slice, updates, turn, passes))
            gathered.append(updates)
        merged = await store.run(partial(_consolidate, gathered, since))
        gathered.clear()
        if len(merged) == 0:
            continue
        inline = encode_inline(merged, config.inline_bytes) if passes == 1 else None
        if inline is not None and shard.state.inline_bytes <= config.inline_total_bytes // 2:
            output.append(inline)
        else:
            output += await store.upload(shard.id, _OWNER, merged)
    return tuple(output)


def _slice(updates: Updates, turn: int, turns: int) -> Updates:
    """Every row belongs to one turn, equal rows to the same one."""
    hashes = hash_columns(updates.rows.columns, len(updates))
    return updates.filter(hashes % np.uint64(turns) == np.uint64(turn))


def _consolidate(parts: list[Updates], since: Frontier) -> Updates:
    return Updates.concat(parts).advance_to(Timestamp(since)).consolidate()
