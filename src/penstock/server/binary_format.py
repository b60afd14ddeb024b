"""Arrow columns in PostgreSQL's binary format.

One column in; either fixed-width cells (``uint8[n, w]``) or a binary array out, NULLs kept. What the bytes
are is decided by the OID that RowDescription announced, because that is what a driver decodes by; the Arrow
type is only where they come from. Types that clients know no binary form of (mz_timestamp, unknown OIDs)
travel as their text.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.runtime import SqlError
from penstock.server import oids
from penstock.server.text_format import fixed_width, interval_parts, text_column, uuid_bytes, validity_of

Cells = npt.NDArray[np.uint8]

_EPOCH_DAYS = 10_957  # 1970-01-01 to 2000-01-01
_EPOCH_MICROS = _EPOCH_DAYS * 86_400_000_000
_NUMERIC_POSITIVE, _NUMERIC_NEGATIVE = 0x0000, 0x4000
_WIDE = decimal.Context(prec=80)


def binary_column(column: pa.Array, oid: int, *, trim: bool = False) -> Cells | pa.Array:
    """Cells only when no value is NULL; else a binary array with validity. `trim`: see `text_column`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if oid in oids.ELEMENT_OF_ARRAY:
        return _array(column, oids.ELEMENT_OF_ARRAY[oid], trim)
    if oid in oids.ELEMENT_OF_VECTOR:
        return _vector(column, oids.ELEMENT_OF_VECTOR[oid])
    if oid == oids.NUMERIC:
        return _numeric(column, trim)
    encode = _ENCODERS.get(oid)
    if encode is None:
        if pa.types.is_struct(column.type):
            return _record(column)
        return text_column(column).cast(pa.binary())
    encoded = encode(column)
    if isinstance(encoded, np.ndarray) and column.null_count:
        return fixed_width(encoded, column.is_valid())
    return encoded


def big_endian(values: npt.NDArray[Any], code: str) -> Cells:
    """`values` as cells of the big-endian NumPy type `code` (">i4")."""
    swapped = np.ascontiguousarray(values).astype(code)
    return swapped.view(np.uint8).reshape(len(swapped), swapped.dtype.itemsize)


def _values(column: pa.Array, kind: pa.DataType) -> npt.NDArray[Any]:
    return column.cast(kind).fill_null(0).to_numpy(zero_copy_only=False)


def _number(kind: pa.DataType, code: str) -> Callable[[pa.Array], Cells]:
    return lambda column: big_endian(_values(column, kind), code)


def _bool(column: pa.Array) -> Cells:
    return big_endian(_values(column.cast(pa.uint8()), pa.uint8()), "u1")


def _text(column: pa.Array) -> pa.Array:
    return text_column(column).cast(pa.binary())


def _bytea(column: pa.Array) -> pa.Array:
    return column.cast(pa.binary())


def _jsonb(column: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(b"\x01"), _text(column), pa.scalar(b""))


def _date(column: pa.Array) -> Cells:
    days = column.cast(pa.date32()).cast(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False)
    return big_endian(days.astype(np.int64) - _EPOCH_DAYS, ">i4")


def _time(column: pa.Array) -> Cells:
    return big_endian(_values(column.cast(pa.time64("us")), pa.int64()), ">i8")


def _timestamp(column: pa.Array) -> Cells:
    if not pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us"))
    micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    return big_endian(_values(micros, pa.int64()) - np.int64(_EPOCH_MICROS), ">i8")


