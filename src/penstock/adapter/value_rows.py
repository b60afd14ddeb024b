"""INSERT ... VALUES of literals as an Arrow batch, column by column, without planning a query.

Texts become values by the same kernels that read them in a query, so a literal means the same in both places.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Sequence

import pyarrow as pa

from penstock.adapter.dml_plans import target_columns
from penstock.runtime import DataError, SqlError
from penstock.sql import KERNELS, QueryPlan, SqlType, type_by_oid
from penstock.sql import statements as ast
from penstock.sql.casts import family
from penstock.sql.items import CatalogItem
from penstock.sql.literals import read_numeric, round_numeric
from penstock.sql.statements import Cell, CellKind

_READERS = {
    "smallint": "ps_text_to_i16",
    "integer": "ps_text_to_i32",
    "bigint": "ps_text_to_i64",
    "uint2": "ps_text_to_u16",
    "uint4": "ps_text_to_u32",
    "uint8": "ps_text_to_u64",
    "oid": "ps_text_to_u32",
    "mz_timestamp": "ps_text_to_u64",
    "real": "ps_text_to_f32",
    "double precision": "ps_text_to_f64",
    "boolean": "ps_text_to_bool",
    "date": "ps_text_to_date",
    "time without time zone": "ps_text_to_time",
    "timestamp without time zone": "ps_text_to_timestamp",
    "timestamp with time zone": "ps_text_to_timestamptz",
    "interval": "ps_text_to_interval",
    "uuid": "ps_text_to_uuid",
    "jsonb": "ps_text_to_jsonb",
    "bytea": "ps_text_to_bytea",
}


def can_read(table: CatalogItem, statement: ast.Insert) -> bool:
    """Whether `rows_of` takes the statement: literals only, of types it reads, and no default that is an expression."""
    if statement.rows is None:
        return False
    assert table.desc is not None
    given = target_columns(table, statement.columns)[: len(statement.rows[0])]
    cells_default = any(cell.kind is CellKind.DEFAULT for row in statement.rows for cell in row)
    defaults = [p for p in range(len(table.desc.columns)) if table.defaults and table.defaults[p] is not None]
    if cells_default and defaults:
        return False
    return all(position in given for position in defaults) and all(
        _readable(table.desc.columns[position].type) for position in given
    )


def _readable(kind: SqlType) -> bool:
    return kind.name in _READERS or kind.name == "numeric" or family(kind) == "text"


def parameter_types(table: CatalogItem, statement: ast.Insert) -> list[SqlType]:
    """The types of $1, $2, ...: of the columns they go to."""
    assert table.desc is not None
    assert statement.rows is not None
    columns = target_columns(table, statement.columns)
    found: dict[int, SqlType] = {}
    for row in statement.rows:
        for cell, position in zip(row, columns, strict=False):
            if cell.kind is CellKind.PARAMETER:
                found.setdefault(int(cell.text), table.desc.columns[position].type)
    return [found.get(number, table.desc.columns[0].type) for number in range(1, max(found, default=0) + 1)]


def rows_of(table: CatalogItem, statement: ast.Insert, parameters: Sequence[str | None]) -> pa.RecordBatch:
    """The rows to insert. `parameters`: as text. DataError 22P02, 22003, ... for values that are none of their type."""
    assert table.desc is not None
    assert statement.rows is not None
    positions = target_columns(table, statement.columns)
    width = len(statement.rows[0])
    if width > len(positions):
        position = statement.rows[0][len(positions)].position
        raise SqlError("INSERT has more expressions than target columns", sqlstate="42601", position=position)
    if width < len(positions) and statement.columns is not None:
        raise SqlError("INSERT has more target columns than expressions", sqlstate="42601")
    given = dict(zip(positions, zip(*statement.rows, strict=True), strict=False))
    arrays = []
    for position, column in enumerate(table.desc.columns):
        if position in given:
            arrays.append(_column(column.name, column.type, given[position], parameters))
        else:
            arrays.append(pa.nulls(len(statement.rows), column.type.arrow))
    return pa.RecordBatch.from_arrays(arrays, schema=_nullable(table.desc.arrow))


def _nullable(schema: pa.Schema) -> pa.Schema:
    """NULLs are refused later, with a better message than Arrow's."""
    return pa.schema([field.with_nullable(True) for field in schema])


