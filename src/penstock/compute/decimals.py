"""Decimal arithmetic on 64-bit integers.

Arrow's decimal kernels refuse result precisions beyond 38 that DataFusion caps, and a library plan costs
tenths of a millisecond. Unscaled values almost always fit into 64 bits: then sums, differences and products
are NumPy operations. Every function here returns None when values do not fit; the caller takes the general
way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

I64 = npt.NDArray[np.int64]
_LIMIT = 2**63 - 1


def unscaled(value: pa.Array | pa.Scalar) -> I64 | int | None:
    """The unscaled integers of a decimal128 array (0 where NULL) or non-null scalar, or None when one needs
    more bits.
    """
    if isinstance(value, pa.Scalar):
        number = int(value.as_py().scaleb(value.type.scale))
        return number if abs(number) <= _LIMIT else None
    count = len(value)
    if count == 0:
        return np.empty(0, np.int64)
    words = np.frombuffer(value.buffers()[1], dtype=np.int64)[2 * value.offset : 2 * (value.offset + count)]
    low, high = words[0::2], words[1::2]
    if value.null_count:
        valid = value.is_valid().to_numpy(zero_copy_only=False)
        low, high = np.where(valid, low, 0), np.where(valid, high, 0)
    if not np.array_equal(high, low >> 63):
        return None
    return low


def from_unscaled(values: I64, kind: pa.DataType, like: list[pa.Array | pa.Scalar]) -> pa.Array:
    """Decimals of `kind` with unscaled `values`, NULL where an array of `like` is NULL."""
    words = np.empty((len(values), 2), np.int64)
    words[:, 0] = values
    words[:, 1] = values >> 63
    valid: npt.NDArray[np.bool_] | None = None
    for source in like:
        if isinstance(source, pa.Array) and source.null_count:
            mask = source.is_valid().to_numpy(zero_copy_only=False)
            valid = mask if valid is None else valid & mask
    bitmap = None
    if valid is not None:
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(words)])


def arithmetic(
    name: str, left: pa.Array | pa.Scalar, right: pa.Array | pa.Scalar, kind: pa.DataType
) -> pa.Array | None:
    """``left name right`` as decimals of `kind` (name: add, subtract or multiply); None when 64 bits may
    not do.
    """
    ours, theirs = unscaled(left), unscaled(right)
    if ours is None or theirs is None:
        return None
    if name == "multiply":
        if left.type.scale + right.type.scale != kind.scale or largest(ours) * largest(theirs) > _LIMIT:
            return None
        result = np.multiply(ours, theirs)
    else:
        up_left, up_right = kind.scale - left.type.scale, kind.scale - right.type.scale
        if up_left < 0 or up_right < 0 or max(up_left, up_right) > 18:
            return None
        if largest(ours) * 10**up_left + largest(theirs) * 10**up_right > _LIMIT:
            return None
        ours, theirs = ours * 10**up_left, theirs * 10**up_right
        result = np.add(ours, theirs) if name == "add" else np.subtract(ours, theirs)
    if largest(result) >= 10**kind.precision:
        return None
    return from_unscaled(np.asarray(result, dtype=np.int64), kind, [left, right])


def to_float(value: pa.Array) -> pa.Array | None:
    """Decimals as float64, rounded as DataFusion does: the unscaled value divided by the power of ten."""
    integers = unscaled(value)
    if integers is None:
        return None
    quotients = np.asarray(integers, dtype=np.float64) / 10.0**value.type.scale
    mask = value.is_null().to_numpy(zero_copy_only=False) if value.null_count else None
    return pa.array(quotients, pa.float64(), mask=mask)


def rescale(value: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Decimals under a larger or equal scale; None when a value may not fit."""
    up = kind.scale - value.type.scale
    integers = unscaled(value)
    if integers is None or not 0 <= up <= 18 or largest(integers) * 10**up > min(_LIMIT, 10**kind.precision - 1):
        return None
    return from_unscaled(np.asarray(integers * 10**up, dtype=np.int64), kind, [value])


def from_integers(value: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Integers as decimals of `kind`; None when a value may not fit."""
    if pa.types.is_uint64(value.type):
        return None
    filled = value.fill_null(0) if value.null_count else value
    integers = filled.to_numpy(zero_copy_only=False).astype(np.int64)
    if not 0 <= kind.scale <= 18 or largest(integers) * 10**kind.scale > min(_LIMIT, 10**kind.precision - 1):
        return None
    return from_unscaled(integers * 10**kind.scale, kind, [value])


def to_integers(value: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Decimals of scale 0 as integers of at most 64 bits; None when one does not fit."""
    integers = unscaled(value)
    if integers is None:
        return None
    mask = value.is_null().to_numpy(zero_copy_only=False) if value.null_count else None
    made = pa.array(integers, pa.int64(), mask=mask)
    return made if kind == made.type else made.cast(kind)


def largest(values: I64 | int) -> int:
    """The greatest absolute value."""
    if isinstance(values, int):
        return abs(values)
    if len(values) == 0:
        return 0
    return max(int(values.max()), -int(values.min()))
