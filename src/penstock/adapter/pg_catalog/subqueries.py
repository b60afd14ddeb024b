"""Correlated scalar subqueries in a form that DataFusion can turn into joins.

DataFusion wants two things: that an aggregate proves there is at most one row, and that a subquery meets the outer
query only in equalities. The queries of clients give neither, but are close:

* a condition on outer columns alone becomes a CASE around the subquery;
* where ``inner = outer`` holds, any other mention of the outer column means the inner one.
"""

from __future__ import annotations

from sqlglot import exp

from penstock.adapter.pg_catalog.shapes import shapes

_AGGREGATES = {"array_agg", "string_agg", "count", "max", "min", "sum", "avg", "bool_or", "bool_and", "every"}
_NOT_SCALAR = (exp.From, exp.Join, exp.In, exp.SetOperation, exp.CTE, exp.Exists, exp.Lateral)


def has_aggregate(select: exp.Select) -> bool:
    """Whether a SELECT makes groups: it then has a row even over nothing, or is grouped on purpose."""
    if select.args.get("group"):
        return True
    for projection in select.expressions:
        for call in projection.find_all(exp.Anonymous, exp.AggFunc):
            if call.find_ancestor(exp.Select) is not select:
                continue
            if isinstance(call, exp.AggFunc) or str(call.this).lower() in _AGGREGATES:
                return True
    return False


def count_instead_of_exists(exists: exp.Exists) -> None:
    """EXISTS in a select list, which DataFusion knows only as a condition, becomes a count that is not zero."""
    node: exp.Expression = exists
    while node.parent is not None and not isinstance(node.parent, exp.Select | exp.Where | exp.Join | exp.Having):
        node = node.parent
    select = exists.this.unnest()
    if not isinstance(node.parent, exp.Select) or node.arg_key != "expressions" or not isinstance(select, exp.Select):
        return
    select = select.copy()
    count = exp.Anonymous(this="count", expressions=[exp.Star()])
    select.set("expressions", [exp.GT(this=count, expression=exp.Literal.number(0))])
    select.set("order", None)
    exists.replace(exp.Subquery(this=select))


def ease_scalar_subquery(select: exp.Select) -> None:
    """Rewrite `select` in place when it is a scalar subquery with a FROM."""
    subquery = select.parent
    if not isinstance(subquery, exp.Subquery) or isinstance(subquery.parent, _NOT_SCALAR):
        return
    if len(select.expressions) != 1 or select.args.get("from_") is None:
        return
    if not has_aggregate(select):
        _aggregate(select)
    guards = _separate(select)
    if guards:
        alias = subquery.args.get("alias")
        inner = subquery.copy()
        inner.set("alias", None)
        case = exp.Case(ifs=[exp.If(this=exp.and_(*guards), true=inner)])
        subquery.replace(exp.Alias(this=case, alias=alias.this) if alias is not None else case)


def _aggregate(select: exp.Select) -> None:
    value = select.expressions[0].unalias()
    order = select.args.get("order")
    if order is not None or select.args.get("limit") is not None:
        keyed = exp.Order(this=value, expressions=order.expressions) if order is not None else value
        value = exp.Anonymous(this="first_value", expressions=[keyed])
        select.set("order", None)
        select.set("limit", None)
    else:
        value = exp.Anonymous(this="max", expressions=[value])
    select.set("expressions", [value])


def _separate(select: exp.Select) -> list[exp.Expression]:
    """Take out of WHERE what only concerns the outer query; rid the rest of needless outer columns."""
    where = select.args.get("where")
    if where is None:
        return []
    sources = _Sources(select)
    conjuncts = list(where.this.flatten()) if isinstance(where.this, exp.And) else [where.this]
    guards = [c for c in conjuncts if sources.columns(c) and all(map(sources.is_outer, sources.columns(c)))]
    rest = [c for c in conjuncts if c not in guards]
    equal: dict[str, exp.Column] = {}
    for conjunct in rest:
        pair = sources.equality(conjunct)
        if pair is not None:
            equal.setdefault(pair[1].sql(), pair[0])
    for conjunct in rest:
        if sources.equality(conjunct) is not None:
            continue
        for column in sources.columns(conjunct):
            if sources.is_outer(column) and column.sql() in equal:
                column.replace(equal[column.sql()].copy())
    select.set("where", exp.Where(this=exp.and_(*rest)) if rest else None)
    return guards


class _Sources:
    """What a SELECT reads, to tell its own columns from those of the queries around it."""

    def __init__(self, select: exp.Select) -> None:
        tables = [select.args["from_"].this, *(join.this for join in select.args.get("joins") or [])]
        self._aliases = {table.alias_or_name.lower() for table in tables}
        self._columns: set[str] = set()
        for table in tables:
            shape = shapes().get(table.name) if isinstance(table, exp.Table) else None
            if shape is not None:
                self._columns |= {column.name for column in shape.desc.columns}
        self._select = select

    def columns(self, node: exp.Expression) -> list[exp.Column]:
        return [c for c in node.find_all(exp.Column) if c.find_ancestor(exp.Select) in (self._select, None)]

    def is_outer(self, column: exp.Column) -> bool:
        if column.table:
            return column.table.lower() not in self._aliases
        return bool(self._columns) and column.name.lower() not in self._columns

    def equality(self, node: exp.Expression) -> tuple[exp.Column, exp.Column] | None:
        """(inner, outer) when `node` says that two columns are equal."""
        if not isinstance(node, exp.EQ):
            return None
        left, right = node.this, node.expression
        if not isinstance(left, exp.Column) or not isinstance(right, exp.Column):
            return None
        if self.is_outer(left) == self.is_outer(right):
            return None
        return (right, left) if self.is_outer(left) else (left, right)
