"""Grouping rows by key columns, vectorized and exact.

Few rows are grouped by sorting their hashes, many by Arrow's hash table over the hashes. Either way rows with
equal hashes are compared, and on a true collision the groups are found again without hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.run import Indices, exact_hash
from penstock.runtime import hash_columns
from penstock.runtime.updates import dense_ranks, rows_equal, take_rows

U64 = npt.NDArray[np.uint64]

_SORT_ROWS_MAX = 1 << 15


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """`codes`: int64[n], the group of each row, in ``[0, count)``; `firsts`: int64[count], a row of each
    group; `hashes`: uint64[count]; `exact`: equal hashes imply equal keys."""

    codes: Indices
    firsts: Indices
    hashes: U64
    exact: bool

    @property
    def count(self) -> int:
        return len(self.firsts)


def group_rows(keys: pa.RecordBatch, hashes: U64 | None = None) -> Groups:
    """Group `keys` (at least one row; NULL equals NULL) by all of its columns. `hashes`: of all columns, if
    known."""
    count = keys.num_rows
    exact = exact_hash(keys, range(keys.num_columns))
    if keys.num_columns == 0:
        zero = np.zeros(count, np.int64)
        return Groups(zero, zero[:1], hash_columns([], 1), True)
    if exact and count > _SORT_ROWS_MAX and not pa.types.is_floating(keys.column(0).type):
        codes, firsts = _group_numbers(keys.column(0))
        return Groups(codes, firsts, hash_columns(take_rows(keys, firsts).columns, len(firsts)), True)
    if hashes is None:
        hashes = hash_columns(keys.columns, count)
    if count <= _SORT_ROWS_MAX:
        order = np.argsort(hashes)
        ordered = hashes[order]
        starts = np.empty(count, dtype=bool)
        starts[0] = True
        np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
        codes = np.empty(count, np.int64)
        codes[order] = np.cumsum(starts) - 1
        firsts = order[starts]
        group_hashes = ordered[starts]
    else:
        encoded = pa.array(hashes).dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        group_hashes = encoded.dictionary.to_numpy()
        firsts = _firsts(codes, len(group_hashes))
    if not exact and not _verified(keys, codes, firsts):
        return _group_exactly(keys, hashes)
    return Groups(codes, firsts, group_hashes, exact)


def _group_numbers(column: pa.Array) -> tuple[Indices, Indices]:
    """Codes and first rows of a column of at most 64 bits without NULLs; the values need not be hashed."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    width = column.type.bit_width // 8
    kind = "u" if pa.types.is_unsigned_integer(column.type) else "i"
    values = np.frombuffer(column.buffers()[1], dtype=f"{kind}{width}")[column.offset : column.offset + len(column)]
    low, high = int(values.min()), int(values.max())
    span = high - low + 1
    if span > 2 * len(values):
        encoded = pa.array(values).dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        return codes, _firsts(codes, len(encoded.dictionary))
    # dense numbers, as ids are: their place in the range is a perfect hash
    offsets = values.astype(np.int64) - low if low else values.astype(np.int64)
    present = np.zeros(span, dtype=bool)
    present[offsets] = True
    codes = offsets if present.all() else (np.cumsum(present) - 1)[offsets]
    return codes, _firsts(codes, int(np.count_nonzero(present)))


def _verified(keys: pa.RecordBatch, codes: Indices, firsts: Indices) -> bool:
    others = np.ones(len(codes), dtype=bool)
    others[firsts] = False
    rows = np.flatnonzero(others)
    return bool(rows_equal(keys, rows, keys, firsts[codes[rows]]).all())


def _group_exactly(keys: pa.RecordBatch, hashes: U64) -> Groups:
    """Two different keys share a hash: group by each column's distinct values instead."""
    codes = np.zeros(keys.num_rows, np.int64)
    for column in keys.columns:
        ranks = dense_ranks(column)
        _, codes = np.unique(codes * (int(ranks.max()) + 1) + ranks, return_inverse=True)
    firsts = _firsts(codes, int(codes.max()) + 1)
    return Groups(codes, firsts, hashes[firsts], False)


def _firsts(codes: Indices, count: int) -> Indices:
    firsts = np.empty(count, np.int64)
    firsts[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # the last assignment stays: the first row
    return firsts
