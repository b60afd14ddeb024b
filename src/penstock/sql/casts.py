"""Conversions between types: which are allowed where, and how they are written for DataFusion.

DataFusion's own casts truncate where PostgreSQL rounds, accept text that PostgreSQL refuses, and print some types
differently; those go through functions of ours. What DataFusion does like PostgreSQL stays a plain CAST, which its
optimizer understands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from enum import IntEnum

from penstock.runtime import DataError, SqlError
from penstock.sql import literals
from penstock.sql.bound import Bound, Facts, Literal, string
from penstock.sql.types import (
    BOOL,
    BPCHAR,
    BYTEA,
    DATE,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    INTERVAL,
    JSONB,
    MZ_TIMESTAMP,
    NUMERIC,
    OID,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UINT2,
    UINT4,
    UINT8,
    UNKNOWN,
    UUID,
    VARCHAR,
    SqlType,
    array_of,
    numeric,
)


class Context(IntEnum):
    """How much a conversion may do: on its own, into a column, when asked for."""

    IMPLICIT = 0
    ASSIGNMENT = 1
    EXPLICIT = 2


_FAMILIES = {
    BOOL.name: "bool", INT2.name: "int", INT4.name: "int", INT8.name: "int", UINT2.name: "uint", UINT4.name: "uint",
    UINT8.name: "uint", FLOAT4.name: "float", FLOAT8.name: "float", NUMERIC.name: "numeric", TEXT.name: "text",
    VARCHAR.name: "text", BPCHAR.name: "text", "name": "text", '"char"': "text", OID.name: "oid", "regclass": "oid",
    "regtype": "oid", "regproc": "oid",
}  # fmt: skip


def family(kind: SqlType) -> str:
    """A group of types that behave alike; types without relatives are a family of their own."""
    if kind.element is not None:
        return "array"
    return _FAMILIES.get(kind.name, kind.name)


_DF = {
    BOOL.name: "BOOLEAN", INT2.name: "SMALLINT", INT4.name: "INT", INT8.name: "BIGINT", UINT2.name: "SMALLINT UNSIGNED",
    UINT4.name: "INT UNSIGNED", UINT8.name: "BIGINT UNSIGNED", MZ_TIMESTAMP.name: "BIGINT UNSIGNED",
    OID.name: "INT UNSIGNED", "regclass": "INT UNSIGNED", "regtype": "INT UNSIGNED", "regproc": "INT UNSIGNED",
    FLOAT4.name: "REAL", FLOAT8.name: "DOUBLE", BYTEA.name: "BYTEA", DATE.name: "DATE",
    TIMESTAMP.name: "TIMESTAMP(6)", INTERVAL.name: "INTERVAL",
}  # fmt: skip
_ARROW_CASTS = {TIME.name: "Time64(µs)", TIMESTAMPTZ.name: 'Timestamp(µs, "UTC")'}


def df_type(kind: SqlType) -> str:
    """How DataFusion's SQL writes the Arrow type of `kind`."""
    if kind.element is not None:
        return df_type(kind.element) + "[]"
    if kind.name == NUMERIC.name:
        return f"DECIMAL({kind.precision}, {kind.scale})"
    return _DF.get(kind.name, "VARCHAR")


_ARROW_NAMES = {
    BOOL.name: "Boolean", INT2.name: "Int16", INT4.name: "Int32", INT8.name: "Int64", UINT2.name: "UInt16",
    UINT4.name: "UInt32", UINT8.name: "UInt64", MZ_TIMESTAMP.name: "UInt64", OID.name: "UInt32",
    "regclass": "UInt32", "regtype": "UInt32", "regproc": "UInt32", FLOAT4.name: "Float32", FLOAT8.name: "Float64",
    BYTEA.name: "Binary", DATE.name: "Date32", TIMESTAMP.name: "Timestamp(µs)",
    INTERVAL.name: "Interval(MonthDayNano)", **_ARROW_CASTS,
}  # fmt: skip


def arrow_name(kind: SqlType) -> str:
    """How DataFusion's ``arrow_cast`` writes the Arrow type of `kind`."""
    if kind.element is not None:
        return f"List({arrow_name(kind.element)})"
    if kind.name == NUMERIC.name:
        return f"Decimal128({kind.precision}, {kind.scale})"
    return _ARROW_NAMES.get(kind.name, "Utf8")


def _df_cast(sql: str, kind: SqlType) -> str:
    if kind.name in _ARROW_CASTS:
        return f"arrow_cast({sql}, {string(_ARROW_CASTS[kind.name])})"
    return f"CAST({sql} AS {df_type(kind)})"


