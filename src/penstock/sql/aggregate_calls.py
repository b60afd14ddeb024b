"""Calls of aggregate and window functions with all that surrounds them: DISTINCT, ORDER BY, FILTER, OVER."""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from penstock.runtime import SqlError
from penstock.sql import aggregates
from penstock.sql.bound import Bound, folded, position_of
from penstock.sql.casts import coerce
from penstock.sql.places import Binder, Place, call_name, direction
from penstock.sql.types import FLOAT8


def aggregate_call(binder: Binder, node: exp.Expression, name: str, place: Place, filtered: str, over: str) -> Bound:
    position = position_of(node)
    if not place.aggregates and not over:
        raise SqlError(f"aggregate functions are not allowed in {place.clause}", sqlstate="42803", position=position)
    inner = Place(place.scope, place.clause, aggregates=bool(over) and place.aggregates)
    if over:
        inner.grouped = place.grouped
    star = len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Star)
    nodes, distinct, order = _arguments(node.expressions)
    if not over:
        refuse_nested(binder, nodes, position)
    arguments = [] if star else [binder.bind(argument, inner) for argument in nodes]
    if not star and not arguments and name == "count":
        raise SqlError(
            "count(*) must be used to call a parameterless aggregate function", sqlstate="42809", position=position
        )
    ordering = order_by(binder, order, inner) if order is not None else ""
    shape = aggregates.Shape(distinct, ordering, filtered, over)
    sql, kind = aggregates.aggregate(name, arguments, star, shape, binder.facts, position)
    loose = tuple(item for argument in arguments for item in argument.loose) if over else ()
    volatile = any(argument.volatile for argument in arguments)
    return Bound(
        sql, kind, nullable=name != "count", position=position, loose=loose,
        aggregate=not over or any(a.aggregate for a in arguments), window=bool(over), volatile=volatile,
    )  # fmt: skip


def refuse_nested(binder: Binder, nodes: list[exp.Expression], position: int | None) -> None:
    for node in nodes:
        for call in node.find_all(exp.Anonymous):
            nested = call.find_ancestor(exp.Select) is node.find_ancestor(exp.Select)
            if nested and aggregates.is_aggregate(call_name(call)):
                raise SqlError(
                    "aggregate function calls cannot be nested",
                    sqlstate="42803",
                    position=position_of(call) or position,
                )


def order_by(binder: Binder, node: exp.Expression, place: Place) -> str:
    """An ORDER BY over expressions (not over output names)."""
    parts = []
    for item in node.expressions:
        bound = binder.typed(item.this, place)
        parts.append(bound.sql + direction(item))
    return "ORDER BY " + ", ".join(parts)


def filtered(binder: Binder, node: exp.Expression, place: Place, over: str = "") -> Bound:
    call = node.this
    if not isinstance(call, exp.Anonymous) or not aggregates.is_aggregate(call_name(call)):
        raise SqlError(
            "FILTER specified, but this is not an aggregate function", sqlstate="42809", position=position_of(node)
        )
    inner = Place(place.scope, "FILTER")
    condition = binder.condition(node.expression.this, inner, "FILTER")
    return aggregate_call(binder, call, call_name(call), place, f" FILTER (WHERE {condition.sql})", over)


