"""Binding of scalar expressions: every node of the tree becomes SQL for DataFusion and a type.

A node that is not listed is refused by its name; nothing passes through unread, because what DataFusion accepts it may
understand differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlglot import exp

from penstock.runtime import DataError, SqlError
from penstock.sql import aggregate_calls, aggregates, calls, literals, predicates, special_calls
from penstock.sql import operators as op
from penstock.sql.bound import Bound, Facts, Literal, combine, folded, ident, position_of, string
from penstock.sql.casts import Context, cast, coerce, common_type, df_type, family, interval_constant, resolve_unknown
from penstock.sql.dialect import AssignmentCast
from penstock.sql.lateral import top_k
from penstock.sql.numbers import number
from penstock.sql.places import Place, Queries, call_name
from penstock.sql.scopes import Scope
from penstock.sql.types import (
    BOOL,
    DATE,
    INT4,
    INT8,
    INTERVAL,
    OID,
    RECORD,
    TIMESTAMP,
    TIMESTAMPTZ,
    UNKNOWN,
    SqlType,
    type_named,
)  # fmt: skip

_BINARY = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%", exp.Pow: "^"}


class Expressions:
    """Binds expressions of one statement."""

    def __init__(self, facts: Facts, queries: Queries) -> None:
        self.facts = facts
        self.queries = queries

    def bind(self, node: exp.Expression, place: Place) -> Bound:
        """`node` as SQL with a type; SqlError with a position when it means nothing."""
        kind = type(node)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            bound: Bound = handler(self, node, place)
        elif kind in _BINARY:
            bound = self._binary(node, place)
        elif kind in predicates.COMPARE:
            bound = predicates.compare(self, node, place)
        else:
            raise SqlError(
                f"{kind.__name__} expressions are not supported", sqlstate="0A000", position=position_of(node)
            )
        if place.grouped and bound.sql in place.grouped:
            bound = replace(bound, loose=(), sql=place.grouped[bound.sql], nullable=bound.nullable or place.rolled_up)
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
                bound = replace(
                    bound, loose=(), sql=place.grouped[bound.sql], nullable=bound.nullable or place.rolled_up
                )
        return bound

    def _neg(self, node: exp.Expression, place: Place) -> Bound:
        inner = self.bind(node.this, place)
        return op.negate(inner, self.facts, inner.position)

    def _paren(self, node: exp.Expression, place: Place) -> Bound:
        return self.bind(node.this, place)

    def _subquery(self, node: exp.Expression, place: Place) -> Bound:
        first = self._first_row(node.unnest(), place)
        if first is not None:
            return first
        query = self.queries.subquery(node, place.scope)
        if len(query.columns) != 1:
            raise SqlError("subquery must return only one column", sqlstate="42601", position=position_of(node))
        return Bound(query.parenthesised, query.columns[0].type, position=position_of(node))

    def _first_row(self, tree: exp.Expression, place: Place) -> Bound | None:
        """A correlated ``(SELECT x ... LIMIT 1)``, which DataFusion cannot run, as an aggregate that it can."""
        if tree.args.get("limit") is None or not isinstance(tree, exp.Select) or len(tree.expressions) != 1:
            return None
        alone = place.scope.without_relations()
        inner = Scope(parent=alone)
        self.queries.sources.bind(tree, inner)
        found = top_k(self, tree, place.scope, inner)
        if found is None or found.limit != 1 or found.offset:
            return None
        query = self.queries.subquery(found.tree, alone)
        alias = self.facts.fresh("first")
        value, number = query.columns[0], query.columns[-1]
        pairs = [
            op.comparison("=", Bound(f"{ident(alias)}.{ident(c.ident)}", c.type), key, self.facts, None).sql
            for c, key in zip(query.columns[1:-1], found.keys, strict=True)
        ]
        pick = "bool_or" if value.type == BOOL else "max"
        sql = (
            f"(SELECT {pick}({ident(alias)}.{ident(value.ident)}) FROM {query.parenthesised} AS {ident(alias)}"
            f" WHERE {' AND '.join(pairs)} AND {ident(alias)}.{ident(number.ident)} = 1)"
        )
        return Bound(sql, value.type, position=position_of(tree))

    def _concat(self, node: exp.Expression, place: Place) -> Bound:
        left, right = self.bind(node.this, place), self.bind(node.expression, place)
        return op.concatenate(left, right, self.facts, right.position)

    # Patterns

    # Conversions and conditionals

    def _cast(self, node: exp.Expression, place: Place) -> Bound:
        if isinstance(node, exp.TryCast):
            raise SqlError("TRY_CAST is not supported", sqlstate="0A000", position=position_of(node))
        target = data_type(node.args["to"], position_of(node))
        bound = self.bind(node.this, place)
        position = bound.position
        if isinstance(node, AssignmentCast):
            return coerce(bound, target, self.facts, Context.ASSIGNMENT)
        if target.name in ("regclass", "regtype", "regproc") and bound.literal is Literal.STRING:
            return self._registered(bound, target)
        if bound.literal is Literal.STRING and isinstance(node.this, exp.Literal):
            return coerce(bound, target, self.facts)
        if bound.parameter is not None:
            return coerce(bound, target, self.facts, Context.EXPLICIT)
        return replace(coerce(bound, target, self.facts, Context.EXPLICIT), position=position)

    def _registered(self, bound: Bound, target: SqlType) -> Bound:
        if target.name == "regclass":
            number = self.queries.regclass(bound.value, bound.position)
        elif target.name == "regtype":
            number = type_named(bound.value).oid
        else:
            raise SqlError("regproc names are not supported", sqlstate="0A000", position=bound.position)
        return Bound(f"CAST({number} AS {df_type(OID)})", target, nullable=False, position=bound.position)

    def _case(self, node: exp.Expression, place: Place) -> Bound:
        subject = self.bind(node.this, place) if node.this is not None else None
        conditions: list[Bound] = []
        branches, default = list(node.args["ifs"]), node.args.get("default")
        while subject is None and isinstance(default, exp.Case) and default.this is None:
            # ELSE CASE ... END is more branches: DataFusion's planning time grows fourfold with a CASE in a CASE
            branches += default.args["ifs"]
            default = default.args.get("default")
        for branch in branches:
            if subject is None:
                conditions.append(self.condition(branch.this, place, "CASE/WHEN"))
            else:
                when = self.bind(branch.this, place)
                conditions.append(op.comparison("=", subject, when, self.facts, when.position))
        results = [self.bind(branch.args["true"], place) for branch in branches]
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
            return aggregate_calls.aggregate_call(self, node, name, place, "", "")
        if name == "array" and len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Query):
            return special_calls.array_query(self, node.expressions[0], place)
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

    # Special syntax

    # JSON and arrays

    def _alias(self, node: exp.Expression, place: Place) -> Bound:
        raise SqlError("an alias is not allowed here", sqlstate="42601", position=position_of(node))

    def _star(self, node: exp.Expression, place: Place) -> Bound:
        raise SqlError("* is not allowed here", sqlstate="42601", position=position_of(node))


def data_type(node: exp.Expression, position: int | None) -> SqlType:
    """The type that sqlglot read in a cast."""
    text = node.sql(dialect="postgres")
    try:
        return type_named(_SPELLINGS.get(text, text))
    except SqlError as error:
        raise SqlError(error.message, sqlstate=error.sqlstate, hint=error.hint, position=position) from None


_SPELLINGS = {"TIMESTAMPTZ": "timestamptz", "USMALLINT": "uint2", "UINT": "uint4", "UBIGINT": "uint8", "CHAR": "char"}


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
    exp.And: predicates.and_or,
    exp.Or: predicates.and_or,
    exp.Not: predicates.negation,
    exp.Neg: Expressions._neg,
    exp.Paren: Expressions._paren,
    exp.Is: predicates.is_test,
    exp.Between: predicates.between,
    exp.In: predicates.in_list,
    exp.Exists: predicates.exists,
    exp.Subquery: Expressions._subquery,
    exp.Select: Expressions._subquery,
    exp.DPipe: Expressions._concat,
    exp.Like: predicates.like,
    exp.ILike: predicates.like,
    exp.Escape: predicates.escape,
    exp.SimilarTo: predicates.similar,
    exp.RegexpLike: predicates.regex,
    exp.RegexpILike: predicates.regex,
    exp.Cast: Expressions._cast,
    exp.TryCast: Expressions._cast,
    AssignmentCast: Expressions._cast,
    exp.Case: Expressions._case,
    exp.Anonymous: Expressions._call,
    exp.Dot: Expressions._qualified_call,
    exp.Filter: aggregate_calls.filtered,
    exp.WithinGroup: aggregate_calls.within_group,
    exp.Window: aggregate_calls.window_call,
    exp.Tuple: Expressions._tuple,
    exp.Extract: special_calls.extract,
    exp.AtTimeZone: special_calls.at_time_zone,
    exp.Substring: special_calls.substring,
    exp.Trim: special_calls.trim,
    exp.StrPosition: special_calls.strpos,
    exp.Overlay: special_calls.overlay,
    exp.JSONExtract: special_calls.json_access,
    exp.JSONExtractScalar: special_calls.json_access,
    exp.JSONBExtract: special_calls.json_path,
    exp.JSONBExtractScalar: special_calls.json_path,
    exp.JSONBContains: special_calls.json_has_key,
    exp.ArrayContainsAll: special_calls.contains,
    exp.Array: special_calls.array_constructor,
    exp.Bracket: special_calls.subscript,
    exp.Collate: special_calls.collate,
    exp.Alias: Expressions._alias,
    exp.Star: Expressions._star,
    **dict.fromkeys(special_calls.KEYWORDS, special_calls.keyword_call),
}
