"""Merging the runs of several batches into consolidated, sorted runs, within a bound of memory.

Of each run one part is in memory at a time. What all runs have reached can be consolidated and written: the
updates up to the least of the runs' last ones (`order`). Runs are taken in groups that fit into the bound, two at
least; each group gives one sorted run, so more than one group gives a batch of several runs, across which equal
rows are not summed until a later compaction takes them together. Each input is read once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from penstock.persist import metrics
from penstock.persist.order import Keys, Place, sorted_and_summed
from penstock.persist.part_cache import Located
from penstock.persist.partstore import PartStore, memory_of
from penstock.persist.schema import SchemaId, SchemaVersion
from penstock.persist.shard import Shard
from penstock.persist.state import HollowPart, LinkedBatch
from penstock.persist.store import ShardId
from penstock.runtime import Frontier, Timestamp, Updates
from penstock.runtime.updates import take_rows

_OUTPUTS_IN_MEMORY = 16
"""The output parts are this fraction of the bound; two of them are reserved for what is being written."""
_COPIES = 3
"""What was read exists so often while it is merged: as blocks, side by side, and as the result."""
_PART_BYTES_MIN = 4096


@dataclass
class Run:
    """Parts in the order of `order`, read one by one, or together when they have none (small ones in the state)."""

    parts: deque[list[Located]]
    memory: int
    block: Updates | None = None
    keys: Keys | None = field(default=None, repr=False)

    @property
    def spent(self) -> bool:
        return not self.parts and self.block is None

    def place(self) -> Keys:
        """The keys of the block that is in memory."""
        assert self.block is not None
        if self.keys is None:
            self.keys = Keys.of(self.block.rows)
        return self.keys

    def take_all(self) -> Updates:
        """What is in memory; nothing is then."""
        assert self.block is not None
        block, self.block, self.keys = self.block, None, None
        return block

    def take_up_to(self, bound: Place) -> tuple[Updates, Keys]:
        """What is in memory up to `bound`; the rest stays."""
        keys = self.place()
        reached = keys.up_to(bound)
        if reached.all():
            return self.take_all(), keys
        assert self.block is not None
        now, rest = np.flatnonzero(reached), np.flatnonzero(~reached)
        taken = self.block.take(now)
        taken_keys = keys.take(now, taken.rows)
        self.block = self.block.take(rest)
        self.keys = keys.take(rest, self.block.rows)
        return taken, taken_keys


def runs_of(batches: Sequence[LinkedBatch], schema: SchemaId) -> list[Run]:
    """The runs of `batches`. All parts in the state are one, read at once: their size is bounded together.

    Rows that were written with another schema than `schema` have another hash in it: they are in no order.
    """
    inline: list[Located] = []
    sorted_runs: dict[tuple[int, int], list[Located]] = {}
    single: list[Located] = []
    for batch in batches:
        for index, part in enumerate(batch.parts):
            located = (batch.id, index, part)
            if not isinstance(part, HollowPart):
                inline.append(located)
            elif part.run and part.schema == schema:
                sorted_runs.setdefault((batch.id, part.run), []).append(located)
            else:
                single.append(located)
    runs = [
        Run(deque([one] for one in run), max(memory_of(part) for _, _, part in run)) for run in sorted_runs.values()
    ]
    runs += [Run(deque([[located]]), memory_of(located[2])) for located in single]
    if inline:
        runs.append(Run(deque([inline]), sum(memory_of(part) for _, _, part in inline)))
    return runs


def grouped(runs: Sequence[Run], memory_bytes: int) -> list[list[Run]]:
    """Consecutive runs that fit into `memory_bytes` together; at least two to a group, else nothing would get fewer."""
    groups: list[list[Run]] = []
    held = 0
    for run in runs:
        fits = held + run.memory <= memory_bytes
        if groups and (fits or len(groups[-1]) < 2):
            if not fits:
                metrics.COMPACTION_MEMORY_EXCEEDED.inc()
            groups[-1].append(run)
            held += run.memory
        else:
            groups.append([run])
            held = run.memory
    return groups


class Merge:
    """One merge of `batches` of a shard, times advanced to `since`. The output has the schema `written`."""

    def __init__(self, shard: Shard, owner: str, written: SchemaVersion, since: Frontier, memory_bytes: int) -> None:
        self._shard, self._owner, self._written = shard, owner, written
        self._store = shard.stores.merges
        self._since = Timestamp(since)
        self._part_bytes = min(shard.config.part_bytes, max(memory_bytes // _OUTPUTS_IN_MEMORY, _PART_BYTES_MIN))
        self._blocks_bytes = (memory_bytes - 2 * self._part_bytes) // _COPIES
        self.written: list[HollowPart] = []
        """Parts that are stored by now: what an interrupted merge leaves behind."""

    async def run(self, batches: Sequence[LinkedBatch]) -> list[HollowPart]:
        """The parts of the output, stored. Raises `CorruptBlobError` when an input cannot be read."""
        for number, group in enumerate(grouped(runs_of(batches, self._written.id), self._blocks_bytes), start=1):
            await self._merge(group, number)
        return self.written

    async def _merge(self, runs: Sequence[Run], number: int) -> None:
        pending: list[Updates] = []
        pending_bytes = 0
        while True:
            await asyncio.gather(*(self._refill(run) for run in runs if run.block is None and run.parts))
            active = [run for run in runs if not run.spent]
            if not active:
                break
            merged = await self._store.run(lambda: self._reached(active))  # noqa: B023 awaited before the next round
            if len(merged):
                pending.append(merged)
                pending_bytes += merged.nbytes
            if pending_bytes >= self._part_bytes:
                await self._write(pending, number)
                pending, pending_bytes = [], 0
        if pending:
            await self._write(pending, number)

    async def _refill(self, run: Run) -> None:
        located = run.parts.popleft()
        run.block, run.keys = await self._shard.fetch_to_merge(self._store, located, self._written.schema), None

    def _reached(self, runs: Sequence[Run]) -> Updates:
        """Take from each run what all have reached: it is consolidated and in order. One run at least is used up.

        A run that has no further parts bounds nobody: all that it has is here.
        """
        bound = min((run.place().greatest() for run in runs if run.parts), default=None)
        if bound is None:
            return sorted_and_consolidated(Updates.concat([run.take_all() for run in runs]), self._since)
        taken = [run.take_up_to(bound) for run in runs]
        whole = Updates.concat([block for block, _ in taken])
        return sorted_and_consolidated(whole, self._since, Keys.concat([keys for _, keys in taken], whole.rows))

    async def _write(self, pending: Sequence[Updates], number: int) -> None:
        self.written += await write_run(
            self._store,
            self._shard.id,
            self._owner,
            Updates.concat(pending),
            self._written.id,
            number,
            self._part_bytes,
        )


def sorted_and_consolidated(updates: Updates, since: Timestamp, keys: Keys | None = None) -> Updates:
    """`updates` as one piece of a run, times advanced to `since`. `keys`: theirs, where they are known."""
    updates = updates.advance_to(since)
    indices, sums = sorted_and_summed(updates, keys or Keys.of(updates.rows))
    return Updates(take_rows(updates.rows, indices), updates.times[indices], sums)


async def write_run(
    store: PartStore, shard: ShardId, owner: str, updates: Updates, schema: SchemaId, number: int, part_bytes: int
) -> list[HollowPart]:
    """Store sorted `updates` as parts of the run `number` of their batch; durable on return."""
    parts = await store.upload(shard, owner, updates, schema, part_bytes=part_bytes)
    return [replace(part, run=number) for part in parts]
