"""A total order of rows for top-k, min and max, as unsigned 64-bit words that compare like the values.

Every sort column becomes one or more words: integers with the sign bit flipped, floats in their total order
(NaN last, as in SQL), decimals in two words, NULLs by a word of their own, descending columns complemented.
Of strings only the first eight bytes fit (they compare bytewise): rows that tie on those are ranked among
themselves. Rows that tie in all sort columns are ordered by the fixed hash of the whole row, which is the
same on every replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.dataflow.run import Indices
from penstock.runtime import hash_columns
from penstock.runtime.updates import dense_ranks, rows_equal, take_rows

U64 = npt.NDArray[np.uint64]

_SIGN = np.uint64(1 << 63)
_DAY_NANOSECONDS = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class SortKey:
    """Order by `column`. As in PostgreSQL NULLs are greater than all values unless `nulls_first` says where
    they go."""

    column: int
    descending: bool = False
    nulls_first: bool | None = None

    @property
    def nulls_go_first(self) -> bool:
        return self.descending if self.nulls_first is None else self.nulls_first


def check_orderable(schema: pa.Schema, order: Sequence[SortKey]) -> None:
    """Raise `ValueError` when a column's type has no order."""
    for key in order:
        kind = schema.field(key.column).type
        if pa.types.is_nested(kind) or pa.types.is_decimal256(kind):
            raise ValueError(f"cannot order by {schema.field(key.column).name}: {kind} has no order here")


def cheap_words(rows: pa.RecordBatch, order: Sequence[SortKey]) -> tuple[list[U64], bool]:
    """Words that order `rows` as far as they go without comparing whole strings, most significant first.

    The second value is true when equal words mean equal sort columns. Words of different batches are
    comparable.
    """
    words: list[U64] = []
    for key in order:
        exact = _append_words(words, rows.column(key.column), rows.schema.field(key.column).nullable, key)
        if not exact:
            return words, False
    return words, True


def sort_rows(lead: U64, rows: pa.RecordBatch, order: Sequence[SortKey]) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Order `rows` by `lead`, then `order`, then the whole row.

    Returns the permutation and, per place in it, whether the row there differs from the one before.
    """
    count = len(lead)
    words, _ = cheap_words(rows, order)
    permutation, ties = _lexsort([lead, *words])
    starts = np.ones(count, dtype=bool)
    tied = np.flatnonzero(ties)  # places equal to their predecessor
    if len(tied) == 0:
        return permutation, starts
    within = ties.copy()
    within[:-1] |= ties[1:]
    places = np.flatnonzero(within)
    spans = np.cumsum(~ties)[places].astype(np.uint64)
    subset = take_rows(rows, permutation[places])
    full: list[U64] = [spans]
    for key in order:
        if not _append_words(full, subset.column(key.column), subset.schema.field(key.column).nullable, key):
            ranks = _ranks(subset.column(key.column))
            full.append(~ranks if key.descending else ranks)
    full.append(hash_columns(subset.columns, subset.num_rows))
    suborder, equal = _lexsort(full)
    same = np.flatnonzero(equal)
    if len(same) and not rows_equal(subset, suborder[same], subset, suborder[same - 1]).all():
        # different rows with one hash: all their columns decide
        for column in subset.columns:
            full.append(_ranks(column))
        suborder, equal = _lexsort(full)
    permutation[places] = permutation[places[suborder]]
    starts[places] = ~equal
    return permutation, starts


def _ranks(column: pa.Array) -> U64:
    """A number per value, equal for equal ones and in their order, if they have one."""
    if pa.types.is_nested(column.type) or pa.types.is_interval(column.type) or pa.types.is_floating(column.type):
        return dense_ranks(column).astype(np.uint64)
    return np.asarray(pc.rank(column, tiebreaker="dense").to_numpy().astype(np.uint64))


def less(left: Sequence[U64], right: Sequence[U64]) -> npt.NDArray[np.bool_]:
    """Pairwise lexicographic comparison of words."""
    result = np.zeros(len(left[0]), dtype=bool)
    open_ = np.ones(len(left[0]), dtype=bool)
    for ours, theirs in zip(left, right, strict=True):
        result |= open_ & (ours < theirs)
        open_ &= ours == theirs
    return result


def _lexsort(words: list[U64]) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Permutation by `words`, most significant first; and whether each place equals its predecessor in all of
    them."""
    count = len(words[0])
    varying = [word for word in words if count and (word != word[0]).any()]
    if not varying:
        ties = np.ones(count, dtype=bool)
        ties[:1] = False
        return np.arange(count), ties
    if len(varying) == 1:
        order = np.argsort(varying[0])
    else:
        order = np.lexsort(varying[::-1])
    ties = np.ones(count, dtype=bool)
    ties[0] = False
    for word in varying:
        sorted_word = word[order]
        ties[1:] &= sorted_word[1:] == sorted_word[:-1]
    return order, ties


