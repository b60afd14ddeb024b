"""Binding of queries: FROM, grouping, set operations, WITH; and of what they are made of, SELECT by SELECT.

The SQL that comes out is fully resolved: every relation has an alias used once, every column is qualified and quoted,
collections are called by their ids, views are written out in place. DataFusion has no name left to resolve.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from sqlglot import exp

from penstock.runtime import InternalError, SqlError
from penstock.sql import statements as st
from penstock.sql.bound import Bound, BoundQuery, Facts, Literal, OutColumn, folded, ident, position_of
from penstock.sql.casts import Context, coerce, common_type
from penstock.sql.expressions import Expressions
from penstock.sql.from_clause import FromClause
from penstock.sql.items import CatalogItem, CatalogView
from penstock.sql.parse import parse_one
from penstock.sql.places import Place, call_name, direction
from penstock.sql.scopes import Cte, Relation, Scope, renamed, table_columns, unique_idents
from penstock.sql.types import INT8, TEXT, UNKNOWN, SqlType

_MAX_VIEW_DEPTH = 64
_MAX_SUBQUERY_DEPTH = 14


class Queries:
    """Binds the queries of one statement against one catalog."""

    def __init__(self, facts: Facts, catalog: CatalogView) -> None:
        self.facts = facts
        self.catalog = catalog
        self.expressions: Expressions = Expressions(facts, self)
        self.sources = FromClause(self)
        self._view_depth = 0
        self._subquery_depth = 0

    def query(self, tree: exp.Expression, scope: Scope) -> BoundQuery:
        """A query expression of any kind; `scope` is what surrounds it."""
        inner = Scope(parent=scope)
        prefix = self._with(tree, inner)
        body = self._body(tree, inner)
        return BoundQuery(prefix + body.sql, body.columns) if prefix else body

    def subquery(self, tree: exp.Expression, scope: Scope) -> BoundQuery:
        """A query inside an expression. DataFusion's time doubles with each inside another: too many are 54001."""
        if self._subquery_depth >= _MAX_SUBQUERY_DEPTH:
            raise SqlError(
                f"subqueries in expressions are nested more than {_MAX_SUBQUERY_DEPTH} deep",
                sqlstate="54001",
                hint="Put inner ones into FROM.",
                position=position_of(tree),
            )
        self._subquery_depth += 1
        try:
            return self.query(tree, scope)
        finally:
            self._subquery_depth -= 1

    def regclass(self, name: str, position: int | None) -> int:
        try:
            parsed = parse_one(f"TABLE {name}")
            assert isinstance(parsed, st.Query)
            table = parsed.tree.find(exp.Table)
            if table is None:
                raise SqlError(f'invalid name syntax: "{name}"', sqlstate="42602")
            item = self.catalog.resolve(tuple(folded(part) for part in table.parts))
        except SqlError as error:
            raise SqlError(error.message, sqlstate=error.sqlstate, position=position) from None
        return item.oid

    def resolve(self, parts: tuple[str, ...], position: int | None) -> CatalogItem:
        """The item in the catalog, with the position of the name in any error."""
        try:
            item = self.catalog.resolve(parts)
        except SqlError as error:
            raise SqlError(
                error.message, sqlstate=error.sqlstate, hint=error.hint, detail=error.detail, position=position
            ) from None
        if item.desc is None:
            raise SqlError(f'"{parts[-1]}" is not a relation', sqlstate="42809", position=position)
        return item

    # WITH

    def _with(self, tree: exp.Expression, scope: Scope) -> str:
        clause = tree.args.get("with_")
        if clause is None:
            return ""
        entries = []
        recursive = False
        for cte in clause.expressions:
            name = folded(cte.args["alias"].this)
            position = position_of(cte.args["alias"])
            if name in scope.ctes:
                raise SqlError(
                    f'WITH query name "{name}" specified more than once', sqlstate="42712", position=position
                )
            names = [folded(column) for column in cte.args["alias"].args.get("columns") or []]
            emitted = self.facts.fresh(name)
            if clause.args.get("recursive") and _mentions(cte.this, name):
                bound = self._recursive(cte.this, scope, name, emitted, names)
                recursive = True
            else:
                bound = self.query(cte.this, scope)
            columns = renamed(bound.columns, names, name, position)
            scope.ctes[name] = Cte(emitted, columns)
            entries.append(f"{ident(emitted)} AS {bound.parenthesised}")
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(entries)} "

    def _recursive(self, tree: exp.Expression, scope: Scope, name: str, emitted: str, names: list[str]) -> BoundQuery:
        """``base UNION [ALL] step``, where the step reads what was found before."""
        position = position_of(tree)
        if not isinstance(tree, exp.Union) or tree.args.get("with_") is not None:
            raise SqlError(
                f'recursive query "{name}" does not have the form non-recursive-term UNION [ALL] recursive-term',
                sqlstate="42P19",
                position=position,
            )
        if any(tree.args.get(key) is not None for key in ("order", "limit", "offset")):
            raise SqlError(
                "ORDER BY or LIMIT in a recursive query is not supported", sqlstate="0A000", position=position
            )
        if _mentions(tree.this, name):
            raise SqlError(
                f'recursive reference to query "{name}" must not appear within its non-recursive term',
                sqlstate="42P19",
                position=position,
            )
        self.facts.recursive = True
        base = self.query(tree.this, scope)
        columns = renamed(tuple(replace(column, nullable=True) for column in base.columns), names, name, position)
        inner = Scope(parent=scope)
        inner.ctes[name] = Cte(emitted, columns)
        step = self.query(tree.expression, inner)
        if len(step.columns) != len(columns):
            raise _column_counts("UNION", position)
        for index, (first, second) in enumerate(zip(columns, step.columns, strict=True), 1):
            if common_type([first.type, second.type]) is None or first.type.name != second.type.name:
                raise SqlError(
                    f'recursive query "{name}" column {index} has type {first.type} in non-recursive term but type '
                    f"{second.type} overall",
                    sqlstate="42804",
                    hint="Cast the output of the non-recursive term to the correct type.",
                    position=position,
                )
        kinds = [column.type for column in columns]
        step = self.as_types(step, kinds)
        word = "UNION" if tree.args.get("distinct") else "UNION ALL"
        return BoundQuery(f"{base.parenthesised} {word} {step.parenthesised}", columns)

    # Bodies

    def _body(self, tree: exp.Expression, scope: Scope) -> BoundQuery:
        if isinstance(tree, exp.Subquery):
            inner = self.query(tree.this, scope)
            return self._modified(inner, tree, scope)
        if isinstance(tree, exp.SetOperation):
            return self._set_operation(tree, scope)
        if isinstance(tree, exp.Values):
            return self._modified(self.values(tree, scope), tree, scope)
        if isinstance(tree, exp.Select):
            return self._select(tree, scope)
        if isinstance(tree, exp.Table):
            return self._select(exp.Select(expressions=[exp.Star()], from_=exp.From(this=tree.copy())), scope)
        raise SqlError(f"{type(tree).__name__} is not a query", sqlstate="0A000", position=position_of(tree))

    def values(self, tree: exp.Expression, scope: Scope, wanted: list[SqlType | None] | None = None) -> BoundQuery:
        """VALUES; `wanted`: the types of the columns it is inserted into, where a literal should take them."""
        place = Place(scope, "VALUES")
        rows = [
            [self.expressions.bind(item, place) for item in (row.expressions if isinstance(row, exp.Tuple) else [row])]
            for row in tree.expressions
        ]
        width = len(rows[0])
        if any(len(row) != width for row in rows):
            raise SqlError("VALUES lists must all be the same length", sqlstate="42601", position=position_of(tree))
        kinds: list[SqlType] = []
        for index in range(width):
            cells = [row[index] for row in rows]
            kind = common_type([cell.type for cell in cells])
            if kind is None:
                raise SqlError("VALUES types cannot be matched", sqlstate="42804", position=cells[0].position)
            if wanted is not None and all(cell.untyped for cell in cells) and index < len(wanted):
                kind = wanted[index] or kind
            kinds.append(kind if kind != UNKNOWN else TEXT)
        written = []
        for row in rows:
            cells = [coerce(cell, kind, self.facts) for cell, kind in zip(row, kinds, strict=True)]
            written.append("(" + ", ".join(cell.sql for cell in cells) + ")")
        nullable = [any(row[i].nullable for row in rows) for i in range(width)]
        columns = unique_idents([f"column{i + 1}" for i in range(width)], kinds, nullable)
        alias = self.facts.fresh("values")
        names = ", ".join(ident(column.ident) for column in columns)
        return BoundQuery(f"SELECT * FROM (VALUES {', '.join(written)}) AS {ident(alias)} ({names})", columns)

    def _set_operation(self, tree: exp.Expression, scope: Scope) -> BoundQuery:
        left, right = self.query(tree.this, scope), self.query(tree.expression, scope)
        word = type(tree).__name__.upper()
        position = position_of(tree.expression)
        if tree.args.get("by_name"):
            raise SqlError("UNION BY NAME is not supported", sqlstate="0A000", position=position)
        if len(left.columns) != len(right.columns):
            raise _column_counts(word, position)
        kinds = []
        for a, b in zip(left.columns, right.columns, strict=True):
            kind = common_type([UNKNOWN if side.open else side.type for side in (a, b)])
            if kind is None:
                raise SqlError(
                    f"{word} types {a.type} and {b.type} cannot be matched", sqlstate="42804", position=position
                )
            kinds.append(TEXT if kind == UNKNOWN else kind)
        opened = [[column.open for column in side.columns] for side in (left, right)]
        left, right = self.as_types(left, kinds), self.as_types(right, kinds)
        nullable = [
            a.nullable or (b.nullable and word == "UNION") for a, b in zip(left.columns, right.columns, strict=True)
        ]
        columns = tuple(
            replace(column, type=kind, nullable=null, open=a and b)
            for column, kind, null, a, b in zip(left.columns, kinds, nullable, *opened, strict=True)
        )
        everything = not tree.args.get("distinct")
        if everything and word in ("EXCEPT", "INTERSECT"):
            sql = self._with_multiplicities(left, right, word)
        else:
            sql = f"{left.parenthesised} {word}{' ALL' if everything else ''} {right.parenthesised}"
        return self._modified(BoundQuery(sql, columns), tree, scope)

    def _with_multiplicities(self, left: BoundQuery, right: BoundQuery, word: str) -> str:
        """EXCEPT ALL and INTERSECT ALL: number equal rows, then compare numbered rows as sets."""
        sides = []
        for side in (left, right):
            names = ", ".join(ident(column.ident) for column in side.columns)
            listed = ", ".join(
                f"{ident(a.ident)} AS {ident(b.ident)}" for a, b in zip(side.columns, left.columns, strict=True)
            )
            alias = ident(self.facts.fresh("side"))
            number = f'row_number() OVER (PARTITION BY {names} ORDER BY {names}) AS "#"'
            sides.append(f"(SELECT {listed}, {number} FROM {side.parenthesised} AS {alias})")
        names = ", ".join(ident(column.ident) for column in left.columns)
        return f"SELECT {names} FROM ({sides[0]} {word} {sides[1]}) AS {ident(self.facts.fresh('both'))}"

    def as_types(self, query: BoundQuery, kinds: list[SqlType], context: Context = Context.IMPLICIT) -> BoundQuery:
        """`query` with its columns cast to `kinds`, where they differ."""
        if [column.type for column in query.columns] == kinds:
            return query
        alias = self.facts.fresh("typed")
        parts, columns = [], []
        for column, kind in zip(query.columns, kinds, strict=True):
            bound = Bound(f"{ident(alias)}.{ident(column.ident)}", column.type, nullable=column.nullable)
            made = coerce(bound, kind, self.facts, Context.EXPLICIT if column.open else context)
            parts.append(f"{made.sql} AS {ident(column.ident)}")
            columns.append(replace(column, type=kind, open=False))
        return BoundQuery(f"SELECT {', '.join(parts)} FROM {query.parenthesised} AS {ident(alias)}", tuple(columns))

    def _modified(self, query: BoundQuery, tree: exp.Expression, scope: Scope) -> BoundQuery:
        """ORDER BY, LIMIT and OFFSET after a set operation, VALUES or parentheses: over output columns only."""
        order, tail = tree.args.get("order"), self.limits(tree, scope)
        if order is None and not tail:
            return query
        alias = self.facts.fresh("ordered")
        relation = Relation("", alias, query.columns)
        parts = []
        if order is not None:
            inner = Scope(parent=scope, relations=[relation])
            for item in order.expressions:
                index = ordinal(item.this, len(query.columns), "ORDER BY")
                if index is not None:
                    bound = relation.bound(query.columns[index])
                else:
                    bound = self.expressions.typed(item.this, Place(inner, "ORDER BY"))
                parts.append(bound.sql + direction(item))
        names = ", ".join(f"{ident(alias)}.{ident(c.ident)} AS {ident(c.ident)}" for c in query.columns)
        sql = f"SELECT {names} FROM {query.parenthesised} AS {ident(alias)}"
        ordering = f" ORDER BY {', '.join(parts)}" if parts else ""
        return BoundQuery(sql + ordering + tail, query.columns)

    def limits(self, tree: exp.Expression, scope: Scope) -> str:
        """LIMIT and OFFSET as text, with a space before; constants or parameters only."""
        out = ""
        limit = tree.args.get("limit")
        if isinstance(limit, exp.Fetch):
            if limit.args.get("limit_options") is not None and "ties" in str(limit.args["limit_options"]).lower():
                raise SqlError("WITH TIES is not supported", sqlstate="0A000", position=position_of(limit))
            out += self._limit(limit.args.get("count"), "LIMIT", scope, default="1")
        elif limit is not None:
            out += self._limit(limit.expression, "LIMIT", scope)
        offset = tree.args.get("offset")
        if offset is not None:
            out += self._limit(offset.expression, "OFFSET", scope)
        return out

    def _limit(self, node: exp.Expression | None, word: str, scope: Scope, default: str = "") -> str:
        if node is None:
            return f" {word} {default}"
        if isinstance(node, exp.Null) or (isinstance(node, exp.Column) and folded(node.this) == "all"):
            return ""
        bound = self.expressions.bind(node, Place(Scope(parent=None), word))
        made = coerce(bound, INT8, self.facts, Context.ASSIGNMENT)
        if bound.literal is Literal.NUMBER:
            if bound.value.startswith("-"):
                raise SqlError(
                    f"{word} must not be negative",
                    sqlstate="2201W" if word == "LIMIT" else "2201X",
                    position=bound.position,
                )
            return f" {word} {bound.value}"
        return f" {word} {made.sql}"

    # SELECT

    def _select(self, tree: exp.Expression, outer: Scope) -> BoundQuery:
        from penstock.sql.select import SelectBinder

        return SelectBinder(self, tree, outer).bind()

    # Relations

    def collection(self, item: CatalogItem, position: int | None) -> tuple[str, tuple[OutColumn, ...]]:
        """How FROM reads an item: SQL and columns. Views are written out."""
        self.facts.uses.add(item.id)
        if item.kind == "view":
            query = self._view(item, position)
            return query.parenthesised, query.columns
        name = str(item.id)
        self.facts.inputs[name] = item.id
        return ident(name), table_columns(item)

    def _view(self, item: CatalogItem, position: int | None) -> BoundQuery:
        if self._view_depth >= _MAX_VIEW_DEPTH:
            raise SqlError(f"views are nested more than {_MAX_VIEW_DEPTH} deep", sqlstate="54001", position=position)
        self._view_depth += 1
        direct = set(self.facts.uses)
        try:
            query = self.query(_view_tree(item.create_sql), Scope())
        except SqlError as error:
            raise SqlError(
                f"view {'.'.join(item.name)} cannot be read: {error.message}",
                sqlstate=error.sqlstate,
                position=position,
            ) from error
        finally:
            self._view_depth -= 1
        self.facts.uses = direct  # what a view uses is the view's own dependency
        desc = item.desc
        if desc is None or len(desc.columns) != len(query.columns):
            raise InternalError(f"view {item.id} describes {desc} but its query has {len(query.columns)} columns")
        query = self.as_types(query, [column.type for column in desc.columns])
        columns = tuple(
            OutColumn(described.name, column.ident, described.type, column.nullable)
            for described, column in zip(desc.columns, query.columns, strict=True)
        )
        return BoundQuery(query.sql, columns)


