"""Runs a rewritten catalog query in a DataFusion session of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from datafusion import SessionConfig, SessionContext

from penstock.adapter.pg_catalog.functions import FUNCTIONS, register
from penstock.adapter.pg_catalog.relations import relation_table
from penstock.adapter.pg_catalog.rewrite import Rewritten
from penstock.adapter.pg_catalog.shapes import ENGINE_OID, VECTORS
from penstock.adapter.pg_catalog.snapshot import Snapshot
from penstock.runtime import SqlError
from penstock.sql.types import Column, RelationDesc, SqlType, default_type


def run(query: Rewritten, snapshot: Snapshot, tables: Mapping[str, pa.Table]) -> tuple[RelationDesc, pa.Table]:
    """The result and its columns. `tables`: contents of relations that are not ours. SqlError 0A000 or 42xxx."""
    config = SessionConfig().with_target_partitions(1)
    config = config.set("datafusion.sql_parser.dialect", "postgresql")
    context = SessionContext(config)
    lowered = query.sql.lower()
    for name in query.relations:
        table = tables[name] if name in tables else relation_table(name, snapshot)
        if "tableoid" in table.column_names and "tableoid" not in lowered:
            table = table.drop_columns(["tableoid"])  # a system column: not part of a star
        batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
        context.register_record_batches(f'"{name}"', [batches])
    register(context, snapshot, {name for name in FUNCTIONS if name in lowered})
    try:
        result = context.sql(query.sql).to_arrow_table()
    except Exception as error:  # DataFusion's errors have no common class
        raise _explained(error) from error
    return _described(result, query.names)


def _explained(error: Exception) -> SqlError:
    text = str(error)
    if "No field named" in text or "Schema error" in text:
        return SqlError(f"column of a catalog relation does not exist: {text}", sqlstate="42703")
    if "Invalid function" in text:
        return SqlError(f"function does not exist: {text}", sqlstate="42883")
    return SqlError(f"catalog query is not supported: {text}", sqlstate="0A000")


def _described(result: pa.Table, names: Sequence[str | None]) -> tuple[RelationDesc, pa.Table]:
    """Result columns with the SQL types that clients expect, named as PostgreSQL would."""
    shown: Sequence[str | None] = names
    if len(names) != result.num_columns or None in names:
        shown = _around_stars(result.schema.names, names)
    columns = tuple(
        Column(name if name is not None else field.name, _sql_type(field))
        for name, field in zip(shown, result.schema, strict=True)
    )
    desc = RelationDesc(columns)
    arrays = [_as_shown(column, kind.type) for column, kind in zip(result.columns, desc.arrow, strict=True)]
    return desc, pa.Table.from_arrays(arrays, schema=desc.arrow)


def _as_shown(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_list(column.type) and pa.types.is_string(kind):  # a vector
        return pc.binary_join(column.cast(pa.list_(pa.string())), " ")
    return column if column.type == kind else column.cast(kind)


def _around_stars(found: Sequence[str], names: Sequence[str | None]) -> list[str | None]:
    """Stars stand for as many columns as the rest leaves over: one star is placed, of several only the found names."""
    if names.count(None) != 1:
        return list(found)
    at = names.index(None)
    width = len(found) - len(names) + 1
    return [*names[:at], *found[at : at + width], *names[at + 1 :]]


def _sql_type(field: pa.Field) -> SqlType:
    declared = (field.metadata or {}).get(b"penstock.type")
    if declared is not None and declared.decode() in VECTORS and pa.types.is_list(field.type):
        return VECTORS[declared.decode()]
    if declared is not None and declared.decode() not in VECTORS:
        kind = SqlType.from_arrow(field)
        if _carries(kind, field.type):
            return kind
    return default_type(field.type)


def _carries(kind: SqlType, arrow: pa.DataType) -> bool:
    """Whether an expression that kept its column's metadata also kept its type."""
    if kind.element is not None:
        return pa.types.is_list(arrow) and _carries(kind.element, arrow.value_type)
    if kind.name == "oid":
        return arrow in (ENGINE_OID, pa.uint32())
    text = pa.types.is_string(arrow) or pa.types.is_string_view(arrow) or pa.types.is_large_string(arrow)
    return kind.arrow == arrow or (pa.types.is_string(kind.arrow) and text)
