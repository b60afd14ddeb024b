"""Arrow columns as PostgreSQL prints them: the text format of the wire, of COPY and of casts to text.

One column in, one string column out, NULLs kept, no Python loop over rows except for values so rare that
Arrow's own formatter differs from PostgreSQL's on them (floats of extreme magnitude, years before 1, tiny
decimals): those are found by a vectorized mask and formatted one by one.

The printed form depends on the Arrow type alone: text and jsonb are strings, uuid is 16 bytes fixed-size
binary, bytea is binary, interval is month_day_nano, arrays are lists. Settings are PostgreSQL's defaults
and cannot be changed: DateStyle ISO, IntervalStyle postgres, bytea_output hex, extra_float_digits 1,
TimeZone UTC.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.runtime import SqlError
from penstock.server import oids

if TYPE_CHECKING:
    from penstock.sql.types import SqlType

_DAYS_BEFORE_YEAR_1 = -719_162
_MICROS_PER_DAY = 86_400_000_000
_HEX = np.array([list(b"%02x" % byte) for byte in range(256)], dtype=np.uint8)
INTERVAL_LAYOUT = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])


def text_column(column: pa.Array, *, trim: bool = False) -> pa.Array:
    """`column` as a `pa.string()` array of the same length. SqlError 0A000 for a type without a text form.

    `trim`: decimals without trailing zeros, for numeric without a declared scale (see `trims`).
    """
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind):
        return _decimal(column, trim)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list(column, trim)
    for matches, encode in _ENCODERS:
        if matches(kind):
            return encode(column)
    raise SqlError(f"values of type {kind} have no text format", sqlstate="0A000")


def trims(kind: SqlType) -> bool:
    """Whether the type is numeric without a declared scale, which shows only the digits it needs."""
    kind = kind.element or kind
    return kind.oid == oids.NUMERIC and kind.modifier < 0


def float_text(value: float, single: bool = False) -> str:
    """Shortest digits that read back as the same float; exponent form outside [1e-4, 1e15) (single: 1e6)."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    sign, digits, exponent = decimal.Decimal(str(np.float32(value)) if single else repr(value)).as_tuple()
    assert isinstance(exponent, int)
    shown = "".join(map(str, digits)).lstrip("0")
    if not shown:
        return "-0" if sign else "0"
    point = len(shown) + exponent  # digits before the decimal point
    shown = shown.rstrip("0")
    prefix = "-" if sign else ""
    if not -4 <= point - 1 < (6 if single else 15):
        mantissa = shown[0] + ("." + shown[1:] if len(shown) > 1 else "")
        return f"{prefix}{mantissa}e{point - 1:+03d}"
    if point <= 0:
        return f"{prefix}0.{'0' * -point}{shown}"
    if len(shown) <= point:
        return prefix + shown.ljust(point, "0")
    return f"{prefix}{shown[:point]}.{shown[point:]}"


def fixed_width(cells: npt.NDArray[np.uint8], validity: pa.Array | None = None) -> pa.Array:
    """`uint8[n, width]` as a binary array. `validity`: boolean array, False where NULL."""
    count, width = cells.shape
    offsets = pa.py_buffer(np.arange(0, (count + 1) * width, width, dtype=np.int32)) if width else None
    if offsets is None:
        offsets = pa.py_buffer(np.zeros(count + 1, dtype=np.int32))
    array = pa.Array.from_buffers(pa.binary(), count, [None, offsets, pa.py_buffer(np.ascontiguousarray(cells))])
    if validity is None:
        return array
    return pc.if_else(validity, array, pa.scalar(None, pa.binary()))


def validity_of(column: pa.Array) -> pa.Array | None:
    """Which rows are not NULL; None when all are."""
    return column.is_valid() if column.null_count else None


def interval_parts(column: pa.Array) -> npt.NDArray[np.void]:
    """The (months, days, nanos) of an interval column; garbage where NULL."""
    if len(column) == 0:
        return np.empty(0, INTERVAL_LAYOUT)
    raw = np.frombuffer(column.buffers()[1], dtype=INTERVAL_LAYOUT)
    return raw[column.offset : column.offset + len(column)]


def _as_string(binary: pa.Array) -> pa.Array:
    """Bytes known to be ASCII, as a string array without validation."""
    return binary.view(pa.string())


def _patch(texts: pa.Array, odd: npt.NDArray[np.bool_], replace: Callable[[int], str]) -> pa.Array:
    """`texts` with the rows where `odd` is true replaced; the loop runs over those rows only."""
    if not odd.any():
        return texts
    rows = np.flatnonzero(odd)
    replacements = pa.array([replace(int(row)) for row in rows], type=pa.string())
    return pc.replace_with_mask(texts, pa.array(odd), replacements)


def _bool(column: pa.Array) -> pa.Array:
    return pc.if_else(column, "t", "f")