@lru_cache(maxsize=512)
def _view_tree(create_sql: str) -> exp.Expression:
    """The query of a view's CREATE statement. Trees are never modified, so they can be kept."""
    statement = parse_one(create_sql)
    assert isinstance(statement, st.CreateView | st.CreateMaterializedView), statement
    return statement.query.tree


def _column_counts(word: str, position: int | None) -> SqlError:
    return SqlError(f"each {word} query must have the same number of columns", sqlstate="42601", position=position)


def _mentions(tree: exp.Expression, name: str) -> bool:
    return any(
        len(table.parts) == 1 and isinstance(table.this, exp.Identifier) and folded(table.this) == name
        for table in tree.find_all(exp.Table)
    )


def ordinal(node: exp.Expression, count: int, clause: str) -> int | None:
    """The zero-based index of an output column given by number, None for any other expression."""
    if not isinstance(node, exp.Literal) or node.args.get("is_string"):
        return None
    if not node.name.isdigit():
        raise SqlError(f"non-integer constant in {clause}", sqlstate="42601", position=position_of(node))
    index = int(node.name)
    if not 1 <= index <= count:
        raise SqlError(f"{clause} position {index} is not in select list", sqlstate="42P10", position=position_of(node))
    return index - 1


def output_name(node: exp.Expression) -> str:
    """The name PostgreSQL gives an output column that has no alias."""
    if isinstance(node, exp.Alias):
        return folded(node.args["alias"])
    if isinstance(node, exp.Column):
        return folded(node.this)
    if isinstance(node, exp.Anonymous):
        return call_name(node)
    if isinstance(node, exp.Dot):
        return output_name(node.expression)
    if isinstance(node, exp.Cast):
        named = "?column?" if isinstance(node.this.unnest(), exp.Cast) else output_name(node.this)
        return named if named != "?column?" else _TYPE_NAMES.get(_type_word(node), _type_word(node))
    if isinstance(node, exp.Paren | exp.Collate | exp.Bracket | exp.Window | exp.Filter | exp.WithinGroup):
        return output_name(node.this)
    if isinstance(node, exp.Subquery):
        inner = node.this
        return output_name(inner.expressions[0]) if isinstance(inner, exp.Select) and inner.expressions else "?column?"
    if isinstance(node, exp.Case):
        default = node.args.get("default")
        named = output_name(default) if isinstance(default, exp.Column) else "case"
        return named if named != "?column?" else "case"
    return _NODE_NAMES.get(type(node), "?column?")


def _type_word(node: exp.Expression) -> str:
    return node.args["to"].sql(dialect="postgres").split("(")[0].lower()


_TYPE_NAMES = {
    "int": "int4", "integer": "int4", "bigint": "int8", "smallint": "int2", "boolean": "bool", "decimal": "numeric",
    "double precision": "float8", "real": "float4", "character varying": "varchar", "char": "bpchar",
}  # fmt: skip
_NODE_NAMES: dict[type, str] = {
    exp.Exists: "exists", exp.Extract: "extract", exp.Substring: "substring", exp.Trim: "btrim",
    exp.StrPosition: "position", exp.Overlay: "overlay", exp.Array: "array", exp.Interval: "interval",
    exp.CurrentTimestamp: "current_timestamp", exp.CurrentDate: "current_date",
    exp.Localtimestamp: "localtimestamp", exp.CurrentUser: "current_user", exp.CurrentRole: "current_role",
    exp.SessionUser: "session_user", exp.CurrentCatalog: "current_catalog", exp.CurrentSchema: "current_schema",
    exp.Tuple: "row", exp.AtTimeZone: "timezone", exp.Boolean: "bool",
}  # fmt: skip