def _interval(column: pa.Array) -> Cells:
    parts = interval_parts(column)
    return np.concatenate(
        [
            big_endian(parts["nanos"] // 1000, ">i8"),
            big_endian(parts["days"], ">i4"),
            big_endian(parts["months"], ">i4"),
        ],
        axis=1,
    )


def _uuid(column: pa.Array) -> Cells | pa.Array:
    if pa.types.is_fixed_size_binary(column.type):
        return uuid_bytes(column)
    if pa.types.is_binary(column.type):
        return column
    digits = pc.replace_substring(text_column(column).fill_null("0" * 32), "-", "").cast(pa.binary(32))
    raw = np.frombuffer(digits.buffers()[1], dtype=np.uint8)[: len(column) * 32].reshape(-1, 32)
    nibbles = np.where(raw >= ord("a"), raw - (ord("a") - 10), raw - ord("0")).astype(np.uint8)
    return nibbles[:, 0::2] << 4 | nibbles[:, 1::2]


def _numeric(column: pa.Array, trim: bool) -> pa.Array:
    """Base-10000 digits around the decimal point, without leading and trailing zero digits."""
    if not pa.types.is_decimal128(column.type):
        column = column.cast(pa.decimal128(38, 0))
    scale = column.type.scale
    if 0 <= scale <= 16 and len(column):
        try:
            whole_part = pc.trunc(column)
            whole = whole_part.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            whole = None  # beyond 64 bits
        if whole is not None:
            # both differ by less than 10**16, so their low words are enough
            fraction = _low_words(column) - _low_words(whole_part)
            return _numeric_from_parts(whole, fraction, scale, trim, validity_of(column))
    # Python integers, one by one: NumPy has none that are wide enough
    values = column.to_pylist()
    return pa.array([None if v is None else _numeric_one(v, trim) for v in values], type=pa.binary())


def _low_words(column: pa.Array) -> npt.NDArray[np.int64]:
    words = np.frombuffer(column.buffers()[1], dtype=np.int64).reshape(-1, 2)
    low = words[column.offset : column.offset + len(column), 0]
    if column.null_count:
        low = np.where(column.is_valid().to_numpy(zero_copy_only=False), low, 0)
    return low


def _numeric_from_parts(
    whole: npt.NDArray[np.int64],
    fraction: npt.NDArray[np.int64],
    scale: int,
    trim: bool,
    validity: pa.Array | None,
) -> pa.Array:
    """`fraction`: of the same sign as `whole`, in units of ``10**-scale``. `trim`: no zeros at the end."""
    rows = len(whole)
    sign = np.where((whole < 0) | (fraction < 0), _NUMERIC_NEGATIVE, _NUMERIC_POSITIVE)
    padding = -scale % 4
    integer = whole.view(np.uint64)
    integer = np.where(whole < 0, np.uint64(0) - integer, integer)
    rest = np.abs(fraction)
    shown = np.full(rows, scale, dtype=np.int64)
    if trim:
        for power in range(1, scale + 1):
            shown -= rest % np.int64(10**power) == 0
    rest = rest * np.int64(10**padding)
    count = 5 + (scale + padding) // 4
    digits = np.empty((rows, count), dtype=np.uint16)
    for position in range(4, -1, -1):
        integer, digits[:, position] = np.divmod(integer, np.uint64(10_000))
    for position in range(count - 1, 4, -1):
        rest, digits[:, position] = np.divmod(rest, 10_000)
    nonzero = digits != 0
    some = nonzero.any(axis=1)
    first = np.where(some, nonzero.argmax(axis=1), 0)
    end = np.where(some, count - nonzero[:, ::-1].argmax(axis=1), 0)
    header = np.concatenate(
        [
            big_endian(end - first, ">i2"),
            big_endian(np.where(some, 4 - first, 0), ">i2"),
            big_endian(sign, ">u2"),
            big_endian(shown, ">i2"),
        ],
        axis=1,
    )
    positions = np.arange(count)
    kept = (positions >= first[:, None]) & (positions < end[:, None])
    offsets = np.concatenate([[0], np.cumsum((end - first) * 2)]).astype(np.int32)
    body = pa.Array.from_buffers(
        pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(digits[kept].astype(">u2").tobytes())]
    )
    encoded = pc.binary_join_element_wise(fixed_width(header), body, pa.scalar(b""))
    return encoded if validity is None else pc.if_else(validity, encoded, pa.scalar(None, pa.binary()))


def _numeric_one(value: decimal.Decimal, trim: bool) -> bytes:
    if trim:
        value = value.normalize(_WIDE)
    sign, figures, exponent = value.as_tuple()
    assert isinstance(exponent, int), value
    scale = max(-exponent, 0)
    text = "".join(map(str, figures)) + "0" * max(exponent, 0)
    text = text.rjust(scale + 1, "0") + "0" * (-scale % 4)
    point = len(text) - (scale + -scale % 4)
    text = "0" * (-point % 4) + text
    weight = (point + -point % 4) // 4 - 1
    digits = [int(text[i : i + 4]) for i in range(0, len(text), 4)]
    while digits and digits[0] == 0:
        digits.pop(0)
        weight -= 1
    while digits and digits[-1] == 0:
        digits.pop()
    words = [len(digits), weight if digits else 0, _NUMERIC_NEGATIVE if sign and digits else 0, scale, *digits]
    return b"".join(word.to_bytes(2, "big", signed=word < 0) for word in words)


def with_lengths(encoded: Cells | pa.Array) -> Cells | pa.Array:
    """Each value behind its 32-bit length, -1 alone for NULL; the result has no NULLs."""
    if isinstance(encoded, np.ndarray):
        count, width = encoded.shape
        return np.concatenate([big_endian(np.full(count, width), ">i4"), encoded], axis=1)
    return pc.binary_join_element_wise(
        fixed_width(length_cells(encoded)),
        encoded,
        pa.scalar(b""),
        null_handling="replace",
        null_replacement=b"",
    )


def length_cells(encoded: pa.Array) -> Cells:
    """The 32-bit length of each value of a binary array, -1 for NULL."""
    return big_endian(pc.fill_null(pc.binary_length(encoded), -1).to_numpy(zero_copy_only=False), ">i4")


