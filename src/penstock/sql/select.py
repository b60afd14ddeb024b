"""One SELECT: its clauses in the order in which they mean something."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from penstock.runtime import SqlError
from penstock.sql.bound import Bound, BoundQuery, Literal, OutColumn, folded, ident, position_of
from penstock.sql.casts import arrow_name, resolve_unknown
from penstock.sql.places import Place, direction
from penstock.sql.scopes import Scope, unique_idents

if TYPE_CHECKING:
    from penstock.sql.queries import Queries

_UNSUPPORTED = {
    "into": "SELECT INTO", "locks": "FOR UPDATE or FOR SHARE", "qualify": "QUALIFY", "sample": "TABLESAMPLE",
    "cluster": "CLUSTER BY", "distribute": "DISTRIBUTE BY", "sort": "SORT BY", "laterals": "LATERAL VIEW",
    "connect": "CONNECT BY", "hint": "a hint", "kind": "SELECT AS", "prewhere": "PREWHERE",
}  # fmt: skip


class SelectBinder:
    """Binds one SELECT inside `outer`."""

    def __init__(self, queries: Queries, tree: exp.Expression, outer: Scope) -> None:
        self._queries = queries
        self._expressions = queries.expressions
        self._tree = tree
        self._scope = Scope(parent=outer)
        self._names: list[str] = []
        self._items: list[Bound] = []
        self._open: set[int] = set()

    def bind(self) -> BoundQuery:
        for key, what in _UNSUPPORTED.items():
            if self._tree.args.get(key):
                raise SqlError(f"{what} is not supported", sqlstate="0A000", position=position_of(self._tree))
        source = self._queries.sources.bind(self._tree, self._scope)
        where = self._where()
        groups, group_sql = self._group_by()
        having_node = self._tree.args.get("having")
        grouped = {bound.sql: written for bound, written in groups}
        windows = {folded(w.this): w for w in self._tree.args.get("windows") or []}
        place = Place(self._scope, "SELECT", True, True, grouped, windows, rolled_up=self._rolled_up())
        self._select_list(place)
        having = ""
        parts = list(self._items)
        if having_node is not None:
            condition = self._expressions.condition(
                having_node.this, Place(self._scope, "HAVING", True, False, grouped), "HAVING"
            )
            having = f" HAVING {condition.sql}"
            parts.append(condition)
        order_items = self._order(place)
        parts += [bound for bound, _, _ in order_items if bound is not None]
        if group_sql or having or any(part.aggregate for part in parts):
            _check_grouping(parts)
        sql, columns = self._written(source, where, group_sql, having, order_items)
        sql += self._queries.limits(self._tree, self._scope)
        return BoundQuery(sql, columns)

    def _where(self) -> str:
        node = self._tree.args.get("where")
        if node is None:
            return ""
        return " WHERE " + self._expressions.condition(node.this, Place(self._scope, "WHERE"), "WHERE").sql

    # GROUP BY

    def _group_by(self) -> tuple[list[tuple[Bound, str]], str]:
        """The grouping expressions with how they are written, and the clause."""
        group = self._tree.args.get("group")
        if group is None:
            return [], ""
        if group.args.get("all") or group.args.get("totals"):
            raise SqlError("GROUP BY ALL is not supported", sqlstate="0A000", position=position_of(group))
        bounds: list[tuple[Bound, str]] = []
        parts = []
        for node in group.expressions:
            parts.append(self._grouping(node, bounds))
        for key in ("grouping_sets", "rollup", "cube"):
            for node in group.args.get(key) or []:
                parts.append(self._grouping(node, bounds))
        return bounds, " GROUP BY " + ", ".join(parts)

    def _rolled_up(self) -> bool:
        group = self._tree.args.get("group")
        return group is not None and group.find(exp.GroupingSets, exp.Rollup, exp.Cube) is not None

    def _grouping(self, node: exp.Expression, bounds: list[tuple[Bound, str]]) -> str:
        word = {exp.GroupingSets: "GROUPING SETS", exp.Rollup: "ROLLUP", exp.Cube: "CUBE"}.get(type(node))
        if word is not None:
            inner = ", ".join(self._grouping(item, bounds) for item in node.expressions)
            return f"{word} ({inner})"
        if isinstance(node, exp.Tuple):
            return "(" + ", ".join(self._grouping(item, bounds) for item in node.expressions) + ")"
        if isinstance(node, exp.Paren):
            return f"({self._grouping(node.this, bounds)})"
        bound = self._group_expression(node)
        # several grouping sets may name one expression: it has one name
        known = next((written for other, written in bounds if other.sql == bound.sql), None)
        written = known or self._expressions.facts.distinct_name(bound, arrow_name(bound.type)).sql
        bounds.append((bound, written))
        return written

    def _group_expression(self, node: exp.Expression) -> Bound:
        """An expression, the number of an output column, or (when no input column has that name) an output name."""
        from penstock.sql.queries import ordinal, output_name

        place = Place(self._scope, "GROUP BY")
        index = ordinal(node, len(self._tree.expressions), "GROUP BY")
        if index is not None:
            return self._expressions.typed(_unaliased(self._tree.expressions[index]), place)
        try:
            return self._expressions.typed(node, place)
        except SqlError as error:
            if error.sqlstate != "42703" or not isinstance(node, exp.Column) or len(node.parts) > 1:
                raise
            for item in self._tree.expressions:
                if isinstance(item, exp.Alias) and output_name(item) == folded(node.this):
                    return self._expressions.typed(item.this, place)
            raise

    # SELECT list

    def _select_list(self, place: Place) -> None:
        from penstock.sql.queries import output_name

        for node in self._tree.expressions:
            if isinstance(node, exp.Star) or (isinstance(node, exp.Column) and isinstance(node.this, exp.Star)):
                self._star(node)
                continue
            bound = self._expressions.bind(_unaliased(node), place)
            if bound.literal in (Literal.STRING, Literal.NULL):
                self._open.add(len(self._items))
            self._names.append(output_name(node))
            self._items.append(resolve_unknown(bound, self._expressions.facts))

    def _star(self, node: exp.Expression) -> None:
        star = node if isinstance(node, exp.Star) else node.this
        for key in ("except_", "replace", "rename"):
            if star.args.get(key):
                raise SqlError(
                    f"* {key.strip('_').upper()} is not supported", sqlstate="0A000", position=position_of(node)
                )
        qualifier = () if isinstance(node, exp.Star) else tuple(folded(part) for part in node.parts[:-1])
        for name, bound in self._scope.star(qualifier, position_of(node)):
            self._names.append(name)
            self._items.append(bound)

    # ORDER BY

    def _order(self, place: Place) -> list[tuple[Bound | None, int | None, str]]:
        """Per entry: an expression or the index of an output column, and the direction."""
        from penstock.sql.queries import ordinal

        order = self._tree.args.get("order")
        entries: list[tuple[Bound | None, int | None, str]] = []
        for item in order.expressions if order is not None else ():
            index = ordinal(item.this, len(self._items), "ORDER BY")
            if index is None:
                index = self._output(item.this)
            if index is not None:
                entries.append((None, index, direction(item)))
                continue
            bound = self._expressions.typed(item.this, replace(place, clause="ORDER BY"))
            same = next((i for i, known in enumerate(self._items) if known.sql == bound.sql), None)
            entries.append((None, same, direction(item)) if same is not None else (bound, None, direction(item)))
        return entries

    def _output(self, node: exp.Expression) -> int | None:
        """The output column that a bare name means; output names win over input columns here."""
        if not isinstance(node, exp.Column) or len(node.parts) > 1 or isinstance(node.this, exp.Star):
            return None
        name = folded(node.this)
        found = [index for index, known in enumerate(self._names) if known == name]
        if len({self._items[index].sql for index in found}) > 1:
            raise SqlError(f'ORDER BY "{name}" is ambiguous', sqlstate="42702", position=position_of(node))
        return found[0] if found else None

    # The whole

    def _written(
        self, source: str, where: str, group: str, having: str, order: list[tuple[Bound | None, int | None, str]]
    ) -> tuple[str, tuple[OutColumn, ...]]:  # fmt: skip
        columns = unique_idents(
            self._names, [item.type for item in self._items], [item.nullable for item in self._items]
        )
        columns = tuple(replace(c, open=i in self._open) for i, c in enumerate(columns))
        if not columns:
            raise SqlError(
                "a SELECT without columns is not supported", sqlstate="0A000", position=position_of(self._tree)
            )
        listed = ", ".join(
            f"{item.sql} AS {ident(column.ident)}" for item, column in zip(self._items, columns, strict=True)
        )
        ordering = [(bound.sql if bound is not None else str((index or 0) + 1)) + way for bound, index, way in order]
        distinct = self._tree.args.get("distinct")
        if distinct is not None and distinct.args.get("on") is not None:
            return self._distinct_on(distinct.args["on"], listed, source + where + group + having, order, columns)
        if distinct is not None and any(bound is not None for bound, _, _ in order):
            raise SqlError(
                "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
                sqlstate="42P10",
                position=next(bound.position for bound, _, _ in order if bound is not None),
            )
        head = "SELECT DISTINCT " if distinct is not None else "SELECT "
        tail = f" ORDER BY {', '.join(ordering)}" if ordering else ""
        return head + listed + source + where + group + having + tail, columns

    def _distinct_on(
        self,
        on: exp.Expression,
        listed: str,
        rest: str,
        order: list[tuple[Bound | None, int | None, str]],
        columns: tuple[OutColumn, ...],
    ) -> tuple[str, tuple[OutColumn, ...]]:
        """DISTINCT ON as the first row per key by row_number, which incremental views maintain as a top-k."""
        nodes = on.expressions if isinstance(on, exp.Tuple) else [on]
        keys = []
        for node in nodes:
            from penstock.sql.queries import ordinal

            index = ordinal(node, len(self._items), "DISTINCT ON")
            index = self._output(node) if index is None else index
            bound = (
                self._items[index]
                if index is not None
                else self._expressions.typed(node, Place(self._scope, "DISTINCT ON", True))
            )
            keys.append(bound.sql)
        wanted = [(bound.sql if bound is not None else self._items[index or 0].sql, way) for bound, index, way in order]
        if {sql for sql, _ in wanted[: len(set(keys))]} - set(keys) or (wanted and len(wanted) < len(set(keys))):
            raise SqlError(
                "SELECT DISTINCT ON expressions must match initial ORDER BY expressions",
                sqlstate="42P10",
                position=position_of(on),
            )
        inner_order = ", ".join(sql + way for sql, way in wanted) or ", ".join(keys)
        number = f'row_number() OVER (PARTITION BY {", ".join(keys)} ORDER BY {inner_order}) AS "#"'
        extras = "".join(f', {sql} AS "#{i}"' for i, (sql, _) in enumerate(wanted))
        alias = ident(self._expressions.facts.fresh("distinct_on"))
        names = ", ".join(f"{alias}.{ident(c.ident)} AS {ident(c.ident)}" for c in columns)
        sql = f'SELECT {names} FROM (SELECT {listed}, {number}{extras}{rest}) AS {alias} WHERE {alias}."#" = 1'
        if wanted:
            sql += " ORDER BY " + ", ".join(f'{alias}."#{i}"{way}' for i, (_, way) in enumerate(wanted))
        return sql, columns


def _unaliased(node: exp.Expression) -> exp.Expression:
    return node.this if isinstance(node, exp.Alias) else node


def _check_grouping(parts: list[Bound]) -> None:
    for part in parts:
        for name, position in part.loose:
            raise SqlError(
                f'column "{name}" must appear in the GROUP BY clause or be used in an aggregate function',
                sqlstate="42803",
                position=position,
            )
