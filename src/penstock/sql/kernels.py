"""The functions that Arrow and DataFusion lack, on whole columns.

A kernel takes Arrow arrays of one length and returns one; what cannot be computed raises `DataError` with PostgreSQL's
SQLSTATE and message. The same kernels run inside DataFusion (as user-defined functions) and in the incremental engine.
Readers of text take Arrow's own cast first and go value by value only when that refuses: only then is there something
unusual in the batch, and only then must the culprit be found.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.runtime import DataError
from penstock.sql import literals

Array = Any
"""A pyarrow Array: the library has no type stubs."""

_INT_KINDS = {"smallint": "int16", "integer": "int32", "bigint": "int64"}


def nonzero(values: Array) -> Array:
    """`values`, unless one of them is zero: 22012."""
    if pc.any(pc.equal(values, pa.scalar(0, values.type))).as_py():
        raise DataError("division by zero", sqlstate="22012")
    return values


def float_to_int(kind: str) -> Callable[[Array], Array]:
    """Rounds to the nearest, halves to even, as PostgreSQL does; 22003 for what does not fit."""
    dtype = _INT_KINDS[kind]
    bits = int(dtype.removeprefix("int"))
    low, high = float(-(2 ** (bits - 1))), float(2 ** (bits - 1))

    def kernel(values: Array) -> Array:
        rounded = np.rint(values.fill_null(0).to_numpy(zero_copy_only=False))
        if not ((rounded >= low) & (rounded < high)).all():
            raise literals.out_of_range(kind)
        return pa.array(rounded.astype(dtype), type=dtype, mask=_nulls(values))

    return kernel


def text_reader(
    read: Callable[[str], Any], arrow: pa.DataType, *, fast: bool = True, wrap: Callable[[Any], Any] | None = None
) -> Callable[[Array], Array]:
    """Text to `arrow`: Arrow's cast when it agrees with PostgreSQL (`fast`) and accepts the batch, else `read`."""

    def kernel(values: Array) -> Array:
        if fast:
            try:
                return pc.cast(values, arrow)
            except pa.ArrowInvalid:
                pass
        # one value at a time: each distinct text is read once
        encoded = values.dictionary_encode()
        read_values = [None if text is None else read(text) for text in encoded.dictionary.to_pylist()]
        if wrap is not None:
            read_values = [None if value is None else wrap(value) for value in read_values]
        return pa.array(read_values, type=arrow).take(encoded.indices)

    return kernel


def each_distinct(function: Callable[..., Any], arrow: pa.DataType) -> Callable[..., Array]:
    """A kernel from a function of single values; NULL in, NULL out. Python runs once per distinct combination."""

    def kernel(*columns: Array) -> Array:
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        seen: dict[tuple[Any, ...], Any] = {}
        out = []
        # values are Python objects (JSON, patterns): there is no columnar form to vectorize over
        for row in rows:
            if row not in seen:
                seen[row] = None if None in row else function(*row)
            out.append(seen[row])
        return pa.array(out, type=arrow)

    return kernel


def read_decimal(values: Array) -> Array:
    """Text to decimal256(76, 38), wide enough for every numeric."""
    return text_reader(
        lambda text: literals.round_numeric(literals.read_numeric(text), 38), pa.decimal256(76, 38), fast=False
    )(values)


def interval_arrow(value: literals.Interval) -> tuple[int, int, int]:
    return value.months, value.days, value.microseconds * 1000


_INTERVAL_DTYPE = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])


def interval_parts(values: Array) -> Any:
    """A month_day_nano array as a NumPy structured array; NULLs are zeros or garbage."""
    raw = np.frombuffer(values.buffers()[1], dtype=_INTERVAL_DTYPE)
    return raw[values.offset : values.offset + len(values)]


def make_intervals(months: Any, days: Any, nanos: Any, nulls: Any) -> Array:
    """A month_day_nano array from its parts."""
    parts = np.empty(len(nanos), dtype=_INTERVAL_DTYPE)
    parts["months"], parts["days"], parts["nanos"] = months, days, nanos
    validity = None
    if nulls is not None and nulls.any():
        validity = pa.py_buffer(np.packbits(~nulls, bitorder="little").tobytes())
    return pa.Array.from_buffers(pa.month_day_nano_interval(), len(parts), [validity, pa.py_buffer(parts.tobytes())])


def _nulls(*columns: Array) -> Any:
    masks = [column.is_null().to_numpy(zero_copy_only=False) for column in columns if column.null_count]
    return np.logical_or.reduce(masks) if masks else None