def typed(bound: Bound) -> Bound:
    """`bound` with its type spelled out where DataFusion would choose another: bare integer literals."""
    if bound.literal is Literal.NUMBER:
        return replace(bound, sql=_df_cast(bound.sql, bound.type), literal=None)
    return bound


def resolve_unknown(bound: Bound, facts: Facts) -> Bound:
    """A string, NULL or parameter whose surroundings ask for no type is text; also spells out literals."""
    return coerce(bound, TEXT, facts) if bound.untyped else typed(bound)


# Which conversions exist

_NUMERIC_RANK = {INT2.name: 0, INT4.name: 1, INT8.name: 2, NUMERIC.name: 3, FLOAT4.name: 4, FLOAT8.name: 5}
_UINT_AS_INT = {UINT2.name: INT4, UINT4.name: INT8, UINT8.name: numeric(20, 0)}
_TIME_RANK = {DATE.name: 0, TIMESTAMP.name: 1, TIMESTAMPTZ.name: 2}
_NUMBERS = ("int", "uint", "numeric", "float")


def _level(source: SqlType, target: SqlType) -> Context | None:
    """The weakest context in which `source` becomes `target`; None when never."""
    if source.name == target.name:
        return Context.IMPLICIT
    ours, theirs = family(source), family(target)
    if ours == "array" and theirs == "array":
        assert source.element is not None
        assert target.element is not None
        return _level(source.element, target.element)
    if ours in _NUMBERS and theirs in _NUMBERS:
        return _number_level(source, target)
    if source.name in _TIME_RANK and target.name in _TIME_RANK:
        up = _TIME_RANK[source.name] < _TIME_RANK[target.name]
        return Context.IMPLICIT if up else Context.ASSIGNMENT
    if theirs == "text":
        return Context.IMPLICIT if ours == "text" else Context.ASSIGNMENT
    return _SPECIAL.get((ours, theirs))


def _number_level(source: SqlType, target: SqlType) -> Context:
    if source.name == target.name:
        return Context.IMPLICIT
    if source.name in _UINT_AS_INT:
        source = _UINT_AS_INT[source.name]
        if source.name == target.name:
            return Context.IMPLICIT
    if target.name in _UINT_AS_INT:
        return Context.ASSIGNMENT
    up = _NUMERIC_RANK[source.name] < _NUMERIC_RANK[target.name]
    return Context.IMPLICIT if up else Context.ASSIGNMENT


_SPECIAL: dict[tuple[str, str], Context] = {
    ("int", "oid"): Context.IMPLICIT,
    ("oid", "oid"): Context.IMPLICIT,
    ("oid", "int"): Context.ASSIGNMENT,
    ("uint", "oid"): Context.IMPLICIT,
    ("int", "bool"): Context.EXPLICIT,
    ("bool", "int"): Context.EXPLICIT,
    (TIMESTAMP.name, TIME.name): Context.ASSIGNMENT,
    (TIMESTAMPTZ.name, TIME.name): Context.ASSIGNMENT,
    (TIME.name, INTERVAL.name): Context.IMPLICIT,
    ("int", MZ_TIMESTAMP.name): Context.IMPLICIT,
    ("uint", MZ_TIMESTAMP.name): Context.IMPLICIT,
    ("numeric", MZ_TIMESTAMP.name): Context.IMPLICIT,
    (DATE.name, MZ_TIMESTAMP.name): Context.IMPLICIT,
    (TIMESTAMP.name, MZ_TIMESTAMP.name): Context.IMPLICIT,
    (TIMESTAMPTZ.name, MZ_TIMESTAMP.name): Context.IMPLICIT,
    (MZ_TIMESTAMP.name, "numeric"): Context.EXPLICIT,
    (MZ_TIMESTAMP.name, "uint"): Context.EXPLICIT,
    (MZ_TIMESTAMP.name, "int"): Context.EXPLICIT,
    (MZ_TIMESTAMP.name, TIMESTAMP.name): Context.EXPLICIT,
    (MZ_TIMESTAMP.name, TIMESTAMPTZ.name): Context.EXPLICIT,
    (JSONB.name, "int"): Context.EXPLICIT,
    (JSONB.name, "numeric"): Context.EXPLICIT,
    (JSONB.name, "float"): Context.EXPLICIT,
    (JSONB.name, "bool"): Context.EXPLICIT,
}