def _column(name: str, kind: SqlType, cells: Sequence[Cell], parameters: Sequence[str | None]) -> pa.Array:
    texts = [_text(name, kind, cell, parameters) for cell in cells]
    try:
        return _read(kind, texts)
    except DataError:
        for cell, text in zip(cells, texts, strict=True):  # which one was it?
            try:
                _read(kind, [text])
            except DataError as error:
                error.position = None if cell.kind is CellKind.PARAMETER else cell.position
                raise
        raise


def _text(name: str, kind: SqlType, cell: Cell, parameters: Sequence[str | None]) -> str | None:
    if cell.kind in (CellKind.NULL, CellKind.DEFAULT):
        return None
    if cell.kind is CellKind.PARAMETER:
        number = int(cell.text)
        if number > len(parameters):
            raise SqlError(f"there is no parameter ${number}", sqlstate="42P02", position=cell.position)
        return parameters[number - 1]
    if cell.kind is CellKind.STRING:
        return cell.text
    literal = "boolean" if cell.kind is CellKind.BOOLEAN else "numeric"
    group = family(kind)
    fits = group == "bool" if cell.kind is CellKind.BOOLEAN else group in ("int", "uint", "float", "numeric", "oid")
    if not fits and group != "text":
        if cell.kind is CellKind.NUMBER and cell.text.lstrip("-").isdigit():
            literal = "integer"
        raise SqlError(
            f'column "{name}" is of type {kind} but expression is of type {literal}',
            sqlstate="42804",
            hint="You will need to rewrite or cast the expression.",
            position=cell.position,
        )
    if group in ("int", "uint", "oid") and not cell.text.lstrip("-").isdigit():
        return f"{round_numeric(read_numeric(cell.text), 0):f}"
    return cell.text


def _read(kind: SqlType, texts: Sequence[str | None]) -> pa.Array:
    if kind.name == "numeric":
        return _decimals(kind, texts)
    array = pa.array(texts, pa.string())
    if family(kind) == "text":
        return _sized(kind, array)
    return KERNELS[_READERS[kind.name]].function(array).cast(kind.arrow)


def _decimals(kind: SqlType, texts: Sequence[str | None]) -> pa.Array:
    values = [None if text is None else round_numeric(read_numeric(text), kind.scale) for text in texts]
    if any(v and v.adjusted() >= kind.precision - kind.scale for v in values):
        raise DataError("numeric field overflow", sqlstate="22003")
    return pa.array(values, kind.arrow)


def _sized(kind: SqlType, array: pa.Array) -> pa.Array:
    if kind.length is None:
        return array
    checked = KERNELS["ps_check_length"].function(array, pa.array([kind.length] * len(array), pa.int64()))
    if kind.name != "character":
        return checked
    return pa.array([None if text is None else text.ljust(kind.length) for text in checked.to_pylist()], pa.string())


def declared_types(oids: Sequence[int]) -> list[SqlType | None]:
    """The types that a client declared for its parameters, None where it left them open."""
    return [type_by_oid(oid) if oid else None for oid in oids]


def bound(plan: QueryPlan, parameters: Sequence[object | None]) -> QueryPlan:
    """`plan` with the parameters' values filled in. DataError 22P02 and the like for what is no value of its type."""
    return plan.bind([parameter_text(value) for value in parameters])


def parameter_text(value: object | None) -> str | None:
    """A parameter's value (see `session_api`) in its text form, as a literal would be written."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return f"{value:f}" if value.is_finite() else str(value)
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds / 1e9:.6f} seconds"
    if isinstance(value, list):
        return "{" + ",".join(_element(item) for item in value) + "}"
    if isinstance(value, int | float | uuid.UUID):
        return str(value)
    raise SqlError(f"parameters of type {type(value).__name__} are not supported", sqlstate="0A000")


def _element(item: object | None) -> str:
    if isinstance(item, list):
        return parameter_text(item) or "{}"
    text = parameter_text(item)
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
