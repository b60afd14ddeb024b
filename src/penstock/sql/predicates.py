"""Conditions: comparisons, ANY and ALL, IN, EXISTS, BETWEEN, IS, patterns."""

from __future__ import annotations

import re
from dataclasses import replace

from sqlglot import exp

from penstock.runtime import DataError, SqlError
from penstock.sql import operators as op
from penstock.sql.bound import Bound, BoundQuery, Literal, combine, ident, position_of, string
from penstock.sql.casts import Context, coerce, common_type, family, resolve_unknown
from penstock.sql.places import Binder, Place, call_name
from penstock.sql.types import BOOL, TEXT, UNKNOWN, array_of


def compare(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    symbol = COMPARE[type(node)]
    for side, other in ((node.expression, node.this), (node.this, node.expression)):
        if isinstance(side, exp.Any | exp.All):
            return quantified(binder, symbol, other, side.this, isinstance(side, exp.Any), place)
        if isinstance(side, exp.Anonymous) and call_name(side) in ("all", "some") and len(side.expressions) == 1:
            return quantified(binder, symbol, other, side.expressions[0], call_name(side) == "some", place)
    left, right = binder.bind(node.this, place), binder.bind(node.expression, place)
    return op.comparison(symbol, left, right, binder.facts, right.position or left.position)


def quantified(
    binder: Binder, symbol: str, operand: exp.Expression, inner: exp.Expression, any_of: bool, place: Place
) -> Bound:
    left = binder.bind(operand, place)
    inner = inner.unnest() if isinstance(inner, exp.Paren) else inner
    if isinstance(inner, exp.Subquery | exp.Query):
        return quantified_query(binder, symbol, left, inner, any_of, place)
    array = binder.bind(inner, place)
    if array.untyped and not left.untyped:
        array = coerce(array, array_of(replace(left.type, modifier=-1)), binder.facts)
    if array.type.element is None:
        raise SqlError("op ANY/ALL (array) requires array on right side", sqlstate="42809", position=array.position)
    item = coerce(left, array.type.element, binder.facts, Context.ASSIGNMENT)
    if symbol == "=" and any_of:
        return item.derive(f"array_has({array.sql}, {item.sql})", BOOL, array)
    if symbol == "<>" and not any_of:
        return item.derive(f"(NOT array_has({array.sql}, {item.sql}))", BOOL, array)
    raise SqlError(
        f"{symbol} {'ANY' if any_of else 'ALL'} (array) is not supported", sqlstate="0A000", position=array.position
    )


def quantified_query(
    binder: Binder, symbol: str, left: Bound, inner: exp.Expression, any_of: bool, place: Place
) -> Bound:
    query = binder.queries.subquery(inner, place.scope)
    item, query = beside(binder, left, query, symbol)
    if symbol == "=" and any_of:
        return item.derive(f"({item.sql} IN {query.parenthesised})", BOOL, nullable=True)
    if symbol == "<>" and not any_of:
        return item.derive(f"({item.sql} NOT IN {query.parenthesised})", BOOL, nullable=True)
    word = "ANY" if any_of else "ALL"
    return item.derive(f"({item.sql} {symbol} {word} {query.parenthesised})", BOOL, nullable=True)


def beside(binder: Binder, left: Bound, query: BoundQuery, symbol: str) -> tuple[Bound, BoundQuery]:
    """An operand and a one-column query in one type."""
    if len(query.columns) != 1:
        raise SqlError("subquery has too many columns", sqlstate="42601", position=left.position)
    column = query.columns[0]
    right = Bound(f'"q"."{column.ident}"', column.type, position=left.position)
    a, b = op.comparable(symbol, left, right, binder.facts, left.position)
    if b.sql != right.sql:
        query = BoundQuery(f'SELECT {b.sql} AS "x" FROM {query.parenthesised} AS "q"', query.columns)
    return a, query


def and_or(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    word = "AND" if isinstance(node, exp.And) else "OR"
    parts = [binder.condition(part, place, word) for part in node.flatten()]
    return combine("(" + f" {word} ".join(part.sql for part in parts) + ")", BOOL, parts)


def negation(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    listed = node.this.unnest()
    if isinstance(listed, exp.In) and listed.args.get("query") and isinstance(listed.this, exp.Tuple):
        raise SqlError(
            "NOT IN with several columns is not supported",
            sqlstate="0A000",
            hint="Use NOT EXISTS.",
            position=position_of(node),
        )
    inner = binder.condition(node.this, place, "NOT")
    return inner.derive(f"(NOT {inner.sql})", BOOL)


def is_test(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    negated = "NOT " if node.args.get("negate") else ""
    right = node.expression
    left = binder.bind(node.this, place)
    if isinstance(right, exp.Null):
        if left.row:
            word = " AND "
            parts = [f"({field.sql} IS {negated}NULL)" for field in left.row]
            return left.derive("(" + word.join(parts) + ")", BOOL, nullable=False)
        made = resolve_unknown(left, binder.facts)
        return made.derive(f"({made.sql} IS {negated}NULL)", BOOL, nullable=False)
    condition = op.boolean(left, binder.facts, "IS")
    word = "UNKNOWN" if not isinstance(right, exp.Boolean) else ("TRUE" if right.this else "FALSE")
    return condition.derive(f"({condition.sql} IS {negated}{word})", BOOL, nullable=False)


def between(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    value = binder.bind(node.this, place)
    low, high = binder.bind(node.args["low"], place), binder.bind(node.args["high"], place)
    a = op.comparison(">=", value, low, binder.facts, low.position)
    b = op.comparison("<=", value, high, binder.facts, high.position)
    return a.derive(f"({a.sql} AND {b.sql})", BOOL, b)


def in_list(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    left = binder.bind(node.this, place)
    query = node.args.get("query")
    if query is not None:
        return in_query(binder, left, query, place)
    items = [binder.bind(item, place) for item in node.expressions]
    if left.row or any(item.row for item in items):
        parts = [op.comparison("=", left, item, binder.facts, item.position) for item in items]
        return combine("(" + " OR ".join(part.sql for part in parts) + ")", BOOL, parts)
    kind = common_type([left.type, *(item.type for item in items)])
    if kind is None:
        clash = next(i for i in items if common_type([left.type, i.type]) is None)
        raise op.no_operator("=", left, clash, clash.position)
    made = [op.comparable("=", left, item, binder.facts, item.position) for item in items]
    sql = f"({made[0][0].sql} IN ({', '.join(pair[1].sql for pair in made)}))"
    return left.derive(sql, BOOL, *items)


def in_query(binder: Binder, left: Bound, tree: exp.Expression, place: Place) -> Bound:
    query = binder.queries.subquery(tree, place.scope)
    if not left.row:
        item, query = beside(binder, left, query, "=")
        if not place.filters:
            return _in_query_as_value(item, query)
        return item.derive(f"({item.sql} IN {query.parenthesised})", BOOL, nullable=True)
    if len(left.row) != len(query.columns):
        raise SqlError("subquery has too few or too many columns", sqlstate="42601", position=left.position)
    alias = binder.facts.fresh("q")
    parts = []
    for item, column in zip(left.row, query.columns, strict=True):
        right = Bound(f'"{alias}"."{column.ident}"', column.type)
        parts.append(op.comparison("=", item, right, binder.facts, left.position).sql)
    sql = f'EXISTS (SELECT 1 FROM {query.parenthesised} AS "{alias}" WHERE {" AND ".join(parts)})'
    return left.derive(sql, BOOL, nullable=False)


def exists(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    if not place.filters:
        count = binder.queries.subquery(_counted(node.this), place.scope)
        return Bound(f"({count.parenthesised} > 0)", BOOL, nullable=False, position=position_of(node))
    query = binder.queries.subquery(node.this, place.scope)
    return Bound(f"EXISTS ({query.sql})", BOOL, nullable=False, position=position_of(node))


def _counted(tree: exp.Expression) -> exp.Expression:
    """A query for the number of rows of `tree`: DataFusion runs that where it cannot run EXISTS."""
    count = exp.Anonymous(this="count", expressions=[exp.Star()])
    tree = tree.unnest()
    simple = isinstance(tree, exp.Select) and not any(
        tree.args.get(key) for key in ("group", "having", "distinct", "offset", "with_")
    )
    limit = tree.args.get("limit")
    simple = simple and (limit is None or (isinstance(limit.expression, exp.Literal) and limit.expression.name != "0"))
    if simple and not any(tree.find_all(exp.Anonymous, exp.Window)):
        made = tree.copy()
        made.set("order", None)
        made.set("limit", None)
        made.set("expressions", [count])
        return made
    alias = exp.TableAlias(this=exp.to_identifier("counted", quoted=True))
    return exp.Select(expressions=[count], from_=exp.From(this=exp.Subquery(this=tree.copy(), alias=alias)))


def _in_query_as_value(item: Bound, query: BoundQuery) -> Bound:
    """``item IN query`` where DataFusion cannot run it as a join: TRUE, FALSE or NULL by counting."""
    column = ident(query.columns[0].ident)
    counted = f'(SELECT count(*) FROM {query.parenthesised} AS "q"'
    sql = (
        f'CASE WHEN {counted} WHERE "q".{column} = {item.sql}) > 0 THEN TRUE WHEN {counted}) = 0 THEN FALSE'
        f' WHEN {item.sql} IS NULL OR {counted} WHERE "q".{column} IS NULL) > 0 THEN CAST(NULL AS BOOLEAN)'
        " ELSE FALSE END"
    )
    return item.derive(f"({sql})", BOOL, nullable=True)


def like(binder: Binder, node: exp.Expression, place: Place, escape: str = "\\") -> Bound:
    word = "ILIKE" if isinstance(node, exp.ILike) else "LIKE"
    negated = "NOT " if node.args.get("negate") else ""
    left = text_operand(binder, node.this, place, word)
    pattern = binder.bind(node.expression, place)
    if pattern.literal is Literal.STRING and escape != "\\":
        pattern = replace(pattern, sql=string(_escaped(pattern.value, escape)), type=TEXT, literal=None)
    elif escape != "\\":
        raise SqlError(
            "ESCAPE with a pattern that is not a literal is not supported",
            sqlstate="0A000",
            position=pattern.position,
        )
    pattern = coerce(pattern, TEXT, binder.facts)
    return left.derive(f"({left.sql} {negated}{word} {pattern.sql})", BOOL, pattern)


def escape(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    escape = node.expression.name if isinstance(node.expression, exp.Literal) else None
    inner = node.this
    if escape is None or len(escape) > 1:
        raise SqlError("invalid escape string", sqlstate="22025", position=position_of(node.expression))
    if isinstance(inner, exp.Not):
        bound = like(binder, inner.this, place, escape)
        return bound.derive(f"(NOT {bound.sql})", BOOL)
    if isinstance(inner, exp.SimilarTo):
        return similar(binder, inner, place, escape)
    return like(binder, inner, place, escape)


def similar(binder: Binder, node: exp.Expression, place: Place, escape: str = "\\") -> Bound:
    pattern = binder.bind(node.expression, place)
    if pattern.literal is not Literal.STRING:
        raise SqlError(
            "SIMILAR TO with a pattern that is not a literal is not supported",
            sqlstate="0A000",
            position=pattern.position,
        )
    left = text_operand(binder, node.this, place, "SIMILAR TO")
    return left.derive(f"({left.sql} ~ {string(similar_to_regex(pattern.value, escape))})", BOOL)


def regex(binder: Binder, node: exp.Expression, place: Place) -> Bound:
    symbol = "~*" if isinstance(node, exp.RegexpILike) else "~"
    left = text_operand(binder, node.this, place, symbol)
    right = text_operand(binder, node.expression, place, symbol)
    return left.derive(f"({left.sql} {symbol} {right.sql})", BOOL, right)


def text_operand(binder: Binder, node: exp.Expression, place: Place, symbol: str) -> Bound:
    bound = binder.bind(node, place)
    if not bound.untyped and family(bound.type) != "text":
        raise op.no_operator(symbol, bound, replace(bound, type=UNKNOWN), bound.position)
    return coerce(bound, TEXT, binder.facts)


COMPARE = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM", exp.NullSafeNEQ: "IS DISTINCT FROM",
}  # fmt: skip


def _escaped(pattern: str, escape: str) -> str:
    """A LIKE pattern with `escape` as one with a backslash."""
    out = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if escape and char == escape:
            at += 1
            if at >= len(pattern):
                raise DataError("LIKE pattern must not end with escape character", sqlstate="22025")
            out.append("\\" + pattern[at])
        else:
            out.append("\\\\" if char == "\\" else char)
        at += 1
    return "".join(out)


def similar_to_regex(pattern: str, escape: str = "\\") -> str:
    """SQL's SIMILAR TO as a regular expression over the whole text."""
    out = []
    at, in_set = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == escape and at + 1 < len(pattern):
            at += 1
            out.append(re.escape(pattern[at]))
        elif in_set:
            out.append(char)
            in_set = char != "]"
        elif char == "[":
            in_set = True
            out.append(char)
        else:
            out.append({"%": ".*", "_": ".", ".": "\\.", "^": "\\^", "$": "\\$"}.get(char, char))
        at += 1
    return "^(?s:" + "".join(out) + ")$"
