"""Columns of text into typed Arrow columns, as COPY FROM reads them.

Each type has a vectorized way for the form that programs write. When a column does not fit it (odd
spellings, time zones, more digits than the column keeps, or a real error), the column is read again value
by value with PostgreSQL's full rules; that loop is also what finds the first bad row.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.runtime import SqlError
from penstock.server import oids
from penstock.server.text_format import fixed_width
from penstock.server.values import decode_text

if TYPE_CHECKING:
    from penstock.sql.types import SqlType

_BOOLEANS = pa.array(["t", "f", "true", "false", "1", "0", "y", "n", "yes", "no", "on", "off"])
_STRINGS = {oids.TEXT, oids.VARCHAR, oids.BPCHAR, oids.NAME, oids.CHAR}


class BadValue(Exception):
    """`row` (index into the column) is no value of its type."""

    def __init__(self, row: int, error: SqlError) -> None:
        super().__init__(row, error)
        self.row = row
        self.error = error


def parse_column(texts: pa.Array, kind: SqlType) -> pa.Array:
    """A string column as `kind.arrow`. BadValue for the first value that is none."""
    if kind.oid in _STRINGS:
        return texts.cast(kind.arrow)
    fast = _FAST.get(kind.oid)
    if fast is not None:
        try:
            parsed = fast(texts, kind.arrow)
        except pa.ArrowInvalid:
            parsed = None
        if parsed is not None:
            return parsed
    values: list[object] = []
    for row, text in enumerate(texts.to_pylist()):
        try:
            values.append(None if text is None else decode_text(text, kind.oid))
        except SqlError as error:
            raise BadValue(row, error) from None
    return build_column(values, kind)


def build_column(values: Sequence[object], kind: SqlType) -> pa.Array:
    """Python values (as parameters look) as `kind.arrow`. BadValue for one that does not fit the column."""
    converted: list[object] = []
    for row, value in enumerate(values):
        try:
            converted.append(arrow_value(value, kind.arrow))
        except SqlError as error:
            raise BadValue(row, error) from None
    try:
        return pa.array(converted, type=kind.arrow)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise BadValue(*_first_misfit(converted, kind.arrow, error)) from None


def _first_misfit(values: Sequence[object], arrow: pa.DataType, error: Exception) -> tuple[int, SqlError]:
    for row, value in enumerate(values):
        try:
            pa.array([value], type=arrow)
        except (pa.ArrowInvalid, OverflowError) as found:
            return row, SqlError(f"value out of range: {found}", sqlstate="22003")
    return 0, SqlError(f"value out of range: {error}", sqlstate="22003")


def arrow_value(value: object, arrow: pa.DataType) -> object:
    """One Python value in the form that `pa.array` takes for `arrow`."""
    if isinstance(value, decimal.Decimal) and pa.types.is_decimal(arrow):
        if value.is_nan():
            raise SqlError("NaN is out of range for type numeric", sqlstate="22003")
        with decimal.localcontext() as context:
            context.prec = 400
            context.rounding = decimal.ROUND_HALF_UP
            rounded = value.quantize(decimal.Decimal(1).scaleb(-arrow.scale))
        if rounded.adjusted() >= arrow.precision - arrow.scale and rounded != 0:
            raise SqlError(
                "numeric field overflow",
                sqlstate="22003",
                detail=f"A field with precision {arrow.precision}, scale {arrow.scale} must round to an "
                f"absolute value less than 10^{arrow.precision - arrow.scale}.",
            )
        return rounded
    if isinstance(value, uuid.UUID):
        return value.bytes if pa.types.is_fixed_size_binary(arrow) else str(value)
    if isinstance(value, datetime.datetime) and pa.types.is_timestamp(arrow) and arrow.tz is None:
        return value.replace(tzinfo=None)
    if isinstance(value, list) and pa.types.is_list(arrow):
        return [arrow_value(item, arrow.value_type) for item in value]
    return value


def _cast(texts: pa.Array, arrow: pa.DataType) -> pa.Array:
    return texts.cast(arrow)


def _bool(texts: pa.Array, arrow: pa.DataType) -> pa.Array | None:
    index = pc.index_in(texts, _BOOLEANS)
    if index.null_count != texts.null_count:
        return None
    return pc.equal(pc.bit_wise_and(index, pa.scalar(1, pa.int32())), pa.scalar(0, pa.int32()))


def _float(texts: pa.Array, arrow: pa.DataType) -> pa.Array | None:
    values = texts.cast(arrow)
    infinite = pc.sum(pc.is_inf(values)).as_py()
    return None if infinite else values  # an infinity may be an overflow: the careful way tells


def _time(texts: pa.Array, arrow: pa.DataType) -> pa.Array:
    moments = pc.binary_join_element_wise("1970-01-01 ", texts, "")
    return moments.cast(pa.timestamp("us")).cast(arrow)


def _timestamptz(texts: pa.Array, arrow: pa.DataType) -> pa.Array:
    if pc.all(pc.match_substring_regex(texts, r"(?:[zZ]|:\d\d(?:\.\d+)?[+-]\d\d(?::?\d\d)?)$")).as_py():
        return texts.cast(pa.timestamp("us", "UTC")).cast(arrow)
    return texts.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.timestamp("us", "UTC")).cast(arrow)


def _uuid(texts: pa.Array, arrow: pa.DataType) -> pa.Array | None:
    canonical = pc.match_substring_regex(texts, r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    if not pc.all(canonical).as_py():
        return None
    if not pa.types.is_fixed_size_binary(arrow):
        return texts.cast(arrow)
    digits = pc.replace_substring(texts.fill_null("0" * 32), "-", "").cast(pa.binary(32))
    raw = np.frombuffer(digits.buffers()[1], dtype=np.uint8)[: len(texts) * 32].reshape(-1, 32)
    nibbles = np.where(raw >= ord("a"), raw - (ord("a") - 10), raw - ord("0")).astype(np.uint8)
    cells = (nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).astype(np.uint8)
    return fixed_width(cells, texts.is_valid() if texts.null_count else None).cast(arrow)


_FAST: dict[int, Callable[[pa.Array, pa.DataType], pa.Array | None]] = {
    **dict.fromkeys(
        (
            oids.INT2,
            oids.INT4,
            oids.INT8,
            oids.UINT2,
            oids.UINT4,
            oids.UINT8,
            oids.OID,
            oids.MZ_TIMESTAMP,
            oids.NUMERIC,
            oids.DATE,
            oids.TIMESTAMP,
        ),
        _cast,
    ),
    oids.BOOL: _bool,
    oids.TIME: _time,
    oids.FLOAT4: _float,
    oids.FLOAT8: _float,
    oids.TIMESTAMPTZ: _timestamptz,
    oids.UUID: _uuid,
}
