"""The statements that make objects, as the catalog keeps them: every name in full, so that they mean the same for
ever.

A rename changes names in these texts, and a restart plans from them. Only names are touched; the rest of a query
stays as its author wrote it.
"""

from __future__ import annotations

from sqlglot import exp

from penstock.catalog import SessionCatalog
from penstock.sql import RelationDesc
from penstock.sql import statements as ast
from penstock.sql.statements import quote_ident


def full_sql(name: tuple[str, ...]) -> str:
    """A full name as SQL."""
    return ".".join(quote_ident(part) for part in name if part)


def table_sql(name: tuple[str, str, str], desc: RelationDesc, defaults: tuple[str | None, ...]) -> str:
    """CREATE TABLE."""
    columns = []
    for column, default in zip(desc.columns, defaults, strict=True):
        text = f"{quote_ident(column.name)} {column.type}"
        text += "" if column.nullable else " NOT NULL"
        columns.append(text if default is None else f"{text} DEFAULT {default}")
    return f"CREATE TABLE {full_sql(name)} ({', '.join(columns)})"


def view_sql(
    statement: ast.CreateView | ast.CreateMaterializedView,
    name: tuple[str, str, str],
    catalog: SessionCatalog,
    cluster: str | None = None,
) -> str:
    """CREATE [MATERIALIZED] VIEW, with the relations of its query under their full names."""
    what = "MATERIALIZED VIEW" if isinstance(statement, ast.CreateMaterializedView) else "VIEW"
    columns = ""
    if statement.columns is not None:
        columns = f" ({', '.join(quote_ident(column.last) for column in statement.columns)})"
    on = f" IN CLUSTER {quote_ident(cluster)}" if cluster is not None else ""
    return f"CREATE {what} {full_sql(name)}{columns}{on} AS {qualified(statement.query, catalog)}"


def qualified(query: ast.Query, catalog: SessionCatalog) -> str:
    """The text of `query` with every relation under its full name."""
    changes: list[tuple[int, int, str]] = []
    for table in query.tree.find_all(exp.Table):
        parts = [part for part in table.parts if isinstance(part, exp.Identifier)]
        if not parts or len(parts) != len(table.parts) or _is_cte(table):
            continue
        spans = [(part.meta.get("start"), part.meta.get("end")) for part in parts]
        if any(start is None for start, _ in spans):
            continue
        names = tuple(p.name if p.args.get("quoted") else p.name.lower() for p in parts)
        item = catalog.find(names)
        if item is not None:
            changes.append((spans[0][0] or 0, (spans[-1][1] or 0) + 1, full_sql(item.name)))
    offset = query.position - 1
    text, copied, pieces = query.sql, 0, []
    for start, end, name in sorted(changes):
        pieces += [text[copied : start - offset], name]
        copied = end - offset
    return "".join([*pieces, text[copied:]])


def _is_cte(table: exp.Table) -> bool:
    """Whether a name in FROM is that of a WITH entry in whose reach it stands."""
    if len(table.parts) != 1:
        return False
    name = table.name.lower()
    inside: exp.Expression = table
    while inside.parent is not None:
        inside = inside.parent
        clause = inside.args.get("with_") or inside.args.get("with")
        if not isinstance(clause, exp.With):
            continue
        for entry in clause.expressions:
            within = _contains(entry, table)
            if entry.alias.lower() == name and (not within or clause.recursive):
                return True
            if within and not clause.recursive:
                break  # entries after the one it stands in are not in its reach
    return False


def _contains(node: exp.Expression, part: exp.Expression) -> bool:
    step: exp.Expression | None = part
    while step is not None and step is not node:
        step = step.parent
    return step is node