def castable(source: SqlType, target: SqlType, context: Context) -> bool:
    """Whether a value of `source` may become `target` in `context`. Text converts to anything when asked to."""
    if source == UNKNOWN:
        return True
    if context is Context.EXPLICIT and family(source) == "text" and target.element is None:
        return True
    level = _level(source, target)
    return level is not None and level <= context


def common_type(kinds: list[SqlType]) -> SqlType | None:
    """The type that values of `kinds` share in CASE, UNION, VALUES, IN and comparisons; None when there is none."""
    result = UNKNOWN
    for kind in kinds:
        if kind in (UNKNOWN, result):
            continue
        if result == UNKNOWN:
            result = kind
            continue
        merged = _merge(result, kind)
        if merged is None:
            return None
        result = merged
    return result


def _merge(left: SqlType, right: SqlType) -> SqlType | None:
    if left.name == right.name == NUMERIC.name:
        return _merge_numeric(left, right)
    if left.name == right.name:  # same type with other modifiers
        return replace(left, modifier=-1)
    if family(left) == family(right) == "text":
        return TEXT
    if MZ_TIMESTAMP in (left, right):
        other = right if left == MZ_TIMESTAMP else left
        return MZ_TIMESTAMP if castable(other, MZ_TIMESTAMP, Context.IMPLICIT) else None
    if NUMERIC.name in (left.name, right.name):
        number, other = (left, right) if left.name == NUMERIC.name else (right, left)
        if family(other) in ("int", "uint"):
            return _merge_numeric(number, as_numeric(other))
    if castable(left, right, Context.IMPLICIT):
        return right
    if castable(right, left, Context.IMPLICIT):
        return left
    if "uint" in (family(left), family(right)) and {family(left), family(right)} <= {"int", "uint"}:
        left, right = _UINT_AS_INT.get(left.name, left), _UINT_AS_INT.get(right.name, right)
        return left if left == right else _merge(left, right)
    return None


def _merge_numeric(left: SqlType, right: SqlType) -> SqlType:
    if left.modifier < 0 or right.modifier < 0:
        return NUMERIC
    scale = max(left.scale, right.scale)
    precision = max(left.precision - left.scale, right.precision - right.scale) + scale
    return numeric(min(precision, 38), scale) if precision <= 38 else NUMERIC


_AS_NUMERIC = {
    INT2.name: numeric(5, 0), INT4.name: numeric(10, 0), INT8.name: numeric(19, 0), UINT2.name: numeric(5, 0),
    UINT4.name: numeric(10, 0), UINT8.name: numeric(20, 0),
}  # fmt: skip


def as_numeric(kind: SqlType) -> SqlType:
    """The numeric type that holds every value of an integer type; a numeric type itself."""
    return _AS_NUMERIC.get(kind.name, kind)


# How they are written


def coerce(
    bound: Bound, target: SqlType, facts: Facts, context: Context = Context.IMPLICIT, *, what: str | None = None
) -> Bound:
    """`bound` as `target`. SqlError 42804 (`what` says for what) when the conversion is not allowed there."""
    if bound.parameter is not None:
        return _parameter(facts.parameter_type(bound, target), target, facts, context)
    if bound.literal is Literal.NULL:
        return replace(bound, sql=_df_cast("NULL", target), type=target, literal=None)
    if bound.literal is Literal.STRING and context is Context.ASSIGNMENT and family(target) == "text":
        return cast(typed(bound), target, truncate=False)
    if bound.literal is Literal.STRING:
        return _literal(bound, target)
    if not castable(bound.type, target, context):
        raise SqlError(
            what or f"cannot cast type {bound.type} to {target}",
            sqlstate="42804" if what else "42846",
            position=bound.position,
        )
    return cast(bound, target, truncate=context is Context.EXPLICIT)


def _parameter(bound: Bound, target: SqlType, facts: Facts, context: Context) -> Bound:
    known = replace(bound, sql=_df_cast(bound.sql, bound.type))
    return known if known.type == target else coerce(known, target, facts, context)


def cast(bound: Bound, target: SqlType, *, truncate: bool = True) -> Bound:
    """`bound` (of a known type) converted to `target`; both exist and the context is already checked.

    `truncate`: a text that is too long for varchar(n) is cut, as an explicit cast does; otherwise it is an error.
    """
    source = bound.type
    if source == target:
        return typed(bound)
    if bound.literal is Literal.NUMBER and family(target) in ("int", "numeric", "float"):
        return replace(bound, sql=_df_cast(bound.sql, target), type=target, literal=None)
    sql = _converted(typed(bound).sql, source, target, truncate)
    return replace(bound, sql=sql, type=target, literal=None)


