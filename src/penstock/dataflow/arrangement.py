"""Arrangements: a collection's rows by key, as a few sorted runs, shared by every operator that needs that
key.

Runs form a log-structured tree: each insertion adds a small run, and neighbours of similar size are merged,
small ones at once and large ones in slices while the worker has nothing better to do. An arrangement holds
one version: what is complete. Readers that must see an earlier state (a join whose other side lags) hold the
tuple of runs from before: runs never change.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock.dataflow.graph import Collection, Operator, Slices, StatefulOperator, pieces
from penstock.dataflow.run import Run, merge, merge_slice, with_directory
from penstock.runtime import DONE, Frontier, Updates

_SMALL_ROWS = 1 << 14
"""Two runs with fewer rows together are merged at once: below a millisecond, cheaper than one more run to
search."""
_GROWTH = 3
"""A run is merged with its newer neighbour unless it is this many times larger."""
EAGER_ROWS = 1 << 20
"""So many waiting rows are sorted before their times are closed."""
_RUNS_MAX = 12
"""With more runs than this, merging is no longer left to idle moments."""


class Trace:
    """The runs of one arrangement, oldest (largest) first. `runs` may be read from any thread; changes are
    the owner's."""

    __slots__ = ("_full", "_merge", "_merge_at", "_merge_at_once", "_merge_in_slices", "_trim", "runs")

    def __init__(
        self,
        merge_at_once: Callable[[Run, Run], Run] = merge_slice,
        merge_in_slices: Callable[[Run, Run], Generator[None, None, Run]] = merge,
        trim: Callable[[Run], Run] = lambda run: run,
    ) -> None:
        """`trim`: takes from a merged run what its owner has no more use for."""
        self._trim = trim
        self._merge_at_once = merge_at_once
        self._merge_in_slices = merge_in_slices
        self.runs: tuple[Run, ...] = ()
        self._merge: Generator[None, None, Run] | None = None
        self._merge_at = 0
        self._full = False

    @property
    def rows(self) -> int:
        """Updates held, not yet cancelled ones included."""
        return sum(len(run) for run in self.runs)

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes for run in self.runs)

    def insert(self, run: Run) -> bool:
        """Add a run newer than all others. True when `merge_some` has work."""
        if len(run):
            self.runs = (*self.runs, run)
            self._merge_small()
            while len(self.runs) > _RUNS_MAX and self.merge_some():
                pass
        return self.wants_merge

    def replace(self, runs: tuple[Run, ...]) -> None:
        """Put other runs in place (their times were dropped, say).

        A merge in progress goes on if both its runs are still there, side by side; else it is given up.
        """
        if self._merge is not None:
            at = next((i for i, run in enumerate(runs) if run is self.runs[self._merge_at]), None)
            if at is None or at + 1 >= len(runs) or runs[at + 1] is not self.runs[self._merge_at + 1]:
                self._merge = None
            else:
                self._merge_at = at
        self.runs = runs

    def merge_fully(self) -> None:
        """Let `merge_some` go on until one run is left: its reader spends more on what would cancel."""
        self._full = len(self.runs) > 1

    @property
    def merging(self) -> tuple[Run, ...]:
        """The runs of the merge in progress."""
        return () if self._merge is None else self.runs[self._merge_at : self._merge_at + 2]

    @property
    def wants_merge(self) -> bool:
        return self._merge is not None or self._candidate() is not None

    def merge_some(self) -> bool:
        """One slice of merging. True when there is more to do."""
        if self._merge is None:
            at = self._candidate()
            if at is None:
                return False
            self._merge = self._merge_in_slices(self.runs[at], self.runs[at + 1])
            self._merge_at = at
        try:
            next(self._merge)
        except StopIteration as finished:
            at = self._merge_at
            run = self._trim(finished.value)
            merged = (run,) if len(run) else ()
            self.runs = (*self.runs[:at], *merged, *self.runs[at + 2 :])
            self._merge = None
        return self.wants_merge

    def _merge_small(self) -> None:
        """Merge the newest runs while that is cheaper than keeping them apart."""
        floor = self._merge_at + 2 if self._merge is not None else 0
        while len(self.runs) >= floor + 2:
            older, newer = self.runs[-2], self.runs[-1]
            if len(older) + len(newer) > _SMALL_ROWS or not _mergeable(older, newer):
                return
            merged = self._merge_at_once(older, newer)
            self.runs = (*self.runs[:-2], merged) if len(merged) else self.runs[:-2]

    def _candidate(self) -> int | None:
        if self._full:
            self._full = len(self.runs) > 1
            return len(self.runs) - 2 if self._full else None
        for at in range(len(self.runs) - 2, -1, -1):
            older, newer = self.runs[at], self.runs[at + 1]
            if len(older) < _GROWTH * len(newer) and _mergeable(older, newer):
                return at
        return None