def _float(column: pa.Array) -> pa.Array:
    single = not pa.types.is_float64(column.type)
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    size = np.abs(values)
    # between these bounds Arrow never uses an exponent, and prints the same shortest digits
    odd = ~((size >= 1e-4) & (size < (1e6 if single else 1e10))) & (size != 0)
    return _patch(column.cast(pa.string()), odd, lambda row: float_text(float(values[row]), single))


def _decimal(column: pa.Array, trim: bool) -> pa.Array:
    texts = column.cast(pa.string())
    scale = column.type.scale
    exponent = pc.fill_null(pc.match_substring(texts, "E"), False)
    if exponent.true_count:  # of a zero or of something tiny
        zero = pc.fill_null(pc.equal(column, pa.scalar(decimal.Decimal(0), column.type)), False)
        texts = pc.if_else(zero, pa.scalar("0." + "0" * scale if scale > 0 else "0"), texts)
        odd = pc.and_not(exponent, zero).to_numpy(zero_copy_only=False)
        texts = _patch(texts, odd, lambda row: format(column[row].as_py(), "f"))
    return _trim_fraction(texts) if trim and scale > 0 else texts


def _bytea(column: pa.Array) -> pa.Array:
    column = column.cast(pa.binary())
    count = len(column)
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + count + 1]
    data = column.buffers()[2]
    raw = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)
    digits = _HEX[raw[offsets[0] : offsets[-1]]].reshape(-1) if count else np.empty(0, np.uint8)
    doubled = (offsets - offsets[0]) * 2
    hexed = pa.Array.from_buffers(
        pa.string(), count, [None, pa.py_buffer(doubled.astype(np.int32)), pa.py_buffer(digits)]
    )
    texts = pc.binary_join_element_wise("\\x", hexed, "")
    valid = validity_of(column)
    return texts if valid is None else pc.if_else(valid, texts, pa.scalar(None, pa.string()))


def uuid_bytes(column: pa.Array) -> npt.NDArray[np.uint8]:
    """`uint8[n, 16]` of a 16-byte fixed-size binary column; garbage where NULL."""
    if len(column) == 0:
        return np.empty((0, 16), np.uint8)
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return raw[column.offset * 16 : (column.offset + len(column)) * 16].reshape(-1, 16)


def _fixed_binary(column: pa.Array) -> pa.Array:
    if column.type.byte_width != 16:
        return _bytea(column.cast(pa.binary()))
    digits = _HEX[uuid_bytes(column)].reshape(len(column), 32)
    cells = np.full((len(column), 36), ord("-"), dtype=np.uint8)
    for source, target, width in ((0, 0, 8), (8, 9, 4), (12, 14, 4), (16, 19, 4), (20, 24, 12)):
        cells[:, target : target + width] = digits[:, source : source + width]
    return _as_string(fixed_width(cells, validity_of(column)))


def _date(column: pa.Array) -> pa.Array:
    days = column.cast(pa.date32()).cast(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False)
    return _patch(column.cast(pa.string()), days < _DAYS_BEFORE_YEAR_1, lambda row: _ancient(int(days[row])))


def _ancient(days: int) -> str:
    """A date before year 1, days since the epoch: ``0044-03-15 BC``."""
    year, month, day = _civil(days)
    return f"{1 - year:04d}-{month:02d}-{day:02d} BC"


