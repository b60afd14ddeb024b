"""Parameters of catalog queries: their types, from the casts around them, and their values as literals."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from penstock.sql.types import TEXT, SqlType, type_by_oid, type_named


def parameter_types(tree: exp.Expression, given: Sequence[int]) -> list[SqlType]:
    """One type per parameter: what the client declared, else what a cast says, else text."""
    found: dict[int, SqlType] = {}
    for node in tree.find_all(exp.Parameter, exp.Placeholder):
        number = parameter_number(node)
        found.setdefault(number, TEXT)
        parent = node.parent
        if isinstance(parent, exp.Cast):
            written = parent.to.sql(dialect="postgres").lower().removeprefix("pg_catalog.")
            found[number] = TEXT if written.startswith("reg") else type_named(written)
    for index, oid in enumerate(given):
        if oid:
            found[index + 1] = type_by_oid(oid)
    return [found.get(number, TEXT) for number in range(1, max(found, default=0) + 1)]


def parameter_number(node: exp.Expression) -> int:
    """The N of $N, 0 for anything else."""
    text = node.this.name if isinstance(node.this, exp.Expression) else str(node.this or "")
    return int(text) if text.isdigit() else 0


def literal(value: object | None) -> exp.Expression:
    """A parameter's value as an expression. What is neither number, boolean nor list goes as text."""
    if value is None:
        return exp.null()
    if isinstance(value, bool):
        return exp.Boolean(this=value)
    if isinstance(value, int):
        return exp.Literal.number(value)
    if isinstance(value, list):
        return exp.Anonymous(this="make_array", expressions=[literal(item) for item in value])
    return exp.Literal.string(str(value))
