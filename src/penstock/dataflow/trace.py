"""Indexes: a collection kept in memory by key, readable at any time in ``[since, upper)`` from any thread.

Recent updates keep their times; when `since` passes a run, its times are dropped and it becomes part of the
base. Runs are immutable, so a reader takes the tuple of runs under a lock and works on it without one, while
the worker goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.arrangement import Trace
from penstock.dataflow.graph import ERRORS_SCHEMA, Collection, Slices, pieces
from penstock.dataflow.inspect import Sink
from penstock.dataflow.run import Run, cancel, concat_runs, exact_hash, expand, ranges, same_rows
from penstock.runtime import Frontier, InternalError, PenstockError, Timestamp, Updates, conform, hash_columns
from penstock.runtime.updates import consolidated_indices, take_rows

_PIECE_ROWS = 1 << 20


class NotReadable(PenstockError):
    """The time asked for is not in ``[since, upper)``."""

    def __init__(self, name: str, time: int, since: Frontier, upper: Frontier) -> None:
        super().__init__(f"{name} cannot be read at {time}: it holds the times from {since} to before {upper}")
        self.since = since
        self.upper = upper


class NegativeMultiplicity(InternalError):
    """A collection holds a row fewer than zero times: the data below it contradicts itself."""


@dataclass(frozen=True, slots=True)
class _State:
    runs: tuple[Run, ...]
    errors: Updates
    since: Frontier
    upper: Frontier


class IndexTrace:
    """The contents of an index. All methods are thread-safe; `read` runs on the caller's thread."""

    def __init__(self, name: str, schema: pa.Schema, key: tuple[int, ...], since: Frontier) -> None:
        self.name = name
        self.schema = schema
        self.key = key
        self._lock = threading.Lock()
        self._trace = Trace()
        self._state = _State((), Updates.empty(ERRORS_SCHEMA), since, since)
        self._wanted_since = since
        self._listeners: list[Callable[[Frontier], None]] = []

    @property
    def since(self) -> Frontier:
        return self._state.since

    @property
    def upper(self) -> Frontier:
        return self._state.upper

    @property
    def rows(self) -> int:
        """Updates held."""
        return sum(len(run) for run in self._state.runs)

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes for run in self._state.runs) + self._state.errors.nbytes

    def read(self, t: Timestamp, keys: pa.RecordBatch | None = None) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Rows (each as often as it occurs, in no order) and errors of the collection at `t`.

        `keys`: only rows whose key columns equal one of these (by position; NULL equals NULL). While there
        are errors, the rows mean nothing. Raises `NotReadable` outside ``[since, upper)``,
        `NegativeMultiplicity` when a row's count is below zero.
        """
        oks, errs = self.read_updates(t, keys)
        if len(oks) and int(oks.diffs.min()) < 0:
            at = int(np.argmin(oks.diffs))
            row = {name: oks.rows.column(i)[at].as_py() for i, name in enumerate(oks.schema.names)}
            raise NegativeMultiplicity(f"{self.name} holds {row} {oks.diffs[at]} times at {t}")
        return _expanded(oks), _expanded(errs)

    def read_updates(self, t: Timestamp, keys: pa.RecordBatch | None = None) -> tuple[Updates, Updates]:
        """The same with multiplicities as diffs; all times are `t`.

        Nothing cancels any more, but a row may come in several updates: consolidate where that matters.
        """
        state = self._state
        if not state.since <= t < state.upper:
            raise NotReadable(self.name, t, state.since, state.upper)
        selected: list[Run] = []
        if keys is not None:
            probes = _distinct_keys(keys, pa.schema([self.schema.field(i) for i in self.key]))
        for run in state.runs:
            if keys is not None:
                run = _lookup(run, self.key, *probes)
            if run.times is not None:
                run = run.filter(run.times <= np.uint64(t)).untimed()
            if len(run):
                selected.append(run)
        errors = state.errors.filter(state.errors.times <= np.uint64(t)).advance_to(t).consolidate()
        return _contents(selected, self.schema, t), errors

    def allow_compaction(self, frontier: Frontier) -> None:
        """Nobody will read below `frontier` any more. Earlier ones than before are ignored."""
        with self._lock:
            self._wanted_since = max(self._wanted_since, frontier)

    def on_advance(self, listener: Callable[[Frontier], None]) -> Callable[[], None]:
        """Call `listener` with each new upper, on the worker thread, until the returned function is called.

        Both are to be said before the index runs, or on that thread.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def changes_since(self, t: Timestamp) -> Updates:
        """All updates at times after `t` that are held, consolidated: what a reader at `t` has not seen."""
        state = self._state
        if t < state.since:
            raise NotReadable(self.name, t, state.since, state.upper)
        recent = [
            Updates(run.rows, run.times, run.all_diffs()).filter(run.times > np.uint64(t))
            for run in state.runs
            if run.times is not None
        ]
        recent = [part for part in recent if len(part)]
        return Updates.concat(recent).consolidate() if recent else Updates.empty(self.schema)

    def updates_from(self, frontier: Frontier) -> tuple[Updates, Updates]:
        """Rows and errors at times at or beyond `frontier`, with their times.

        Complete when asked by a listener of `on_advance` that has seen everything below `frontier`: the
        index compacts only after its listeners.
        """
        state = self._state
        if frontier < state.since:
            raise NotReadable(self.name, int(frontier), state.since, state.upper)
        recent = [
            Updates(run.rows, run.times, run.all_diffs()).filter(run.times >= np.uint64(frontier))
            for run in state.runs
            if run.times is not None
        ]
        recent = [part for part in recent if len(part)]
        rows = Updates.concat(recent).consolidate() if recent else Updates.empty(self.schema)
        return rows, state.errors.filter(state.errors.times >= np.uint64(frontier)).consolidate()

    # The rest is the index operator's, on the worker thread.

    def append(self, runs: Sequence[Run], errors: Updates, upper: Frontier) -> None:
        for run in runs:
            self._trace.insert(run)
        state = self._state
        held = Updates.concat([state.errors, errors]).consolidate() if len(errors) else state.errors
        self._publish(held, state.since, upper)
        for listener in list(self._listeners):
            listener(upper)

    def compact(self) -> bool:
        """Let go of times below the frontier that was allowed. True when runs can be merged."""
        with self._lock:
            wanted = self._wanted_since
        state = self._state
        since = Frontier(min(wanted, state.upper))
        if since > state.since:
            runs = list(self._trace.runs)
            for i, run in enumerate(runs):
                # runs are ordered by time, oldest first: what follows the first that must keep its times does
                # too
                if run.times is None:
                    continue
                if int(run.times.max()) > since:
                    break
                runs[i] = run.untimed()
            if any(new is not old for new, old in zip(runs, self._trace.runs, strict=True)):
                self._trace.replace(tuple(runs))
            errors = state.errors.advance_to(Timestamp(since)).consolidate() if len(state.errors) else state.errors
            self._publish(errors, since, state.upper)
        return self._trace.wants_merge

    def merge_some(self) -> bool:
        more = self._trace.merge_some()
        state = self._state
        self._publish(state.errors, state.since, state.upper)
        return more

    def _publish(self, errors: Updates, since: Frontier, upper: Frontier) -> None:
        assert since >= self._state.since, f"{self.name}: since {since} after {self._state.since}"
        assert upper >= self._state.upper, f"{self.name}: upper {upper} after {self._state.upper}"
        self._state = _State(self._trace.runs, errors, since, upper)


