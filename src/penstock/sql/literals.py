"""PostgreSQL's text representations of values, read one at a time.

These are the definition: what a type accepts and with which error it refuses. The planner uses them for literals, the
columnar kernels for the values that their fast path does not take.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any, NamedTuple

from penstock.runtime import DataError

DAY_US = 86_400_000_000
_EPOCH = dt.date(1970, 1, 1).toordinal()


class Interval(NamedTuple):
    """In the order of Arrow's month_day_nano."""

    months: int
    days: int
    microseconds: int


def invalid(kind: str, text: str, sqlstate: str = "22P02") -> DataError:
    return DataError(f'invalid input syntax for type {kind}: "{text}"', sqlstate=sqlstate)


def out_of_range(kind: str) -> DataError:
    return DataError(f"{kind} out of range", sqlstate="22003")


_RANGES = {
    "smallint": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
    "uint2": (0, 2**16 - 1),
    "uint4": (0, 2**32 - 1),
    "uint8": (0, 2**64 - 1),
    "oid": (0, 2**32 - 1),
    "mz_timestamp": (0, 2**64 - 1),
}
_DIGITS = re.compile(r"^[+-]?[0-9]+$")
_INTEGER = re.compile(r"^[+-]?0*([0-9]{1,20})$")


def read_integer(text: str, kind: str) -> int:
    """22P02 for anything but digits with a sign, 22003 outside the range of `kind`."""
    stripped = text.strip()
    match = _INTEGER.match(stripped)
    if match is None and not _DIGITS.match(stripped):
        raise invalid(kind, text)
    low, high = _RANGES[kind]
    # Python refuses to convert thousands of digits; more than twenty are out of range in any case
    value = int(match[1]) * (-1 if stripped.startswith("-") else 1) if match is not None else high + 1
    if not low <= value <= high:
        raise DataError(f'value "{text}" is out of range for type {kind}', sqlstate="22003")
    return value