def _converted(sql: str, source: SqlType, target: SqlType, truncate: bool) -> str:
    ours, theirs = family(source), family(target)
    if theirs == "text":
        if source.name == BPCHAR.name and target.name != BPCHAR.name:
            sql = f"rtrim({sql})"  # the spaces that pad char(n) are no part of its value
        return _limited(sql if ours == "text" else _to_text(sql, source), target, truncate)
    if ours == "text":
        return _from_text(sql, target)
    if ours == "float" and theirs in ("int", "uint", "oid", MZ_TIMESTAMP.name):
        whole = _FROM_FLOAT.get(target.name, "ps_f64_to_i64")
        sql = f"{whole}({sql if source == FLOAT8 else _df_cast(sql, FLOAT8)})"
        return sql if target.name in _FROM_FLOAT else _df_cast(sql, target)
    if ours == "numeric" and theirs in ("int", "uint", MZ_TIMESTAMP.name):
        return _df_cast(_df_cast(sql, numeric(38, 0)) if source.scale else sql, target)
    if ours == JSONB.name:
        return _from_json(sql, target)
    if target == MZ_TIMESTAMP and source.name in _TIME_RANK:
        stamp = sql if source == TIMESTAMP else _df_cast(sql, TIMESTAMP)
        return _df_cast(f"({_df_cast(stamp, INT8)} / 1000)", MZ_TIMESTAMP)
    if source == MZ_TIMESTAMP and target.name in _TIME_RANK:
        return _df_cast(f"({_df_cast(sql, INT8)} * 1000)", target)
    return _df_cast(sql, target)


_FROM_FLOAT = {INT2.name: "ps_f64_to_i16", INT4.name: "ps_f64_to_i32", INT8.name: "ps_f64_to_i64"}
_FROM_TEXT = {
    BOOL.name: "ps_text_to_bool", INT2.name: "ps_text_to_i16", INT4.name: "ps_text_to_i32",
    INT8.name: "ps_text_to_i64", UINT2.name: "ps_text_to_u16", UINT4.name: "ps_text_to_u32",
    UINT8.name: "ps_text_to_u64", MZ_TIMESTAMP.name: "ps_text_to_u64", OID.name: "ps_text_to_u32",
    FLOAT4.name: "ps_text_to_f32", FLOAT8.name: "ps_text_to_f64", DATE.name: "ps_text_to_date",
    TIME.name: "ps_text_to_time", TIMESTAMP.name: "ps_text_to_timestamp",
    TIMESTAMPTZ.name: "ps_text_to_timestamptz", INTERVAL.name: "ps_text_to_interval", UUID.name: "ps_text_to_uuid",
    JSONB.name: "ps_text_to_jsonb", BYTEA.name: "ps_text_to_bytea",
}  # fmt: skip
_TO_TEXT = {
    FLOAT4.name: "ps_f32_to_text", FLOAT8.name: "ps_f64_to_text", TIMESTAMP.name: "ps_timestamp_to_text",
    TIMESTAMPTZ.name: "ps_timestamptz_to_text", TIME.name: "ps_time_to_text", INTERVAL.name: "ps_interval_to_text",
    BYTEA.name: "ps_bytea_to_text",
}  # fmt: skip


def _from_text(sql: str, target: SqlType) -> str:
    if target.name == NUMERIC.name:
        return _df_cast(f"ps_text_to_numeric({sql})", target)
    if target.name not in _FROM_TEXT:
        raise SqlError(f"casting text to {target} is not supported", sqlstate="0A000")
    return f"{_FROM_TEXT[target.name]}({sql})"


def _to_text(sql: str, source: SqlType) -> str:
    if source.name == NUMERIC.name and source.modifier < 0:
        return f"ps_numeric_to_text({sql})"
    if source.name in _TO_TEXT:
        return f"{_TO_TEXT[source.name]}({sql})"
    if source.element is not None:
        return f"ps_array_to_text({texts(sql, source)})"
    return f"CAST({sql} AS VARCHAR)"


def texts(sql: str, kind: SqlType) -> str:
    """An array as an array of texts. 0A000 for elements whose text DataFusion writes differently."""
    assert kind.element is not None
    if kind.element.name in _TO_TEXT or kind.element.name in (BOOL.name, NUMERIC.name):
        raise SqlError(f"casting {kind} to text is not supported", sqlstate="0A000")
    return sql if df_type(kind.element) == "VARCHAR" else f"CAST({sql} AS VARCHAR[])"


