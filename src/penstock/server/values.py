"""Single values from the wire: parameters in text and binary, COPY in binary, odd fields of COPY in text.

Values come out as `adapter.session_api` says parameters look. Errors are PostgreSQL's: 22P02 for a text
that is no value of its type, 22003 out of range, 22007/22008 for dates and times, 22P03 for a binary form
of the wrong shape.
"""

from __future__ import annotations

import datetime
import decimal
import re
import struct
import uuid
from collections.abc import Callable

import orjson
import pyarrow as pa

from penstock.runtime import SqlError
from penstock.server import oids

_EPOCH = datetime.datetime(2000, 1, 1)
_EPOCH_DAY = datetime.date(2000, 1, 1)
_INTEGERS = {
    oids.INT2: ("smallint", -(2**15), 2**15 - 1),
    oids.INT4: ("integer", -(2**31), 2**31 - 1),
    oids.INT8: ("bigint", -(2**63), 2**63 - 1),
    oids.UINT2: ("uint2", 0, 2**16 - 1),
    oids.UINT4: ("uint4", 0, 2**32 - 1),
    oids.UINT8: ("uint8", 0, 2**64 - 1),
    oids.OID: ("oid", 0, 2**32 - 1),
    oids.MZ_TIMESTAMP: ("mz_timestamp", 0, 2**64 - 1),
}
_TRUE = {"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"}
_FALSE = {"f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"}
_MAX_ARRAY_ITEMS = 1 << 20


def decode_text(text: str, oid: int) -> object:
    """The value that `text` writes for the type `oid`."""
    if oid in _INTEGERS:
        return _integer(text, *_INTEGERS[oid])
    if oid in oids.ELEMENT_OF_ARRAY:
        return _array_text(text, oids.ELEMENT_OF_ARRAY[oid])
    decode = _TEXT.get(oid)
    return text if decode is None else decode(text)


def decode_binary(data: bytes, oid: int) -> object:
    """The value that `data` is in the binary format of the type `oid`."""
    if oid in oids.ELEMENT_OF_ARRAY:
        return _array_binary(data, oids.ELEMENT_OF_ARRAY[oid])
    decode = _BINARY.get(oid, _utf8)
    try:
        return decode(data)
    except (struct.error, ValueError, OverflowError, IndexError) as error:
        raise SqlError(f"incorrect binary data format: {error}", sqlstate="22P03") from None


def invalid(kind: str, text: str) -> SqlError:
    return SqlError(f'invalid input syntax for type {kind}: "{text}"', sqlstate="22P02")


def _integer(text: str, name: str, least: int, greatest: int) -> int:
    stripped = text.strip(" \t\n\r\f\v")
    if not re.fullmatch(r"[+-]?[0-9]+", stripped):
        raise invalid(name, text)
    value = int(stripped) if len(stripped) < 40 else 2**70
    if not least <= value <= greatest:
        raise SqlError(f'value "{stripped}" is out of range for type {name}', sqlstate="22003")
    return value


def _bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise invalid("boolean", text)


def _float(text: str) -> float:
    stripped = text.strip()
    if "_" in stripped or not stripped.isascii():
        raise invalid("double precision", text)
    try:
        value = float(stripped)
    except ValueError:
        raise invalid("double precision", text) from None
    if value in (float("inf"), float("-inf")) and "inf" not in stripped.lower():
        raise SqlError(f'"{stripped}" is out of range for type double precision', sqlstate="22003")
    return value


def _numeric(text: str) -> decimal.Decimal:
    stripped = text.strip()
    if "_" in stripped or not stripped.isascii():
        raise invalid("numeric", text)
    try:
        value = decimal.Decimal(stripped)
    except decimal.InvalidOperation:
        raise invalid("numeric", text) from None
    if value.is_snan() or value.is_infinite():
        raise SqlError(f'"{stripped}" is out of range for type numeric', sqlstate="22003")
    return value


