"""Binding of scalar expressions: every node of the tree becomes SQL for DataFusion and a type.

A node that is not listed is refused by its name; nothing passes through unread, because what DataFusion accepts it may
understand differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Protocol

from sqlglot import exp

from penstock.runtime import DataError, SqlError
from penstock.sql import aggregates, calls, literals
from penstock.sql import operators as op
from penstock.sql.bound import Bound, BoundQuery, Facts, Literal, combine, folded, position_of, string
from penstock.sql.casts import Context, cast, coerce, common_type, df_type, family, interval_constant, resolve_unknown
from penstock.sql.scopes import Scope
from penstock.sql.types import (
    BOOL,
    DATE,
    FLOAT8,
    INT4,
    INT8,
    INTERVAL,
    JSONB,
    OID,
    RECORD,
    TEXT,
    TIMESTAMP,
    TIMESTAMPTZ,
    UNKNOWN,
    SqlType,
    array_of,
    numeric,
    type_named,
)


class Queries(Protocol):
    """What expressions need of the query binder."""

    def subquery(self, tree: exp.Expression, scope: Scope) -> BoundQuery: ...

    def regclass(self, name: str, position: int | None) -> int: ...


@dataclass(slots=True)
class Place:
    """Where an expression stands: what it may contain. `clause` names it in errors."""

    scope: Scope
    clause: str
    aggregates: bool = False
    windows: bool = False
    grouped: Mapping[str, str] | None = None
    named_windows: dict[str, exp.Expression] | None = None


_BINARY = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%", exp.Pow: "^"}
_COMPARE = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM", exp.NullSafeNEQ: "IS DISTINCT FROM",
}  # fmt: skip


class Expressions:
    """Binds expressions of one statement."""

    def __init__(self, facts: Facts, queries: Queries) -> None:
        self.facts = facts
        self._queries = queries

    def bind(self, node: exp.Expression, place: Place) -> Bound:
        """`node` as SQL with a type; SqlError with a position when it means nothing."""
        kind = type(node)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            bound: Bound = handler(self, node, place)
        elif kind in _BINARY:
            bound = self._binary(node, place)
        elif kind in _COMPARE:
            bound = self._compare(node, place)
        else:
            raise SqlError(
                f"{kind.__name__} expressions are not supported", sqlstate="0A000", position=position_of(node)
            )
        if place.grouped and bound.sql in place.grouped:
            bound = replace(bound, loose=(), sql=place.grouped[bound.sql])
        return bound

    def typed(self, node: exp.Expression, place: Place) -> Bound:
        """Like `bind`, with unknown types resolved to text."""
        return resolve_unknown(self.bind(node, place), self.facts)

    def condition(self, node: exp.Expression, place: Place, what: str) -> Bound:
        return op.boolean(self.bind(node, place), self.facts, what)

    # Leaves

    def _column(self, node: exp.Expression, place: Place) -> Bound:
        parts = tuple(folded(part) for part in node.parts)
        position = position_of(node)
        if isinstance(node.this, exp.Star):
            raise SqlError("row expansion is not supported here", sqlstate="0A000", position=position)
        return place.scope.column(parts[:-1], parts[-1], position)

    def _literal(self, node: exp.Expression, place: Place) -> Bound:
        position = position_of(node)
        text: str = node.this
        if node.args.get("is_string"):
            return Bound(string(text), UNKNOWN, nullable=False, literal=Literal.STRING, value=text, position=position)
        return number(text, position)

    def _null(self, node: exp.Expression, place: Place) -> Bound:
        return Bound("NULL", UNKNOWN, literal=Literal.NULL, position=position_of(node))

    def _boolean(self, node: exp.Expression, place: Place) -> Bound:
        return Bound("TRUE" if node.this else "FALSE", BOOL, nullable=False, position=position_of(node))

    def _escape_string(self, node: exp.Expression, place: Place) -> Bound:
        text: str = node.this
        return Bound(
            string(text), UNKNOWN, nullable=False, literal=Literal.STRING, value=text, position=position_of(node)
        )

    def _hex_string(self, node: exp.Expression, place: Place) -> Bound:
        raise SqlError("bit strings are not supported", sqlstate="0A000", hint="Write '\\x...'::bytea.")

    def _parameter(self, node: exp.Expression, place: Place) -> Bound:
        text = node.name
        position = position_of(node)
        if not text.isdigit() or not 1 <= int(text) <= 65535:
            raise SqlError(f"there is no parameter ${text}", sqlstate="42P02", position=position)
        index = int(text)
        known = self.facts.parameters.setdefault(index, UNKNOWN)
        sql = f"${index}"
        if known == UNKNOWN:
            return Bound(sql, UNKNOWN, parameter=index, position=position)
        made = Bound(sql, UNKNOWN, parameter=index, position=position)
        return coerce(made, known, self.facts)

    def _interval(self, node: exp.Expression, place: Place) -> Bound:
        position = position_of(node)
        if not isinstance(node.this, exp.Literal):
            raise SqlError("an interval must be a literal", sqlstate="42601", position=position)
        unit = node.args.get("unit")
        try:
            if isinstance(unit, exp.IntervalSpan):
                raise SqlError("interval spans are not supported", sqlstate="0A000", position=position)
            value = literals.read_interval(node.this.name, unit.name if unit is not None else None)
        except DataError as error:
            raise DataError(error.message, sqlstate=error.sqlstate, position=position) from None
        return Bound(interval_constant(value), INTERVAL, nullable=False, position=position)

    # Operators

    def _binary(self, node: exp.Expression, place: Place) -> Bound:
        # a sum of thousands of terms leans to the left: descend without recursion
        chain: list[exp.Expression] = []
        bottom = node
        while type(bottom) in _BINARY:
            chain.append(bottom)
            bottom = bottom.this
        bound = self.bind(bottom, place)
        for link in reversed(chain):
            right = self.bind(link.expression, place)
            position = right.position
            bound = op.arithmetic(_BINARY[type(link)], bound, right, self.facts, position)
            if place.grouped and bound.sql in place.grouped:
                bound = replace(bound, loose=(), sql=place.grouped[bound.sql])
        return bound

    def _compare(self, node: exp.Expression, place: Place) -> Bound:
        symbol = _COMPARE[type(node)]
        for side, other in ((node.expression, node.this), (node.this, node.expression)):
            if isinstance(side, exp.Any | exp.All):
                return self._quantified(symbol, other, side, place)
        left, right = self.bind(node.this, place), self.bind(node.expression, place)
        return op.comparison(symbol, left, right, self.facts, right.position or left.position)

    def _quantified(self, symbol: str, operand: exp.Expression, quantifier: exp.Expression, place: Place) -> Bound:
        left = self.bind(operand, place)
        inner = quantifier.this.unnest() if isinstance(quantifier.this, exp.Paren) else quantifier.this
        any_of = isinstance(quantifier, exp.Any)
        if isinstance(inner, exp.Subquery | exp.Query):
            return self._quantified_query(symbol, left, inner, any_of, place)
        array = self.bind(inner, place)
        if array.untyped and not left.untyped:
            array = coerce(array, array_of(replace(left.type, modifier=-1)), self.facts)
        if array.type.element is None:
            raise SqlError("op ANY/ALL (array) requires array on right side", sqlstate="42809", position=array.position)
        item = coerce(left, array.type.element, self.facts, Context.ASSIGNMENT)
        if symbol == "=" and any_of:
            return item.derive(f"array_has({array.sql}, {item.sql})", BOOL, array)
        if symbol == "<>" and not any_of:
            return item.derive(f"(NOT array_has({array.sql}, {item.sql}))", BOOL, array)
        raise SqlError(
            f"{symbol} {'ANY' if any_of else 'ALL'} (array) is not supported", sqlstate="0A000", position=array.position
        )

    def _quantified_query(self, symbol: str, left: Bound, inner: exp.Expression, any_of: bool, place: Place) -> Bound:
        query = self._queries.subquery(inner, place.scope)
        item, query = self._beside(left, query, symbol)
        if symbol == "=" and any_of:
            return item.derive(f"({item.sql} IN {query.parenthesised})", BOOL, nullable=True)
        if symbol == "<>" and not any_of:
            return item.derive(f"({item.sql} NOT IN {query.parenthesised})", BOOL, nullable=True)
        word = "ANY" if any_of else "ALL"
        return item.derive(f"({item.sql} {symbol} {word} {query.parenthesised})", BOOL, nullable=True)

    def _beside(self, left: Bound, query: BoundQuery, symbol: str) -> tuple[Bound, BoundQuery]:
        """An operand and a one-column query in one type."""
        if len(query.columns) != 1:
            raise SqlError("subquery has too many columns", sqlstate="42601", position=left.position)
        column = query.columns[0]
        right = Bound(f'"q"."{column.ident}"', column.type, position=left.position)
        a, b = op.comparable(symbol, left, right, self.facts, left.position)
        if b.sql != right.sql:
            query = BoundQuery(f'SELECT {b.sql} AS "x" FROM {query.parenthesised} AS "q"', query.columns)
        return a, query

    def _and_or(self, node: exp.Expression, place: Place) -> Bound:
        word = "AND" if isinstance(node, exp.And) else "OR"
        parts = [self.condition(part, place, word) for part in node.flatten()]
        return combine("(" + f" {word} ".join(part.sql for part in parts) + ")", BOOL, parts)

    def _not(self, node: exp.Expression, place: Place) -> Bound:
        inner = self.condition(node.this, place, "NOT")
        return inner.derive(f"(NOT {inner.sql})", BOOL)

    def _neg(self, node: exp.Expression, place: Place) -> Bound:
        inner = self.bind(node.this, place)
        return op.negate(inner, self.facts, inner.position)

    def _paren(self, node: exp.Expression, place: Place) -> Bound:
        return self.bind(node.this, place)

    def _is(self, node: exp.Expression, place: Place) -> Bound:
        negated = "NOT " if node.args.get("negate") else ""
        right = node.expression
        left = self.bind(node.this, place)
        if isinstance(right, exp.Null):
            if left.row:
                word = " AND "
                parts = [f"({field.sql} IS {negated}NULL)" for field in left.row]
                return left.derive("(" + word.join(parts) + ")", BOOL, nullable=False)
            made = resolve_unknown(left, self.facts)
            return made.derive(f"({made.sql} IS {negated}NULL)", BOOL, nullable=False)
        condition = op.boolean(left, self.facts, "IS")
        word = "UNKNOWN" if not isinstance(right, exp.Boolean) else ("TRUE" if right.this else "FALSE")
        return condition.derive(f"({condition.sql} IS {negated}{word})", BOOL, nullable=False)

    def _between(self, node: exp.Expression, place: Place) -> Bound:
        value = self.bind(node.this, place)
        low, high = self.bind(node.args["low"], place), self.bind(node.args["high"], place)
        a = op.comparison(">=", value, low, self.facts, low.position)
        b = op.comparison("<=", value, high, self.facts, high.position)
        return a.derive(f"({a.sql} AND {b.sql})", BOOL, b)

    def _in(self, node: exp.Expression, place: Place) -> Bound:
        left = self.bind(node.this, place)
        query = node.args.get("query")
        if query is not None:
            return self._in_query(left, query, place)
        items = [self.bind(item, place) for item in node.expressions]
        if left.row or any(item.row for item in items):
            parts = [op.comparison("=", left, item, self.facts, item.position) for item in items]
            return combine("(" + " OR ".join(part.sql for part in parts) + ")", BOOL, parts)
        kind = common_type([left.type, *(item.type for item in items)])
        if kind is None:
            clash = next(i for i in items if common_type([left.type, i.type]) is None)
            raise op.no_operator("=", left, clash, clash.position)
        made = [op.comparable("=", left, item, self.facts, item.position) for item in items]
        sql = f"({made[0][0].sql} IN ({', '.join(pair[1].sql for pair in made)}))"
        return left.derive(sql, BOOL, *items)

    def _in_query(self, left: Bound, tree: exp.Expression, place: Place) -> Bound:
        query = self._queries.subquery(tree, place.scope)
        if not left.row:
            item, query = self._beside(left, query, "=")
            return item.derive(f"({item.sql} IN {query.parenthesised})", BOOL, nullable=True)
        if len(left.row) != len(query.columns):
            raise SqlError("subquery has too few or too many columns", sqlstate="42601", position=left.position)
        if place.clause == "NOT":
            raise SqlError("NOT IN with several columns is not supported", sqlstate="0A000", position=left.position)
        alias = self.facts.fresh("q")
        parts = []
        for item, column in zip(left.row, query.columns, strict=True):
            right = Bound(f'"{alias}"."{column.ident}"', column.type)
            parts.append(op.comparison("=", item, right, self.facts, left.position).sql)
        sql = f'EXISTS (SELECT 1 FROM {query.parenthesised} AS "{alias}" WHERE {" AND ".join(parts)})'
        return left.derive(sql, BOOL, nullable=False)

    def _exists(self, node: exp.Expression, place: Place) -> Bound:
        query = self._queries.subquery(node.this, place.scope)
        return Bound(f"EXISTS ({query.sql})", BOOL, nullable=False, position=position_of(node))

    def _subquery(self, node: exp.Expression, place: Place) -> Bound:
        query = self._queries.subquery(node, place.scope)
        if len(query.columns) != 1:
            raise SqlError("subquery must return only one column", sqlstate="42601", position=position_of(node))
        return Bound(query.parenthesised, query.columns[0].type, position=position_of(node))

    def _concat(self, node: exp.Expression, place: Place) -> Bound:
        left, right = self.bind(node.this, place), self.bind(node.expression, place)
        return op.concatenate(left, right, self.facts, right.position)

    # Patterns

    def _like(self, node: exp.Expression, place: Place, escape: str = "\\") -> Bound:
        word = "ILIKE" if isinstance(node, exp.ILike) else "LIKE"
        negated = "NOT " if node.args.get("negate") else ""
        left = self._text(node.this, place, word)
        pattern = self.bind(node.expression, place)
        if pattern.literal is Literal.STRING and escape != "\\":
            pattern = replace(pattern, sql=string(_escaped(pattern.value, escape)), type=TEXT, literal=None)
        elif escape != "\\":
            raise SqlError(
                "ESCAPE with a pattern that is not a literal is not supported",
                sqlstate="0A000",
                position=pattern.position,
            )
        pattern = coerce(pattern, TEXT, self.facts)
        return left.derive(f"({left.sql} {negated}{word} {pattern.sql})", BOOL, pattern)

    def _escape(self, node: exp.Expression, place: Place) -> Bound:
        escape = node.expression.name if isinstance(node.expression, exp.Literal) else None
        inner = node.this
        if escape is None or len(escape) > 1:
            raise SqlError("invalid escape string", sqlstate="22025", position=position_of(node.expression))
        if isinstance(inner, exp.Not):
            bound = self._like(inner.this, place, escape)
            return bound.derive(f"(NOT {bound.sql})", BOOL)
        if isinstance(inner, exp.SimilarTo):
            return self._similar(inner, place, escape)
        return self._like(inner, place, escape)

    def _similar(self, node: exp.Expression, place: Place, escape: str = "\\") -> Bound:
        pattern = self.bind(node.expression, place)
        if pattern.literal is not Literal.STRING:
            raise SqlError(
                "SIMILAR TO with a pattern that is not a literal is not supported",
                sqlstate="0A000",
                position=pattern.position,
            )
        left = self._text(node.this, place, "SIMILAR TO")
        return left.derive(f"({left.sql} ~ {string(similar_to_regex(pattern.value, escape))})", BOOL)

    def _regex(self, node: exp.Expression, place: Place) -> Bound:
        symbol = "~*" if isinstance(node, exp.RegexpILike) else "~"
        left = self._text(node.this, place, symbol)
        right = self._text(node.expression, place, symbol)
        return left.derive(f"({left.sql} {symbol} {right.sql})", BOOL, right)

    def _text(self, node: exp.Expression, place: Place, symbol: str) -> Bound:
        bound = self.bind(node, place)
        if not bound.untyped and family(bound.type) != "text":
            raise op.no_operator(symbol, bound, replace(bound, type=UNKNOWN), bound.position)
        return coerce(bound, TEXT, self.facts)

    # Conversions and conditionals

    def _cast(self, node: exp.Expression, place: Place) -> Bound:
        if isinstance(node, exp.TryCast):
            raise SqlError("TRY_CAST is not supported", sqlstate="0A000", position=position_of(node))
        target = data_type(node.args["to"], position_of(node))
        bound = self.bind(node.this, place)
        position = bound.position
        if target.name in ("regclass", "regtype", "regproc") and bound.literal is Literal.STRING:
            return self._registered(bound, target)
        if bound.literal is Literal.STRING and isinstance(node.this, exp.Literal):
            return coerce(bound, target, self.facts)
        if bound.parameter is not None:
            return coerce(bound, target, self.facts, Context.EXPLICIT)
        return replace(coerce(bound, target, self.facts, Context.EXPLICIT), position=position)

    def _registered(self, bound: Bound, target: SqlType) -> Bound:
        if target.name == "regclass":
            number = self._queries.regclass(bound.value, bound.position)
        elif target.name == "regtype":
            number = type_named(bound.value).oid
        else:
            raise SqlError("regproc names are not supported", sqlstate="0A000", position=bound.position)
        return Bound(f"CAST({number} AS {df_type(OID)})", target, nullable=False, position=bound.position)

    def _case(self, node: exp.Expression, place: Place) -> Bound:
        subject = self.bind(node.this, place) if node.this is not None else None
        conditions: list[Bound] = []
        for branch in node.args["ifs"]:
            if subject is None:
                conditions.append(self.condition(branch.this, place, "CASE/WHEN"))
            else:
                when = self.bind(branch.this, place)
                conditions.append(op.comparison("=", subject, when, self.facts, when.position))
        results = [self.bind(branch.args["true"], place) for branch in node.args["ifs"]]
        default = node.args.get("default")
        results.append(self.bind(default, place) if default is not None else self._null(node, place))
        made, kind = calls.unify(results, self.facts, "CASE")
        whens = " ".join(
            f"WHEN {condition.sql} THEN {result.sql}" for condition, result in zip(conditions, made[:-1], strict=True)
        )
        nullable = any(result.nullable for result in made)
        return combine(f"CASE {whens} ELSE {made[-1].sql} END", kind, [*made, *conditions], nullable=nullable)

    # Calls

    def _call(self, node: exp.Expression, place: Place) -> Bound:
        name = call_name(node)
        if aggregates.is_aggregate(name):
            return self._aggregate(node, name, place, "", "")
        if name == "array" and len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Query):
            return self._array_query(node.expressions[0], place)
        if aggregates.is_window_only(name):
            raise SqlError(
                f"window function {name} requires an OVER clause", sqlstate="42809", position=position_of(node)
            )
        arguments = [self.bind(argument, place) for argument in node.expressions]
        position = position_of(node)
        if name == "row":
            return self._row(arguments)
        if name in ("unnest", "generate_series"):
            return self.set_returning(name, arguments, position)
        return calls.call(name, arguments, self.facts, position)

    def set_returning(self, name: str, arguments: list[Bound], position: int | None) -> Bound:
        """unnest and generate_series, as one column of rows."""
        if name == "unnest":
            if len(arguments) != 1 or arguments[0].type.element is None:
                raise calls.unknown_function(name, arguments, position)
            made = arguments[0].derive(f"unnest({arguments[0].sql})", arguments[0].type.element)
            return replace(made, set_returning=True, nullable=True)
        kinds = common_type([a.type for a in arguments]) if len(arguments) in (2, 3) else None
        if kinds is not None and family(kinds) in ("int", "unknown"):
            kind = INT8 if kinds == INT8 else INT4
            sqls = [cast(coerce(a, kind, self.facts), INT8).sql for a in arguments]
            made = combine(f"CAST(unnest(generate_series({', '.join(sqls)})) AS {df_type(kind)})", kind, arguments)
            return replace(made, set_returning=True)
        if len(arguments) == 3 and arguments[0].type in (DATE, TIMESTAMP, TIMESTAMPTZ):
            kind = TIMESTAMPTZ if TIMESTAMPTZ in (arguments[0].type, arguments[1].type) else TIMESTAMP
            ends = [cast(coerce(a, TIMESTAMP, self.facts, Context.ASSIGNMENT), TIMESTAMP).sql for a in arguments[:2]]
            step = coerce(arguments[2], INTERVAL, self.facts).sql
            stamped = f"CAST(unnest(generate_series({ends[0]}, {ends[1]}, {step})) AS TIMESTAMP(6))"
            bound = combine(stamped, TIMESTAMP, arguments, nullable=False)
            return replace(cast(bound, kind), set_returning=True)
        raise calls.unknown_function(name, arguments, position)

    def _row(self, arguments: list[Bound]) -> Bound:
        made = combine("", RECORD, arguments)
        return replace(made, row=tuple(arguments), sql=f"struct({', '.join(a.sql for a in arguments)})")

    def _tuple(self, node: exp.Expression, place: Place) -> Bound:
        return self._row([self.bind(item, place) for item in node.expressions])

    def _qualified_call(self, node: exp.Expression, place: Place) -> Bound:
        """``pg_catalog.f(x)`` and the like: the schema must be one of ours."""
        schema = folded(node.this) if isinstance(node.this, exp.Identifier) else ""
        if schema not in ("pg_catalog", "mz_catalog", "mz_internal") or not isinstance(node.expression, exp.Anonymous):
            raise SqlError("qualified call is not supported", sqlstate="0A000", position=position_of(node))
        return self._call(node.expression, place)

    def _aggregate(self, node: exp.Expression, name: str, place: Place, filtered: str, over: str) -> Bound:
        position = position_of(node)
        if not place.aggregates and not over:
            raise SqlError(
                f"aggregate functions are not allowed in {place.clause}", sqlstate="42803", position=position
            )
        inner = Place(place.scope, place.clause, aggregates=bool(over) and place.aggregates)
        if over:
            inner.grouped = place.grouped
        star = len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Star)
        nodes, distinct, order = _arguments(node.expressions)
        if not over:
            self._refuse_nested(nodes, position)
        arguments = [] if star else [self.bind(argument, inner) for argument in nodes]
        if not star and not arguments and name == "count":
            raise SqlError(
                "count(*) must be used to call a parameterless aggregate function", sqlstate="42809", position=position
            )
        ordering = self.order(order, inner) if order is not None else ""
        shape = aggregates.Shape(distinct, ordering, filtered, over)
        sql, kind = aggregates.aggregate(name, arguments, star, shape, self.facts, position)
        loose = tuple(item for argument in arguments for item in argument.loose) if over else ()
        volatile = any(argument.volatile for argument in arguments)
        return Bound(
            sql, kind, nullable=name != "count", position=position, loose=loose,
            aggregate=not over or any(a.aggregate for a in arguments), window=bool(over), volatile=volatile,
        )  # fmt: skip

    def _refuse_nested(self, nodes: list[exp.Expression], position: int | None) -> None:
        for node in nodes:
            for call in node.find_all(exp.Anonymous):
                nested = call.find_ancestor(exp.Select) is node.find_ancestor(exp.Select)
                if nested and aggregates.is_aggregate(call_name(call)):
                    raise SqlError(
                        "aggregate function calls cannot be nested",
                        sqlstate="42803",
                        position=position_of(call) or position,
                    )

    def order(self, node: exp.Expression, place: Place) -> str:
        """An ORDER BY over expressions (not over output names)."""
        parts = []
        for item in node.expressions:
            bound = self.typed(item.this, place)
            parts.append(bound.sql + direction(item))
        return "ORDER BY " + ", ".join(parts)

    def _filter(self, node: exp.Expression, place: Place, over: str = "") -> Bound:
        call = node.this
        if not isinstance(call, exp.Anonymous) or not aggregates.is_aggregate(call_name(call)):
            raise SqlError(
                "FILTER specified, but this is not an aggregate function", sqlstate="42809", position=position_of(node)
            )
        inner = Place(place.scope, "FILTER")
        condition = self.condition(node.expression.this, inner, "FILTER")
        return self._aggregate(call, call_name(call), place, f" FILTER (WHERE {condition.sql})", over)

    def _within_group(self, node: exp.Expression, place: Place) -> Bound:
        call, order = node.this, node.expression
        position = position_of(node)
        if not place.aggregates:
            raise SqlError(
                f"aggregate functions are not allowed in {place.clause}", sqlstate="42803", position=position
            )
        if not isinstance(call, exp.Anonymous) or len(call.expressions) != 1 or len(order.expressions) != 1:
            raise SqlError("WITHIN GROUP with these arguments is not supported", sqlstate="0A000", position=position)
        inner = Place(place.scope, place.clause)
        fraction = self.bind(call.expressions[0], inner)
        ordered = order.expressions[0]
        value = coerce(self.bind(ordered.this, inner), FLOAT8, self.facts)
        sql, kind = aggregates.ordered_set(call_name(call), fraction, value, value.sql + direction(ordered), self.facts)
        return Bound(sql, kind, position=position, aggregate=True)

    def _window(self, node: exp.Expression, place: Place) -> Bound:
        position = position_of(node)
        if not place.windows:
            raise SqlError(f"window functions are not allowed in {place.clause}", sqlstate="42P20", position=position)
        over, extra = self._over(node, place)
        call = node.this
        if isinstance(call, exp.Filter):
            bound = self._filter(call, place, over)
        elif isinstance(call, exp.Anonymous) and aggregates.is_aggregate(call_name(call)):
            bound = self._aggregate(call, call_name(call), place, "", over)
        elif isinstance(call, exp.Anonymous) and aggregates.is_window_only(call_name(call)):
            inner = Place(place.scope, place.clause, aggregates=place.aggregates, grouped=place.grouped)
            arguments = [self.bind(argument, inner) for argument in call.expressions]
            bound = aggregates.window_only(call_name(call), arguments, over, self.facts, position)
        else:
            raise SqlError("OVER specified, but this is not a window function", sqlstate="42809", position=position)
        made = bound.derive(bound.sql, bound.type, *extra, nullable=bound.nullable)
        return replace(made, window=True)

    def _over(self, node: exp.Expression, place: Place) -> tuple[str, list[Bound]]:
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
        keys = [self.typed(key, inner) for key in node.args.get("partition_by") or []]
        parts = ["PARTITION BY " + ", ".join(key.sql for key in keys)] if keys else []
        order = node.args.get("order")
        if order is not None:
            ordered = [(self.typed(item.this, inner), direction(item)) for item in order.expressions]
            parts.append("ORDER BY " + ", ".join(bound.sql + way for bound, way in ordered))
            keys += [bound for bound, _ in ordered]
        spec = node.args.get("spec")
        if spec is not None:
            parts.append(_frame(spec))
        return f" OVER ({' '.join(parts)})", keys

    # Special syntax

    def _extract(self, node: exp.Expression, place: Place) -> Bound:
        unit = node.this.name.lower()
        value = self.bind(node.expression, place)
        position = value.position
        if value.untyped:
            value = coerce(value, TIMESTAMP, self.facts)
        if value.type not in (DATE, TIMESTAMP, TIMESTAMPTZ, INTERVAL):
            raise SqlError(f"function extract({value.type}) does not exist", sqlstate="42883", position=position)
        return _extracted(unit, value, position)

    def _at_time_zone(self, node: exp.Expression, place: Place) -> Bound:
        value, zone = self.bind(node.this, place), self.bind(node.args["zone"], place)
        if zone.literal is not Literal.STRING or zone.value.upper() not in ("UTC", "GMT", "Z", "ETC/UTC"):
            raise SqlError("only the time zone UTC is supported", sqlstate="0A000", position=zone.position)
        if value.untyped or value.type == DATE:
            value = coerce(value, TIMESTAMPTZ, self.facts)
        if value.type not in (TIMESTAMP, TIMESTAMPTZ):
            raise op.no_operator("AT TIME ZONE", value, zone, value.position)
        return cast(value, TIMESTAMPTZ if value.type == TIMESTAMP else TIMESTAMP)

    def _substring(self, node: exp.Expression, place: Place) -> Bound:
        parts = [node.this, node.args.get("start"), node.args.get("length")]
        arguments = [self.bind(part, place) for part in parts if part is not None]
        if node.args.get("start") is None and node.args.get("length") is not None:
            arguments.insert(1, number("1", None))
        return calls.call("substring", arguments, self.facts, position_of(node))

    def _trim(self, node: exp.Expression, place: Place) -> Bound:
        names = {"LEADING": "ltrim", "TRAILING": "rtrim"}
        name = names.get(str(node.args.get("position") or "").upper(), "btrim")
        parts = [node.this, node.args.get("expression")]
        arguments = [self.bind(part, place) for part in parts if part is not None]
        return calls.call(name, arguments, self.facts, position_of(node))

    def _strpos(self, node: exp.Expression, place: Place) -> Bound:
        arguments = [self.bind(node.this, place), self.bind(node.args["substr"], place)]
        return calls.call("strpos", arguments, self.facts, position_of(node))

    def _overlay(self, node: exp.Expression, place: Place) -> Bound:
        parts = [node.this, node.expression, node.args.get("from_"), node.args.get("for_")]
        arguments = [self.bind(part, place) for part in parts if part is not None]
        return calls.call("overlay", arguments, self.facts, position_of(node))

    def _keyword_call(self, node: exp.Expression, place: Place) -> Bound:
        if node.this is not None:
            raise SqlError("a precision here is not supported", sqlstate="0A000", position=position_of(node))
        return calls.call(_KEYWORDS[type(node)], [], self.facts, position_of(node))

    # JSON and arrays

    def _json_access(self, node: exp.Expression, place: Place) -> Bound:
        value, key = self.bind(node.this, place), self.bind(node.expression, place)
        symbol = "->>" if isinstance(node, exp.JSONExtractScalar) else "->"
        if value.type != JSONB:
            raise op.no_operator(symbol, value, key, value.position)
        if key.untyped:
            key = coerce(key, TEXT, self.facts)
        if family(key.type) == "int":
            sql = f"ps_json_element({value.sql}, {cast(key, INT4).sql})"
        elif family(key.type) == "text":
            sql = f"ps_json_field({value.sql}, {key.sql})"
        else:
            raise op.no_operator(symbol, value, key, value.position)
        bound = value.derive(sql, JSONB, key, nullable=True)
        return bound if symbol == "->" else bound.derive(f"ps_json_text({sql})", TEXT, nullable=True)

    def _json_path(self, node: exp.Expression, place: Place) -> Bound:
        value = self.bind(node.this, place)
        path = coerce(self.bind(node.expression, place), array_of(TEXT), self.facts)
        scalar = isinstance(node, exp.JSONBExtractScalar)
        if value.type != JSONB:
            raise op.no_operator("#>>" if scalar else "#>", value, path, value.position)
        sql = f"ps_json_path({value.sql}, {path.sql})"
        sql = f"ps_json_text({sql})" if scalar else sql
        return value.derive(sql, TEXT if scalar else JSONB, path, nullable=True)

    def _json_has_key(self, node: exp.Expression, place: Place) -> Bound:
        value = self.bind(node.this, place)
        key = coerce(self.bind(node.expression, place), TEXT, self.facts)
        if value.type != JSONB:
            raise op.no_operator("?", value, key, value.position)
        return value.derive(f"ps_json_has_key({value.sql}, {key.sql})", BOOL, key)

    def _contains(self, node: exp.Expression, place: Place) -> Bound:
        left, right = self.bind(node.this, place), self.bind(node.expression, place)
        if JSONB in (left.type, right.type):
            left, right = coerce(left, JSONB, self.facts), coerce(right, JSONB, self.facts)
            return left.derive(f"ps_json_contains({left.sql}, {right.sql})", BOOL, right)
        if left.type.element is not None or right.type.element is not None:
            made, _ = calls.unify([left, right], self.facts, "@>")
            return left.derive(f"array_has_all({made[0].sql}, {made[1].sql})", BOOL, right)
        raise op.no_operator("@>", left, right, left.position)

    def _array(self, node: exp.Expression, place: Place) -> Bound:
        if len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Query):
            return self._array_query(node.expressions[0], place)
        if not node.expressions:
            raise SqlError("cannot determine type of empty array", sqlstate="42P18", hint="Write '{}'::integer[].")
        items = [self.bind(item, place) for item in node.expressions]
        made, kind = calls.unify(items, self.facts, "ARRAY")
        return combine(f"make_array({', '.join(m.sql for m in made)})", array_of(kind), items, nullable=False)

    def _array_query(self, tree: exp.Expression, place: Place) -> Bound:
        query = self._queries.subquery(tree, place.scope)
        column = query.columns[0]
        alias = self.facts.fresh("q")
        sql = f'(SELECT array_agg("{alias}"."{column.ident}") FROM {query.parenthesised} AS "{alias}")'
        return Bound(sql, array_of(column.type), position=position_of(tree))

    def _subscript(self, node: exp.Expression, place: Place) -> Bound:
        value = self.bind(node.this, place)
        if value.type.element is None or len(node.expressions) != 1 or isinstance(node.expressions[0], exp.Slice):
            raise SqlError("this subscript is not supported", sqlstate="0A000", position=value.position)
        index = self.bind(node.expressions[0], place)
        # sqlglot has moved the index to count from zero
        moved = op.arithmetic("+", index, number("1", None), self.facts, index.position)
        return value.derive(
            f"array_element({value.sql}, {cast(moved, INT8).sql})", value.type.element, moved, nullable=True
        )

    def _collate(self, node: exp.Expression, place: Place) -> Bound:
        name = node.expression.name
        if name not in ("C", "POSIX", "default", "ucs_basic"):
            raise SqlError(f'collation "{name}" is not supported', sqlstate="0A000", position=position_of(node))
        return self._text(node.this, place, "COLLATE")

    def _alias(self, node: exp.Expression, place: Place) -> Bound:
        raise SqlError("an alias is not allowed here", sqlstate="42601", position=position_of(node))

    def _star(self, node: exp.Expression, place: Place) -> Bound:
        raise SqlError("* is not allowed here", sqlstate="42601", position=position_of(node))


def number(text: str, position: int | None) -> Bound:
    """A number literal: integer, bigint or numeric, whichever holds it first."""
    value = Decimal(text)
    if text.isdigit() and int(text) < 2**63:
        kind = INT4 if int(text) < 2**31 else INT8
        plain = str(int(text))
        return Bound(plain, kind, nullable=False, literal=Literal.NUMBER, value=plain, position=position)
    plain = f"{value:f}"
    whole, _, fraction = plain.partition(".")
    whole = whole.lstrip("0")
    if len(whole) + len(fraction) > 38 or len(fraction) > 38:
        if len(whole) > 22:  # beyond any numeric we carry
            return Bound(f"CAST('{float(text)!r}' AS DOUBLE)", FLOAT8, nullable=False, value=text, position=position)
        plain = f"{literals.round_numeric(value, 16):f}"
        fraction = plain.partition(".")[2]
    kind = numeric(max(len(whole) + len(fraction), 1), len(fraction))
    plain = f"CAST('{plain}' AS {df_type(kind)})"
    return Bound(plain, kind, nullable=False, literal=None, value=text, position=position)


def call_name(node: exp.Expression) -> str:
    name = node.this
    return folded(name) if isinstance(name, exp.Identifier) else str(name).lower()


def data_type(node: exp.Expression, position: int | None) -> SqlType:
    """The type that sqlglot read in a cast."""
    text = node.sql(dialect="postgres")
    try:
        return type_named(_SPELLINGS.get(text, text))
    except SqlError as error:
        raise SqlError(error.message, sqlstate=error.sqlstate, hint=error.hint, position=position) from None


_SPELLINGS = {"TIMESTAMPTZ": "timestamptz", "USMALLINT": "uint2", "UINT": "uint4", "UBIGINT": "uint8", "CHAR": "char"}


def direction(item: exp.Expression) -> str:
    """DESC and NULLS FIRST/LAST of one ORDER BY entry; NULLs are greatest unless said otherwise."""
    descending = bool(item.args.get("desc"))
    nulls_first = item.args.get("nulls_first")
    first = descending if nulls_first is None else bool(nulls_first)
    return f"{' DESC' if descending else ' ASC'} NULLS {'FIRST' if first else 'LAST'}"


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


_INTEGRAL_PARTS = {
    "year", "quarter", "month", "week", "day", "hour", "minute", "dow", "doy", "isodow", "isoyear",
}  # fmt: skip


def _extracted(unit: str, value: Bound, position: int | None) -> Bound:
    """EXTRACT gives numeric: whole units without, seconds and smaller with six digits after the point."""
    unit = {"years": "year", "months": "month", "days": "day", "hours": "hour", "minutes": "minute",
            "seconds": "second", "weeks": "week"}.get(unit, unit)  # fmt: skip
    micros = f"CAST(date_part('microsecond', {value.sql}) AS DECIMAL(20, 0))"
    if unit in _INTEGRAL_PARTS:
        kind = numeric(10, 0)
        return value.derive(f"CAST(date_part('{unit}', {value.sql}) AS {df_type(kind)})", kind)
    if unit == "epoch":
        kind = numeric(38, 6)
        if value.type in (TIMESTAMP, TIMESTAMPTZ, DATE):
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


_KEYWORDS: dict[type, str] = {
    exp.CurrentTimestamp: "current_timestamp",
    exp.CurrentDate: "current_date",
    exp.Localtimestamp: "localtimestamp",
    exp.CurrentUser: "current_user",
    exp.CurrentRole: "current_role",
    exp.SessionUser: "session_user",
    exp.CurrentCatalog: "current_catalog",
    exp.CurrentSchema: "current_schema",
}

_HANDLERS: dict[type, Callable[[Any, Any, Place], Bound]] = {
    exp.Column: Expressions._column,
    exp.Literal: Expressions._literal,
    exp.Null: Expressions._null,
    exp.Boolean: Expressions._boolean,
    exp.ByteString: Expressions._escape_string,
    exp.RawString: Expressions._escape_string,
    exp.National: Expressions._escape_string,
    exp.UnicodeString: Expressions._escape_string,
    exp.HexString: Expressions._hex_string,
    exp.BitString: Expressions._hex_string,
    exp.Parameter: Expressions._parameter,
    exp.Interval: Expressions._interval,
    exp.And: Expressions._and_or,
    exp.Or: Expressions._and_or,
    exp.Not: Expressions._not,
    exp.Neg: Expressions._neg,
    exp.Paren: Expressions._paren,
    exp.Is: Expressions._is,
    exp.Between: Expressions._between,
    exp.In: Expressions._in,
    exp.Exists: Expressions._exists,
    exp.Subquery: Expressions._subquery,
    exp.Select: Expressions._subquery,
    exp.DPipe: Expressions._concat,
    exp.Like: Expressions._like,
    exp.ILike: Expressions._like,
    exp.Escape: Expressions._escape,
    exp.SimilarTo: Expressions._similar,
    exp.RegexpLike: Expressions._regex,
    exp.RegexpILike: Expressions._regex,
    exp.Cast: Expressions._cast,
    exp.TryCast: Expressions._cast,
    exp.Case: Expressions._case,
    exp.Anonymous: Expressions._call,
    exp.Dot: Expressions._qualified_call,
    exp.Filter: Expressions._filter,
    exp.WithinGroup: Expressions._within_group,
    exp.Window: Expressions._window,
    exp.Tuple: Expressions._tuple,
    exp.Extract: Expressions._extract,
    exp.AtTimeZone: Expressions._at_time_zone,
    exp.Substring: Expressions._substring,
    exp.Trim: Expressions._trim,
    exp.StrPosition: Expressions._strpos,
    exp.Overlay: Expressions._overlay,
    exp.JSONExtract: Expressions._json_access,
    exp.JSONExtractScalar: Expressions._json_access,
    exp.JSONBExtract: Expressions._json_path,
    exp.JSONBExtractScalar: Expressions._json_path,
    exp.JSONBContains: Expressions._json_has_key,
    exp.ArrayContainsAll: Expressions._contains,
    exp.Array: Expressions._array,
    exp.Bracket: Expressions._subscript,
    exp.Collate: Expressions._collate,
    exp.Alias: Expressions._alias,
    exp.Star: Expressions._star,
    **dict.fromkeys(_KEYWORDS, Expressions._keyword_call),
}
