"""The order of a sorted run: by the leading column, as far as eight bytes tell, then by the hash of the row.

Both are one number per row for every type, so that sorting and merging are array operations. The first keeps what
is near in the leading column near in the shard, which compresses and lets readers skip parts; the second brings equal
rows together. Hashing is what costs: it is done where the leading column does not tell rows apart. Nothing but size
and speed depends on the order: a reader that finds it broken (written by a version with another hash, say) still reads
each update once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.persist.statistics import is_bytes
from penstock.runtime import Updates, hash_columns
from penstock.runtime.updates import Diffs, consolidated_indices, take_rows

U64 = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Place = tuple[np.uint64, np.uint64]

_FEW = 2
"""Rows that are less than one in so many are taken out and hashed apart."""
_SIGN = np.uint64(1 << 63)
_PREFIX_BYTES = 8


class Keys:
    """Where the updates with n `rows` are in the order: compare `leading` (uint64[n]), then the hashes."""

    def __init__(self, rows: pa.RecordBatch, leading: U64, hashes: U64 | None = None) -> None:
        self._rows, self.leading, self._hashes = rows, leading, hashes

    @staticmethod
    def of(rows: pa.RecordBatch) -> Keys:
        return Keys(rows, leading_words(rows.column(0)) if rows.num_columns else np.zeros(rows.num_rows, np.uint64))

    @staticmethod
    def concat(parts: Sequence[Keys], rows: pa.RecordBatch) -> Keys:
        """The keys of `parts` one after the other; `rows` are theirs."""
        known = [part._hashes for part in parts if part._hashes is not None]
        hashes = np.concatenate(known) if len(known) == len(parts) else None
        return Keys(rows, np.concatenate([part.leading for part in parts]), hashes)

    @property
    def hashes(self) -> U64:
        """uint64[n]; computed once."""
        if self._hashes is None:
            self._hashes = hash_columns(self._rows.columns, len(self.leading))
        return self._hashes

    def hashes_at(self, indices: Indices) -> U64:
        """The hashes of some rows, without computing those of all for few."""
        if self._hashes is None and len(indices) * _FEW < len(self.leading):
            return hash_columns(take_rows(self._rows, indices).columns, len(indices))
        return self.hashes[indices]

    def take(self, indices: Indices, rows: pa.RecordBatch) -> Keys:
        """The keys at `indices`; `rows` are the rows there."""
        return Keys(rows, self.leading[indices], None if self._hashes is None else self._hashes[indices])

    def greatest(self) -> Place:
        """The last place in the order; of at least one update."""
        leading = self.leading.max()
        return leading, self.hashes_at(np.flatnonzero(self.leading == leading)).max()

    def up_to(self, bound: Place) -> npt.NDArray[np.bool_]:
        """Which updates are at or before `bound`."""
        leading, hash_ = bound
        reached = self.leading < leading
        tied = np.flatnonzero(self.leading == leading)
        reached[tied] = self.hashes_at(tied) <= hash_
        return reached


def sorted_and_summed(updates: Updates, keys: Keys) -> tuple[Indices, Diffs]:
    """Which of `updates` represent the distinct (row, time) pairs whose diffs do not sum to zero, in the order, and
    those sums. Quick where the updates consist of sorted pieces, as the inputs of a merge do.
    """
    leading, times, diffs = keys.leading, updates.times, updates.diffs
    order = np.argsort(leading, kind="stable")
    tied = np.zeros(len(order), dtype=bool)
    np.equal(leading[order[1:]], leading[order[:-1]], out=tied[1:])
    tied[:-1] |= tied[1:]
    if len(order) < _FEW * np.count_nonzero(tied):  # all at once rather than these apart
        kept, sums = consolidated_indices(updates.rows, times, diffs, keys.hashes)
        place = np.lexsort((keys.hashes[kept], leading[kept]))
        return kept[place], sums[place]
    single = order[~tied]
    single = single[diffs[single] != 0]
    group = order[tied]
    if len(group) == 0:
        return single, diffs[single]
    rows = take_rows(updates.rows, group)
    hashes = keys.take(group, rows).hashes
    kept, sums = consolidated_indices(rows, times[group], diffs[group], hashes)
    within = np.lexsort((hashes[kept], leading[group[kept]]))
    indices = np.concatenate([single, group[kept][within]])
    all_sums = np.concatenate([diffs[single], sums[within]])
    place = np.argsort(leading[indices], kind="stable")
    return indices[place], all_sums[place]


def leading_words(column: pa.Array) -> U64:
    """A number per value that grows with it, as far as 64 bits can tell. NULL, and types without an order: 0."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return leading_words(column.dictionary_decode())
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif pa.types.is_date32(kind) or pa.types.is_time32(kind):
        column = column.cast(pa.int32())
    elif (
        pa.types.is_timestamp(kind)
        or pa.types.is_date64(kind)
        or pa.types.is_time64(kind)
        or pa.types.is_duration(kind)
    ):
        column = column.cast(pa.int64())
    if pa.types.is_unsigned_integer(column.type):
        return column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    if pa.types.is_signed_integer(column.type):
        words = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64) ^ _SIGN
    elif pa.types.is_floating(column.type):
        values = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64) + 0.0
        values[np.isnan(values)] = np.nan  # there are many, and all are equal
        bits = values.view(np.uint64)
        words = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    elif is_bytes(column.type):
        words = _first_bytes(column)
    else:
        return np.zeros(len(column), dtype=np.uint64)
    words[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return words


def _first_bytes(column: pa.Array) -> U64:
    """The first eight bytes of each value as a big-endian number, so that numbers compare like the values."""
    prefixes = pc.binary_slice(column.cast(pa.binary()), 0, _PREFIX_BYTES).fill_null(b"")
    lengths = pc.binary_length(prefixes).to_numpy(zero_copy_only=False).astype(np.int64)
    _, offsets, data = prefixes.buffers()
    starts = np.frombuffer(offsets, dtype=np.int32)[prefixes.offset : prefixes.offset + len(prefixes)]
    padded = np.zeros((len(prefixes), _PREFIX_BYTES), dtype=np.uint8)
    if data is None or lengths.sum() == 0:
        return np.zeros(len(prefixes), dtype=np.uint64)
    content = np.frombuffer(data, dtype=np.uint8)
    for place in range(_PREFIX_BYTES):  # once per byte of the prefix, not per row
        longer = np.flatnonzero(lengths > place)
        padded[longer, place] = content[starts[longer] + place]
    return padded.view(">u8").reshape(-1).astype(np.uint64)