def bytea(text: str) -> bytes:
    """``\\x`` hex, or PostgreSQL's older escape format."""
    if text.startswith("\\x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise SqlError(f'invalid hexadecimal data: "{text}"', sqlstate="22023") from None
    raw = text.encode()
    if b"\\" not in raw:
        return raw
    if not re.fullmatch(rb"(?:[^\\]|\\\\|\\[0-3][0-7]{2})*", raw, re.DOTALL):
        raise invalid("bytea", text)
    return re.sub(rb"\\(\\|[0-7]{3})", _escaped_byte, raw)


def _escaped_byte(found: re.Match[bytes]) -> bytes:
    return b"\\" if found[1] == b"\\" else bytes((int(found[1], 8),))


def _moment(kind: str, text: str) -> re.Match[str]:
    pattern = _MOMENTS[kind]
    found = pattern.fullmatch(text.strip())
    if found is None:
        raise SqlError(f'invalid input syntax for type {kind}: "{text}"', sqlstate="22007")
    return found


_DATE_PATTERN = r"(?P<year>\d{4,})-(?P<month>\d{1,2})-(?P<day>\d{1,2})"
_CLOCK_PATTERN = r"(?P<hour>\d{1,2}):(?P<minute>\d{1,2})(?::(?P<second>\d{1,2})(?:\.(?P<fraction>\d+))?)?"
_ZONE_PATTERN = r"\s*(?P<zone>[zZ]|UTC|[+-]\d{1,2}(?::?\d{2}(?::?\d{2})?)?)?"
_MOMENTS = {
    "date": re.compile(rf"{_DATE_PATTERN}(?:[ T].*)?"),
    "time": re.compile(_CLOCK_PATTERN),
    "timestamp": re.compile(rf"{_DATE_PATTERN}(?:[ T]+{_CLOCK_PATTERN}{_ZONE_PATTERN})?"),
}


def _out_of_range(kind: str, text: str) -> SqlError:
    return SqlError(f'date/time field value out of range for type {kind}: "{text}"', sqlstate="22008")


def _clock(found: re.Match[str]) -> tuple[int, int, int, int]:
    if found["hour"] is None:
        return 0, 0, 0, 0
    fraction = round(int((found["fraction"] or "0").ljust(9, "0")[:9]) / 1000)
    return int(found["hour"]), int(found["minute"]), int(found["second"] or 0), fraction


def _date(text: str) -> datetime.date:
    found = _moment("date", text)
    try:
        return datetime.date(int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError:
        raise _out_of_range("date", text) from None


def _time(text: str) -> datetime.time:
    hour, minute, second, micros = _clock(_moment("time", text))
    try:
        return datetime.time(hour, minute, second, micros)
    except ValueError:
        raise _out_of_range("time", text) from None


def _naive(found: re.Match[str], kind: str, text: str) -> datetime.datetime:
    hour, minute, second, micros = _clock(found)
    try:
        if not (hour < 24 or (hour == 24 and minute == second == micros == 0)) or minute > 59 or second > 60:
            raise ValueError
        day = datetime.datetime(int(found["year"]), int(found["month"]), int(found["day"]))
        return day + datetime.timedelta(hours=hour, minutes=minute, seconds=second, microseconds=micros)
    except (ValueError, OverflowError):
        raise _out_of_range(kind, text) from None


def _timestamp(text: str) -> datetime.datetime:
    return _naive(_moment("timestamp", text), "timestamp", text)


def _timestamptz(text: str) -> datetime.datetime:
    found = _moment("timestamp", text)
    naive = _naive(found, "timestamp with time zone", text)
    zone = found["zone"] or "Z"
    if zone[0] in "+-":
        digits = zone[1:].replace(":", "")
        hours, minutes = int(digits[:2]), int(digits[2:4] or 0)
        offset = datetime.timedelta(hours=hours, minutes=minutes, seconds=int(digits[4:6] or 0))
        naive = naive - offset if zone[0] == "+" else naive + offset
    return naive.replace(tzinfo=datetime.UTC)


_UNITS: dict[str, tuple[int, int, int]] = {}
for _names, _unit in (
    ("year years yr yrs y", (12, 0, 0)),
    ("month months mon mons", (1, 0, 0)),
    ("week weeks w", (0, 7, 0)),
    ("day days d", (0, 1, 0)),
    ("hour hours hr hrs h", (0, 0, 3_600_000_000)),
    ("minute minutes min mins m", (0, 0, 60_000_000)),
    ("second seconds sec secs s", (0, 0, 1_000_000)),
    ("millisecond milliseconds msec msecs ms", (0, 0, 1_000)),
    ("microsecond microseconds usec usecs us", (0, 0, 1)),
    ("decade decades", (120, 0, 0)),
    ("century centuries", (1200, 0, 0)),
):
    for _name in _names.split():
        _UNITS[_name] = _unit

_INTERVAL_PIECE = re.compile(
    r"\s*(?:(?P<clock>[+-]?\d+:\d{1,2}(?::\d{1,2}(?:\.\d+)?)?)"
    r"|(?P<amount>[+-]?\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+))"
)


def interval(text: str) -> pa.MonthDayNano:
    """``1 year 2 mons 3 days 04:05:06.7``, ``2h30m``, ``1 day ago``: what PostgreSQL prints and people write."""
    rest = text.strip().lower()
    negate = rest.endswith(" ago")
    rest = rest[: -len(" ago")] if negate else rest
    rest = rest.removeprefix("@").strip()
    months = days = micros = decimal.Decimal(0)
    at = 0
    while at < len(rest):
        found = _INTERVAL_PIECE.match(rest, at)
        if found is None or (found["unit"] and found["unit"] not in _UNITS):
            raise SqlError(f'invalid input syntax for type interval: "{text}"', sqlstate="22007")
        at = found.end()
        if found["clock"]:
            sign = -1 if found["clock"].startswith("-") else 1
            hours, minutes, *seconds = found["clock"].lstrip("+-").split(":")
            total = (int(hours) * 60 + int(minutes)) * 60 + decimal.Decimal(seconds[0] if seconds else 0)
            micros += sign * total * 1_000_000
            continue
        amount = decimal.Decimal(found["amount"])
        per_month, per_day, per_micro = _UNITS[found["unit"]]
        # a fraction spills into the next smaller unit: 30 days to a month, 24 hours to a day
        whole = int(amount * per_month)
        months += whole
        day_amount = (amount * per_month - whole) * 30 + amount * per_day
        days += int(day_amount)
        micros += (day_amount - int(day_amount)) * 86_400_000_000 + amount * per_micro
    if at == 0:
        raise SqlError(f'invalid input syntax for type interval: "{text}"', sqlstate="22007")
    sign = -1 if negate else 1
    return pa.MonthDayNano([sign * int(months), sign * int(days), sign * round(micros) * 1000])


def _uuid(text: str) -> uuid.UUID:
    stripped = text.strip()
    if not re.fullmatch(r"\{?[0-9a-fA-F]{4}(?:-?[0-9a-fA-F]{4}){7}\}?", stripped):
        raise invalid("uuid", text)
    return uuid.UUID(stripped.strip("{}").replace("-", ""))


def _json(text: str) -> str:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SqlError("invalid input syntax for type json", sqlstate="22P02", detail=str(error)) from None
    return text


_PLAIN_ARRAY = re.compile(r"\{[^\s,{}\"\\]+(?:,[^\s,{}\"\\]+)*\}")
"""One dimension, nothing quoted, no blanks: what drivers send for numbers."""


def _array_text(text: str, element: int) -> list[object]:
    if not _PLAIN_ARRAY.fullmatch(text):
        return _ArrayText(text, element).parse()
    return [None if word.upper() == "NULL" else decode_text(word, element) for word in text[1:-1].split(",")]


class _ArrayText:
    """``{1,NULL,"a b",{...}}``, by hand: quoting and nesting are beyond a regular expression."""

    def __init__(self, text: str, element: int) -> None:
        self._text = text.strip()
        self._element = element
        self._at = 0

    def parse(self) -> list[object]:
        if self._text.startswith("["):  # explicit bounds: [0:2]={...}
            self._at = self._text.find("=") + 1
        value = self._list()
        if self._at != len(self._text):
            raise self._malformed("junk after closing right brace")
        return value

    def _list(self) -> list[object]:
        self._expect("{")
        items: list[object] = []
        if self._skip_blank() == "}":
            self._at += 1
            return items
        while True:
            items.append(self._list() if self._skip_blank() == "{" else self._item())
            following = self._skip_blank()
            self._at += 1
            if following == "}":
                return items
            if following != ",":
                raise self._malformed("unexpected end or character")

    def _item(self) -> object:
        if self._text[self._at : self._at + 1] == '"':
            found = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL).match(self._text, self._at)
            if found is None:
                raise self._malformed("unterminated quote")
            self._at = found.end()
            return decode_text(re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL), self._element)
        found = re.compile(r'(?:[^,{}"\\]|\\.)+', re.DOTALL).match(self._text, self._at)
        if found is None:
            raise self._malformed("an element is missing")
        self._at = found.end()
        word = found[0].strip()
        if word.upper() == "NULL":
            return None
        return decode_text(re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL), self._element)

    def _skip_blank(self) -> str:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._skip_blank() != character:
            raise self._malformed(f'"{character}" expected')
        self._at += 1

    def _malformed(self, detail: str) -> SqlError:
        return SqlError(f'malformed array literal: "{self._text}"', sqlstate="22P02", detail=detail)


