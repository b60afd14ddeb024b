"""Calls and operators with a grammar of their own: EXTRACT, TRIM, JSON access, arrays."""

from __future__ import annotations

from sqlglot import exp

from penstock.runtime import SqlError
from penstock.sql import calls
from penstock.sql import operators as op
from penstock.sql.bound import Bound, Literal, combine, ident, position_of
from penstock.sql.casts import cast, coerce, df_type, family
from penstock.sql.numbers import number
from penstock.sql.places import Binder, Place
from penstock.sql.predicates import text_operand
from penstock.sql.types import (
    BOOL,
    DATE,
    INT4,
    INT8,
    INTERVAL,
    JSONB,
    TEXT,
    TIMESTAMP,
    TIMESTAMPTZ,
    array_of,
    numeric,
)  # fmt: skip


def extract(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    unit = node.this.name.lower()
    value = binder.bind(node.expression, place)
    position = value.position
    if value.untyped:
        value = coerce(value, TIMESTAMP, binder.facts)
    if value.type not in (DATE, TIMESTAMP, TIMESTAMPTZ, INTERVAL):
        raise SqlError(f"function extract({value.type}) does not exist", sqlstate="42883", position=position)
    return _extracted(unit, value, position)


def at_time_zone(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    value, zone = binder.bind(node.this, place), binder.bind(node.args["zone"], place)
    if zone.literal is not Literal.STRING or zone.value.upper() not in ("UTC", "GMT", "Z", "ETC/UTC"):
        raise SqlError("only the time zone UTC is supported", sqlstate="0A000", position=zone.position)
    if value.untyped or value.type == DATE:
        value = coerce(value, TIMESTAMPTZ, binder.facts)
    if value.type not in (TIMESTAMP, TIMESTAMPTZ):
        raise op.no_operator("AT TIME ZONE", value, zone, value.position)
    return cast(value, TIMESTAMPTZ if value.type == TIMESTAMP else TIMESTAMP)


def substring(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    parts = [node.this, node.args.get("start"), node.args.get("length")]
    arguments = [binder.bind(part, place) for part in parts if part is not None]
    if node.args.get("start") is None and node.args.get("length") is not None:
        arguments.insert(1, number("1", None))
    return calls.call("substring", arguments, binder.facts, position_of(node))


def trim(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    names = {"LEADING": "ltrim", "TRAILING": "rtrim"}
    name = names.get(str(node.args.get("position") or "").upper(), "btrim")
    parts = [node.this, node.args.get("expression")]
    arguments = [binder.bind(part, place) for part in parts if part is not None]
    return calls.call(name, arguments, binder.facts, position_of(node))


def strpos(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    arguments = [binder.bind(node.this, place), binder.bind(node.args["substr"], place)]
    return calls.call("strpos", arguments, binder.facts, position_of(node))


def overlay(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    parts = [node.this, node.expression, node.args.get("from_"), node.args.get("for_")]
    arguments = [binder.bind(part, place) for part in parts if part is not None]
    return calls.call("overlay", arguments, binder.facts, position_of(node))


def keyword_call(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    if node.this is not None:
        raise SqlError("a precision here is not supported", sqlstate="0A000", position=position_of(node))
    return calls.call(KEYWORDS[type(node)], [], binder.facts, position_of(node))


def json_access(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    value, key = binder.bind(node.this, place), binder.bind(node.expression, place)
    symbol = "->>" if isinstance(node, exp.JSONExtractScalar) else "->"
    if value.type != JSONB:
        raise op.no_operator(symbol, value, key, value.position)
    if key.untyped:
        key = coerce(key, TEXT, binder.facts)
    if family(key.type) == "int":
        sql = f"ps_json_element({value.sql}, {cast(key, INT4).sql})"
    elif family(key.type) == "text":
        sql = f"ps_json_field({value.sql}, {key.sql})"
    else:
        raise op.no_operator(symbol, value, key, value.position)
    bound = value.derive(sql, JSONB, key, nullable=True)
    return bound if symbol == "->" else bound.derive(f"ps_json_text({sql})", TEXT, nullable=True)


def json_path(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    value = binder.bind(node.this, place)
    path = coerce(binder.bind(node.expression, place), array_of(TEXT), binder.facts)
    scalar = isinstance(node, exp.JSONBExtractScalar)
    if value.type != JSONB:
        raise op.no_operator("#>>" if scalar else "#>", value, path, value.position)
    sql = f"ps_json_path({value.sql}, {path.sql})"
    sql = f"ps_json_text({sql})" if scalar else sql
    return value.derive(sql, TEXT if scalar else JSONB, path, nullable=True)


def json_has_key(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    value = binder.bind(node.this, place)
    key = coerce(binder.bind(node.expression, place), TEXT, binder.facts)
    if value.type != JSONB:
        raise op.no_operator("?", value, key, value.position)
    return value.derive(f"ps_json_has_key({value.sql}, {key.sql})", BOOL, key)


def contains(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    left, right = binder.bind(node.this, place), binder.bind(node.expression, place)
    if JSONB in (left.type, right.type):
        left, right = coerce(left, JSONB, binder.facts), coerce(right, JSONB, binder.facts)
        return left.derive(f"ps_json_contains({left.sql}, {right.sql})", BOOL, right)
    if left.type.element is not None or right.type.element is not None:
        made, _ = calls.unify([left, right], binder.facts, "@>")
        return left.derive(f"array_has_all({made[0].sql}, {made[1].sql})", BOOL, right)
    raise op.no_operator("@>", left, right, left.position)


def array_constructor(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    if len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Query):
        return array_query(binder, node.expressions[0], place)
    if not node.expressions:
        raise SqlError("cannot determine type of empty array", sqlstate="42P18", hint="Write '{}'::integer[].")
    items = [binder.bind(item, place) for item in node.expressions]
    made, kind = calls.unify(items, binder.facts, "ARRAY")
    return combine(f"make_array({', '.join(m.sql for m in made)})", array_of(kind), items, nullable=False)


def array_query(binder: Binder, tree: exp.Expression, place: Place) -> Bound:
    query = binder.queries.subquery(tree, place.scope)
    column = query.columns[0]
    alias = binder.facts.fresh("q")
    item = f"{ident(alias)}.{ident(column.ident)}"
    sql = f"(SELECT array_agg({item}) FROM {query.parenthesised} AS {ident(alias)})"
    return Bound(sql, array_of(column.type), position=position_of(tree))


def subscript(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    value = binder.bind(node.this, place)
    if value.type.element is None or len(node.expressions) != 1 or isinstance(node.expressions[0], exp.Slice):
        raise SqlError("this subscript is not supported", sqlstate="0A000", position=value.position)
    index = binder.bind(node.expressions[0], place)
    # sqlglot has moved the index to count from zero
    moved = op.arithmetic("+", index, number("1", None), binder.facts, index.position)
    return value.derive(
        f"array_element({value.sql}, {cast(moved, INT8).sql})", value.type.element, moved, nullable=True
    )


def collate(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    name = node.expression.name
    if name not in ("C", "POSIX", "default", "ucs_basic"):
        raise SqlError(f'collation "{name}" is not supported', sqlstate="0A000", position=position_of(node))
    return text_operand(binder, node.this, place, "COLLATE")


_INTEGRAL_PARTS = {
    "year", "quarter", "month", "week", "day", "hour", "minute", "dow", "doy", "isodow", "isoyear",
}  # fmt: skip


_YEARS_PER = {"decade": 10, "century": 100, "millennium": 1000}


def _extracted(unit: str, value: Bound, position: int | None) -> Bound:
    """EXTRACT gives numeric: whole units without, seconds and smaller with six digits after the point."""
    unit = {"years": "year", "months": "month", "days": "day", "hours": "hour", "minutes": "minute",
            "seconds": "second", "weeks": "week"}.get(unit, unit)  # fmt: skip
    micros = f"CAST(date_part('microsecond', {value.sql}) AS DECIMAL(20, 0))"
    if unit in _INTEGRAL_PARTS:
        kind = numeric(10, 0)
        return value.derive(f"CAST(date_part('{unit}', {value.sql}) AS {df_type(kind)})", kind)
    if unit in _YEARS_PER:
        years = _YEARS_PER[unit]
        year = f"CAST(date_part('year', {value.sql}) AS INT)"
        return value.derive(
            f"CAST(({year} + {years - 1 if unit != 'decade' else 0}) / {years} AS DECIMAL(10, 0))", numeric(10, 0)
        )
    if unit == "epoch":
        kind = numeric(38, 6)
        if value.type == DATE:
            days = f"CAST({value.sql} AS INT)"
            return value.derive(f"CAST({days} * 86400 AS DECIMAL(20, 0))", numeric(20, 0))
        if value.type in (TIMESTAMP, TIMESTAMPTZ):
            stamp = cast(value, TIMESTAMP).sql
            micros = f"CAST(CAST({stamp} AS BIGINT) AS DECIMAL(20, 0))"
            return value.derive(f"CAST({micros} * CAST('0.000001' AS DECIMAL(6, 6)) AS {df_type(kind)})", kind)
        return value.derive(f"CAST(date_part('epoch', {value.sql}) AS {df_type(kind)})", kind)
    factors = {"second": ("0.000001", 6), "millisecond": ("0.001", 3), "milliseconds": ("0.001", 3)}
    if unit in factors:
        factor, scale = factors[unit]
        kind = numeric(26, scale)
        written = f"CAST({micros} * CAST('{factor}' AS DECIMAL(6, {scale})) AS {df_type(kind)})"
        return value.derive(written, kind)
    if unit in ("microsecond", "microseconds"):
        return value.derive(micros, numeric(20, 0))
    raise SqlError(f'unit "{unit}" is not supported for EXTRACT', sqlstate="0A000", position=position)


KEYWORDS: dict[type, str] = {
    exp.CurrentTimestamp: "current_timestamp",
    exp.CurrentDate: "current_date",
    exp.Localtimestamp: "localtimestamp",
    exp.CurrentUser: "current_user",
    exp.CurrentRole: "current_role",
    exp.SessionUser: "session_user",
    exp.CurrentCatalog: "current_catalog",
    exp.CurrentSchema: "current_schema",
}
