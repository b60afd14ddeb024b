"""A session that knows one catalog and answers nothing but questions about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pyarrow as pa
from sqlglot import exp

from penstock.adapter.pg_catalog import SessionInfo, Snapshot, answer, describe, is_catalog_query
from penstock.adapter.session_api import Completed, Outcome, Rows, StatementDescription
from penstock.adapter.system_relations import system_relations
from penstock.catalog import CatalogState, Database, Item, ItemColumn, Role, Schema
from penstock.catalog.entries import Comment, Entry
from penstock.runtime import SqlError
from penstock.sql import parse
from penstock.sql.items import ItemKind
from penstock.sql.statements import Query
from penstock.sql.types import TEXT, RelationDesc
from tests.server.fake_session import FakeCoordinator, FakeSession

Columns = Sequence[tuple[str, str, bool]]


def _item(kind: ItemKind, name: str, oid: int, sql: str, columns: Columns | None = None, **more: Any) -> Item:
    shown = None if columns is None else tuple(ItemColumn(*column) for column in columns)
    more.setdefault("schema_id", "s1")
    return Item(item_kind=kind, name=name, oid=oid, create_sql=sql, columns=shown, **more)


def example_state() -> CatalogState:
    """Tables t and other.t2, view v over t, materialized view mv with an index, two indexes on t, some comments."""
    table_columns = [
        ("a", "integer", False),
        ("b", "text", True),
        ("c", "numeric(10,2)", True),
        ("d", "timestamptz", True),
        ("e", "text[]", True),
        ("f", "character varying(7)", True),
    ]
    entries: dict[str, Entry] = {
        "d1": Database(name="materialize", oid=20000),
        "s1": Schema(database_id="d1", name="public", oid=20001),
        "s2": Schema(database_id="d1", name="other", oid=20002),
        "r1": Role(name="materialize", oid=20003),
        "u1": _item(
            ItemKind.TABLE,
            "t",
            20010,
            "CREATE TABLE materialize.public.t (a integer NOT NULL)",
            table_columns,
            defaults=(None, "'x'", None, None, None, None),
        ),
        "u2": _item(ItemKind.INDEX, "t_a", 20011, "", on_id="u1", index_key=(0,), uses=("u1",)),
        "u3": _item(ItemKind.INDEX, "t_ab", 20012, "", on_id="u1", index_key=(0, 1), uses=("u1",)),
        "u4": _item(
            ItemKind.VIEW,
            "v",
            20013,
            "CREATE VIEW materialize.public.v AS SELECT a, b FROM materialize.public.t WHERE a > 1",
            [("a", "integer", True), ("b", "text", True)],
            uses=("u1",),
        ),
        "u5": _item(
            ItemKind.MATERIALIZED_VIEW,
            "mv",
            20014,
            "CREATE MATERIALIZED VIEW materialize.public.mv AS"
            " SELECT b, count(*) AS n FROM materialize.public.t GROUP BY b",
            [("b", "text", True), ("n", "bigint", True)],
            uses=("u1",),
        ),
        "u6": _item(ItemKind.INDEX, "mv_b", 20015, "", on_id="u5", index_key=(0,), uses=("u5",)),
        "u7": _item(
            ItemKind.TABLE,
            "t2",
            20016,
            "",
            [("x", "bigint", True), ("Odd Name", "double precision", True)],
            schema_id="s2",
        ),
    }
    state = {(entry.kind, key): entry for key, entry in entries.items()}
    state["comment", "u1"] = Comment(text="the table")
    state["comment", "u1.1"] = Comment(text="the column")
    return CatalogState(state, 1)


def example_snapshot() -> Snapshot:
    return Snapshot(example_state(), SessionInfo(settings={"TimeZone": "UTC"}), system_relations())


class CatalogSession(FakeSession):
    """`FakeSession` with a real parser and `pg_catalog` behind it."""

    snapshot = example_snapshot()

    async def parse(self, text: str) -> Sequence[Any]:
        return parse(text)

    async def describe(self, statement: Any, parameter_types: Sequence[int]) -> StatementDescription:
        if not isinstance(statement, Query):
            shows = statement.sql.upper().startswith("SHOW")
            return StatementDescription([], RelationDesc.of(("setting", TEXT)) if shows else None)
        kinds, desc = describe(statement.tree, self.snapshot, parameter_types)
        return StatementDescription(kinds, desc)

    async def execute(self, statement: Any, parameters: Sequence[object | None]) -> Outcome:
        if statement.sql.upper().startswith("SHOW"):
            return _rows(RelationDesc.of(("setting", TEXT)), pa.table({"setting": ["read committed"]}))
        if not isinstance(statement, Query):
            word = statement.sql.split()[0].upper().rstrip(";")
            self.transaction_status = {"BEGIN": "T"}.get(word, "I")
            return Completed(word)
        if not is_catalog_query(statement.tree) and list(statement.tree.find_all(exp.Table)):
            raise SqlError("only catalog queries here", sqlstate="0A000")
        return _rows(*answer(statement.tree, self.snapshot, parameters))


def _rows(desc: RelationDesc, table: pa.Table) -> Rows:
    async def batches() -> AsyncIterator[pa.RecordBatch]:
        for batch in table.to_batches():
            yield batch

    return Rows(desc, batches())


class CatalogCoordinator(FakeCoordinator):
    async def connect(self, user: str, database: str, options: dict[str, str], client_address: str) -> FakeSession:
        session = CatalogSession(self, next(self._ids), options)
        self.sessions[session.process_id] = session
        return session