def _utf8(data: bytes) -> str:
    if b"\x00" in data:
        raise SqlError('invalid byte sequence for encoding "UTF8": 0x00', sqlstate="22021")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        shown = data[error.start : error.end].hex()
        raise SqlError(f'invalid byte sequence for encoding "UTF8": 0x{shown}', sqlstate="22021") from None


utf8 = _utf8


def _unpack(code: str) -> Callable[[bytes], object]:
    unpack = struct.Struct(code).unpack
    return lambda data: unpack(data)[0]


def _numeric_binary(data: bytes) -> decimal.Decimal:
    count, weight, sign, scale = struct.unpack_from("!HhHH", data)
    if len(data) != 8 + 2 * count:
        raise ValueError("digit count does not match the length")
    if sign == 0xC000:
        return decimal.Decimal("NaN")
    if sign not in (0, 0x4000):
        raise SqlError("infinite numeric values are not supported", sqlstate="22003")
    digits = struct.unpack_from(f"!{count}H", data, 8)
    if any(digit > 9999 for digit in digits):
        raise ValueError("invalid digit in numeric")
    text = "".join(f"{digit:04d}" for digit in digits) or "0"
    with decimal.localcontext() as context:
        context.prec = 1000 if count < 200 else 4 * count + 200
        value = decimal.Decimal(text).scaleb(4 * (weight - count + 1) if count else 0)
        value = value.quantize(decimal.Decimal(1).scaleb(-scale))
        return -value if sign else value


