"""`Updates`: a batch of changes to a collection, the value that all rooms exchange.

A collection at time t is, per row, the sum of the diffs of all updates to it at times <= t. Rows are Arrow
columns; times and diffs are NumPy arrays beside them, so that no code needs a Python loop over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.runtime.frontier import Timestamp
from penstock.runtime.hashing import hash_columns

Times = npt.NDArray[np.uint64]
Diffs = npt.NDArray[np.int64]

_TIME_FACTOR = np.uint64(0xD6E8FEB86659FD93)


def times_of(time: int, count: int) -> Times:
    """`time`, `count` times over, at no cost in memory."""
    return np.broadcast_to(np.uint64(time), count)


def diffs_of(diff: int, count: int) -> Diffs:
    """`diff`, `count` times over, at no cost in memory."""
    return np.broadcast_to(np.int64(diff), count)


@dataclass(frozen=True, slots=True, eq=False)
class Updates:
    """`rows`: n rows; `times`: uint64[n], milliseconds; `diffs`: int64[n]. All three are read-only, and need not be
    contiguous: where all are the same, one of them stands for all."""

    rows: pa.RecordBatch
    times: Times
    diffs: Diffs

    def __post_init__(self) -> None:
        if not self.rows.num_rows == len(self.times) == len(self.diffs):
            raise ValueError(f"{self.rows.num_rows} rows with {len(self.times)} times and {len(self.diffs)} diffs")

    @staticmethod
    def empty(schema: pa.Schema) -> Updates:
        return Updates.at(_no_rows(schema), Timestamp(0))

    @staticmethod
    def at(rows: pa.RecordBatch, time: Timestamp, diff: int = 1) -> Updates:
        """All `rows` at one `time` with one `diff`."""
        count = rows.num_rows
        return Updates(rows, np.full(count, time, dtype=np.uint64), np.full(count, diff, dtype=np.int64))

    @staticmethod
    def concat(parts: Sequence[Updates]) -> Updates:
        """One batch with the updates of all `parts` (at least one; equal schemas), in order."""
        if len(parts) == 1:
            return parts[0]
        return Updates(
            concat_rows([part.rows for part in parts]),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.diffs for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.times)

    @property
    def schema(self) -> pa.Schema:
        return self.rows.schema

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes) + self.times.nbytes + self.diffs.nbytes

    def filter(self, mask: npt.NDArray[np.bool_]) -> Updates:
        """Only the updates where `mask` is true."""
        if mask.all():
            return self
        return self.take(np.flatnonzero(mask))

    def take(self, indices: npt.NDArray[np.int64]) -> Updates:
        """The updates at `indices`, in that order."""
        return Updates(take_rows(self.rows, indices), self.times[indices], self.diffs[indices])

    def slice(self, start: int, stop: int) -> Updates:
        """The updates from `start` to `stop` (or the end), without copying."""
        return Updates(self.rows.slice(start, stop - start), self.times[start:stop], self.diffs[start:stop])

    def negate(self) -> Updates:
        return Updates(self.rows, self.times, -self.diffs)

    def advance_to(self, time: Timestamp) -> Updates:
        """Times before `time` become `time`."""
        if len(self.times) == 0 or int(self.times.min()) >= time:
            return self
        return Updates(self.rows, np.maximum(self.times, np.uint64(time)), self.diffs)

    def with_rows(self, rows: pa.RecordBatch) -> Updates:
        """The same times and diffs for other rows (same count)."""
        return Updates(rows, self.times, self.diffs)

    def consolidate(self) -> Updates:
        """One update per (row, time), none with a zero diff. Order is unspecified but a function of the
        content."""
        if len(self) == 0:
            return self
        indices, sums = consolidated_indices(self.rows, self.times, self.diffs)
        if len(indices) == len(self) and (indices[1:] > indices[:-1]).all():
            return self
        return Updates(take_rows(self.rows, indices), self.times[indices], sums)


def consolidated_indices(
    rows: pa.RecordBatch, times: Times, diffs: Diffs, hashes: npt.NDArray[np.uint64] | None = None
) -> tuple[npt.NDArray[np.int64], Diffs]:
    """Which of n updates represent the distinct (row, time) pairs whose diffs do not sum to zero, and those
    sums. `hashes`: what `hash_columns` gives for the rows, where that is known."""
    count = len(times)
    if count <= 1:
        kept = np.flatnonzero(diffs)
        return kept, diffs[kept]
    if hashes is None:
        hashes = hash_columns(rows.columns, count)
    one_time = bool((times == times[0]).all())
    if not one_time:
        hashes = hashes ^ (times * _TIME_FACTOR)
    order = np.argsort(hashes)
    hashes = hashes[order]
    starts = np.empty(count, dtype=bool)
    starts[0] = True
    np.not_equal(hashes[1:], hashes[:-1], out=starts[1:])
    if starts.all():
        kept = np.flatnonzero(diffs)
        return kept, diffs[kept]
    repeated = np.flatnonzero(~starts)
    ours, theirs = order[repeated], order[repeated - 1]
    same_time = one_time or bool((times[ours] == times[theirs]).all())
    if not same_time or not rows_equal(rows, ours, rows, theirs).all():
        return _consolidated_exactly(rows, times, diffs)  # two different updates share a hash
    firsts = np.flatnonzero(starts)
    sums = np.add.reduceat(diffs[order], firsts)
    kept = np.flatnonzero(sums)
    return order[firsts[kept]], sums[kept]


def _consolidated_exactly(rows: pa.RecordBatch, times: Times, diffs: Diffs) -> tuple[npt.NDArray[np.int64], Diffs]:
    """The slow way, without hashes: rank each column's distinct values and group by the ranks."""
    if len(times) == 0:
        return np.empty(0, np.int64), diffs
    ranks = [dense_ranks(column) for column in rows.columns]
    order = np.lexsort((times, *ranks))
    starts = np.zeros(len(order), dtype=bool)
    starts[0] = True
    for key in (times, *ranks):
        starts[1:] |= key[order][1:] != key[order][:-1]
    firsts = np.flatnonzero(starts)
    sums = np.add.reduceat(diffs[order], firsts)
    kept = np.flatnonzero(sums)
    return order[firsts[kept]], sums[kept]


