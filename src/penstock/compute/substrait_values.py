"""Substrait types and literals, as DataFusion's producer writes them, to Arrow types and IR literals.

The producer puts what Substrait's own types cannot say into ``type_variation_reference``: 1 on an integer
is unsigned, on a string or binary "large", 2 there a view, 1 on an ``interval_day`` a duration. Strings and
binaries of all layouts become the plain ones here: plans have one layout, and the room conforms what
libraries return.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa

from penstock.compute.ir import Literal, literal_scalar, make_literal
from penstock.runtime import SqlError

_UNITS = {0: "s", 3: "ms", 6: "us", 9: "ns"}
_INTEGERS = {
    "i8": (pa.int8(), pa.uint8()),
    "i16": (pa.int16(), pa.uint16()),
    "i32": (pa.int32(), pa.uint32()),
    "i64": (pa.int64(), pa.uint64()),
}


class SubstraitValues:
    """Converts the types and literals of one plan. `user_types`: names of user-defined types by anchor."""

    def __init__(self, user_types: dict[int, str]) -> None:
        self._user_types = user_types

    def type(self, message: Any) -> pa.DataType:
        """The Arrow type of a Substrait ``Type``. Raises `SqlError` 0A000 for one that has none here."""
        kind = message.WhichOneof("kind")
        inner: Any = getattr(message, kind or "bool")
        variation = getattr(inner, "type_variation_reference", 0)
        if kind in _INTEGERS:
            return _INTEGERS[kind][variation]
        if kind in _SIMPLE:
            return _SIMPLE[kind]
        match kind:
            case "decimal":
                make = pa.decimal128 if variation == 0 else pa.decimal256
                return make(inner.precision, inner.scale)
            case "precision_timestamp":
                return pa.timestamp(_UNITS[inner.precision])
            case "precision_timestamp_tz":
                return pa.timestamp(_UNITS[inner.precision], tz="UTC")
            case "precision_time":
                return _time_type(inner.precision)
            case "interval_day":
                return pa.duration(_UNITS[inner.precision or 6]) if variation else pa.month_day_nano_interval()
            case "list":
                return pa.list_(self.type(inner.type))
            case "struct":
                fields = [pa.field(f"c{i}", self.type(member)) for i, member in enumerate(inner.types)]
                return pa.struct(fields)
            case "map":
                return pa.map_(self.type(inner.key), self.type(inner.value))
            case "user_defined":
                return self._user_defined(inner.type_reference)
        raise SqlError(f"type {kind} cannot be used in a maintained view", sqlstate="0A000")

    def _user_defined(self, reference: int) -> pa.DataType:
        name = self._user_types.get(reference, "null")
        if name in ("null", "u!null"):
            return pa.null()
        if name in ("f16", "fp16"):
            return pa.float16()
        raise SqlError(f"type {name} cannot be used in a maintained view", sqlstate="0A000")

    def literal(self, message: Any) -> Literal:
        """The IR literal of a Substrait ``Expression.Literal``."""
        kind = message.WhichOneof("literal_type")
        inner = getattr(message, kind)
        variation = message.type_variation_reference
        if kind == "null":
            return Literal(None, self.type(inner))
        if kind in _INTEGERS:
            return make_literal(inner, _INTEGERS[kind][variation])
        if kind in _SIMPLE_LITERALS:
            return make_literal(inner, _SIMPLE_LITERALS[kind])
        match kind:
            case "date":
                return Literal(inner, pa.date32())
            case "decimal":
                unscaled = int.from_bytes(inner.value, "little", signed=True)
                value = Decimal(unscaled).scaleb(-inner.scale)
                return make_literal(value, pa.decimal128(inner.precision, inner.scale))
            case "precision_timestamp":
                return Literal(inner.value, pa.timestamp(_UNITS[inner.precision]))
            case "precision_timestamp_tz":
                return Literal(inner.value, pa.timestamp(_UNITS[inner.precision], tz="UTC"))
            case "precision_time":
                return Literal(inner.value, _time_type(inner.precision))
            case "var_char":
                return make_literal(inner.value, pa.string())
            case "interval_year_to_month":
                return _interval(12 * inner.years + inner.months, 0, 0)
            case "interval_day_to_second":
                if variation:
                    unit = _UNITS[inner.precision or 6]
                    whole = (86400 * inner.days + inner.seconds) * 10**inner.precision
                    return Literal(whole + inner.subseconds, pa.duration(unit))
                return _interval(0, inner.days, _nanoseconds(inner))
            case "interval_compound":
                months, days = inner.interval_year_to_month, inner.interval_day_to_second
                return _interval(12 * months.years + months.months, days.days, _nanoseconds(days))
            case "list":
                return self._list(inner.values)
            case "empty_list":
                return make_literal([], pa.list_(self.type(inner.type)))
        raise SqlError(f"a constant of type {kind} cannot be used in a maintained view", sqlstate="0A000")

    def _list(self, values: Any) -> Literal:
        members = [self.literal(value) for value in values]
        kind = next((member.type for member in members if not pa.types.is_null(member.type)), pa.null())
        array = pa.array([literal_scalar(member).as_py() for member in members], kind)
        return make_literal(array.to_pylist(), pa.list_(kind))


def _interval(months: int, days: int, nanoseconds: int) -> Literal:
    return make_literal(pa.MonthDayNano([months, days, nanoseconds]), pa.month_day_nano_interval())


def _nanoseconds(day_to_second: Any) -> int:
    subseconds = int(day_to_second.subseconds) * 10 ** (9 - day_to_second.precision)
    return int(day_to_second.seconds) * 1_000_000_000 + subseconds


def _time_type(precision: int) -> pa.DataType:
    return pa.time32(_UNITS[precision]) if precision <= 3 else pa.time64(_UNITS[precision])


_SIMPLE: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "fp32": pa.float32(),
    "fp64": pa.float64(),
    "string": pa.string(),
    "varchar": pa.string(),
    "fixed_char": pa.string(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "interval_year": pa.month_day_nano_interval(),
    "interval_compound": pa.month_day_nano_interval(),
}
_SIMPLE_LITERALS: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "fp32": pa.float32(),
    "fp64": pa.float64(),
    "string": pa.string(),
    "fixed_char": pa.string(),
    "binary": pa.binary(),
}