def _append_words(words: list[U64], column: pa.Array, nullable: bool, key: SortKey) -> bool:
    """Append the words of one column. False when rows with equal words may still differ in it."""
    values, exact = _value_words(column)
    if key.descending:
        values = [~word for word in values]
    if nullable:
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        words.append((nulls ^ key.nulls_go_first).astype(np.uint64))
        if column.null_count:
            values = [np.where(nulls, np.uint64(0), word) for word in values]
    words.extend(values)
    return exact


def _value_words(column: pa.Array) -> tuple[list[U64], bool]:
    kind = column.type
    if pa.types.is_boolean(kind):
        return [column.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)], True
    if pa.types.is_floating(kind):
        return [_float_words(column)], True
    if pa.types.is_decimal128(kind):
        raw = _raw(column, 16).view(np.uint64)
        return [raw[1::2] ^ _SIGN, raw[0::2].copy()], True
    if pa.types.is_interval(kind):
        return _interval_words(column), True
    if pa.types.is_null(kind):
        return [], True
    if pa.types.is_fixed_size_binary(kind):
        column = column.cast(pa.binary())
        return [_prefix_words(column)], False
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return [_prefix_words(column)], False
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) or "view" in str(kind):
        return [_prefix_words(column.cast(pa.binary()))], False
    width = kind.bit_width // 8
    if pa.types.is_unsigned_integer(kind):
        return [_raw(column, width).view(f"u{width}").astype(np.uint64)], True
    signed = _raw(column, width).view(f"i{width}").astype(np.int64)
    return [signed.view(np.uint64) ^ _SIGN], True


def _float_words(column: pa.Array) -> U64:
    width = column.type.bit_width // 8
    values = _raw(column, width).view(f"f{width}").astype(np.float64) + 0.0
    bits = values.view(np.uint64)
    words = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return np.where(np.isnan(values), np.uint64(0xFFFFFFFFFFFFFFFF), words)


def _interval_words(column: pa.Array) -> list[U64]:
    """Month-day-nanosecond intervals by their length, months of 30 days, as PostgreSQL compares them."""
    raw = _raw(column, 16)
    parts = raw.view(np.int32)
    nanoseconds = raw.view(np.int64)[1::2]
    days = parts[0::4].astype(np.int64) * 30 + parts[1::4] + nanoseconds // _DAY_NANOSECONDS
    return [days.view(np.uint64) ^ _SIGN, (nanoseconds % _DAY_NANOSECONDS).view(np.uint64)]


def _prefix_words(column: pa.Array) -> U64:
    """The first eight bytes of each string or binary value, big-endian, padded with zeros."""
    count = len(column)
    if count == 0 or column.buffers()[2] is None or column.buffers()[2].size == 0:
        return np.zeros(count, np.uint64)
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + count + 1]
    data = np.frombuffer(column.buffers()[2], dtype=np.uint8)
    at = offsets[:-1, None].astype(np.int64) + np.arange(8)
    inside = at < offsets[1:, None]
    prefix = np.where(inside, data[np.minimum(at, len(data) - 1)], np.uint8(0))
    return np.ascontiguousarray(prefix).view(">u8").reshape(count).astype(np.uint64)


def _raw(column: pa.Array, width: int) -> npt.NDArray[np.uint8]:
    if len(column) == 0 or column.buffers()[1] is None:
        return np.zeros(len(column) * width, np.uint8)
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return raw[column.offset * width : (column.offset + len(column)) * width]
