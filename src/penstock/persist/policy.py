"""What to compact.

A batch of n rows is of level ``floor(log_f n)`` for the fan-in f. As soon as f batches of one level lie in a run of
consecutive batches of at most that level, the run is due, up to the last of them; the result is (unless rows cancelled
out) of a higher level, so each row is rewritten at most once per level, O(log n) times in all. The number of batches in
a row of one level stays below f; a cap on their total covers adversarial patterns, and a limit on what the state holds
itself may merge a run early. A batch whose runs did not fit into memory together is merged by itself until it is one.

What is due is parted by the memory that it takes, for a merge of many gigabytes takes minutes, and meanwhile batches
of kilobytes come in by the hundred. They find a lane of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum

from penstock.persist.config import PersistConfig
from penstock.persist.partstore import memory_of
from penstock.persist.state import HollowPart, LinkedBatch, State

_BATCHES_MAX_PER_FAN_IN = 8
_MEDIUM_PER_SMALL = 32


class Size(Enum):
    """Sizes of merges, by the bytes that their inputs have in memory (`PersistConfig.compaction_small_bytes`)."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


@dataclass(frozen=True, slots=True)
class Due:
    """Consecutive `batches` that are due. Any stretch of them with at least `least` of those that `count` may be merged
    instead.
    """

    batches: tuple[LinkedBatch, ...]
    count: Sequence[bool]
    least: int


class Policy:
    """Chooses what to merge. Remembers levels by batch id, and which batches cannot be read."""

    def __init__(self, config: PersistConfig) -> None:
        self._fan_in = config.compaction_fan_in
        self._inline_total_bytes = config.inline_total_bytes
        small = config.compaction_small_bytes
        self._limits = {Size.SMALL: small, Size.MEDIUM: _MEDIUM_PER_SMALL * small, Size.LARGE: None}
        self._levels: dict[int, int] = {}
        self._pieces: dict[int, bool] = {}
        self.batches_max = self._fan_in * _BATCHES_MAX_PER_FAN_IN
        self.unreadable: set[int] = set()

    def by_size(self, state: State, claimed: frozenset[int] = frozenset()) -> Mapping[Size, tuple[LinkedBatch, ...]]:
        """Of each size the most urgent merge that is due. `claimed`: batches that somebody else is at."""
        chosen: dict[Size, tuple[LinkedBatch, ...]] = {}
        for run in self.due(state, claimed):
            for size, inputs in self._parted(run):
                chosen.setdefault(size, inputs)
        return chosen

    def due(self, state: State, claimed: frozenset[int] = frozenset()) -> Iterator[Due]:
        """What to merge, the most urgent first. Runs may overlap. `claimed`: batches that somebody else is at."""
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
            for run in _runs_of_level(levels, level, self._fan_in):
                yield Due(batches[run], [one == level for one in levels[run]], self._fan_in)
        if state.inline_bytes > self._inline_total_bytes // 2 and (inline := self._inline_run(batches, barred)):
            yield Due(inline, [True] * len(inline), min(len(inline), self._fan_in))
        if len(batches) > self.batches_max and (window := self._cheapest_window(batches, barred)):
            yield Due(window, [True] * len(window), len(window))
        for batch in batches:
            if batch.id not in barred and self._in_pieces(batch):
                yield Due((batch,), [True], 1)

    def _parted(self, run: Due) -> Iterator[tuple[Size, tuple[LinkedBatch, ...]]]:
        """The merges of which `run` consists: the smallest ones in it, then what lies around them."""
        memory = [memory_of_all((batch,)) for batch in run.batches]
        stretches = [range(len(memory))]
        for size, limit in self._limits.items():
            around: list[range] = []
            for stretch in stretches:
                inside = _first_that_fits(stretch, memory, run, limit)
                if inside is None:
                    around.append(stretch)
                    continue
                yield size, run.batches[inside.start : inside.stop]
                around += [range(stretch.start, inside.start), range(inside.stop, stretch.stop)]
            stretches = around

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
        """The run of batches with inline parts that frees the most; nothing while there is room beside those that are
        being merged.
        """
        free = self._inline_total_bytes - sum(batch.inline_bytes for batch in batches if batch.id in barred)
        if sum(batch.inline_bytes for batch in batches if batch.id not in barred) <= free // 2:
            return ()
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


def memory_of_all(batches: Sequence[LinkedBatch]) -> int:
    """Bytes of the decoded parts of `batches`, by their own account or guessed."""
    return sum(memory_of(part) for batch in batches for part in batch.parts)


def _level(rows: int, fan_in: int) -> int:
    level = 0
    while rows >= fan_in:
        rows //= fan_in
        level += 1
    return level


def _runs_of_level(levels: Sequence[int | None], level: int, count: int) -> Iterator[slice]:
    """The maximal runs of levels at most `level` with `count` of exactly that level, each up to the last of these.

    What comes after it is younger and smaller: others may be about to merge it.
    """
    start = stop = exact = 0
    for index, one in enumerate([*levels, None]):
        if one == level:
            exact, stop = exact + 1, index + 1
        elif one is None or one > level:
            if exact >= count:
                yield slice(start, stop)
            start, exact = index + 1, 0


def _first_that_fits(stretch: range, memory: Sequence[int], run: Due, limit: int | None) -> range | None:
    """The first part of `stretch` that may be merged within `limit` bytes, as long as it fits."""
    stop, held, counted = stretch.start, 0, 0
    for start in stretch:
        while stop < stretch.stop and (limit is None or held + memory[stop] <= limit):
            held, counted, stop = held + memory[stop], counted + run.count[stop], stop + 1
        if counted >= run.least:
            return range(start, stop)
        if stop == start:  # it is too large by itself
            stop += 1
            continue
        held, counted = held - memory[start], counted - run.count[start]
    return None
