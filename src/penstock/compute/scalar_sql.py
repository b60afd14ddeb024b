"""IR scalars as SQL text that DataFusion reads back to the same expression with the same types."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from penstock.compute.ir import Call, Case, Cast, Column, InList, Literal, Scalar, literal_scalar, make_literal
from penstock.runtime import SqlError

_INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "modulus": "%",
    "modulo": "%",
    "equal": "=",
    "not_equal": "<>",
    "lt": "<",
    "lte": "<=",
    "gt": ">",
    "gte": ">=",
    "and": "AND",
    "or": "OR",
    "is_distinct_from": "IS DISTINCT FROM",
    "is_not_distinct_from": "IS NOT DISTINCT FROM",
    "str_concat": "||",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
    "bitwise_shift_left": "<<",
    "bitwise_shift_right": ">>",
    "regex_match": "~",
    "regex_imatch": "~*",
    "regex_not_match": "!~",
    "regex_not_imatch": "!~*",
    "regexp_match": "~",
    "like": "LIKE",
    "ilike": "ILIKE",
    "not_like": "NOT LIKE",
    "not_ilike": "NOT ILIKE",
    "array_has_all": "@>",
}
_POSTFIX = {
    "is_null": "IS NULL",
    "is_not_null": "IS NOT NULL",
    "is_true": "IS TRUE",
    "is_false": "IS FALSE",
    "is_unknown": "IS UNKNOWN",
    "is_not_true": "IS NOT TRUE",
    "is_not_false": "IS NOT FALSE",
    "is_not_unknown": "IS NOT UNKNOWN",
}
_CHECKED = {"checked_add": "+", "checked_subtract": "-", "checked_multiply": "*"}
_RENAMED = {"substring": "substr", "character_length": "character_length"}


def render(scalar: Scalar, column: Callable[[Column], str]) -> str:
    """SQL for `scalar`; `column` names the columns."""
    match scalar:
        case Column():
            return column(scalar)
        case Literal():
            return render_literal(scalar)
        case Cast():
            cast = "arrow_try_cast" if scalar.lenient else "arrow_cast"
            return f"{cast}({render(scalar.arg, column)}, '{datafusion_type(scalar.type)}')"
        case InList():
            options = ", ".join(render(option, column) for option in scalar.options)
            return f"({render(scalar.arg, column)} IN ({options}))"
        case Case():
            branches = " ".join(
                f"WHEN {render(when.condition, column)} THEN {render(when.result, column)}" for when in scalar.whens
            )
            otherwise = "" if scalar.otherwise is None else f" ELSE {render(scalar.otherwise, column)}"
            return f"(CASE {branches}{otherwise} END)"
        case Call():
            return _call(scalar, [render(arg, column) for arg in scalar.args])


def _call(call: Call, args: list[str]) -> str:
    name = call.name
    if name in _INFIX and len(args) == 2:
        return f"({args[0]} {_INFIX[name]} {args[1]})"
    if name in _POSTFIX and len(args) == 1:
        return f"({args[0]} {_POSTFIX[name]})"
    if name in ("like", "ilike") and len(args) == 3:
        return f"({args[0]} {_INFIX[name]} {args[1]} ESCAPE {args[2]})"
    if name in _CHECKED:
        wide = [f"arrow_cast({arg}, 'Decimal128(19, 0)')" for arg in args]
        return f"arrow_cast(({wide[0]} {_CHECKED[name]} {wide[1]}), 'Int64')"
    if name == "not":
        return f"(NOT {args[0]})"
    if name == "negate":
        return f"(- {args[0]})"
    quoted = '"' + _RENAMED.get(name, name).replace('"', '""') + '"'
    return f"{quoted}({', '.join(args)})"


def render_literal(literal: Literal) -> str:
    """SQL for a constant, typed exactly."""
    kind, value = literal.type, literal.value
    if value is None:
        return "NULL" if pa.types.is_null(kind) else f"arrow_cast(NULL, '{datafusion_type(kind)}')"
    if kind == pa.bool_():
        return "TRUE" if value else "FALSE"
    if kind == pa.int64():
        return str(value) if int(value) > -(2**63) else f"arrow_cast('{value}', 'Int64')"
    if kind == pa.string():
        return _quoted(str(value))
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        return f"arrow_cast('{value}', '{datafusion_type(kind)}')"
    if pa.types.is_date32(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        storage = "Int32" if kind.bit_width == 32 else "Int64"
        return f"arrow_cast(arrow_cast('{value}', '{storage}'), '{datafusion_type(kind)}')"
    if pa.types.is_interval(kind):
        months, days, nanoseconds = literal_scalar(literal).as_py()
        return f"INTERVAL '{months} months {days} days {nanoseconds} nanoseconds'"
    if kind == pa.binary():
        return f"arrow_cast(X'{literal_scalar(literal).as_py().hex()}', 'Binary')"
    if pa.types.is_list(kind):
        members = pa.array(literal_scalar(literal).as_py(), kind.value_type)
        items = ", ".join(render_literal(make_literal(member, kind.value_type)) for member in members)
        return f"arrow_cast(make_array({items}), '{datafusion_type(kind)}')"
    raise SqlError(f"a constant of type {kind} cannot be used in a maintained view", sqlstate="0A000")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_UNITS = {"s": "Second", "ms": "Millisecond", "us": "Microsecond", "ns": "Nanosecond"}
_NAMES: dict[pa.DataType, str] = {
    pa.null(): "Null",
    pa.bool_(): "Boolean",
    pa.int8(): "Int8",
    pa.int16(): "Int16",
    pa.int32(): "Int32",
    pa.int64(): "Int64",
    pa.uint8(): "UInt8",
    pa.uint16(): "UInt16",
    pa.uint32(): "UInt32",
    pa.uint64(): "UInt64",
    pa.float16(): "Float16",
    pa.float32(): "Float32",
    pa.float64(): "Float64",
    pa.string(): "Utf8",
    pa.large_string(): "LargeUtf8",
    pa.string_view(): "Utf8View",
    pa.binary(): "Binary",
    pa.large_binary(): "LargeBinary",
    pa.binary_view(): "BinaryView",
    pa.date32(): "Date32",
    pa.date64(): "Date64",
    pa.month_day_nano_interval(): "Interval(MonthDayNano)",
}


def datafusion_type(kind: pa.DataType) -> str:
    """The name `arrow_cast` knows a type by. Raises `SqlError` 0A000 for one it does not."""
    if kind in _NAMES:
        return _NAMES[kind]
    if pa.types.is_decimal128(kind):
        return f"Decimal128({kind.precision}, {kind.scale})"
    if pa.types.is_decimal256(kind):
        return f"Decimal256({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind):
        zone = "None" if kind.tz is None else f'Some("{kind.tz}")'
        return f"Timestamp({_UNITS[kind.unit]}, {zone})"
    if pa.types.is_duration(kind):
        return f"Duration({_UNITS[kind.unit]})"
    if pa.types.is_time(kind):
        return f"Time{kind.bit_width}({_UNITS[kind.unit]})"
    if pa.types.is_list(kind):
        return f"List({datafusion_type(kind.value_type)})"
    raise SqlError(f"type {kind} cannot be used in this expression of a maintained view", sqlstate="0A000")