def _mergeable(older: Run, newer: Run) -> bool:
    return (older.times is None) == (newer.times is None)


@dataclass(slots=True, eq=False)
class Bundle:
    """What an arrangement received in ``[lower, upper)``: `delta`, runs with times, on top of `before`."""

    before: tuple[Run, ...]
    delta: tuple[Run, ...]
    upper: Frontier


class Arrange(StatefulOperator):
    """Keeps the arrangement of its input by `key` and passes bundles of sorted changes to joins.

    Updates that arrive in quantity are sorted into runs before their times are closed: the wait is used, and the
    unsorted rows are let go.
    """

    def __init__(self, source: Operator, key: tuple[int, ...], *, keep_nulls: bool) -> None:
        super().__init__(source.dataflow, f"arrange-{list(key)}", source.schema, [source])
        self.key = key
        self.trace = Trace()
        self._keep_nulls = keep_nulls
        self._early: list[Run] = []

    def activate(self) -> Slices | None:
        port = self.ports[0]
        for updates in port.take():
            self.stash.push(updates)
        frontier = port.frontier
        if self.stash.rows < EAGER_ROWS:
            if frontier <= self.frontier:
                return None
            if not self.stash.closed(frontier) and not any(_times(run).min() < frontier for run in self._early):
                self.advance(frontier)
                return None
        return self._work(frontier)

    def _work(self, frontier: Frontier) -> Slices:
        if self.stash.rows >= EAGER_ROWS:
            for updates in pieces(self.stash.take_below(DONE), EAGER_ROWS):
                if len(run := self._sort(updates)):  # all keys may be NULL
                    self._early.append(run)
                yield
        if frontier > self.frontier:
            yield from self.close(self.stash.take_below(frontier), frontier)
            self.advance(frontier)

    def close(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        before = self.trace.runs
        delta: list[Run] = []
        early, self._early = self._early, []
        for run in early:
            closed = _times(run) < np.uint64(frontier)
            delta.append(run.filter(closed))
            if not closed.all():
                self._early.append(run.filter(~closed))
        for updates in pieces(bundle, EAGER_ROWS):
            delta.append(self._sort(updates))
            yield
        delta = [run for run in delta if len(run)]
        if not delta:
            return
        wants = False
        for run in delta:
            wants = self.trace.insert(run.untimed())
        self.send(Bundle(before, tuple(delta), frontier))
        if wants:
            self.dataflow.want_maintenance(self)

    def maintain(self) -> bool:
        return self.trace.merge_some()

    def _sort(self, updates: Updates) -> Run:
        if not self._keep_nulls:
            updates = without_null_keys(updates, self.key)
        return with_directory(Run.build(updates, self.key))


def _times(run: Run) -> npt.NDArray[np.uint64]:
    assert run.times is not None
    return run.times


def without_null_keys(updates: Updates, key: tuple[int, ...]) -> Updates:
    """Only updates whose key columns are all non-NULL: no others can join."""
    for column in key:
        values = updates.rows.column(column)
        if values.null_count:
            updates = updates.filter(values.is_valid().to_numpy(zero_copy_only=False))
    return updates


def arrange(collection: Collection, key: list[int], *, keep_nulls: bool = False) -> Arrange:
    """The arrangement of `collection` by the columns `key`, made once per dataflow and shared from then on.

    `keep_nulls`: rows with NULL in the key are kept (they join only where NULL equals NULL).
    """
    shared = collection.dataflow.shared
    with_nulls = (collection.operator, tuple(key), True)
    without = (collection.operator, tuple(key), False)
    found = shared.get(with_nulls) or (None if keep_nulls else shared.get(without))
    if found is None:
        found = Arrange(collection.operator, tuple(key), keep_nulls=keep_nulls)
        shared[with_nulls if keep_nulls else without] = found
    assert isinstance(found, Arrange)
    return found
