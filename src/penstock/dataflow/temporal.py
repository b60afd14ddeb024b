"""Temporal filter: rows that are valid for an interval of time.

A change with diff d at time t of a row valid in ``[lower, upper)`` becomes +d at ``max(t, lower)`` and -d at
``max(t, upper)``, unless these are equal. What lies in the future waits in runs sorted by time; when the
frontier moves, the due part of each run is its beginning and is sent without copying. Opposite future changes
cancel when runs merge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.dataflow.arrangement import Trace
from penstock.dataflow.graph import Collection, Operator, Slices, pieces
from penstock.dataflow.linear import select
from penstock.dataflow.run import Run
from penstock.runtime import DONE, Frontier, Updates

_PIECE_ROWS = 1 << 18
Times = npt.NDArray[np.uint64]


class TemporalFilter(Operator):
    """Sends each row when its interval begins and takes it back when it ends."""

    def __init__(
        self, source: Operator, lower: int | None, upper: int | None, columns: list[int], schema: pa.Schema
    ) -> None:
        super().__init__(source.dataflow, "temporal-filter", schema, [source])
        self._lower = lower
        self._upper = upper
        self._columns = columns
        # The keys of its runs are times. What lies below `_sent_below` has been sent and is cut off sooner or later.
        self._future = Trace(trim=self._rest)
        self._sent_below = self.frontier

    @property
    def waiting(self) -> int:
        """Changes that lie in the future."""
        return sum(len(run) - self._sent_of(run) for run in self._future.runs)

    def activate(self) -> Slices | None:
        port = self.ports[0]
        arrived, frontier = port.take(), port.frontier
        if not arrived and not self._is_due(frontier):
            self._sent_below = frontier
            self.advance(frontier)
            return None
        return self._work(arrived, frontier)

    def _is_due(self, frontier: Frontier) -> bool:
        for run in self._future.runs:
            sent = self._sent_of(run)
            if sent < len(run) and int(run.keys[sent]) < frontier:
                return True
        return False

    def _sent_of(self, run: Run) -> int:
        """How many changes at the beginning of `run` have been sent."""
        return int(np.searchsorted(run.keys, np.uint64(self._sent_below)))

    def _rest(self, run: Run) -> Run:
        """`run` without what has been sent."""
        return run.take(np.arange(self._sent_of(run), len(run)))

    def _work(self, arrived: list[Updates], frontier: Frontier) -> Slices:
        for updates in pieces(arrived, _PIECE_ROWS):
            self._schedule(updates)
            yield
        if self._is_due(frontier):
            for run in self._future.runs:
                due = run.slice(self._sent_of(run), int(np.searchsorted(run.keys, np.uint64(frontier))))
                if len(due):
                    self.send(Updates(due.rows, due.keys, due.all_diffs()))
        self._sent_below = frontier
        merging = self._future.merging
        kept: list[Run] = []
        for run in self._future.runs:
            sent = self._sent_of(run)
            if run in merging or sent * 2 < len(run):
                kept.append(run)
            elif sent < len(run):
                kept.append(self._rest(run))
        self._future.replace(tuple(kept))
        self.advance(frontier)
        if self._future.wants_merge:
            self.dataflow.want_maintenance(self)

    def maintain(self) -> bool:
        return self._future.merge_some()

    def _schedule(self, updates: Updates) -> None:
        begin, never = _later(updates.times, updates.rows, self._lower, 0)
        end, never_ends = _later(updates.times, updates.rows, self._upper, int(DONE))
        until = np.uint64(min(self.dataflow.until, DONE))
        valid = (begin < end) & ~never & ~never_ends
        rows = select(updates.rows, self._columns, self.schema)
        for times, diffs in ((begin, updates.diffs), (end, -updates.diffs)):
            wanted = valid & (times < until)
            if wanted.any():
                due = Updates(rows, times, diffs).filter(wanted)
                self._future.insert(Run.sort(due.times, due).untimed())


def _later(times: Times, rows: pa.RecordBatch, column: int | None, default: int) -> tuple[Times, npt.NDArray[np.bool_]]:
    """``max(time, bound)`` per row, and where the bound is NULL."""
    if column is None:
        return np.maximum(times, np.uint64(default)), np.zeros(len(times), dtype=bool)
    bounds = rows.column(column)
    nulls = bounds.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(bounds.type):
        # ``now < x`` and ``now >= x`` hold for whole milliseconds as they do for x rounded up
        bounds = pc.ceil_temporal(bounds, unit="millisecond").cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if pa.types.is_decimal(bounds.type):
        whole_type = pa.decimal128(38, 0)
        bounds = pc.max_element_wise(pc.ceil(bounds).cast(whole_type), pa.scalar(0, whole_type), skip_nulls=False)
        bounds = pc.min_element_wise(bounds, pa.scalar(int(DONE), whole_type), skip_nulls=False)
    values = bounds.fill_null(0).cast(pa.uint64() if pa.types.is_unsigned_integer(bounds.type) else pa.int64())
    whole = values.to_numpy(zero_copy_only=False)
    if whole.dtype == np.int64:
        whole = np.maximum(whole, 0).astype(np.uint64)
    return np.maximum(times, np.minimum(whole, np.uint64(DONE))), nulls


def temporal_filter(
    collection: Collection, lower: int | None, upper: int | None, *, columns: list[int] | None = None
) -> Collection:
    """Rows while ``lower <= now < upper``: the indices of columns with bounds in milliseconds (integers,
    decimals without fraction, or timestamps); None: not bounded on that side. A row whose bound is NULL is
    never valid.

    `columns`: send only these (None: all).
    """
    columns = list(range(len(collection.schema))) if columns is None else columns
    schema = pa.schema([collection.schema.field(i) for i in columns])
    operator = TemporalFilter(collection.operator, lower, upper, columns, schema)
    return Collection.of(operator, collection)