def _civil(days: int) -> tuple[int, int, int]:
    """Proleptic Gregorian (year, month, day) with a year 0, for any number of days since the epoch."""
    shifted = days + 719_468
    era, day_of_era = divmod(shifted, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    year = year_of_era + era * 400 + (month >= 10)
    return year, month + 3 if month < 10 else month - 9, day_of_year - (153 * month + 2) // 5 + 1


def _trim_fraction(texts: pa.Array) -> pa.Array:
    """``10:00:00.500000`` -> ``10:00:00.5``. The inputs always have a fraction."""
    return pc.ascii_rtrim(pc.ascii_rtrim(texts, "0"), ".")


def _time(column: pa.Array) -> pa.Array:
    return _trim_fraction(column.cast(pa.time64("us")).cast(pa.string()))


def _timestamp(column: pa.Array) -> pa.Array:
    zone = "+00" if column.type.tz is not None else ""
    micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    texts = _trim_fraction(micros.cast(pa.timestamp("us")).cast(pa.string()))
    values = micros.fill_null(0).to_numpy(zero_copy_only=False)
    ancient = values < _DAYS_BEFORE_YEAR_1 * _MICROS_PER_DAY

    def before_christ(row: int) -> str:
        days, rest = divmod(int(values[row]), _MICROS_PER_DAY)
        time = _time(pa.array([rest], pa.int64()).cast(pa.time64("us")))[0].as_py()
        date, era = _ancient(days).split(" ")
        return f"{date} {time}{zone} {era}"

    if zone:
        texts = pc.binary_join_element_wise(texts, zone, "")
    return _patch(texts, ancient, before_christ)


def _interval(column: pa.Array) -> pa.Array:
    parts = interval_parts(column)
    months, days = parts["months"].astype(np.int64), parts["days"].astype(np.int64)
    micros = parts["nanos"] // 1000
    pieces: list[pa.Array] = []
    before_negative = np.zeros(len(column), dtype=bool)  # a positive part behind a negative one shows its plus
    started = np.zeros(len(column), dtype=bool)
    years = np.fix(months / 12).astype(np.int64)
    for amounts, unit in ((years, "year"), (months - years * 12, "mon"), (days, "day")):
        shown = amounts != 0
        lead = np.char.add(np.where(started, " ", ""), np.where(before_negative & (amounts > 0), "+", ""))
        suffix = np.where(amounts == 1, " " + unit, " " + unit + "s")
        text = pc.binary_join_element_wise(
            pa.array(lead, pa.string()), pa.array(amounts).cast(pa.string()), pa.array(suffix, pa.string()), ""
        )
        pieces.append(pc.if_else(pa.array(shown), text, ""))
        before_negative = np.where(shown, amounts < 0, before_negative)
        started |= shown
    shown = (micros != 0) | ~started
    sign = np.where(micros < 0, "-", np.where(before_negative, "+", ""))
    lead = pa.array(np.char.add(np.where(started, " ", ""), sign), pa.string())
    size = np.abs(micros)
    hours = pa.array(size // 3_600_000_000).cast(pa.string())
    hours = pc.if_else(pa.array(size < 36_000_000_000), pc.binary_join_element_wise("0", hours, ""), hours)
    clock = pc.utf8_slice_codeunits(_time(pa.array(size % 3_600_000_000).cast(pa.time64("us"))), 2)
    pieces.append(pc.if_else(pa.array(shown), pc.binary_join_element_wise(lead, hours, clock, ""), ""))
    texts = pc.binary_join_element_wise(*pieces, "")
    valid = validity_of(column)
    return texts if valid is None else pc.if_else(valid, texts, pa.scalar(None, pa.string()))


def _list(column: pa.Array, trim: bool) -> pa.Array:
    """``{1,NULL,"a b"}``. Elements that are lists themselves are nested unquoted."""
    nested = pa.types.is_nested(column.type.value_type) and not pa.types.is_struct(column.type.value_type)
    column = column.cast(pa.list_(column.type.value_type))
    elements = text_column(column.flatten(), trim=trim)
    if not nested and _may_need_quotes(column.type.value_type):
        quoted = pc.binary_join_element_wise('"', pc.replace_substring_regex(elements, r'(["\\])', r"\\\1"), '"', "")
        needs = pc.match_substring_regex(elements, r'^$|^(?i:null)$|[{}",\\\s]')
        elements = pc.if_else(needs, quoted, elements)
    elements = pc.fill_null(elements, "NULL")
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))]), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, elements), ",")
    texts = pc.binary_join_element_wise("{", joined, "}", "")
    valid = validity_of(column)
    return texts if valid is None else pc.if_else(valid, texts, pa.scalar(None, pa.string()))


def _may_need_quotes(kind: pa.DataType) -> bool:
    return not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _record(column: pa.Array) -> pa.Array:
    """``(1,"a b",)``: a NULL field is empty."""
    fields: list[pa.Array] = []
    for field in column.flatten():
        texts = text_column(field)
        doubled = pc.replace_substring_regex(texts, r'(["\\])', r"\1\1")
        needs = pc.match_substring_regex(texts, r'^$|[(),"\\\s]')
        quoted = pc.binary_join_element_wise('"', doubled, '"', "")
        fields.append(pc.fill_null(pc.if_else(needs, quoted, texts), ""))
    body = pc.binary_join_element_wise(*fields, ",") if fields else pa.array([""] * len(column))
    texts = pc.binary_join_element_wise("(", body, ")", "")
    valid = validity_of(column)
    return texts if valid is None else pc.if_else(valid, texts, pa.scalar(None, pa.string()))


def _plain_string(column: pa.Array) -> pa.Array:
    return column.cast(pa.string())


_ENCODERS: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]]] = [
    (pa.types.is_boolean, _bool),
    (pa.types.is_floating, _float),
    (pa.types.is_large_string, _plain_string),
    (pa.types.is_string_view, _plain_string),
    (pa.types.is_null, _plain_string),
    (pa.types.is_dictionary, lambda column: text_column(column.dictionary_decode())),
    (pa.types.is_fixed_size_binary, _fixed_binary),
    (pa.types.is_binary, _bytea),
    (pa.types.is_large_binary, _bytea),
    (pa.types.is_binary_view, _bytea),
    (pa.types.is_date, _date),
    (pa.types.is_time, _time),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_interval, _interval),
    (pa.types.is_struct, _record),
]
