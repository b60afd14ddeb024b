"""The order of a sorted run: by the leading column, as far as eight bytes tell, then by the hash of the row.

Both are one number per row for every type, so that sorting and merging are array operations. The first keeps what
is near in the leading column near in the shard, which compresses and lets readers skip parts; the second brings equal
rows together. Nothing but size and speed depends on the order: a reader that finds it broken (written by a
version with another hash, say) still reads each update once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.persist.statistics import is_bytes
from penstock.runtime import Updates, hash_columns

U64 = npt.NDArray[np.uint64]

_SIGN = np.uint64(1 << 63)
_PREFIX_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """Where n updates are in the order: compare `leading`, then `hashes` (uint64[n] both)."""

    leading: U64
    hashes: U64

    @staticmethod
    def of(updates: Updates) -> Keys:
        columns = updates.rows.columns
        count = len(updates)
        leading = leading_words(columns[0]) if columns else np.zeros(count, dtype=np.uint64)
        return Keys(leading, hash_columns(columns, count))

    @staticmethod
    def concat(parts: Sequence[Keys]) -> Keys:
        return Keys(np.concatenate([p.leading for p in parts]), np.concatenate([p.hashes for p in parts]))

    def sorting(self) -> npt.NDArray[np.int64]:
        """Indices that sort the updates. Quick where they consist of sorted pieces, as the inputs of a merge do."""
        order = np.argsort(self.leading, kind="stable")
        leading = self.leading[order]
        if (leading[1:] == leading[:-1]).any():
            return np.lexsort((self.hashes, self.leading))
        return order

    def take(self, indices: npt.NDArray[np.int64]) -> Keys:
        return Keys(self.leading[indices], self.hashes[indices])

    def greatest(self) -> tuple[np.uint64, np.uint64]:
        """The last place in the order; of at least one update."""
        leading = self.leading.max()
        return leading, self.hashes[self.leading == leading].max()

    def up_to(self, bound: tuple[np.uint64, np.uint64]) -> npt.NDArray[np.bool_]:
        """Which updates are at or before `bound`."""
        leading, hash_ = bound
        return (self.leading < leading) | ((self.leading == leading) & (self.hashes <= hash_))


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
        bits = (column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64) + 0.0).view(np.uint64)
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
