"""INSERT, UPDATE and DELETE as queries: what to plan so that the answer is the rows to write.

An UPDATE becomes one query over its table whose first half of columns are the rows as they are and whose second half
the rows as they shall be; a DELETE the query for the rows to go; an INSERT the query for whole rows of its table,
with casts to the columns' types and defaults filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from penstock.adapter.planning import IndexedCatalog, Planner
from penstock.runtime import SqlError
from penstock.sql import QueryPlan, SqlType
from penstock.sql import Session as PlanSession
from penstock.sql import statements as ast
from penstock.sql.casts import Context, castable
from penstock.sql.dialect import AssignmentCast, parse_expression, tokenize
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.types import Column


@dataclass(frozen=True)
class Planning:
    """What planning a statement needs besides it."""

    planner: Planner
    catalog: IndexedCatalog
    session: PlanSession
    parameter_types: Sequence[SqlType | None]

    def plan(self, tree: exp.Expression) -> QueryPlan:
        return self.planner.query(tree, self.catalog, self.parameter_types, self.session)


def writable_table(catalog: IndexedCatalog, name: ast.Name) -> CatalogItem:
    """The table called `name`. SqlError 42P01 when there is none, 42809 when it is something else."""
    try:
        item = catalog.resolve(name.parts)
    except SqlError as error:
        error.position = error.position or name.position
        raise
    if item.kind is not ItemKind.TABLE:
        what = "system relation" if item.kind is ItemKind.SYSTEM else item.kind.value.replace("-", " ")
        raise SqlError(
            f'cannot write to {what} "{item.name[2]}"',
            sqlstate="42809",
            hint="Only tables can be written to.",
            position=name.position,
        )
    return item


def target_columns(table: CatalogItem, names: tuple[ast.Name, ...] | None) -> list[int]:
    """Positions of the columns that an INSERT or COPY gives. SqlError 42703 or 42701 for wrong names."""
    assert table.desc is not None
    if names is None:
        return list(range(len(table.desc.columns)))
    positions: list[int] = []
    for name in names:
        position = table.desc.index_of(name.last)
        if position is None:
            raise SqlError(
                f'column "{name.last}" of relation "{table.name[2]}" does not exist',
                sqlstate="42703",
                position=name.position,
            )
        if position in positions:
            raise SqlError(f'column "{name.last}" specified more than once', sqlstate="42701", position=name.position)
        positions.append(position)
    return positions


def default_of(table: CatalogItem, position: int) -> exp.Expression:
    """The default of a column, cast to its type."""
    assert table.desc is not None
    sql = table.defaults[position] if table.defaults else None
    value = exp.Null() if sql is None else parse_expression(tokenize(sql), sql)
    return cast(value, table.desc.columns[position].type)


def cast(value: exp.Expression, kind: SqlType) -> exp.Expression:
    """``CAST(value AS kind)`` as an assignment makes it: text that is too long is refused, not cut."""
    return AssignmentCast(this=value.copy(), to=exp.DataType.build(str(kind), dialect="postgres", udt=True))


def insert_query(planning: Planning, table: CatalogItem, statement: ast.Insert) -> QueryPlan:
    """The plan of the rows of an INSERT with a query, or with expressions in VALUES."""
    assert table.desc is not None
    columns = target_columns(table, statement.columns)
    if statement.source is None and statement.rows is None:
        return planning.plan(exp.select(*(default_of(table, i) for i in range(len(table.desc.columns)))))
    source = statement.source if statement.rows is None else _values(statement.rows)
    assert source is not None
    if isinstance(source, exp.Values):
        source = _cast_values(table, source, columns)
    plan = planning.plan(source)
    width = len(plan.desc.columns)
    if width > len(columns):
        raise SqlError("INSERT has more expressions than target columns", sqlstate="42601")
    if width < len(columns) and statement.columns is not None:
        raise SqlError("INSERT has more target columns than expressions", sqlstate="42601")
    given = dict(zip(columns, range(width), strict=False))
    names = [f"c{i}" for i in range(width)]
    selected: list[exp.Expression] = []
    for position, column in enumerate(table.desc.columns):
        if position not in given:
            selected.append(default_of(table, position))
            continue
        value = exp.column(names[given[position]], table="s", quoted=True)
        kind = plan.desc.columns[given[position]].type
        selected.append(_assigned(value, kind, column, lenient=kind.name == "text"))
    alias = exp.TableAlias(
        this=exp.to_identifier("s", quoted=True), columns=[exp.to_identifier(n, True) for n in names]
    )
    if isinstance(source, exp.Values):
        inner: exp.Expression = source.copy()
        inner.set("alias", alias)
    else:
        inner = exp.Subquery(this=source.copy(), alias=alias)
    return planning.plan(exp.select(*selected).from_(inner))


def _values(rows: ast.Rows) -> exp.Values:
    """Literal rows as the tree that the parser would have made of them."""
    return exp.Values(expressions=[exp.Tuple(expressions=[_cell(cell) for cell in row]) for row in rows])


def _cell(cell: ast.Cell) -> exp.Expression:
    match cell.kind:
        case ast.CellKind.STRING:
            return exp.Literal.string(cell.text)
        case ast.CellKind.NUMBER:
            number = exp.Literal.number(cell.text.removeprefix("-"))
            return exp.Neg(this=number) if cell.text.startswith("-") else number
        case ast.CellKind.NULL:
            return exp.Null()
        case ast.CellKind.BOOLEAN:
            return exp.Boolean(this=cell.text.lower() == "true")
        case ast.CellKind.PARAMETER:
            return exp.Parameter(this=exp.Literal.number(cell.text))
        case ast.CellKind.DEFAULT:
            return exp.Var(this="DEFAULT")


def _cast_values(table: CatalogItem, source: exp.Values, columns: list[int]) -> exp.Expression:
    """VALUES with each expression that takes its type from its surroundings cast to its column's."""
    assert table.desc is not None
    values = source.copy()
    for row in values.expressions:
        cells = row.expressions if isinstance(row, exp.Tuple) else [row]
        if len(cells) > len(columns):
            raise SqlError("INSERT has more expressions than target columns", sqlstate="42601")
        for cell, position in zip(list(cells), columns, strict=False):
            if _is_default(cell):
                cell.replace(default_of(table, position))
            elif _is_open(cell):
                cell.replace(cast(cell, table.desc.columns[position].type))
    return values


