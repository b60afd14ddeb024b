"""Aggregates as linear accumulators: what a row adds, and what a total means.

Each additive aggregate turns its column into integer limbs; the sum of the limbs over a group's rows, each
times its diff, determines the result. Limbs are never carried while they are summed, so nothing overflows for
fewer than 2**29 rows in a group, and totals are exact:

* count: one limb;
* sum of integers: 16 and 32 bits one limb, 64 bits two of 32 bits (the second only if a number needs it);
* sum of decimals: the same up to precision 18, else four limbs of 32 bits;
* sum of floats: see `exact_sum`;
* bool_and, bool_or: the numbers of true and of non-NULL values.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow import exact_sum

Limb = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
LimbId = Hashable

_DECIMAL_MAX = 10**38 - 1


class Function(enum.Enum):
    """What to compute. `COUNT` counts non-NULL values, or rows when it has no column."""

    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    BOOL_AND = "bool_and"
    BOOL_OR = "bool_or"

    @property
    def additive(self) -> bool:
        return self not in (Function.MIN, Function.MAX)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate of a reduction. NULLs are ignored; over no values at all, everything but a count is NULL.

    `column`: index into the input, None for ``count(*)``. `output`: type of the result; None: int64 for
    counts and sums of integers up to 32 bits, decimal128(38, 0) for sums of 64 bits, decimal128(38, s) for
    decimals, the column's type else. A sum that does not fit `output` is an error row (22003).
    """

    function: Function
    column: int | None = None
    distinct: bool = False
    output: pa.DataType | None = None
    name: str = ""


def output_field(aggregate: Aggregate, schema: pa.Schema) -> pa.Field:
    """Name and type of the result. Raises `ValueError` when the column's type has no such aggregate."""
    function, column = aggregate.function, aggregate.column
    name = aggregate.name or function.value
    if function is Function.COUNT:
        return pa.field(name, aggregate.output or pa.int64(), nullable=False)
    if column is None:
        raise ValueError(f"{function.value} needs a column")
    kind = schema.field(column).type
    nullable = schema.field(column).nullable
    if function is Function.SUM:
        return pa.field(name, aggregate.output or _sum_type(kind), nullable=nullable)
    if function in (Function.BOOL_AND, Function.BOOL_OR) and not pa.types.is_boolean(kind):
        raise ValueError(f"{function.value} of {kind}")
    if aggregate.output is not None and aggregate.output != kind:
        raise ValueError(f"{function.value} of {kind} as {aggregate.output}")
    return pa.field(name, kind, nullable=nullable)


def _sum_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_floating(kind):
        return kind
    if pa.types.is_decimal128(kind):
        return pa.decimal128(38, kind.scale)
    if pa.types.is_integer(kind):
        return pa.int64() if kind.bit_width <= 32 else pa.decimal128(38, 0)
    raise ValueError(f"sum of {kind}")


