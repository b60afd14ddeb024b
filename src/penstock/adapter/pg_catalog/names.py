"""What PostgreSQL would call the columns of a result."""

from __future__ import annotations

from sqlglot import exp

from penstock.adapter.pg_catalog.type_rows import type_name
from penstock.runtime import SqlError
from penstock.sql.types import type_named

_UNNAMED = "?column?"


def name_outputs(tree: exp.Expression) -> list[str | None]:
    """Names of the result's columns; the tree's own projections get aliases that are unique.

    A star's columns are named None: they come named. PostgreSQL lets columns share a name, DataFusion does not,
    hence the aliases; one that a client wrote itself is kept, because ORDER BY may use it.
    """
    select = tree
    while isinstance(select, exp.SetOperation | exp.Subquery):
        select = select.this
    if not isinstance(select, exp.Select):
        return []
    names: list[str | None] = []
    taken: set[str] = set()
    projections: list[exp.Expression] = []
    for position, projection in enumerate(select.expressions):
        if projection.is_star:
            names.append(None)
            projections.append(projection)
            continue
        name = output_name(projection)
        names.append(name)
        plain = isinstance(projection, exp.Alias | exp.Column) or bool(projection.alias)
        if plain and name.lower() not in taken:
            taken.add(name.lower())
            projections.append(projection)
        else:
            projections.append(exp.alias_(projection.unalias(), f"column_{position}", quoted=True))
    select.set("expressions", projections)
    return names


def output_name(projection: exp.Expression) -> str:
    """The name of one column: its alias, column, function or type, as PostgreSQL chooses."""
    return _figure(projection)[0] or _UNNAMED


def _figure(node: exp.Expression) -> tuple[str, int]:
    """A name and how strong it is: 2 of a column or function, 1 of a type or CASE, 0 none."""
    match node:
        case exp.Alias() | exp.Subquery() if node.alias:
            return node.alias, 2
        case exp.Column():
            return node.name, 2
        case exp.Dot():
            return _figure(node.expression)
        case exp.Cast():
            name, strength = _figure(node.this)
            return (name, strength) if strength > 1 else (_type_name(node.to), 1)
        case exp.Paren() | exp.Bracket() | exp.Collate():
            return _figure(node.this)
        case exp.Subquery() if isinstance(node.this, exp.Select):
            return _figure(node.this.expressions[0])
        case exp.Exists():
            return "exists", 2
        case exp.Case():
            default = node.args.get("default")
            name, strength = _figure(default) if isinstance(default, exp.Expression) else ("", 0)
            return (name, strength) if strength > 1 else ("case", 1)
        case exp.Anonymous():
            return str(node.this).lower(), 2
        case exp.Trim():
            return {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(node.text("position").upper(), "btrim"), 2
        case exp.Func() if not isinstance(node, exp.Predicate | exp.Binary):
            return node.sql_name().lower(), 2
        case exp.Boolean():
            return "bool", 1
    return "", 0


def _type_name(kind: exp.Expression) -> str:
    written = kind.sql(dialect="postgres").lower().rpartition(".")[2]
    try:
        return type_name(type_named(written))
    except SqlError:
        return written
