"""How a shard holds a collection that can have errors: rows and errors side by side.

A sink's shard has the collection's data columns, all of them nullable, and two more columns at the end. In a
row those two are NULL; in an error the data columns are, and the two say SQLSTATE and message. So one shard,
one compare-and-append, makes rows and errors of a time durable together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.dataflow import ERRORS_SCHEMA
from penstock.runtime import DataError, Updates, conform
from penstock.runtime.updates import with_row_count

SQLSTATE_COLUMN = "__penstock_error_sqlstate"
MESSAGE_COLUMN = "__penstock_error_message"


def view_schema(schema: pa.Schema) -> pa.Schema:
    """Schema of the shard of a collection with data columns `schema`."""
    fields = [field.with_nullable(True) for field in schema]
    return pa.schema(
        [*fields, pa.field(SQLSTATE_COLUMN, pa.string()), pa.field(MESSAGE_COLUMN, pa.string())],
        metadata=schema.metadata,
    )


def rows_to_shard(rows: Updates, schema: pa.Schema) -> Updates:
    """Rows of a collection with data columns `schema` as updates of its shard."""
    target = view_schema(schema)
    nothing = pa.nulls(len(rows), pa.string())
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(rows.rows.columns, schema, strict=True)
    ]
    return rows.with_rows(pa.RecordBatch.from_arrays([*columns, nothing, nothing], schema=target))


def errors_to_shard(errors: Updates, schema: pa.Schema) -> Updates:
    """Errors (`ERRORS_SCHEMA`) as updates of the shard of a collection with data columns `schema`.

    A NULL message or SQLSTATE would read back as a row: they become texts.
    """
    target = view_schema(schema)
    columns = [pa.nulls(len(errors), field.type) for field in schema]
    texts = (
        errors.rows.column(0).fill_null("XX000"),
        errors.rows.column(1).fill_null("unknown error"),
    )
    return errors.with_rows(pa.RecordBatch.from_arrays([*columns, *texts], schema=target))


def split_shard_updates(updates: Updates, schema: pa.Schema) -> tuple[Updates, Updates]:
    """(rows with `schema`, errors): inverse of the two functions above."""
    width = len(schema)
    sqlstates, messages = updates.rows.column(width), updates.rows.column(width + 1)
    data = updates.with_rows(_select(updates.rows, schema))
    if sqlstates.null_count == len(updates):
        return data.with_rows(conform(data.rows, schema)), Updates.empty(ERRORS_SCHEMA)
    failed = np.asarray(sqlstates.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    errors = updates.with_rows(pa.RecordBatch.from_arrays([sqlstates, messages], schema=ERRORS_SCHEMA))
    rows = data.filter(~failed)
    return rows.with_rows(conform(rows.rows, schema)), errors.filter(failed)


def first_error(errors: Updates) -> DataError:
    """One of some errors, the same one wherever they are computed: the earliest, then the least by text."""
    rows = errors.filter(errors.times == errors.times.min()).rows
    sqlstate, message = min(zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True))
    return DataError(message, sqlstate=sqlstate)


def shard_columns(columns: Sequence[str]) -> list[str]:
    """What to read of a shard to have `columns` and to know of any error."""
    return [*columns, SQLSTATE_COLUMN, MESSAGE_COLUMN]


def _select(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if len(schema) == 0:
        return with_row_count(schema, rows.num_rows)
    return rows.select(list(range(len(schema))))