class Accumulation:
    """The limbs of one additive aggregate: which there are, what rows add to them, and what totals mean.

    Limb ids are equal between aggregates that need the same limb (``count(v)`` and ``sum(v)`` share one).
    """

    def __init__(self, aggregate: Aggregate, schema: pa.Schema) -> None:
        self.field = output_field(aggregate, schema)
        self._function = aggregate.function
        self._column = aggregate.column
        self._kind: Any = None if aggregate.column is None else schema.field(aggregate.column).type

    def limbs(self, rows: pa.RecordBatch, diffs: Limb) -> dict[LimbId, Limb]:
        """What each row adds to each limb; limbs that are left out get nothing."""
        if self._column is None:
            return {}
        column = rows.column(self._column)
        valid = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
        result: dict[LimbId, Limb] = {("count", self._column): diffs if valid is None else np.where(valid, diffs, 0)}
        if self._function is Function.COUNT:
            return result
        for number, values in self._split(column).items():
            values = values * diffs
            result["sum", self._column, number] = values if valid is None else np.where(valid, values, 0)
        return result

    def _split(self, column: pa.Array) -> dict[int, Limb]:
        """Limb number -> values of the column's rows; what stands where the column is NULL does not matter."""
        kind = self._kind
        if pa.types.is_boolean(kind):
            return {0: column.cast(pa.int8()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)}
        if pa.types.is_floating(kind):
            return self._split_floats(column)
        if pa.types.is_decimal128(kind):
            return self._split_decimals(column)
        values = _fixed_width(column, f"{'u' if pa.types.is_unsigned_integer(kind) else 'i'}{kind.bit_width // 8}")
        if kind.bit_width <= 32:
            return {0: values.astype(np.int64)}
        return _halves(values, 0)

    def _split_floats(self, column: pa.Array) -> dict[int, Limb]:
        values = _fixed_width(column, f"f{self._kind.bit_width // 8}").astype(np.float64)
        result = exact_sum.split(values)
        special = ~np.isfinite(values)
        if special.any():
            result[_NAN] = np.isnan(values).astype(np.int64)
            result[_PLUS_INFINITY] = (values == np.inf).astype(np.int64)
            result[_MINUS_INFINITY] = (values == -np.inf).astype(np.int64)
        return result

    def _split_decimals(self, column: pa.Array) -> dict[int, Limb]:
        words = _fixed_width(column, "i8", words=2)
        low, high = words[0::2], words[1::2]
        if self._kind.precision <= 18:
            return _halves(low, 0)
        unsigned = {0: low & np.int64(0xFFFFFFFF), 1: (low >> 32) & np.int64(0xFFFFFFFF)}
        return unsigned | _halves(high, 2)

    def results(self, limbs: dict[LimbId, Limb], rows: Limb) -> tuple[pa.Array, Mask | None]:
        """The aggregate of each of n groups from its totals (`rows`: row counts), and where it is out of
        range."""
        if self._function is Function.COUNT:
            counts = rows if self._column is None else limbs.get(("count", self._column), np.zeros_like(rows))
            return _integers(counts, self.field.type)
        counts = limbs.get(("count", self._column), np.zeros_like(rows))
        empty = counts == 0
        mine = {
            key[2]: limb
            for key, limb in limbs.items()
            if isinstance(key, tuple) and key[0] == "sum" and key[1] == self._column
        }
        if self._function is Function.BOOL_AND:
            return pa.array(mine.get(0, np.zeros_like(rows)) == counts, mask=empty), None
        if self._function is Function.BOOL_OR:
            return pa.array(mine.get(0, np.zeros_like(rows)) > 0, mask=empty), None
        if pa.types.is_floating(self._kind):
            values = _special(exact_sum.round_to_double({k: v for k, v in mine.items() if k >= 0}, len(rows)), mine)
            with np.errstate(over="ignore"):
                typed = values.astype(np.float32) if pa.types.is_float32(self.field.type) else values
            return pa.array(typed, type=self.field.type, mask=empty), None
        return _fixed_point(mine, len(rows), empty, self.field.type)


_NAN, _PLUS_INFINITY, _MINUS_INFINITY = -1, -2, -3


def _special(values: npt.NDArray[np.float64], limbs: dict[int, Limb]) -> npt.NDArray[np.float64]:
    nans, plus, minus = (limbs.get(number) for number in (_NAN, _PLUS_INFINITY, _MINUS_INFINITY))
    if nans is None or plus is None or minus is None:
        return values
    values = np.where(plus > 0, np.inf, values)
    values = np.where(minus > 0, -np.inf, values)
    return np.where((nans > 0) | ((plus > 0) & (minus > 0)), np.nan, values)


def _halves(values: npt.NDArray[Any], number: int) -> dict[int, Limb]:
    if values.dtype == np.uint64:
        return {
            number: (values & np.uint64(0xFFFFFFFF)).astype(np.int64),
            number + 1: (values >> np.uint64(32)).astype(np.int64),
        }
    signed = values.astype(np.int64, copy=False)
    low = signed.astype(np.int32)
    if (low == signed).all():  # as most numbers are: one limb, and nothing to split
        return {number: signed}
    # The low limb is signed, so that numbers of 32 bits have a high limb of zero.
    return {number: low.astype(np.int64), number + 1: (signed >> 32) + ((signed >> 31) & 1)}