def subtract_timestamps(left: Array, right: Array) -> Array:
    """Days and time between two timestamps, as PostgreSQL's ``-``."""
    micros = pc.fill_null(pc.subtract(left.cast(pa.int64()), right.cast(pa.int64())), 0)
    values = micros.to_numpy(zero_copy_only=False)
    days = (np.abs(values) // literals.DAY_US) * np.sign(values)
    return make_intervals(0, days, (values - days * literals.DAY_US) * 1000, _nulls(left, right))


def multiply_interval(values: Array, factors: Array) -> Array:
    """interval * double precision; fractions go to the next smaller field."""
    parts = interval_parts(values)
    factor = factors.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    months = parts["months"] * factor
    whole_months = np.trunc(months)
    days = parts["days"] * factor + np.round((months - whole_months) * 30, 9)
    whole_days = np.trunc(days)
    nanos = parts["nanos"] * factor + np.round((days - whole_days) * 86_400, 6) * 1e9
    micros = np.rint(nanos / 1000).astype(np.int64)
    return make_intervals(whole_months, whole_days, micros * 1000, _nulls(values, factors))


def negate_interval(values: Array) -> Array:
    parts = interval_parts(values)
    return make_intervals(-parts["months"], -parts["days"], -parts["nanos"], _nulls(values))


# Text output


def float_text(digits: int) -> Callable[[Array], Array]:
    """The shortest text that reads back as the same float (17 digits at most for double, 9 for real)."""
    kind = np.float64 if digits == 17 else np.float32

    def write(value: float) -> str:
        if value != value:
            return "NaN"
        if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        low, high = 1e-4, 1e15 if digits == 17 else 1e6
        if value == 0 or low <= abs(value) < high:
            text = np.format_float_positional(kind(value), unique=True, trim="-")
        else:
            text = np.format_float_scientific(kind(value), unique=True, trim="-", exp_digits=2)
        return str(text)

    def kernel(values: Array) -> Array:
        encoded = values.dictionary_encode()
        # number formatting has no columnar form that agrees with PostgreSQL; each distinct value once
        texts = [None if v is None else write(v) for v in encoded.dictionary.to_pylist()]
        return pa.array(texts, type=pa.string()).take(encoded.indices)

    return kernel


def trim_numeric(values: Array) -> Array:
    """A numeric without declared scale: no trailing zeros."""
    text = pc.cast(values, pa.string())
    scientific = pc.match_substring(text, "E")
    if pc.any(scientific).as_py():
        text = pa.array([None if v is None else f"{v:f}" for v in values.to_pylist()], type=pa.string())
    return pc.utf8_rtrim(pc.utf8_rtrim(text, "0"), ".") if values.type.scale > 0 else text


def timestamp_text(values: Array) -> Array:
    """``2020-01-01 00:00:00[.ffffff][+00]``"""
    zoned = values.type.tz is not None
    plain = values.cast(pa.timestamp("us")) if zoned else values
    text = pc.strftime(plain, format="%Y-%m-%d %H:%M:%S")
    text = _trim_fraction(text)
    return pc.binary_join_element_wise(text, "+00", "") if zoned else text


def time_text(values: Array) -> Array:
    """``01:02:03[.ffffff]``"""
    return _trim_fraction(pc.cast(values, pa.string()))


def _trim_fraction(text: Array) -> Array:
    """Arrow writes all six digits of a fraction of microseconds; PostgreSQL none that are trailing zeros."""
    return pc.replace_substring_regex(text, pattern=r"\.?0*$", replacement="")


def write_interval(months: int, days: int, nanos: int) -> str:
    """PostgreSQL's default interval style."""
    parts = []
    years, rest = int(months / 12), months - int(months / 12) * 12
    negative = False
    for amount, unit in ((years, "year"), (rest, "mon"), (days, "day")):
        if amount:
            sign = "+" if negative and amount > 0 else ""
            parts.append(f"{sign}{amount} {unit}{'' if amount == 1 else 's'}")
            negative = amount < 0
    micros = abs(nanos) // 1000
    if micros or not parts:
        seconds, fraction = divmod(micros, 1_000_000)
        sign = "-" if nanos < 0 else "+" if negative else ""
        clock = f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        parts.append(clock + (f".{fraction:06}".rstrip("0") if fraction else ""))
    return " ".join(parts)


def interval_text(values: Array) -> Array:
    parts = interval_parts(values)
    texts = [write_interval(int(m), int(d), int(n)) for m, d, n in parts.tolist()]
    return pa.array(texts, type=pa.string(), mask=_nulls(values))


def bytea_text(values: Array) -> Array:
    return pa.array([None if v is None else "\\x" + v.hex() for v in values.to_pylist()], type=pa.string())


def check_length(values: Array, limits: Array) -> Array:
    """Text that fits varchar(n); spaces beyond n are cut, anything else is 22001."""
    limit = limits[0].as_py() if len(limits) else 0
    too_long = pc.greater(pc.utf8_length(values), limit)
    if not pc.any(too_long).as_py():
        return values
    cut = pc.utf8_slice_codeunits(values, 0, limit)
    kept = pc.equal(pc.utf8_rtrim(values, " "), pc.utf8_rtrim(cut, " "))
    if not pc.all(kept).as_py():
        raise DataError(f"value too long for type character varying({limit})", sqlstate="22001")
    return cut


# JSON


_json = literals.load_json


def json_field(text: str, key: str) -> str | None:
    """jsonb -> text"""
    value = _json(text)
    return literals.write_json(value[key]) if isinstance(value, dict) and key in value else None


def json_element(text: str, index: int) -> str | None:
    """jsonb -> integer"""
    value = _json(text)
    if not isinstance(value, list) or not -len(value) <= index < len(value):
        return None
    return literals.write_json(value[index])


def json_text(text: str) -> str | None:
    """A JSON value as text: strings without quotes, null as NULL."""
    value = _json(text)
    if value is None:
        return None
    return value if isinstance(value, str) else text


def json_path(text: str, path: list[str] | tuple[str, ...]) -> str | None:
    """jsonb #> text[]"""
    value = _json(text)
    for key in path:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and _is_index(key) and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return literals.write_json(value)


def _is_index(key: str) -> bool:
    return key.lstrip("-").isdigit()


def json_path_column(texts: Array, paths: Array) -> Array:
    out = [
        None if text is None or path is None else json_path(text, path)
        for text, path in zip(texts.to_pylist(), paths.to_pylist(), strict=True)
    ]
    return pa.array(out, type=pa.string())


def json_contains(left: str, right: str) -> bool:
    """jsonb @> jsonb"""
    return _contains(_json(left), _json(right), top=True)


def _contains(whole: Any, part: Any, *, top: bool = False) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and _contains(whole[key], item) for key, item in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(_contains(w, item) for w in whole) for item in part)
    if top and isinstance(whole, list):
        return any(_contains(item, part) for item in whole if not isinstance(item, dict | list))
    return (type(whole) is type(part) and bool(whole == part)) or _same_number(whole, part)


