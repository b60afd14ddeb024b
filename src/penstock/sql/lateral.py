"""LATERAL subqueries with LIMIT: the first rows per row of the left side.

DataFusion cannot run them, but ``FROM k, LATERAL (SELECT ... WHERE x.key = k.key ORDER BY ... LIMIT n)`` is how users
of Materialize ask for the top n per group. Such a subquery is rewritten into an ordinary one that numbers its
rows per key, and a join on the key and the number.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from penstock.runtime import SqlError
from penstock.sql.bound import Bound, position_of
from penstock.sql.places import Binder, Place
from penstock.sql.scopes import Scope

NUMBER = "#n"


@dataclass(frozen=True, slots=True)
class TopK:
    """`tree`: a query without correlation whose last columns are the keys and the row number. `keys`: what each key
    equals on the left side. `offset`, `limit`: which numbers are kept."""

    tree: exp.Expression
    keys: tuple[Bound, ...]
    offset: int
    limit: int | None


def top_k(binder: Binder, tree: exp.Expression, neighbours: Scope, inner: Scope) -> TopK | None:
    """`tree` as a top-k per key, None when it has no LIMIT or is correlated in another way than by equalities.

    `neighbours`: what LATERAL lets it see. `inner`: its own FROM, bound without LATERAL.
    """
    if not isinstance(tree, exp.Select) or any(tree.args.get(k) for k in ("group", "having", "distinct", "with_")):
        return None
    limit, offset = _constant(tree.args.get("limit")), _constant(tree.args.get("offset"))
    if tree.args.get("limit") is None or limit is None:
        return None
    local: list[exp.Expression] = []
    keys: list[tuple[exp.Expression, Bound]] = []
    where = tree.args.get("where")
    for conjunct in where.this.flatten() if where is not None and isinstance(where.this, exp.And) else _one(where):
        if _binds(binder, conjunct, inner) is not None:
            local.append(conjunct)
            continue
        key = _key(binder, conjunct, inner, neighbours)
        if key is None:
            return None
        keys.append(key)
    if not keys:
        return None
    made = tree.copy()
    for clause in ("limit", "offset", "order", "where"):
        made.set(clause, None)
    if local:
        made.set("where", exp.Where(this=exp.and_(*(part.copy() for part in local))))
    partition = [node.copy() for node, _ in keys]
    order = tree.args.get("order")
    numbered = exp.Window(
        this=exp.Anonymous(this="row_number"),
        partition_by=partition,
        order=_resolved_order(tree, order) if order is not None else None,
        over="OVER",
    )
    extra = [exp.alias_(node.copy(), f"#k{i}", quoted=True) for i, (node, _) in enumerate(keys)]
    made.set("expressions", [*made.expressions, *extra, exp.alias_(numbered, NUMBER, quoted=True)])
    return TopK(made, tuple(bound for _, bound in keys), offset or 0, limit)


def _one(where: exp.Expression | None) -> list[exp.Expression]:
    return [] if where is None else [where.this]


def _constant(clause: exp.Expression | None) -> int | None:
    node = clause.args.get("count") if isinstance(clause, exp.Fetch) else clause.expression if clause else None
    return int(node.name) if isinstance(node, exp.Literal) and node.name.isdigit() else None


def _binds(binder: Binder, node: exp.Expression, scope: Scope) -> Bound | None:
    """`node` bound in `scope`, None when it names something that is not there."""
    try:
        return binder.typed(node, Place(scope, "WHERE"))
    except SqlError as error:
        if error.sqlstate in ("42703", "42P01"):
            return None
        raise


def _key(
    binder: Binder, conjunct: exp.Expression, inner: Scope, neighbours: Scope
) -> tuple[exp.Expression, Bound] | None:
    """An equality between an expression of the subquery and one of the left side."""
    conjunct = conjunct.unnest()
    if not isinstance(conjunct, exp.EQ):
        return None
    for own, other in ((conjunct.this, conjunct.expression), (conjunct.expression, conjunct.this)):
        if _binds(binder, own, inner) is not None:
            outside = _binds(binder, other, neighbours)
            if outside is not None:
                return own, outside
    return None


def _resolved_order(tree: exp.Expression, order: exp.Expression) -> exp.Expression:
    """ORDER BY with output names and numbers replaced by what they stand for: a window sees only input columns."""
    made = order.copy()
    named = {item.alias: item.this for item in tree.expressions if isinstance(item, exp.Alias)}
    for item in made.expressions:
        node = item.this
        if isinstance(node, exp.Literal) and not node.args.get("is_string"):
            index = int(node.name) - 1 if node.name.isdigit() else -1
            if not 0 <= index < len(tree.expressions):
                raise SqlError("ORDER BY position is not in select list", sqlstate="42P10", position=position_of(node))
            item.set("this", tree.expressions[index].unalias().copy())
        elif isinstance(node, exp.Column) and not node.table and node.name in named:
            item.set("this", named[node.name].copy())
    return made