def _interval_binary(data: bytes) -> pa.MonthDayNano:
    micros, days, months = struct.unpack("!qii", data)
    return pa.MonthDayNano([months, days, micros * 1000])


def _timestamp_binary(data: bytes) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=struct.unpack("!q", data)[0])


def _time_binary(data: bytes) -> datetime.time:
    return (_EPOCH + datetime.timedelta(microseconds=struct.unpack("!q", data)[0] % 86_400_000_000)).time()


def _jsonb_binary(data: bytes) -> str:
    if data[:1] != b"\x01":
        raise ValueError("unsupported jsonb version number")
    return _json(_utf8(data[1:]))


def _mz_timestamp_binary(data: bytes) -> object:
    return decode_text(_utf8(data), oids.MZ_TIMESTAMP)


def _array_binary(data: bytes, element: int) -> list[object]:
    try:
        dimensions, _flags, sent_element = struct.unpack_from("!iiI", data)
        if sent_element != element:
            raise ValueError("wrong element type")
        if not 0 <= dimensions <= 6:
            raise ValueError("invalid number of dimensions")
        sizes = [struct.unpack_from("!ii", data, 12 + 8 * i)[0] for i in range(dimensions)]
        total = 1
        for size in sizes:
            total *= size
            if size < 0 or total > _MAX_ARRAY_ITEMS:
                raise ValueError("invalid array size")
        at = 12 + 8 * dimensions
        items: list[object] = []
        for _ in range(total if sizes else 0):
            (length,) = struct.unpack_from("!i", data, at)
            at += 4
            if length < -1 or at + max(length, 0) > len(data):
                raise ValueError("element runs past the end")
            items.append(None if length < 0 else decode_binary(data[at : at + length], element))
            at += max(length, 0)
        if at != len(data):
            raise ValueError("trailing bytes")
    except (struct.error, ValueError) as error:
        raise SqlError(f"incorrect binary data format: {error}", sqlstate="22P03") from None
    for size in reversed(sizes[1:]):
        items = [items[i : i + size] for i in range(0, len(items), size)] if size else []
    return items


_TEXT: dict[int, Callable[[str], object]] = {
    oids.BOOL: _bool,
    oids.FLOAT4: _float,
    oids.FLOAT8: _float,
    oids.NUMERIC: _numeric,
    oids.BYTEA: bytea,
    oids.DATE: _date,
    oids.TIME: _time,
    oids.TIMESTAMP: _timestamp,
    oids.TIMESTAMPTZ: _timestamptz,
    oids.INTERVAL: interval,
    oids.UUID: _uuid,
    oids.JSON: _json,
    oids.JSONB: _json,
}

_BINARY: dict[int, Callable[[bytes], object]] = {
    oids.BOOL: lambda data: bool(struct.unpack("!B", data)[0]),
    oids.INT2: _unpack("!h"),
    oids.INT4: _unpack("!i"),
    oids.INT8: _unpack("!q"),
    oids.UINT2: _unpack("!H"),
    oids.UINT4: _unpack("!I"),
    oids.UINT8: _unpack("!Q"),
    oids.OID: _unpack("!I"),
    oids.REGCLASS: _unpack("!I"),
    oids.REGTYPE: _unpack("!I"),
    oids.REGPROC: _unpack("!I"),
    oids.FLOAT4: _unpack("!f"),
    oids.FLOAT8: _unpack("!d"),
    oids.NUMERIC: _numeric_binary,
    oids.BYTEA: bytes,
    oids.DATE: lambda data: _EPOCH_DAY + datetime.timedelta(days=struct.unpack("!i", data)[0]),
    oids.TIME: _time_binary,
    oids.TIMESTAMP: _timestamp_binary,
    oids.TIMESTAMPTZ: lambda data: _timestamp_binary(data).replace(tzinfo=datetime.UTC),
    oids.INTERVAL: _interval_binary,
    oids.UUID: lambda data: uuid.UUID(bytes=data),
    oids.JSON: lambda data: _json(_utf8(data)),
    oids.JSONB: _jsonb_binary,
    oids.MZ_TIMESTAMP: _mz_timestamp_binary,
}
