"""Compare every view with the same query run from scratch by DuckDB on the tables' contents at one timestamp."""

from __future__ import annotations

import datetime as dt
import io
import math
from decimal import Decimal
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.csv as csv

from demo.views import TABLES, VIEWS

RELATIVE = 1e-9


def differences(connection: psycopg.Connection) -> dict[str, list[str]]:
    """Per view the rows that differ, as text (at most ten): empty lists everywhere when all is equal.

    Tables and views are read in one read-only transaction, so all of them at one timestamp.
    """
    with connection.cursor() as cursor:
        cursor.execute("BEGIN READ ONLY")
        now = int(cursor.execute("SELECT mz_now()::text").fetchone()[0])  # type: ignore[index]
        tables = {name: _copy_out(cursor, name) for name in TABLES}
        answers = {name: cursor.execute(f"SELECT * FROM {name}").fetchall() for name in VIEWS}
        cursor.execute("COMMIT")
    second = duckdb.connect()
    second.execute("SET TimeZone = 'UTC'")
    for name, columns in TABLES.items():
        second.register("copied", tables[name])
        second.execute(f"CREATE TABLE {name} ({columns})")
        second.execute(f"INSERT INTO {name} SELECT * FROM copied")
    found = {}
    for name, query in VIEWS.items():
        instant = dt.datetime.fromtimestamp(now / 1000, dt.UTC)
        second.execute(f"CREATE VIEW {name} AS " + query.replace("mz_now()", f"TIMESTAMPTZ '{instant.isoformat()}'"))
        found[name] = _compare(answers[name], second.sql(f"SELECT * FROM {name}").fetchall())
    return found


def _copy_out(cursor: psycopg.Cursor, table: str) -> pa.Table:
    with cursor.copy(f"COPY {table} TO STDOUT WITH (FORMAT csv)") as copy:
        data = b"".join(bytes(chunk) for chunk in copy)
    names = [column.split()[0] for column in TABLES[table].split(", ")]
    options = csv.ReadOptions(column_names=names)
    # everything as text: DuckDB casts to the tables' types, as the database itself had to
    texts = csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=False,
    )
    return csv.read_csv(io.BytesIO(data), read_options=options, convert_options=texts) if data else _none(names)


def _none(names: list[str]) -> pa.Table:
    return pa.table({name: pa.array([], pa.string()) for name in names})


def _compare(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]]) -> list[str]:
    """Rows are paired by their exact columns; numbers may differ by `RELATIVE`."""
    ours, theirs = (sorted(rows, key=lambda row: [str(v) for v in row if _exact(v)]) for rows in (ours, theirs))
    if len(ours) != len(theirs):
        return [f"{len(ours)} rows where DuckDB has {len(theirs)}"]
    return [f"{o} where DuckDB has {t}" for o, t in zip(ours, theirs, strict=True) if not _equal(o, t)][:10]


def _exact(value: Any) -> bool:
    return not isinstance(value, float | Decimal)


def _equal(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    return all(
        a == b if a is None or b is None or isinstance(a, str) else math.isclose(a, b, rel_tol=RELATIVE)
        for a, b in zip(ours, theirs, strict=True)
    )