def _array(column: pa.Array, element_oid: int, trim: bool) -> pa.Array:
    column = column.cast(pa.list_(column.type.value_type))
    if pa.types.is_list(column.type.value_type):
        # more than one dimension must be checked to be rectangular value by value
        values = [_array_one(row, element_oid, trim) for row in column]
        return pa.array(values, type=pa.binary())
    elements = column.flatten()
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    body = with_lengths(binary_column(elements, element_oid, trim=trim))
    if isinstance(body, np.ndarray):
        body = fixed_width(body)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), body), b"")
    nulls = np.concatenate([[0], np.cumsum(elements.is_null().to_numpy(zero_copy_only=False))])
    empty = counts == 0
    dimensions = fixed_width(
        np.concatenate([big_endian(counts, ">i4"), big_endian(np.ones(len(counts), np.int64), ">i4")], axis=1)
    )
    header = np.concatenate(
        [
            big_endian((~empty).astype(np.int64), ">i4"),
            big_endian((np.diff(nulls[starts]) > 0).astype(np.int64), ">i4"),
            big_endian(np.full(len(counts), element_oid), ">u4"),
        ],
        axis=1,
    )
    dimensions = pc.if_else(pa.array(empty), pa.scalar(b""), dimensions)
    encoded = pc.binary_join_element_wise(fixed_width(header), dimensions, joined, pa.scalar(b""))
    valid = validity_of(column)
    return encoded if valid is None else pc.if_else(valid, encoded, pa.scalar(None, pa.binary()))


def _vector(column: pa.Array, element_oid: int) -> pa.Array:
    """``1 2`` (int2vector, oidvector) as the array it is."""
    items = pc.split_pattern(text_column(column), " ")
    empty = pc.fill_null(pc.equal(text_column(column), ""), False)
    items = pc.if_else(empty, pa.scalar([], items.type), items)
    return _array(items.cast(pa.list_(pa.int64())), element_oid, False)


def _array_one(value: pa.ListScalar, element_oid: int, trim: bool) -> bytes | None:
    if not value.is_valid:
        return None
    level: pa.Array = value.values
    dimensions = [len(level)]
    while pa.types.is_list(level.type):
        lengths = pc.unique(pc.list_value_length(level)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise SqlError("multidimensional arrays must have sub-arrays with matching dimensions", sqlstate="2202E")
        level = level.flatten()
        dimensions.append(lengths[0] if lengths else 0)
    if 0 in dimensions:
        dimensions = []
    words = [len(dimensions), int(level.null_count > 0), element_oid]
    for size in dimensions:
        words += [size, 1]
    body = with_lengths(binary_column(level, element_oid, trim=trim))
    data = body.tobytes() if isinstance(body, np.ndarray) else b"".join(body.to_pylist())
    return b"".join(word.to_bytes(4, "big") for word in words) + data


def _record(column: pa.Array) -> pa.Array:
    """Field count, then per field its OID, length and text bytes: field types are sent as text."""
    fields = column.flatten()
    prefix = np.full((len(column), 1), len(fields))
    pieces: list[pa.Array] = [fixed_width(big_endian(prefix[:, 0], ">i4"))]
    for field in fields:
        oid = oids.of_arrow(field.type)
        pieces.append(fixed_width(big_endian(np.full(len(column), oid), ">u4")))
        body = with_lengths(binary_column(field, oid))
        pieces.append(fixed_width(body) if isinstance(body, np.ndarray) else body)
    encoded = pc.binary_join_element_wise(*pieces, pa.scalar(b""))
    valid = validity_of(column)
    return encoded if valid is None else pc.if_else(valid, encoded, pa.scalar(None, pa.binary()))


_ENCODERS: dict[int, Callable[[pa.Array], Cells | pa.Array]] = {
    oids.BOOL: _bool,
    oids.INT2: _number(pa.int16(), ">i2"),
    oids.INT4: _number(pa.int32(), ">i4"),
    oids.INT8: _number(pa.int64(), ">i8"),
    oids.UINT2: _number(pa.uint16(), ">u2"),
    oids.UINT4: _number(pa.uint32(), ">u4"),
    oids.UINT8: _number(pa.uint64(), ">u8"),
    oids.OID: _number(pa.uint32(), ">u4"),
    oids.REGCLASS: _number(pa.uint32(), ">u4"),
    oids.REGTYPE: _number(pa.uint32(), ">u4"),
    oids.REGPROC: _number(pa.uint32(), ">u4"),
    oids.FLOAT4: _number(pa.float32(), ">f4"),
    oids.FLOAT8: _number(pa.float64(), ">f8"),
    oids.TEXT: _text,
    oids.VARCHAR: _text,
    oids.BPCHAR: _text,
    oids.NAME: _text,
    oids.CHAR: _text,
    oids.UNKNOWN: _text,
    oids.JSON: _text,
    oids.JSONB: _jsonb,
    oids.BYTEA: _bytea,
    oids.DATE: _date,
    oids.TIME: _time,
    oids.TIMESTAMP: _timestamp,
    oids.TIMESTAMPTZ: _timestamp,
    oids.INTERVAL: _interval,
    oids.UUID: _uuid,
}