def within_group(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    call, order = node.this, node.expression
    position = position_of(node)
    if not place.aggregates:
        raise SqlError(f"aggregate functions are not allowed in {place.clause}", sqlstate="42803", position=position)
    if not isinstance(call, exp.Anonymous) or len(call.expressions) != 1 or len(order.expressions) != 1:
        raise SqlError("WITHIN GROUP with these arguments is not supported", sqlstate="0A000", position=position)
    inner = Place(place.scope, place.clause)
    fraction = binder.bind(call.expressions[0], inner)
    ordered = order.expressions[0]
    value = coerce(binder.bind(ordered.this, inner), FLOAT8, binder.facts)
    sql, kind = aggregates.ordered_set(call_name(call), fraction, value, value.sql + direction(ordered), binder.facts)
    return Bound(sql, kind, position=position, aggregate=True)


def window_call(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    position = position_of(node)
    if not place.windows:
        raise SqlError(f"window functions are not allowed in {place.clause}", sqlstate="42P20", position=position)
    over, extra = over_clause(binder, node, place)
    call = node.this
    if isinstance(call, exp.Filter):
        bound = filtered(binder, call, place, over)
    elif isinstance(call, exp.Anonymous) and aggregates.is_aggregate(call_name(call)):
        bound = aggregate_call(binder, call, call_name(call), place, "", over)
    elif isinstance(call, exp.Anonymous) and aggregates.is_window_only(call_name(call)):
        inner = Place(place.scope, place.clause, aggregates=place.aggregates, grouped=place.grouped)
        arguments = [binder.bind(argument, inner) for argument in call.expressions]
        bound = aggregates.window_only(call_name(call), arguments, over, binder.facts, position)
    else:
        raise SqlError("OVER specified, but this is not a window function", sqlstate="42809", position=position)
    made = bound.derive(bound.sql, bound.type, *extra, nullable=bound.nullable)
    return replace(made, window=True)


def over_clause(binder: Binder, node: exp.Expression, place: Place) -> tuple[str, list[Bound]]:
    name = node.args.get("alias")
    if name is not None:
        named = (place.named_windows or {}).get(folded(name))
        if named is None:
            raise SqlError(f'window "{folded(name)}" does not exist', sqlstate="42704", position=position_of(name))
        merged = named.copy()
        if node.args.get("order") is not None:
            merged.set("order", node.args["order"].copy())
        if node.args.get("spec") is not None:
            merged.set("spec", node.args["spec"].copy())
        merged.set("alias", None)
        node = merged
    inner = Place(place.scope, "OVER", aggregates=place.aggregates, grouped=place.grouped)
    keys = [binder.typed(key, inner) for key in node.args.get("partition_by") or []]
    parts = ["PARTITION BY " + ", ".join(key.sql for key in keys)] if keys else []
    order = node.args.get("order")
    if order is not None:
        ordered = [(binder.typed(item.this, inner), direction(item)) for item in order.expressions]
        parts.append("ORDER BY " + ", ".join(bound.sql + way for bound, way in ordered))
        keys += [bound for bound, _ in ordered]
    spec = node.args.get("spec")
    if spec is not None:
        parts.append(_frame(spec))
    return f" OVER ({' '.join(parts)})", keys


def _arguments(
    nodes: list[exp.Expression],
) -> tuple[list[exp.Expression], bool, exp.Expression | None]:
    """Arguments, DISTINCT and ORDER BY of an aggregate's parentheses."""
    order = None
    distinct = False
    out = []
    for node in nodes:
        if isinstance(node, exp.Order):
            order = node
            node = node.this
        if isinstance(node, exp.Distinct):
            distinct = True
            out.extend(node.expressions)
        elif node is not None:
            out.append(node)
    if len(out) == 1 and isinstance(out[0], exp.Order):
        order, out = out[0], [out[0].this]
    out = [o.this if isinstance(o, exp.Order) else o for o in out]
    return out, distinct, order


def _frame(spec: exp.Expression) -> str:
    kind = str(spec.args.get("kind") or "RANGE").upper()

    def edge(which: str) -> str:
        value, side = spec.args.get(which), str(spec.args.get(f"{which}_side") or "").upper()
        if isinstance(value, exp.Literal):
            return f"{value.name} {side}"
        if isinstance(value, str):
            return value.upper() if not side or value.upper() == "CURRENT ROW" else f"{value.upper()} {side}"
        raise SqlError("this frame bound is not supported", sqlstate="0A000", position=position_of(spec))

    if spec.args.get("end") is None:
        return f"{kind} {edge('start')}"
    if spec.args.get("exclude"):
        raise SqlError("EXCLUDE is not supported", sqlstate="0A000")
    return f"{kind} BETWEEN {edge('start')} AND {edge('end')}"
