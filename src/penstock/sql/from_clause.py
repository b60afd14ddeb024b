"""FROM: tables, views, WITH entries, subqueries, functions, and the joins between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from sqlglot import exp

from penstock.runtime import SqlError
from penstock.sql.bound import Bound, BoundQuery, Facts, OutColumn, combine, folded, ident, position_of
from penstock.sql.casts import coerce
from penstock.sql.expressions import Expressions
from penstock.sql.items import CatalogItem
from penstock.sql.lateral import top_k
from penstock.sql.operators import comparison
from penstock.sql.places import Place, call_name
from penstock.sql.scopes import Merged, Relation, Scope, renamed


class Binder(Protocol):
    """What FROM needs of the query binder."""

    facts: Facts
    expressions: Expressions

    def query(self, tree: exp.Expression, scope: Scope) -> BoundQuery: ...

    def resolve(self, parts: tuple[str, ...], position: int | None) -> CatalogItem: ...

    def collection(self, item: CatalogItem, position: int | None) -> tuple[str, tuple[OutColumn, ...]]: ...


_UNSUPPORTED_TABLE = {"pivots": "PIVOT", "sample": "TABLESAMPLE", "ordinality": "WITH ORDINALITY", "only": "ONLY"}


class FromClause:
    """Binds FROM into a scope and SQL."""

    def __init__(self, binder: Binder) -> None:
        self._binder = binder
        self._conditions: list[str] = []

    def bind(self, tree: exp.Expression, scope: Scope) -> str:
        """The FROM clause of a SELECT, "" when it has none; fills `scope`."""
        clause = tree.args.get("from_")
        if clause is None:
            return ""
        sql = self._joined(clause.this, scope)
        for join in tree.args.get("joins") or []:
            sql = self._join(sql, join, scope)
        return f" FROM {sql}"

    def _joined(self, node: exp.Expression, scope: Scope) -> str:
        """A relation with the joins that sqlglot hangs below it."""
        sql = self._source(node, scope)
        for join in node.args.get("joins") or []:
            sql = self._join(sql, join, scope)
        return sql

    def _source(self, node: exp.Expression, scope: Scope) -> str:
        for key, what in _UNSUPPORTED_TABLE.items():
            if node.args.get(key):
                raise SqlError(f"{what} is not supported", sqlstate="0A000", position=position_of(node))
        if isinstance(node, exp.Table):
            if isinstance(node.this, exp.Anonymous):
                return self._function(node.this, node, scope)
            return self._table(node, scope)
        if isinstance(node, exp.Subquery):
            if not isinstance(node.this, exp.Query):
                return f"({self._joined(node.this, scope)})"
            return self._derived(node, node.this, scope, lateral=False)
        if isinstance(node, exp.Values):
            return self._derived(node, node, scope, lateral=False)
        if isinstance(node, exp.Lateral):
            if isinstance(node.this, exp.Subquery):
                return self._top_k(node, scope) or "LATERAL " + self._derived(node, node.this.this, scope, lateral=True)
            return self._function(node.this, node, scope)
        if isinstance(node, exp.Unnest):
            if node.args.get("offset"):
                raise SqlError("WITH ORDINALITY is not supported", sqlstate="0A000", position=position_of(node))
            return self._function(node, node, scope)
        if isinstance(node, exp.Paren):
            return f"({self._joined(node.this, scope)})"
        raise SqlError(f"{type(node).__name__} in FROM is not supported", sqlstate="0A000", position=position_of(node))

    def _alias(self, node: exp.Expression) -> tuple[str, list[str]]:
        alias = node.args.get("alias")
        if alias is None:
            return "", []
        name = folded(alias.this) if alias.this is not None else ""
        return name, [
            folded(column.this if isinstance(column, exp.ColumnDef) else column)
            for column in alias.args.get("columns") or []
        ]

    def _table(self, node: exp.Expression, scope: Scope) -> str:
        parts = tuple(folded(part) for part in node.parts)
        position = position_of(node)
        alias, names = self._alias(node)
        cte = scope.cte(parts[0]) if len(parts) == 1 else None
        if cte is not None:
            sql, columns, item = ident(cte.emitted), cte.columns, None
        else:
            item = self._binder.resolve(parts, position)
            sql, columns = self._binder.collection(item, position)
        columns = renamed(columns, names, alias or parts[-1], position)
        return self._add(sql, alias or parts[-1], columns, scope, position, item)

    def _derived(self, node: exp.Expression, query: exp.Expression, scope: Scope, *, lateral: bool) -> str:
        """A subquery in FROM. One that is not LATERAL sees what surrounds this FROM, not its neighbours."""
        alias, names = self._alias(node)
        position = position_of(node)
        around = scope if lateral else Scope(parent=scope.parent, ctes=scope.ctes)
        bare = query
        if isinstance(node, exp.Values):
            bare = exp.Values(expressions=node.expressions)
        bound = self._binder.query(bare, around)
        columns = renamed(bound.columns, names, alias, position)
        return self._add(bound.parenthesised, alias, columns, scope, position, None)

    def _top_k(self, node: exp.Expression, scope: Scope) -> str | None:
        """LATERAL with LIMIT as a numbered subquery; the condition that selects its rows goes to the join."""
        tree = node.this.this
        if not isinstance(tree, exp.Select) or tree.args.get("limit") is None:
            return None
        neighbours = Scope(parent=scope.parent, relations=list(scope.relations), merged=scope.merged, ctes=scope.ctes)
        alone = Scope(parent=scope.parent, ctes=scope.ctes)
        inner = Scope(parent=alone)
        self.bind(tree, inner)
        found = top_k(self._binder.expressions, tree, neighbours, inner)
        if found is None:
            return None
        alias, names = self._alias(node)
        position = position_of(node)
        bound = self._binder.query(found.tree, alone)
        extra = len(found.keys) + 1
        relation = Relation(alias, "", bound.columns)
        sql = self._add(
            bound.parenthesised, alias, renamed(bound.columns[:-extra], names, alias, position), scope, position, None
        )
        relation.emitted = scope.relations[-1].emitted
        number = relation.bound(bound.columns[-1]).sql
        conditions = [
            comparison("=", relation.bound(column), key, self._binder.facts, position).sql
            for column, key in zip(bound.columns[-extra:-1], found.keys, strict=True)
        ]
        conditions += [f"{number} > {found.offset}"] if found.offset else []
        conditions += [f"{number} <= {found.offset + found.limit}"] if found.limit is not None else []
        self._conditions.append(" AND ".join(conditions))
        return sql

    def _function(self, call: exp.Expression, node: exp.Expression, scope: Scope) -> str:
        """generate_series or unnest as a relation of one column."""
        expressions = self._binder.expressions
        alias, names = self._alias(node)
        position = position_of(call) or position_of(node)
        name = "unnest" if isinstance(call, exp.Unnest) else call_name(call) if isinstance(call, exp.Anonymous) else ""
        if name not in ("unnest", "generate_series"):
            raise SqlError(
                f"function {name or type(call).__name__} in FROM is not supported", sqlstate="0A000", position=position
            )
        neighbours = Scope(parent=scope.parent, relations=list(scope.relations), ctes=scope.ctes)
        arguments = [expressions.bind(argument, Place(neighbours, "FROM")) for argument in call.expressions]
        made = expressions.set_returning(name, arguments, position)
        if any(argument.loose for argument in arguments):
            raise SqlError(
                f"{name} over columns of other relations in FROM is not supported",
                sqlstate="0A000",
                hint=f"Call {name} in the SELECT list of a subquery over those relations.",
                position=position,
            )
        label = (names[0] if names else alias) or name
        columns = (OutColumn(label, "value", made.type, made.nullable),)
        return self._add(f'(SELECT {made.sql} AS "value")', alias or name, columns, scope, position, None)

    def _add(
        self, sql: str, alias: str, columns: tuple[OutColumn, ...], scope: Scope, position: int | None,
        item: CatalogItem | None,
    ) -> str:  # fmt: skip
        emitted = self._binder.facts.fresh(alias or "subquery")
        scope.add(Relation(alias, emitted, columns, item), position)
        return f"{sql} AS {ident(emitted)}"

    # Joins

    def _join(self, left_sql: str, join: exp.Expression, scope: Scope) -> str:
        before = len(scope.relations)
        lefts = list(scope.relations)
        merged_before = list(scope.merged)
        right_sql = self._joined(join.this, scope)
        rights = scope.relations[before:]
        side, kind = str(join.args.get("side") or "").upper(), str(join.args.get("kind") or "").upper()
        method = str(join.args.get("method") or "").upper()
        if kind in ("SEMI", "ANTI", "STRAIGHT") or method in ("ASOF", "POSITIONAL"):
            raise SqlError(f"{kind or method} JOIN is not supported", sqlstate="0A000", position=position_of(join))
        using, on = join.args.get("using"), join.args.get("on")
        if method == "NATURAL":
            using = self._natural(lefts, rights, merged_before)
        condition = None
        word = f"{side} JOIN" if side else "INNER JOIN"
        if using is not None:
            condition = self._using(
                [folded(u) if not isinstance(u, str) else u for u in using],
                scope,
                lefts,
                rights,
                merged_before,
                side,
                join,
            )
        elif on is not None:
            place = Place(
                Scope(parent=scope.parent, relations=scope.relations, merged=scope.merged, ctes=scope.ctes), "JOIN/ON"
            )
            condition = self._binder.expressions.condition(on, place, "JOIN/ON").sql
        elif side:
            raise SqlError(f"{side} JOIN needs ON or USING", sqlstate="42601", position=position_of(join))
        if self._conditions:  # from a LATERAL on the right side
            condition = " AND ".join([*self._conditions, *([condition] if condition is not None else [])])
            self._conditions = []
        for relation in rights if side in ("LEFT", "FULL") else ():
            relation.nullable = True
        for relation in lefts if side in ("RIGHT", "FULL") else ():
            relation.nullable = True
        for earlier in merged_before if side in ("RIGHT", "FULL") else ():
            earlier.bound = replace(earlier.bound, nullable=True)
        if condition is None:
            return f"{left_sql} CROSS JOIN {right_sql}"
        return f"({left_sql} {word} {right_sql} ON {condition})"

    def _natural(self, lefts: list[Relation], rights: list[Relation], merged: list[Merged]) -> list[str]:
        theirs = {column.name for relation in rights for column in relation.columns}
        ours = [m.name for m in merged] + [c.name for relation in lefts for c in relation.columns]
        return [name for name in dict.fromkeys(ours) if name in theirs]

    def _using(
        self, names: list[str], scope: Scope, lefts: list[Relation], rights: list[Relation], merged: list[Merged],
        side: str, join: exp.Expression,
    ) -> str:  # fmt: skip
        """Equality per column; each becomes one column of the result, the one that is not NULL."""
        facts = self._binder.facts
        position = position_of(join)
        left_scope, right_scope = Scope(relations=lefts, merged=merged), Scope(relations=rights)
        parts = []
        for name in names:
            sides = []
            for which, own in (("left", left_scope), ("right", right_scope)):
                try:
                    sides.append(own.column((), name, position))
                except SqlError as error:
                    if error.sqlstate != "42703":
                        raise
                    raise SqlError(
                        f'column "{name}" specified in USING clause does not exist in {which} table',
                        sqlstate="42703",
                        position=position,
                    ) from None
            a, b = sides
            parts.append(comparison("=", a, b, facts, position).sql)
            if side == "FULL":
                value = self._either(a, b)
            else:
                value = b if side == "RIGHT" else a
            members = [(r, c) for r in (*lefts, *rights) for c in r.columns if c.name == name]
            old = next((m for m in scope.merged if m.name == name), None)
            if old is not None:
                scope.merged.remove(old)
            scope.merged.append(Merged(name, value, members))
        return " AND ".join(parts) or "TRUE"

    def _either(self, a: Bound, b: Bound) -> Bound:
        second = coerce(b, a.type, self._binder.facts) if b.type != a.type else b
        return replace(combine(f"coalesce({a.sql}, {second.sql})", a.type, [a, b]), nullable=True)