def read_numeric(text: str) -> Decimal:
    """A decimal number, with or without exponent. NaN and infinity are not numeric here: 22P02."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise invalid("numeric", text) from None
    if not value.is_finite() or "_" in text or not text.isascii():
        raise invalid("numeric", text)
    return value


_ROUNDING = Context(prec=200, rounding=ROUND_HALF_UP)


def round_numeric(value: Decimal, scale: int) -> Decimal:
    """`value` with exactly `scale` digits after the point, halves away from zero. 22003 beyond 76 digits."""
    rounded = value.quantize(Decimal(1).scaleb(-scale), context=_ROUNDING) if value.adjusted() < 76 else value
    if value.adjusted() >= 76 - scale:
        raise DataError("numeric field overflow", sqlstate="22003")
    return rounded


_FLOATS = {"infinity", "inf", "-infinity", "-inf", "+infinity", "+inf", "nan"}
_FLOAT = re.compile(r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")


def read_float(text: str, kind: str) -> float:
    """22P02 for what is no number, 22003 for what overflows."""
    stripped = text.strip()
    if stripped.lower() in _FLOATS:
        return float(stripped)
    if not _FLOAT.match(stripped):
        raise invalid(kind, text)
    value = float(stripped)
    if value in (float("inf"), float("-inf")):
        raise DataError(f'"{text}" is out of range for type {kind}', sqlstate="22003")
    return value


_TRUE = {"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"}
_FALSE = {"f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"}


def read_boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise invalid("boolean", text)


_DATE = re.compile(r"^([0-9]{4,6})-([0-9]{1,2})-([0-9]{1,2})$|^([0-9]{4})([0-9]{2})([0-9]{2})$")
_TIME = re.compile(r"^([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]+))?)?$")
_STAMP = re.compile(
    r"^(?P<date>[0-9]{4,6}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{8})"
    r"(?:[T ]\s*(?P<time>[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?))?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-][0-9]{1,2}(?::?[0-9]{2})?(?::[0-9]{2})?)?$",
    re.IGNORECASE,
)


def read_date(text: str) -> int:
    """Days since 1970-01-01. 22007 for what is no date, 22008 for a day that does not exist."""
    stripped = text.strip()
    if stripped.lower() == "epoch":
        return 0
    match = _DATE.match(stripped)
    if match is None:
        stamp = _STAMP.match(stripped)
        if stamp is None:
            raise invalid("date", text, "22007")
        match = _DATE.match(stamp["date"])
        assert match is not None
    year, month, day = (int(part) for part in match.groups() if part is not None)
    try:
        return dt.date(year, month, day).toordinal() - _EPOCH
    except ValueError:
        raise DataError(f'date/time field value out of range: "{text}"', sqlstate="22008") from None


def read_time(text: str) -> int:
    """Microseconds since midnight."""
    match = _TIME.match(text.strip())
    if match is None:
        raise invalid("time", text, "22007")
    hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
    if hour > 23 or minute > 59 or second > 60:
        raise DataError(f'date/time field value out of range: "{text}"', sqlstate="22008")
    return ((hour * 60 + minute) * 60 + second) * 1_000_000 + _microseconds(match[4] or "")


def _microseconds(fraction: str) -> int:
    """Digits after the point of a second, rounded to microseconds."""
    if len(fraction) <= 6:
        return int(fraction.ljust(6, "0"))
    return round(int(fraction[:7]) / 10)


def read_timestamp(text: str, *, zoned: bool) -> int:
    """Microseconds since the epoch. A zone is applied when `zoned` (none means UTC) and ignored otherwise."""
    stripped = text.strip()
    if stripped.lower() == "epoch":
        return 0
    match = _STAMP.match(stripped)
    if match is None:
        raise invalid("timestamp with time zone" if zoned else "timestamp", text, "22007")
    value = read_date(match["date"]) * DAY_US
    if match["time"]:
        try:
            value += read_time(match["time"])
        except DataError as error:
            raise DataError(error.message.replace(match["time"], text), sqlstate=error.sqlstate) from None
    if zoned and match["zone"]:
        value -= _offset(match["zone"])
    return value


def _offset(zone: str) -> int:
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "")
    hours, minutes = (int(digits), 0) if len(digits) <= 2 else (int(digits[:-2]), int(digits[-2:]))
    sign = -1 if zone[0] == "-" else 1
    return sign * (hours * 60 + minutes) * 60_000_000


_UNITS: dict[str, tuple[int, int, int]] = {
    "microsecond": (0, 0, 1),
    "millisecond": (0, 0, 1_000),
    "second": (0, 0, 1_000_000),
    "minute": (0, 0, 60_000_000),
    "hour": (0, 0, 3_600_000_000),
    "day": (0, 1, 0),
    "week": (0, 7, 0),
    "month": (1, 0, 0),
    "year": (12, 0, 0),
    "decade": (120, 0, 0),
    "century": (1200, 0, 0),
    "millennium": (12000, 0, 0),
}
_UNIT_NAMES = {unit: unit for unit in _UNITS} | {
    "us": "microsecond", "usec": "microsecond", "ms": "millisecond", "msec": "millisecond", "s": "second",
    "sec": "second", "m": "minute", "min": "minute", "h": "hour", "hr": "hour", "d": "day", "w": "week",
    "mon": "month", "y": "year", "yr": "year", "dec": "decade", "cent": "century", "c": "century",
    "centurie": "century", "mil": "millennium", "millennia": "millennium", "millenniums": "millennium",
}  # fmt: skip
_INTERVAL_PART = re.compile(
    r"\s*(?:(?P<clock>[+-]?[0-9]+:[0-9]{1,2}(?::[0-9]{1,2}(?:\.[0-9]+)?)?)"
    r"|(?P<amount>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*(?P<unit>[a-zA-Z]+)?)\s*"
)
_ISO_PART = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)([YMWDHS])")


def interval_unit(name: str) -> str | None:
    """The canonical name of a unit such as ``hrs``, None when there is none."""
    lower = name.lower()
    return _UNIT_NAMES.get(lower) or _UNIT_NAMES.get(lower.removesuffix("s"))


def read_interval(text: str, unit: str | None = None) -> Interval:
    """PostgreSQL's verbose and ISO 8601 forms; `unit` is that of a bare number (seconds when None)."""
    stripped = text.strip()
    if stripped.upper().startswith("P"):
        return _iso_interval(stripped.upper(), text)
    months, days, micros = Decimal(0), Decimal(0), Decimal(0)
    negative = stripped.lower().endswith(" ago")
    rest = stripped[:-4] if negative else stripped.removeprefix("@")
    at = 0
    while at < len(rest):
        match = _INTERVAL_PART.match(rest, at)
        if match is None or match.end() == at:
            raise invalid("interval", text, "22007")
        at = match.end()
        if match["clock"]:
            micros += _clock(match["clock"], text)
            continue
        name = match["unit"] or unit or "second"
        canonical = interval_unit(name)
        if canonical is None:
            raise invalid("interval", text, "22007")
        amount = Decimal(match["amount"])
        month, day, micro = _UNITS[canonical]
        months, days, micros = months + amount * month, days + amount * day, micros + amount * micro
    if at == 0:
        raise invalid("interval", text, "22007")
    return _whole(months, days, micros, negative)


