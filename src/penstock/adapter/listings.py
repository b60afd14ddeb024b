"""SHOW: listings of objects, CREATE statements and variables."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penstock.adapter.session_api import Rows
from penstock.adapter.variables import lookup
from penstock.catalog import Cluster, Role
from penstock.compute.query import execute
from penstock.control import ClusterId
from penstock.runtime import SqlError, Timestamp
from penstock.sql import RelationDesc
from penstock.sql import statements as ast
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.statements import ObjectType, ShowKind
from penstock.sql.types import BOOL, TEXT, SqlType

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session

Row = tuple[object, ...]


def _columns(*names: str) -> RelationDesc:
    kinds: dict[str, SqlType] = {"nullable": BOOL, "ready": BOOL}
    return RelationDesc.of(*((name, kinds.get(name, TEXT)) for name in names))


_DESCS = {
    ShowKind.DATABASES: _columns("name", "comment"),
    ShowKind.SCHEMAS: _columns("name", "comment"),
    ShowKind.TABLES: _columns("name", "comment"),
    ShowKind.VIEWS: _columns("name", "comment"),
    ShowKind.MATERIALIZED_VIEWS: _columns("name", "cluster", "comment"),
    ShowKind.INDEXES: _columns("name", "on", "cluster", "key", "comment"),
    ShowKind.SOURCES: _columns("name", "type", "cluster", "comment"),
    ShowKind.SINKS: _columns("name", "type", "cluster", "comment"),
    ShowKind.CLUSTERS: _columns("name", "replicas", "comment"),
    ShowKind.CLUSTER_REPLICAS: _columns("cluster", "replica", "size", "ready", "comment"),
    ShowKind.OBJECTS: _columns("name", "type", "comment"),
    ShowKind.COLUMNS: _columns("name", "nullable", "type", "comment"),
    ShowKind.ROLES: _columns("name", "comment"),
    ShowKind.CONNECTIONS: _columns("name", "type", "comment"),
    ShowKind.SECRETS: _columns("name", "comment"),
}
_KINDS = {
    ObjectType.TABLE: ItemKind.TABLE,
    ObjectType.VIEW: ItemKind.VIEW,
    ObjectType.MATERIALIZED_VIEW: ItemKind.MATERIALIZED_VIEW,
    ObjectType.INDEX: ItemKind.INDEX,
}


class Listings:
    """Answers SHOW from the coordinator's memory."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    def describe(self, session: Session, statement: Any) -> RelationDesc:
        """The columns of a SHOW statement."""
        if isinstance(statement, ast.ShowObjects):
            return _DESCS[statement.kind]
        if isinstance(statement, ast.ShowCreate):
            return _columns("name", "create_sql")
        if statement.name is None:
            return _columns("name", "setting", "description")
        if self._c.system_variables.get(statement.name) is not None:
            return _columns(statement.name.lower())
        return _columns(lookup(statement.name).name)

    def show(self, session: Session, statement: Any) -> Rows:
        """The rows of a SHOW statement."""
        desc = self.describe(session, statement)
        if isinstance(statement, ast.ShowObjects):
            rows = sorted(_SOURCES[statement.kind](self, session, statement), key=lambda row: str(row[0]))
            if statement.kind is ShowKind.COLUMNS:
                rows = list(_SOURCES[statement.kind](self, session, statement))  # in the order of the relation
            return _rows(desc, _filtered(desc, rows, statement))
        if isinstance(statement, ast.ShowCreate):
            return _rows(desc, to_table(desc, [self._create(session, statement)]))
        if statement.name is None:
            return _rows(desc, to_table(desc, self._c.all_variables(session)))
        value = self._c.system_variables.get(statement.name)
        return _rows(desc, to_table(desc, [(session.variables[statement.name] if value is None else value,)]))

    def _create(self, session: Session, statement: ast.ShowCreate) -> Row:
        item = self._c.plain_view(session).resolve(statement.name.parts)
        if _KINDS.get(statement.object_type) is not item.kind:
            raise SqlError(f"{statement.name} is not a {statement.object_type.value}", sqlstate="42809")
        return ".".join(item.name), item.create_sql

    # -- sources of rows -----------------------------------------------------------------------------------------

    def _comment(self, id_: str) -> str:
        return self._c.catalog.state.comments.get(id_, "")

    def _items(self, session: Session, statement: ast.ShowObjects, *kinds: ItemKind) -> Iterable[CatalogItem]:
        database, schema = session.variables["database"], None
        if statement.within is not None:
            *qualifier, schema = statement.within.parts
            database = qualifier[0] if qualifier else database
        else:
            path = session.variables.search_path
            schema = next((s for s in path if self._c.catalog.state.schema_id(database, s) is not None), None)
        cluster = self._c.cluster_named(statement.cluster.last) if statement.cluster is not None else None
        for item in self._c.catalog.state.items.values():
            here = item.kind in kinds and item.name[:2] == (database, schema)
            if here and (cluster is None or item.cluster_id == cluster):
                yield item

    def _cluster_name(self, id_: str | None) -> str | None:
        return self._c.catalog.state.entry(Cluster, id_).name if id_ is not None else None

    def _databases(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        return ((d.name, self._comment(id_)) for id_, d in self._c.catalog.state.databases.items())

    def _schemas(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        name = statement.within.last if statement.within is not None else session.variables["database"]
        database = self._c.catalog.state.database_id(name)
        if database is None:
            raise SqlError(f'database "{name}" does not exist', sqlstate="3D000")
        for id_, schema in self._c.catalog.state.schemas.items():
            if schema.database_id == database:
                yield schema.name, self._comment(id_)

    def _tables(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        return ((i.name[2], self._comment(i.id)) for i in self._items(session, statement, ItemKind.TABLE))

    def _views(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        return ((i.name[2], self._comment(i.id)) for i in self._items(session, statement, ItemKind.VIEW))

    def _materialized_views(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        for item in self._items(session, statement, ItemKind.MATERIALIZED_VIEW):
            yield item.name[2], self._cluster_name(item.cluster_id), self._comment(item.id)

    def _indexes(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        state = self._c.catalog.state
        on = self._c.plain_view(session).resolve(statement.within.parts) if statement.within is not None else None
        everywhere = ast.ShowObjects(
            sql=statement.sql, position=statement.position, kind=statement.kind, cluster=statement.cluster
        )
        items = state.indexes_on.get(on.id, ()) if on is not None else self._items(session, everywhere, ItemKind.INDEX)
        for item in items:
            target = state.items[state.index_target(item.id)]
            assert target.desc is not None
            key = ", ".join(target.desc.columns[i].name for i in state.index_key(item.id))
            cluster = self._cluster_name(item.cluster_id)
            yield item.name[2], target.name[2], cluster, f"{{{key}}}", self._comment(item.id)

    def _objects(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        for item in self._items(session, statement, *ItemKind):
            yield item.name[2], item.kind.value, self._comment(item.id)

    def _columns_of(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        assert statement.within is not None
        item = self._c.plain_view(session).resolve(statement.within.parts)
        for position, column in enumerate(item.desc.columns if item.desc is not None else (), start=1):
            yield column.name, column.nullable, str(column.type), self._comment(f"{item.id}.{position}")

    def _clusters(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        state = self._c.catalog.state
        for id_, cluster in state.clusters.items():
            replicas = ", ".join(f"{r.name} ({r.size})" for r in state.replicas_of(id_).values())
            yield cluster.name, replicas, self._comment(id_)

    def _replicas(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        state = self._c.catalog.state
        for cluster_id, cluster in state.clusters.items():
            online = {str(k): v for k, v in self._c.compute.replicas_online(ClusterId(cluster_id)).items()}
            for id_, replica in state.replicas_of(cluster_id).items():
                yield cluster.name, replica.name, replica.size, online.get(id_, False), self._comment(id_)

    def _roles(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        roles: dict[str, Role] = self._c.catalog.state.roles
        return ((role.name, self._comment(id_)) for id_, role in roles.items())

    def _none(self, session: Session, statement: ast.ShowObjects) -> Iterable[Row]:
        return ()


_SOURCES: dict[ShowKind, Callable[[Listings, Session, ast.ShowObjects], Iterable[Row]]] = {
    ShowKind.DATABASES: Listings._databases,
    ShowKind.SCHEMAS: Listings._schemas,
    ShowKind.TABLES: Listings._tables,
    ShowKind.VIEWS: Listings._views,
    ShowKind.MATERIALIZED_VIEWS: Listings._materialized_views,
    ShowKind.INDEXES: Listings._indexes,
    ShowKind.SOURCES: Listings._none,
    ShowKind.SINKS: Listings._none,
    ShowKind.CLUSTERS: Listings._clusters,
    ShowKind.CLUSTER_REPLICAS: Listings._replicas,
    ShowKind.OBJECTS: Listings._objects,
    ShowKind.COLUMNS: Listings._columns_of,
    ShowKind.ROLES: Listings._roles,
    ShowKind.CONNECTIONS: Listings._none,
    ShowKind.SECRETS: Listings._none,
}


def to_table(desc: RelationDesc, rows: Iterable[Row]) -> pa.Table:
    """Rows of Python values as an Arrow table."""
    kept = list(rows)
    schema = desc.arrow
    columns: Sequence[Sequence[object]] = list(zip(*kept, strict=True)) if kept else [()] * len(schema)
    return pa.Table.from_arrays(
        [pa.array(list(values), field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


def _filtered(desc: RelationDesc, rows: list[Row], statement: ast.ShowObjects) -> pa.Table:
    if statement.like is not None:
        pattern = re.compile(fnmatch.translate(_glob(statement.like)))
        rows = [row for row in rows if pattern.match(str(row[0]))]
    table = to_table(desc, rows)
    if statement.where is None:
        return table
    query = f"SELECT * FROM listing WHERE {statement.where.sql(dialect='postgres')}"
    batches = list(execute(query, {"listing": table}, Timestamp(0), schema=desc.arrow, partitions=1))
    return pa.Table.from_batches(batches, schema=desc.arrow)


def _glob(like: str) -> str:
    escaped = re.sub(r"([\[\]*?])", r"[\1]", like)
    return escaped.replace("%", "*").replace("_", "?")


def _rows(desc: RelationDesc, table: pa.Table) -> Rows:
    async def batches() -> AsyncGenerator[pa.RecordBatch, None]:
        for batch in table.to_batches():
            yield batch

    return Rows(desc, batches(), lambda count: f"SELECT {count}")