def _same_number(left: Any, right: Any) -> bool:
    numbers = (int, Decimal)
    return (
        isinstance(left, numbers) and isinstance(right, numbers) and not isinstance(left, bool)
        and not isinstance(right, bool) and left == right
    )  # fmt: skip


def json_has_key(text: str, key: str) -> bool:
    """jsonb ? text"""
    value = _json(text)
    return (isinstance(value, dict) and key in value) or (isinstance(value, list) and key in value)


def json_typeof(text: str) -> str:
    value = _json(text)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        return "array"
    return "string" if isinstance(value, str) else "number"


def json_array_length(text: str) -> int:
    value = _json(text)
    if not isinstance(value, list):
        raise DataError("cannot get array length of a non-array", sqlstate="22023")
    return len(value)


def json_numeric(text: str) -> Decimal:
    """A JSON number as numeric; 22023 for any other JSON value."""
    if json_typeof(text) != "number":
        raise DataError(f"cannot cast jsonb {json_typeof(text)} to type numeric", sqlstate="22023")
    return literals.round_numeric(Decimal(text), 16)


def json_boolean(text: str) -> bool:
    if json_typeof(text) != "boolean":
        raise DataError(f"cannot cast jsonb {json_typeof(text)} to type boolean", sqlstate="22023")
    return text == "true"


def quote_json(values: Array) -> Array:
    """text to a JSON string."""
    return pa.array([None if v is None else literals.write_json(v) for v in values.to_pylist()], type=pa.string())


# Numeric

_NUMERIC = pa.decimal128(38, 16)


def _relabelled(values: Array, precision: int) -> Array:
    """A decimal128 column as decimal256 that claims fewer digits than it may have.

    Arrow refuses to multiply or divide when the digits of the operands' types add up to more than 76; those of our
    values never do.
    """
    wide = values.cast(pa.decimal256(38, values.type.scale))
    kind = pa.decimal256(precision, values.type.scale)
    return pa.Array.from_buffers(kind, len(wide), wide.buffers(), offset=wide.offset)


def _rounded(values: Array) -> Array:
    """To 16 digits after the point, halves away from zero; 22003 for what does not fit 38 digits."""
    try:
        return pc.round(values, ndigits=16, round_mode="half_towards_infinity").cast(_NUMERIC)
    except pa.ArrowInvalid:
        raise DataError("numeric field overflow", sqlstate="22003") from None


def multiply_numeric(left: Array, right: Array) -> Array:
    """numeric * numeric, rounded to 16 digits after the point."""
    return _rounded(pc.multiply(_relabelled(left, 37), _relabelled(right, 38)))


def divide_numeric(left: Array, right: Array) -> Array:
    """numeric / numeric, rounded to 16 digits after the point; 22012 where a value is divided by zero."""
    zero = pc.equal(right, pa.scalar(Decimal(0), right.type))
    if pc.any(pc.and_kleene(zero, left.is_valid())).as_py():
        raise DataError("division by zero", sqlstate="22012")
    if pc.any(zero).as_py():  # NULL / 0 is NULL
        right = pc.if_else(zero, pa.scalar(Decimal(1), right.type), right)
    return _rounded(pc.divide(_relabelled(left, 37), _relabelled(right, 38)))


def array_text(values: Array) -> Array:
    """An array of texts as PostgreSQL prints it."""
    out = [
        None if value is None else "{" + ",".join(map(_array_item, value)) + "}" for value in values.to_pylist()
    ]  # quoting depends on each element's characters
    return pa.array(out, type=pa.string())


def _array_item(text: str | None) -> str:
    if text is None:
        return "NULL"
    if text and text.upper() != "NULL" and not any(char in '{},"\\' or char.isspace() for char in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