def conform(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`rows` with exactly `schema`, by position.

    Library calls return string views, other nullability and other names; this
    mends them. Raises `pyarrow.ArrowInvalid` when a value does not fit its column's type.
    """
    if rows.schema.equals(schema, check_metadata=True):
        return rows
    if rows.num_columns != len(schema):
        raise ValueError(f"{rows.num_columns} columns where {len(schema)} are expected")
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(rows.columns, schema, strict=True)
    ]
    if not columns:
        return with_row_count(schema, rows.num_rows)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def with_row_count(schema: pa.Schema, count: int) -> pa.RecordBatch:
    """A batch of `count` rows without columns (`schema` has none): Arrow keeps the count only in a struct."""
    return pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), count, [None]))


def concat_rows(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows of `batches` (at least one; equal schemas), in order; also for batches without columns."""
    if len(batches) == 1:
        return batches[0]
    if batches[0].num_columns == 0:
        return with_row_count(batches[0].schema, sum(batch.num_rows for batch in batches))
    return pa.concat_batches(batches)


def take_rows(rows: pa.RecordBatch, indices: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The rows at `indices`, in that order; also for batches without columns."""
    if rows.num_columns == 0:
        return with_row_count(rows.schema, len(indices))
    return rows.take(pa.array(indices))


def rows_equal(
    left: pa.RecordBatch,
    left_indices: npt.NDArray[np.int64],
    right: pa.RecordBatch,
    right_indices: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Pairwise equality of rows, column by column and by position. NULL equals NULL, NaN equals NaN."""
    equal = np.ones(len(left_indices), dtype=bool)
    for ours, theirs in zip(left.columns, right.columns, strict=True):
        equal &= values_equal(ours.take(pa.array(left_indices)), theirs.take(pa.array(right_indices)))
    return equal


def values_equal(left: pa.Array, right: pa.Array) -> npt.NDArray[np.bool_]:
    """Pairwise ``IS NOT DISTINCT FROM`` of two arrays, with NaN equal to NaN."""
    if pa.types.is_nested(left.type) or pa.types.is_interval(left.type):
        ranks = dense_ranks(pa.concat_arrays([left, right]))
        return ranks[: len(left)] == ranks[len(left) :]
    equal = pc.fill_null(pc.equal(left, right), False).to_numpy(zero_copy_only=False)
    if left.null_count or right.null_count:
        equal = equal | (left.is_null().to_numpy(zero_copy_only=False) & right.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_floating(left.type):
        ours, theirs = (side.fill_null(0).to_numpy(zero_copy_only=False) for side in (left, right))
        equal = equal | (np.isnan(ours) & np.isnan(theirs) & left.is_valid() & right.is_valid())
    return np.asarray(equal, dtype=bool)


def dense_ranks(column: pa.Array) -> npt.NDArray[np.int64]:
    """A number per distinct value of `column` (NULL included), equal exactly where the values are."""
    if pa.types.is_nested(column.type) or pa.types.is_interval(column.type):
        # Arrow has no dictionary encoding for these; their canonical text is as good, and this path is cold.
        column = pa.array([None if v is None else repr(v) for v in column.to_pylist()], type=pa.string())
    if pa.types.is_floating(column.type):
        column = pc.add(column, pa.scalar(0.0, column.type))  # -0.0 becomes 0.0
    codes = column.dictionary_encode(null_encoding="encode").indices
    return codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    if len(schema) == 0:
        return with_row_count(schema, 0)
    return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)