def _clock(text: str, whole: str) -> int:
    sign = -1 if text.startswith("-") else 1
    parts = text.lstrip("+-").split(":")
    seconds = Decimal(parts[2]) if len(parts) > 2 else Decimal(0)
    if int(parts[1]) > 59 or seconds >= 60:
        raise DataError(f'interval field value out of range: "{whole}"', sqlstate="22015")
    return sign * int((int(parts[0]) * 3600 + int(parts[1]) * 60 + seconds) * 1_000_000)


def _iso_interval(text: str, whole: str) -> Interval:
    date, _, time = text[1:].partition("T")
    amounts = {"Y": 12, "M": 1, "W": 7, "D": 1}
    months, days, micros = Decimal(0), Decimal(0), Decimal(0)
    for amount, letter in _ISO_PART.findall(date):
        if letter in "YM":
            months += Decimal(amount) * amounts[letter]
        else:
            days += Decimal(amount) * amounts[letter]
    for amount, letter in _ISO_PART.findall(time):
        micros += Decimal(amount) * {"H": 3_600_000_000, "M": 60_000_000, "S": 1_000_000}[letter]
    if _ISO_PART.sub("", date + time):
        raise invalid("interval", whole, "22007")
    return _whole(months, days, micros, False)


def _whole(months: Decimal, days: Decimal, micros: Decimal, negative: bool) -> Interval:
    """Fractions of months become days (30 each), fractions of days become time, as in PostgreSQL."""
    whole_months = int(months)
    days += (months - whole_months) * 30
    whole_days = int(days)
    micros += (days - whole_days) * DAY_US
    sign = -1 if negative else 1
    if max(abs(whole_months), abs(whole_days)) >= 2**31 or abs(micros) >= 2**63 // 1000:
        raise DataError("interval out of range", sqlstate="22008")
    return Interval(sign * whole_months, sign * whole_days, sign * round(micros))


_JSON_DIGITS_MAX = 16_383
"""Digits before or after the point of a number in JSON."""


def read_uuid(text: str) -> str:
    """The canonical lower-case form."""
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError:
        raise invalid("uuid", text) from None


def read_jsonb(text: str) -> str:
    """The canonical form, as PostgreSQL prints it: keys by length and then bytes, no duplicates, one way of spacing."""
    return write_json(load_json(text))


def load_json(text: str) -> Any:
    """A JSON value; numbers are int or Decimal, so that none loses digits. 22P02 for what is no JSON."""
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise DataError("invalid input syntax for type json", sqlstate="22P02", detail=str(error)) from None
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def write_json(value: Any) -> str:
    """The canonical text of a value that `load_json` gave. 22P05 for what no text can hold."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise DataError("unsupported Unicode escape sequence", sqlstate="22P05")
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode(errors="replace")), key))
        return "{" + ", ".join(f"{write_json(key)}: {write_json(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_json, value)) + "]"
    if isinstance(value, Decimal):
        if abs(value.adjusted()) > _JSON_DIGITS_MAX:  # a few characters must not become gigabytes
            raise DataError("value overflows numeric format", sqlstate="22003")
        return f"{value:f}"
    return json.dumps(value)


def read_bytea(text: str) -> bytes:
    """Hex form (backslash, x, digits) or escape form."""
    if text.startswith("\\x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise invalid("bytea", text) from None
    out = bytearray()
    at = 0
    raw = text.encode()
    while at < len(raw):
        if raw[at] != 0x5C:
            out.append(raw[at])
            at += 1
        elif raw[at + 1 : at + 2] == b"\\":
            out.append(0x5C)
            at += 2
        elif re.match(rb"[0-3][0-7]{2}", raw[at + 1 : at + 4]):
            out.append(int(raw[at + 1 : at + 4], 8))
            at += 4
        else:
            raise invalid("bytea", text)
    return bytes(out)


def read_array(text: str) -> list[str | None]:
    """The elements of a one-dimensional ``{...}``; 0A000 for more dimensions, 22P02 for what is no array."""
    stripped = text.strip()
    if not (stripped.startswith("{") and stripped.endswith("}")):
        raise DataError(f'malformed array literal: "{text}"', sqlstate="22P02")
    body = stripped[1:-1]
    if not body.strip():
        return []
    items: list[str | None] = []
    for match in _ARRAY_ITEM.finditer(body):
        if match["nested"]:
            raise DataError("arrays of arrays are not supported", sqlstate="0A000")
        if match["quoted"] is not None:
            items.append(re.sub(r"\\(.)", r"\1", match["quoted"]))
        else:
            bare = match["bare"].strip()
            items.append(None if bare.upper() == "NULL" else bare)
    return items


_ARRAY_ITEM = re.compile(r'\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"\s*|(?P<nested>\{)|(?P<bare>[^",{}]+))(?:,|$)')