def _integers(values: Limb, kind: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """64-bit results in an integer or decimal type."""
    if pa.types.is_int64(kind):
        return pa.array(values), None
    return _fixed_point({0: values}, len(values), np.zeros(len(values), dtype=bool), kind)


def _fixed_point(limbs: dict[int, Limb], count: int, empty: Mask, kind: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """Totals of 32-bit limbs as integers or decimals of `kind` (scale as summed)."""
    zero = np.zeros(count, np.int64)
    if len(limbs) <= 1 and pa.types.is_int64(kind):
        return pa.array(limbs.get(0, zero), mask=empty), None
    if all(number < 2 for number in limbs) and _small(limbs):
        total = limbs.get(0, zero) + (limbs.get(1, zero) << 32)
        if pa.types.is_int64(kind):
            return pa.array(total, mask=empty), None
        if pa.types.is_decimal128(kind) and kind.precision == 38:
            return _decimals(total, total >> 63, empty, kind), None
    digits: list[Limb] = []
    carry = zero
    for number in range(4):
        value = limbs.get(number, zero) + carry
        carry = value >> 32
        digits.append(value & np.int64(0xFFFFFFFF))
    # `carry` is what is left above 128 bits: the sign, if the total fits
    low = (digits[1] << 32) | digits[0]
    high = (digits[3] << 32) | digits[2]
    wrong = carry != (high >> 63)
    if pa.types.is_decimal(kind):
        bound_high, bound_low = divmod(_DECIMAL_MAX if kind.precision == 38 else 10**kind.precision - 1, 1 << 64)
        wrong |= _magnitude_exceeds(low, high, bound_high, bound_low)
        values = _decimals(np.where(wrong, 0, low), np.where(wrong, 0, high), empty, kind)
        return values, wrong if wrong.any() else None
    if pa.types.is_floating(kind):
        raise ValueError(f"an exact sum as {kind}")
    wrong |= high != (low >> 63)
    width = kind.bit_width
    if width < 64:
        wrong |= (low >> (width - 1)) != (low >> 63)
    values = np.where(wrong, 0, low)
    return pa.array(values, mask=empty).cast(kind), wrong if wrong.any() else None


def _small(limbs: dict[int, Limb]) -> bool:
    """Whether totals of the first two limbs fit 63 bits beyond doubt."""
    bounds = (1 << 61, 1 << 29)
    return all(
        len(limb) == 0 or (int(limb.max()) < bound and int(limb.min()) > -bound)
        for limb, bound in ((limbs[number], bounds[number]) for number in limbs)
    )


def _decimals(low: Limb, high: Limb, empty: Mask, kind: pa.DataType) -> pa.Array:
    """128-bit numbers from their halves."""
    words = np.empty(len(low) * 2, np.int64)
    words[0::2], words[1::2] = low, high
    null_map = pa.array(~empty).buffers()[1] if empty.any() else None
    return pa.Array.from_buffers(kind, len(low), [null_map, pa.py_buffer(words)])


def _magnitude_exceeds(low: Limb, high: Limb, bound_high: int, bound_low: int) -> Mask:
    negative = high < 0
    unsigned = low.view(np.uint64)
    magnitude_low = np.where(negative, ~unsigned + np.uint64(1), unsigned)
    borrow = negative & (unsigned == 0)
    magnitude_high = np.where(negative, ~high + borrow, high).view(np.uint64)
    most, least = np.uint64(bound_high), np.uint64(bound_low)
    return np.asarray((magnitude_high > most) | ((magnitude_high == most) & (magnitude_low > least)))


def _fixed_width(column: pa.Array, dtype: str, words: int = 1) -> npt.NDArray[Any]:
    """The column's values without regard to NULLs, zero-copy."""
    item = np.dtype(dtype).itemsize * words
    if len(column) == 0 or column.buffers()[1] is None:
        return np.zeros(len(column) * words, dtype)
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return raw[column.offset * item : (column.offset + len(column)) * item].view(dtype)