def _limited(sql: str, target: SqlType, truncate: bool) -> str:
    if target.length is None:
        return sql
    limited = f"left({sql}, {target.length})" if truncate else f"ps_check_length({sql}, {target.length})"
    return f"rpad({limited}, {target.length}, ' ')" if target.name == BPCHAR.name else limited


def _from_json(sql: str, target: SqlType) -> str:
    if target == BOOL:
        return f"ps_json_to_bool({sql})"
    number = f"ps_json_to_numeric({sql})"
    return number if target == NUMERIC else _converted(number, NUMERIC, target, True)


def _literal(bound: Bound, target: SqlType) -> Bound:
    """A string literal as a constant of `target`: read now, so that a bad one is refused at planning."""
    if target == UNKNOWN:
        return bound
    try:
        sql = constant(bound.value, target)
    except DataError as error:
        raise DataError(error.message, sqlstate=error.sqlstate, position=bound.position) from None
    return replace(bound, sql=sql, type=target, literal=None)


def constant(text: str, kind: SqlType) -> str:
    """The SQL of the value that `text` means as `kind`. DataError when it means none."""
    if kind.element is not None:
        element = kind.element
        items = literals.read_array(text)
        written = ", ".join(_df_cast("NULL", element) if i is None else constant(i, element) for i in items)
        return f"make_array({written})" if items else _df_cast("make_array()", array_of(element))
    if family(kind) == "text":
        limited = text
        if kind.length is not None:
            limited = text[: kind.length]
            limited = limited.ljust(kind.length) if kind.name == BPCHAR.name else limited
        return string(limited)
    if kind.name == NUMERIC.name:
        return numeric_constant(literals.read_numeric(text), kind)
    writer = _CONSTANTS.get(kind.name)
    if writer is None:
        raise SqlError(f"literals of type {kind} are not supported", sqlstate="0A000")
    return writer(text)


def numeric_constant(value: Decimal, kind: SqlType) -> str:
    """`value` rounded to the scale of `kind`; 22003 when its integral digits do not fit."""
    rounded = literals.round_numeric(value, kind.scale)
    if rounded.adjusted() >= kind.precision - kind.scale and rounded != 0:
        raise DataError("numeric field overflow", sqlstate="22003")
    return f"CAST('{rounded:f}' AS {df_type(kind)})"


def _integer(kind: SqlType) -> Callable[[str], str]:
    return lambda text: f"CAST({literals.read_integer(text, kind.name)} AS {df_type(kind)})"


def _float(kind: SqlType) -> Callable[[str], str]:
    return lambda text: f"CAST('{literals.read_float(text, kind.name)!r}' AS {df_type(kind)})"


def _interval(value: literals.Interval) -> str:
    sign = "-" if value.microseconds < 0 else ""
    seconds, micros = divmod(abs(value.microseconds), 1_000_000)
    return f"INTERVAL '{value.months} months {value.days} days {sign}{seconds}.{micros:06} seconds'"


def _stamp(micros: int, kind: SqlType) -> str:
    return _df_cast(f"CAST({micros} AS BIGINT)", kind)


_CONSTANTS: dict[str, Callable[[str], str]] = {
    BOOL.name: lambda text: "TRUE" if literals.read_boolean(text) else "FALSE",
    **{kind.name: _integer(kind) for kind in (INT2, INT4, INT8, UINT2, UINT4, UINT8, OID, MZ_TIMESTAMP)},
    FLOAT4.name: _float(FLOAT4),
    FLOAT8.name: _float(FLOAT8),
    DATE.name: lambda text: f"CAST(CAST({literals.read_date(text)} AS INT) AS DATE)",
    TIME.name: lambda text: f"arrow_cast(CAST({literals.read_time(text)} AS BIGINT), 'Time64(µs)')",
    TIMESTAMP.name: lambda text: _stamp(literals.read_timestamp(text, zoned=False), TIMESTAMP),
    TIMESTAMPTZ.name: lambda text: _stamp(literals.read_timestamp(text, zoned=True), TIMESTAMPTZ),
    INTERVAL.name: lambda text: _interval(literals.read_interval(text)),
    UUID.name: lambda text: string(literals.read_uuid(text)),
    JSONB.name: lambda text: string(literals.read_jsonb(text)),
    BYTEA.name: lambda text: f"X'{literals.read_bytea(text).hex()}'",
}


def timestamp_constant(micros: int, kind: SqlType) -> str:
    """A moment, in microseconds since the epoch, as TIMESTAMP or TIMESTAMPTZ."""
    return _stamp(micros, kind)


def interval_constant(value: literals.Interval) -> str:
    return _interval(value)