class Index(Sink):
    """Keeps an `IndexTrace` up to date."""

    def __init__(self, collection: Collection, key: tuple[int, ...]) -> None:
        super().__init__(collection, f"index-{list(key)}")
        self.trace = IndexTrace(self.name, collection.schema, key, Frontier(collection.dataflow.as_of))
        self._no_errs = Updates.empty(ERRORS_SCHEMA)

    def accept(self, oks: list[Updates], errs: list[Updates], frontier: Frontier) -> Slices:
        runs: list[Run] = []
        for updates in pieces(oks, _PIECE_ROWS):
            runs.append(cancel(Run.build(updates, self.trace.key)))
            yield
        errors = Updates.concat(errs) if errs else self._no_errs
        self.trace.append(runs, errors, frontier)
        if self.trace.compact():
            self.dataflow.want_maintenance(self)

    def passed(self, frontier: Frontier) -> None:
        self.trace.append((), self._no_errs, frontier)
        if self.trace.compact():
            self.dataflow.want_maintenance(self)

    def maintain(self) -> bool:
        return self.trace.merge_some()


def index(collection: Collection, key: list[int]) -> IndexTrace:
    """Keep `collection` in memory by the columns `key`; the trace answers reads from any thread."""
    return Index(collection, tuple(key)).trace


def _distinct_keys(keys: pa.RecordBatch, schema: pa.Schema) -> tuple[npt.NDArray[np.uint64], pa.RecordBatch]:
    keys = conform(keys, schema.remove_metadata())
    count = keys.num_rows
    kept, _ = consolidated_indices(keys, np.zeros(count, np.uint64), np.ones(count, np.int64))
    keys = take_rows(keys, kept)
    return hash_columns(keys.columns, keys.num_rows), keys


def _lookup(run: Run, key: tuple[int, ...], hashes: npt.NDArray[np.uint64], keys: pa.RecordBatch) -> Run:
    """The updates of `run` with one of `keys`."""
    lows, highs = ranges(run, hashes)
    counts = highs - lows
    ends = np.cumsum(counts)
    if len(ends) == 0 or ends[-1] == 0:
        return run.slice(0, 0)
    probes, positions = expand(lows, counts, ends, 0, int(ends[-1]))
    whole = range(keys.num_columns)
    if not (exact_hash(run.rows, key) and exact_hash(keys, whole)):
        same = same_rows(keys, whole, probes, run.rows, key, positions)
        positions = positions[same]
    return run.take(np.sort(positions))


def _contents(runs: list[Run], schema: pa.Schema, t: Timestamp) -> Updates:
    """Several runs without times as one consolidated batch. Only keys with a negative diff have anything to
    cancel."""
    if not runs:
        return Updates.empty(schema)
    merged = concat_runs(runs)
    if merged.diffs is not None and (merged.diffs < 0).any():
        order = np.argsort(merged.keys, kind="stable")
        merged = cancel(merged.take(order))
    return Updates(merged.rows, np.full(len(merged), t, np.uint64), merged.all_diffs())


def _expanded(updates: Updates) -> pa.RecordBatch:
    """Each row as many times as its diff says."""
    if (updates.diffs == 1).all():
        return updates.rows
    return take_rows(updates.rows, np.repeat(np.arange(len(updates)), np.maximum(updates.diffs, 0)))