def _is_default(cell: exp.Expression) -> bool:
    named = isinstance(cell, exp.Column) and not cell.table and not cell.this.args.get("quoted")
    return (named or isinstance(cell, exp.Var)) and cell.name.upper() == "DEFAULT"


def _is_open(value: exp.Expression) -> bool:
    """Whether an expression's type is decided by what it is assigned to."""
    value = value.unnest()
    return isinstance(value, exp.Null | exp.Parameter | exp.Placeholder) or (
        isinstance(value, exp.Literal) and bool(value.is_string)
    )


def _assigned(value: exp.Expression, kind: SqlType, column: Column, *, lenient: bool = False) -> exp.Expression:
    if kind == column.type:
        return value
    if not lenient and not castable(kind, column.type, Context.ASSIGNMENT):
        raise SqlError(
            f'column "{column.name}" is of type {column.type} but expression is of type {kind}',
            sqlstate="42804",
            hint="You will need to rewrite or cast the expression.",
        )
    return cast(value, column.type)


def update_query(planning: Planning, table: CatalogItem, statement: ast.Update) -> QueryPlan:
    """The plan of an UPDATE: the columns as they are, then the columns as they shall be."""
    assert table.desc is not None
    alias = statement.alias or table.name[2]
    new: dict[int, exp.Expression] = {}
    for assignment in statement.assignments:
        (position,) = target_columns(table, (assignment.column,))
        if position in new:
            raise SqlError(
                f'multiple assignments to same column "{assignment.column.last}"',
                sqlstate="42601",
                position=assignment.column.position,
            )
        value = assignment.expression
        if value is None:
            new[position] = default_of(table, position)
        elif _is_open(value):
            new[position] = cast(value, table.desc.columns[position].type)
        else:
            new[position] = value.copy()
    source = _source(table, statement.alias)
    probe = planning.plan(_where(exp.select(*(_as(v, f"n{i}") for i, v in new.items())).from_(source.copy()), None))
    for position, typed in zip(list(new), probe.desc.columns, strict=True):
        new[position] = _assigned(new[position], typed.type, table.desc.columns[position])
    old = [exp.column(c.name, table=alias, quoted=True) for c in table.desc.columns]
    after = [new.get(position, column.copy()) for position, column in enumerate(old)]
    selected = [_as(value, f"o{i}") for i, value in enumerate(old)] + [_as(v, f"n{i}") for i, v in enumerate(after)]
    return planning.plan(_where(exp.select(*selected).from_(source), statement.where))


def delete_query(planning: Planning, table: CatalogItem, statement: ast.Delete) -> QueryPlan:
    """The plan of the rows that a DELETE removes."""
    assert table.desc is not None
    alias = statement.alias or table.name[2]
    selected = [exp.column(c.name, table=alias, quoted=True) for c in table.desc.columns]
    query = exp.select(*selected).from_(_source(table, statement.alias))
    if not statement.using:
        return planning.plan(_where(query, statement.where))
    # a row goes once, however many rows of USING it meets
    others = exp.select("1")
    first, *joins = (relation.copy() for relation in statement.using)
    others = others.from_(first)
    others.set("joins", joins)
    return planning.plan(_where(query, exp.Exists(this=_where(others, statement.where))))


def _source(table: CatalogItem, alias: str | None) -> exp.Expression:
    database, schema, name = (exp.to_identifier(part, quoted=True) for part in table.name)
    source = exp.Table(this=name, db=schema, catalog=database)
    if alias is not None:
        source.set("alias", exp.TableAlias(this=exp.to_identifier(alias, quoted=True)))
    return source


def _as(value: exp.Expression, name: str) -> exp.Expression:
    return exp.alias_(value.copy(), name, quoted=True)


def _where(query: exp.Select, condition: exp.Expression | None) -> exp.Select:
    return query if condition is None else query.where(condition.copy(), copy=False)
