"""Statistics of a part: for each column the number of NULLs and bounds of the other values.

They are kept in the state, so they are small: long strings are cut (the upper bound rounded up), and columns are left
out, the largest entries first, until the rest fits. What is left out says nothing; what is there is true. Bounds are of
one of four kinds, comparable among themselves:

* integers: of integers, booleans, dates, times and timestamps in their unit, and decimals without their point,
* floats, where NaN is greater than all others and equal to itself, as in PostgreSQL,
* bytes: of strings (UTF-8, whose order is that of the characters) and of binaries.

The Parquet writer computes most of them anyway; they are taken from there rather than computed once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FORMAT = b"\x01"
_PREFIX_BYTES = 32
_INT64_MAX = 2**63 - 1
_OVERHEAD_BYTES = 6
"""The format byte and the greatest head of a list."""

_encode = msgspec.msgpack.Encoder().encode

Bound = int | float | bytes
Bounds = tuple[Bound | None, Bound | None]
"""Lower and upper, both inclusive; None: unbounded on that side."""


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """Of one column of a part. `bounds`: of the values that are not NULL; None when nothing is known of them."""

    nulls: int
    bounds: Bounds | None


def encode_statistics(rows: pa.RecordBatch, found: Sequence[Bounds | None], bytes_max: int) -> bytes:
    """Statistics of `rows`, by column, from the `found` bounds; at most `bytes_max` long, empty for none."""
    entries = [
        _entry(index, column.null_count, bounds if column.null_count < len(column) else None)
        for index, (column, bounds) in enumerate(zip(rows.columns, found, strict=True))
    ]
    encoded = _FORMAT + _encode(entries)
    if len(encoded) <= bytes_max:
        return encoded
    room = bytes_max - _OVERHEAD_BYTES
    kept = []
    for size, entry in sorted(((len(_encode(entry)), entry) for entry in entries), key=lambda one: one[0]):
        room -= size
        if room < 0:
            break
        kept.append(entry)
    return _FORMAT + _encode(kept) if kept else b""


@lru_cache(maxsize=4096)
def decode_statistics(data: bytes) -> dict[int, ColumnStatistics]:
    """By position of the column. Empty for a format that this program does not know: it may keep every part."""
    if data[:1] != _FORMAT:
        return {}
    decoded = {}
    for index, nulls, *bounds in msgspec.msgpack.decode(memoryview(data)[1:]):
        both = tuple(_from_wire(bound) for bound in bounds)
        decoded[index] = ColumnStatistics(nulls, (both[0], both[1]) if both else None)
    return decoded


def bounds_of_arrays(rows: pa.RecordBatch) -> list[Bounds | None]:
    """Bounds of each column of `rows`, computed."""
    return [_bounds_of_array(column) for column in rows.columns]


def bounds_of_parquet(rows: pa.RecordBatch, metadata: Any) -> list[Bounds | None]:
    """Bounds of each column of `rows`, from the `metadata` of the Parquet file that it was written to."""
    found: list[Bounds | None] = [None] * rows.num_columns
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    for index, leaf, convert in _ordered_leaves(rows.schema):
        chunks = [group.column(leaf).statistics for group in groups]
        known = [chunk for chunk in chunks if chunk.has_min_max]
        if convert is _number_with_nan:
            found[index] = _float_bounds(rows.column(index), known)
        elif known and all(chunk.has_min_max or chunk.num_values == 0 for chunk in chunks):
            found[index] = (min(convert(one.min_raw) for one in known), max(convert(one.max_raw) for one in known))
        # Other chunks without bounds hold values that are too long to be repeated: then there are none for all.
    return found


@lru_cache(maxsize=1024)
def _ordered_leaves(schema: pa.Schema) -> list[tuple[int, int, Callable[[Any], Bound]]]:
    """(position, position among Parquet's columns, how to read a bound) of each column that has bounds."""
    found = []
    leaf = 0
    for index, kind in enumerate(schema.types):
        if is_ordered(kind):
            found.append((index, leaf, _reading(kind)))
        leaf += _leaves(kind)
    return found


def _reading(kind: pa.DataType) -> Callable[[Any], Bound]:
    if pa.types.is_floating(kind):
        return _number_with_nan
    if pa.types.is_decimal128(kind):
        return lambda raw: int.from_bytes(raw, "big", signed=True) if isinstance(raw, bytes) else int(raw)
    if pa.types.is_unsigned_integer(kind):
        return lambda raw: int(raw) % (1 << kind.bit_width)
    return bytes if is_bytes(kind) else int


def _number_with_nan(raw: Any) -> Bound:
    return float(raw)


def is_ordered(kind: pa.DataType) -> bool:
    """Whether there are bounds for values of `kind`."""
    return bool(
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or kind in (pa.float32(), pa.float64())
        or pa.types.is_decimal128(kind)
        or is_bytes(kind)
        or kind == pa.date32()
        or (pa.types.is_timestamp(kind) and kind.unit != "s")
        or pa.types.is_time64(kind)
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of `kind` are strings of characters or bytes."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def plain(value: pa.Scalar) -> Bound:
    """A value of an ordered type, not NULL, as a bound."""
    kind = value.type
    if pa.types.is_decimal128(kind):
        sign, digits, _ = value.as_py().as_tuple()
        return int("".join(map(str, digits))) * (-1 if sign else 1)
    if is_bytes(kind):
        return bytes(value.as_buffer())
    if pa.types.is_temporal(kind):
        return int(value.value)
    found = value.as_py()
    return found if isinstance(found, float) else int(found)


def _bounds_of_array(column: pa.Array) -> Bounds | None:
    if not is_ordered(column.type):
        return None
    extremes = pc.min_max(column)
    if not extremes["min"].is_valid:
        return None
    bounds = (plain(extremes["min"]), plain(extremes["max"]))
    return (bounds[0], math.nan) if pa.types.is_floating(column.type) and _has_nan(column) else bounds


def _float_bounds(column: pa.Array, chunks: Sequence[Any]) -> Bounds | None:
    """Parquet leaves NaN out: a chunk of nothing else has no bounds."""
    lower = min((one.min_raw for one in chunks), default=math.nan)
    upper = max((one.max_raw for one in chunks), default=math.nan)
    return (lower, math.nan if _has_nan(column) else upper)


def _has_nan(column: pa.Array) -> bool:
    values = column.to_numpy(zero_copy_only=False) if not column.null_count else column.drop_null().to_numpy()
    return bool(np.isnan(values).any())


def _leaves(kind: pa.DataType) -> int:
    """Columns that a column of `kind` has in Parquet."""
    if kind.num_fields == 0 or pa.types.is_dictionary(kind):
        return 1
    return sum(_leaves(kind.field(index).type) for index in range(kind.num_fields))


def _entry(index: int, nulls: int, bounds: Bounds | None) -> list[Any]:
    if bounds is None:
        return [index, nulls]
    return [index, nulls, _to_wire(_rounded_down(bounds[0])), _to_wire(_rounded_up(bounds[1]))]


def _rounded_down(bound: Bound | None) -> Bound | None:
    return bound[:_PREFIX_BYTES] if isinstance(bound, bytes) else bound


def _rounded_up(bound: Bound | None) -> Bound | None:
    """A short upper bound: the least prefix-length value above all that begin like `bound`; None if there is none."""
    if not isinstance(bound, bytes) or len(bound) <= _PREFIX_BYTES:
        return bound
    prefix = bound[:_PREFIX_BYTES].rstrip(b"\xff")
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else None


def _to_wire(bound: Bound | None) -> Any:
    """MessagePack has integers of 64 bits; longer ones are text."""
    if isinstance(bound, int) and not -_INT64_MAX <= bound <= _INT64_MAX:
        return str(bound)
    return bound


def _from_wire(bound: Any) -> Bound | None:
    return int(bound) if isinstance(bound, str) else bound
