"""Operators: which types they take, what they give, and SQL that computes it like PostgreSQL.

DataFusion wraps integers around silently, so integer arithmetic is done in a wider type and cast back: the cast is
checked. This is plain SQL on purpose. A checked function per operator would say the same, but DataFusion's planning
time doubles with every level of nested calls, and a sum of twenty terms would take minutes.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.runtime import SqlError
from penstock.sql.bound import Bound, Facts, Literal
from penstock.sql.casts import Context, as_numeric, cast, coerce, common_type, df_type, family, typed
from penstock.sql.types import (
    BOOL,
    DATE,
    FLOAT4,
    FLOAT8,
    INT4,
    INT8,
    INTERVAL,
    JSONB,
    NUMERIC,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UINT8,
    UNKNOWN,
    SqlType,
    array_of,
    numeric,
)

_NUMBERS = ("int", "uint", "numeric", "float")


def no_operator(symbol: str, left: Bound | None, right: Bound, position: int | None) -> SqlError:
    operands = f"{right.type}" if left is None else f"{left.type} {symbol} {right.type}"
    written = operands if left is not None else f"{symbol} {operands}"
    return SqlError(
        f"operator does not exist: {written}",
        sqlstate="42883",
        hint="No operator matches the given name and argument types. You might need to add explicit type casts.",
        position=position,
    )


def not_unique(symbol: str, left: Bound, right: Bound) -> SqlError:
    return SqlError(
        f"operator is not unique: {left.type} {symbol} {right.type}",
        sqlstate="42725",
        hint="Could not choose a best candidate operator. You might need to add explicit type casts.",
        position=right.position,
    )


def arithmetic(symbol: str, left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    """``left symbol right`` for + - * / % ^. SqlError 42883 when the types do not fit."""
    left, right = _guess_unknown(symbol, left, right, facts)
    kinds = family(left.type), family(right.type)
    if kinds[0] in _NUMBERS and kinds[1] in _NUMBERS:
        return _numbers(symbol, left, right, facts, position)
    result = _temporal(symbol, left, right, facts)
    if result is not None:
        return result
    if symbol == "-" and left.type == JSONB:
        raise SqlError("operator - on jsonb is not supported", sqlstate="0A000", position=position)
    raise no_operator(symbol, left, right, position)


def _guess_unknown(symbol: str, left: Bound, right: Bound, facts: Facts) -> tuple[Bound, Bound]:
    """A string or parameter beside a known type takes that type, except where dates ask for an interval."""
    dated = left.type == DATE and symbol == "+"
    if right.literal is Literal.STRING and (left.literal is Literal.STRING or dated):
        raise not_unique(symbol, left, right)
    if left.untyped and right.untyped:
        return coerce(left, INT4, facts), coerce(right, INT4, facts)
    if left.untyped:
        kind = right.type
        if kind == INTERVAL and symbol == "+":
            kind = TIMESTAMP
        return coerce(left, _wide(kind), facts), right
    if right.untyped:
        kind = left.type
        if kind in (TIMESTAMP, TIMESTAMPTZ, TIME) and symbol == "+":
            kind = INTERVAL
        elif kind == DATE and symbol == "+":
            kind = INT4
        elif kind in (TIMESTAMP, TIMESTAMPTZ) and symbol == "-" and right.literal is Literal.STRING:
            kind = left.type
        elif kind == INTERVAL and symbol in "*/":
            kind = FLOAT8
        return left, coerce(right, _wide(kind), facts)
    return left, right


def _wide(kind: SqlType) -> SqlType:
    return NUMERIC if kind.name == NUMERIC.name else kind


def _numbers(symbol: str, left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    families = {family(left.type), family(right.type)}
    if symbol == "^":
        a, b = (coerce(side, FLOAT8, facts).sql for side in (left, right))
        result = left.derive(f"power({a}, {b})", FLOAT8, right)
        return result if "float" in families or families == {"int"} else cast(result, NUMERIC)
    if "float" in families:
        return _floats(symbol, left, right, facts, position)
    if "numeric" in families:
        return _numerics(symbol, left, right)
    return _integers(symbol, left, right)


def _integers(symbol: str, left: Bound, right: Bound) -> Bound:
    kind = common_type([left.type, right.type])
    assert kind is not None
    if kind.name == NUMERIC.name:
        return _numerics(symbol, left, right)
    if symbol in "/%":
        a, b = (typed(cast(side, kind)).sql for side in (left, right))
        return left.derive(f"({a} {symbol} {b})", kind, right)
    if kind == INT8 or family(kind) == "uint":
        wide = "DECIMAL(20, 0)" if kind == UINT8 else "DECIMAL(19, 0)"
    else:
        wide = "BIGINT"
    a, b = (f"CAST({side.sql} AS {wide})" for side in (left, right))
    return left.derive(f"CAST({a} {symbol} {b} AS {df_type(kind)})", kind, right)


def _floats(symbol: str, left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    if symbol == "%":
        raise no_operator(symbol, left, right, position)
    kind = FLOAT4 if left.type == right.type == FLOAT4 else FLOAT8
    divisor_is_safe = bool(right.value) and not right.untyped and float(right.value) != 0
    a, b = (coerce(side, kind, facts, Context.ASSIGNMENT).sql for side in (left, right))
    if symbol == "/" and not divisor_is_safe:
        b = f"ps_nonzero_{'f32' if kind == FLOAT4 else 'f64'}({b})"
    return left.derive(f"({a} {symbol} {b})", kind, right)


_MOST_SCALE = 20
"""Products of declared scales up to this are exact; beyond it the result is rounded, to leave room for digits before
the point."""


def _numerics(symbol: str, left: Bound, right: Bound) -> Bound:
    a, b = _as_numeric(left), _as_numeric(right)
    open_ended = a.type.modifier < 0 or b.type.modifier < 0
    scales, wholes = (a.type.scale, b.type.scale), (
        a.type.precision - a.type.scale, b.type.precision - b.type.scale,
    )  # fmt: skip
    if symbol in "+-":
        scale = max(scales)
        kind = numeric(min(38, max(wholes) + 1 + scale), scale)
        sql = f"({a.sql} {symbol} {b.sql})"
    elif symbol == "%":
        scale = max(scales)
        kind = numeric(min(38, min(wholes) + scale), scale)
        sql = f"({a.sql} % {b.sql})"
    elif symbol == "*" and not open_ended and sum(scales) <= _MOST_SCALE:
        kind = numeric(min(38, a.type.precision + b.type.precision + 1), sum(scales))
        sql = f"({a.sql} * {b.sql})"
    else:
        return left.derive(_wide_numerics(symbol, a, b), NUMERIC, right)
    if open_ended:
        sql = f"CAST({sql} AS {df_type(NUMERIC)})" if kind.scale != NUMERIC.scale else sql
        kind = NUMERIC
    return left.derive(sql, kind, right)


def _wide_numerics(symbol: str, a: Bound, b: Bound) -> str:
    """Product or quotient rounded to 16 digits after the point and checked to fit 38."""
    if symbol == "*" and b.type.precision - b.type.scale > a.type.precision - a.type.scale:
        a, b = b, a  # the left operand may have more digits before the point
    if max(a.type.scale, b.type.scale) > NUMERIC.scale:
        return _in_256_bits(symbol, a, b)
    name = "mul" if symbol == "*" else "div"
    left = numeric(38, a.type.scale)
    return f"ps_numeric_{name}_{a.type.scale}({cast(a, left).sql}, {cast(b, numeric(38, 16)).sql})"


def numeric_quotient(left: Bound, right: Bound) -> str:
    """An exact number divided by another; NULL / 0 is NULL."""
    return _wide_numerics("/", _as_numeric(left), _as_numeric(right))


def _in_256_bits(symbol: str, a: Bound, b: Bound) -> str:
    """The same for scales above 16. Its constants cannot be written in Substrait, so only this rare case does it."""
    a_scale = max(a.type.scale, NUMERIC.scale) if symbol == "/" else a.type.scale
    wide_a = f"CAST({a.sql} AS DECIMAL(76, {a_scale}))"
    wide_b = f"CAST({b.sql} AS DECIMAL(76, {b.type.scale}))"
    return f"CAST({wide_a} {symbol} {wide_b} AS {df_type(NUMERIC)})"


def _as_numeric(bound: Bound) -> Bound:
    if bound.type.name == NUMERIC.name:
        return bound
    if bound.literal is Literal.NUMBER:
        return cast(bound, numeric(len(bound.value.lstrip("-")), 0))
    return cast(bound, as_numeric(bound.type))


def _temporal(symbol: str, left: Bound, right: Bound, facts: Facts) -> Bound | None:
    """Dates, times and intervals; None when there is no such operator."""
    a, b = left.type, right.type
    stamps = (TIMESTAMP, TIMESTAMPTZ)
    if symbol == "+" and (b in stamps or b in (DATE, TIME)) and (a == INTERVAL or family(a) == "int"):
        left, right, a, b = right, left, b, a
    if a == DATE and family(b) == "int" and symbol in "+-":
        days = f"(CAST({left.sql} AS INT) {symbol} {coerce(right, INT4, facts, Context.ASSIGNMENT).sql})"
        return left.derive(f"CAST({days} AS DATE)", DATE, right)
    if a == DATE and b == DATE and symbol == "-":
        return left.derive(f"(CAST({left.sql} AS INT) - CAST({right.sql} AS INT))", INT4, right)
    if a in (*stamps, DATE) and b == INTERVAL and symbol in "+-":
        kind = TIMESTAMP if a == DATE else a
        return left.derive(f"({cast(left, kind).sql} {symbol} {right.sql})", kind, right)
    if a == TIME and b == INTERVAL and symbol in "+-":
        return None
    if symbol == "-" and a in (*stamps, DATE) and b in (*stamps, DATE):
        first, second = (cast(side, TIMESTAMP).sql for side in (left, right))
        return left.derive(f"ps_timestamp_sub({first}, {second})", INTERVAL, right)
    if a == b == INTERVAL and symbol in "+-":
        return left.derive(f"({left.sql} {symbol} {right.sql})", INTERVAL, right)
    if symbol == "*" and b == INTERVAL and family(a) in _NUMBERS:
        left, right, a, b = right, left, b, a
    if a == INTERVAL and family(b) in _NUMBERS and symbol in "*/":
        factor = coerce(right, FLOAT8, facts, Context.ASSIGNMENT).sql
        factor = factor if symbol == "*" else f"(CAST(1 AS DOUBLE) / ps_nonzero_f64({factor}))"
        return left.derive(f"ps_interval_mul({left.sql}, {factor})", INTERVAL, right)
    return None


def negate(bound: Bound, facts: Facts, position: int | None) -> Bound:
    """Unary minus."""
    if bound.literal is Literal.NUMBER:
        value = str(-int(bound.value))
        kind = INT4 if -(2**31) <= int(value) < 2**31 else INT8
        return replace(bound, sql=f"({value})" if value.startswith("-") else value, value=value, type=kind)
    if bound.untyped:
        bound = coerce(bound, FLOAT8 if bound.parameter is None else INT4, facts)
    if family(bound.type) in ("int", "uint"):
        zero = Bound("0", bound.type, nullable=False, literal=Literal.NUMBER, value="0")
        return _integers("-", zero, bound)
    if family(bound.type) in ("float", "numeric"):
        return bound.derive(f"(- {bound.sql})", bound.type)
    if bound.type == INTERVAL:
        return bound.derive(f"ps_interval_neg({bound.sql})", INTERVAL)
    raise no_operator("-", None, bound, position)


# Comparisons

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "<>": "<>"}


def comparison(symbol: str, left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    """``left symbol right`` for = <> < <= > >=, and IS [NOT] DISTINCT FROM; never null for the latter."""
    if left.row or right.row:
        return _rows(symbol, left, right, facts, position)
    left, right = comparable(symbol, left, right, facts, position)
    if right.sql == "mz_now()" and left.sql != "mz_now()" and symbol in _FLIPPED:
        left, right, symbol = right, left, _FLIPPED[symbol]
    nullable = None if symbol in _FLIPPED else False
    return left.derive(f"({left.sql} {symbol} {right.sql})", BOOL, right, nullable=nullable)


def comparable(symbol: str, left: Bound, right: Bound, facts: Facts, position: int | None) -> tuple[Bound, Bound]:
    """Both operands in a type in which they can be compared. Bare integer literals stay bare beside integers."""
    kind = common_type([left.type, right.type])
    ordered = symbol in ("<", ">", "<=", ">=")
    if kind is None or (ordered and kind in _UNORDERED):
        raise no_operator(symbol, left, right, position)
    if kind == UNKNOWN:
        kind = TEXT
    return _operand(left, kind, facts), _operand(right, kind, facts)


_UNORDERED = (JSONB,)


def _operand(bound: Bound, kind: SqlType, facts: Facts) -> Bound:
    if bound.untyped:
        wanted = NUMERIC if kind.name == NUMERIC.name and bound.literal is not Literal.NULL else kind
        return coerce(bound, replace(wanted, modifier=-1) if family(kind) == "text" else wanted, facts)
    exact = family(bound.type) in ("int", "uint", "numeric")
    if exact and (family(kind) in ("int", "uint", "numeric")):
        return bound
    if bound.type.name == "character":
        return replace(bound, sql=f"rtrim({bound.sql})")
    if family(bound.type) == family(kind) and family(kind) != "float":
        return bound if bound.type != DATE else typed(bound)
    return coerce(bound, kind, facts)


def _rows(symbol: str, left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    """Row comparison, field by field."""
    if len(left.row) != len(right.row):
        raise SqlError("unequal number of entries in row expressions", sqlstate="42601", position=position)
    pairs = list(zip(left.row, right.row, strict=True))
    if symbol in ("=", "<>", "IS NOT DISTINCT FROM", "IS DISTINCT FROM"):
        parts = [comparison(symbol, a, b, facts, position) for a, b in pairs]
        word = " OR " if symbol in ("<>", "IS DISTINCT FROM") else " AND "
        return left.derive("(" + word.join(part.sql for part in parts) + ")", BOOL, right)
    strict = symbol[0]
    sql = comparison(symbol, *pairs[-1], facts, position).sql
    for a, b in reversed(pairs[:-1]):
        less = comparison(strict, a, b, facts, position).sql
        same = comparison("=", a, b, facts, position).sql
        sql = f"({less} OR ({same} AND {sql}))"
    return left.derive(sql, BOOL, right)


def concatenate(left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    """``||`` of texts, of text with anything, and of arrays with arrays or elements."""
    if left.type.element is not None or right.type.element is not None:
        return _concatenate_arrays(left, right, facts, position)
    if JSONB in (left.type, right.type) and "text" not in (family(left.type), family(right.type)):
        raise SqlError("operator || on jsonb is not supported", sqlstate="0A000", position=position)
    if not any(side.untyped or family(side.type) == "text" for side in (left, right)):
        raise no_operator("||", left, right, position)
    a, b = (coerce(side, TEXT, facts, Context.ASSIGNMENT) for side in (left, right))
    return left.derive(f"({a.sql} || {b.sql})", TEXT, right)


def _concatenate_arrays(left: Bound, right: Bound, facts: Facts, position: int | None) -> Bound:
    kind = left.type if left.type.element is not None else right.type
    assert kind.element is not None
    sides = []
    for side in (left, right):
        is_array = side.type.element is not None or side.literal is Literal.STRING
        wanted = kind if is_array else kind.element
        if not side.untyped and common_type([side.type, wanted]) is None:
            raise no_operator("||", left, right, position)
        made = coerce(side, wanted, facts)
        sides.append(made.sql if is_array else f"make_array({made.sql})")
    return left.derive(f"array_concat({sides[0]}, {sides[1]})", array_of(kind.element), right)


def boolean(bound: Bound, facts: Facts, what: str) -> Bound:
    """`bound` as a condition; 42804 when it is not boolean."""
    if bound.untyped:
        return coerce(bound, BOOL, facts)
    if bound.type != BOOL:
        raise SqlError(
            f"argument of {what} must be type boolean, not type {bound.type}",
            sqlstate="42804",
            position=bound.position,
        )
    return bound
