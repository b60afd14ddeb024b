"""Who fills the system relations: rows from the catalog, the controllers, the sessions and the committer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

import pyarrow as pa
from sqlglot import exp

from penstock.adapter.system_relations import system_relations, to_table
from penstock.control import ClusterId, Frontiers, Health
from penstock.runtime import DONE, GlobalId, Timestamp
from penstock.sql.items import CatalogItem, ItemKind

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session

Row = tuple[object, ...]
OWNER = "u1"
"""The id of the role that owns everything."""


@cache
def system_items() -> dict[tuple[str, str], CatalogItem]:
    """The system relations as catalog items, by schema and name. Their ids begin with ``s``."""
    items = {}
    for number, (full, desc) in enumerate(system_relations().items(), start=1):
        schema, _, name = full.partition(".")
        id_ = GlobalId(f"s{number}")
        items[schema, name] = CatalogItem(id_, ItemKind.SYSTEM, ("", schema, name), desc, oid=16_600 + number)
    return items


def is_system(id_: GlobalId) -> bool:
    """Whether a collection is answered from the coordinator's memory."""
    return id_.startswith("s")


class SystemRows:
    """Makes the contents of system relations as of now."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator
        self._by_id = {item.id: f"{item.name[1]}.{item.name[2]}" for item in system_items().values()}

    def table(self, session: Session, id_: GlobalId) -> pa.Table:
        """The contents of the system relation with this id."""
        return self.named(self._by_id[id_])

    def named(self, name: str) -> pa.Table:
        """The contents of ``schema.relation``."""
        return to_table(name, list(_ROWS.get(name, _nothing)(self)))

    def names_in(self, tree: exp.Expression) -> list[str]:
        """The system relations, as ``schema.relation``, that a query over pg_catalog also names."""
        found = set()
        for table in tree.find_all(exp.Table):
            for schema in (table.db,) if table.db else ("mz_catalog", "mz_internal"):
                if (schema, table.name) in system_items():
                    found.add(f"{schema}.{table.name}")
        return sorted(found)

    # Objects

    def _items(self, *kinds: ItemKind) -> Iterable[CatalogItem]:
        return (item for item in self._c.catalog.state.items.values() if item.kind in kinds)

    def _schema_id(self, item: CatalogItem) -> str | None:
        return self._c.catalog.state.schema_id(*item.name[:2])

    def _databases(self) -> Iterable[Row]:
        return ((id_, d.oid, d.name, OWNER) for id_, d in self._c.catalog.state.databases.items())

    def _schemas(self) -> Iterable[Row]:
        return ((id_, s.oid, s.database_id, s.name, OWNER) for id_, s in self._c.catalog.state.schemas.items())

    def _objects(self) -> Iterable[Row]:
        for item in self._c.catalog.state.items.values():
            yield item.id, item.oid, self._schema_id(item), item.name[2], item.kind.value, OWNER, item.cluster_id
        for item in system_items().values():
            yield item.id, item.oid, None, item.name[2], "table", "s1", None

    def _relations(self) -> Iterable[Row]:
        return (row for row in self._objects() if row[4] != ItemKind.INDEX.value)

    def _tables(self) -> Iterable[Row]:
        for item in self._items(ItemKind.TABLE):
            yield item.id, item.oid, self._schema_id(item), item.name[2], OWNER, item.create_sql

    def _views(self) -> Iterable[Row]:
        for item in self._items(ItemKind.VIEW):
            definition = self._c.planner.definition(item)
            yield item.id, item.oid, self._schema_id(item), item.name[2], definition, OWNER, item.create_sql

    def _materialized_views(self) -> Iterable[Row]:
        for item in self._items(ItemKind.MATERIALIZED_VIEW):
            head = (item.id, item.oid, self._schema_id(item), item.name[2], item.cluster_id)
            yield *head, self._c.planner.definition(item), OWNER, item.create_sql

    def _indexes(self) -> Iterable[Row]:
        for item in self._items(ItemKind.INDEX):
            on_id = self._c.catalog.state.index_target(item.id)
            yield item.id, item.oid, item.name[2], on_id, item.cluster_id, OWNER, item.create_sql

    def _index_columns(self) -> Iterable[Row]:
        state = self._c.catalog.state
        for item in self._items(ItemKind.INDEX):
            on = state.items[state.index_target(item.id)]
            assert on.desc is not None
            for position, column in enumerate(state.index_key(item.id), start=1):
                yield item.id, position, column + 1, None, on.desc.columns[column].nullable

    def _columns(self) -> Iterable[Row]:
        for item in [*self._c.catalog.state.items.values(), *system_items().values()]:
            for position, column in enumerate(item.desc.columns if item.desc is not None else (), start=1):
                default = item.defaults[position - 1] if item.defaults else None
                kind = column.type
                yield item.id, column.name, position, column.nullable, kind.name, default, kind.oid, kind.modifier

    def _roles(self) -> Iterable[Row]:
        return ((id_, role.oid, role.name, True, True) for id_, role in self._c.catalog.state.roles.items())

    def _dependencies(self) -> Iterable[Row]:
        return ((item.id, used) for item in self._c.catalog.state.items.values() for used in item.uses)

    # Clusters and what runs on them

    def _clusters(self) -> Iterable[Row]:
        for id_, cluster in self._c.catalog.state.clusters.items():
            yield id_, cluster.name, OWNER, True, cluster.size, cluster.replication_factor

    def _replicas(self) -> Iterable[Row]:
        for id_, replica in self._c.catalog.state.replicas.items():
            yield id_, replica.name, replica.cluster_id, replica.size, OWNER

    def _replica_statuses(self) -> Iterable[Row]:
        for cluster_id in self._c.catalog.state.clusters:
            for id_, online in self._c.compute.replicas_online(ClusterId(cluster_id)).items():
                yield id_, "online" if online else "offline", None

    def _frontiers_of(self, item: CatalogItem) -> Frontiers | None:
        try:
            if item.kind is ItemKind.INDEX:
                return self._c.compute.frontiers(item.id)
            return self._c.storage.frontiers(item.id) if item.shard_id is not None else None
        except KeyError:
            return None  # being created or dropped

    def _frontiers(self) -> Iterable[Row]:
        for item in self._c.catalog.state.items.values():
            found = self._frontiers_of(item)
            if found is not None:
                yield item.id, _open(found.since), _open(found.upper)

    def _storage_shards(self) -> Iterable[Row]:
        for item in self._c.catalog.state.items.values():
            if item.shard_id is not None:
                yield item.id, item.shard_id

    def _lags(self) -> Iterable[Row]:
        now = self._c.clock.now_ms()
        for item in self._c.catalog.state.items.values():
            found = self._frontiers_of(item)
            if found is not None:
                behind_ms = 0 if found.upper == DONE else max(now - int(found.upper), 0)
                yield item.id, None if found.upper == 0 else pa.MonthDayNano([0, 0, behind_ms * 1_000_000])

    def _hydration(self) -> Iterable[Row]:
        state = self._c.catalog.state
        for item in self._items(ItemKind.INDEX, ItemKind.MATERIALIZED_VIEW):
            hydrated = self._c.is_running(item.id) and self._c.compute.hydrated(item.id)
            for replica in state.replicas_of(item.cluster_id or ""):
                yield item.id, replica, hydrated

    def _statuses(self) -> Iterable[Row]:
        problems = {status.id: status for status in self._c.compute.statuses() if status.health is not Health.RUNNING}
        now = self._c.clock.now_ms()
        for item in self._c.catalog.state.items.values():
            problem = problems.get(item.id)
            if problem is not None:
                yield item.id, item.name[2], problem.health.value, problem.message, _moment(problem.at)
            elif item.id in self._c.broken:
                yield item.id, item.name[2], "stalled", self._c.broken[item.id], _moment(now)
            else:
                yield item.id, item.name[2], "running", None, _moment(now)

    # Activity

    def _sessions(self) -> Iterable[Row]:
        for session in self._c.sessions.values():
            role = self._c.catalog.state.role_id(session.user)
            started = _moment(session.connected_at)
            yield str(session.process_id), session.process_id, role, session.address, started

    def _subscriptions(self) -> Iterable[Row]:
        for id_, running in self._c.subscriptions.running.items():
            yield id_, str(running.process_id), running.cluster_id, _moment(running.since), list(running.reads)

    def _group_commits(self) -> Iterable[Row]:
        yield self._c.committer.commits, self._c.committer.writes


def _nothing(rows: SystemRows) -> Iterable[Row]:
    return ()


def _open(frontier: int) -> int | None:
    """A frontier for people: NULL when nothing can still change."""
    return None if frontier == DONE else int(frontier)


def _moment(time: Timestamp) -> dt.datetime:
    return dt.datetime.fromtimestamp(time / 1000, dt.UTC)


_ROWS: dict[str, Callable[[SystemRows], Iterable[Row]]] = {
    "mz_catalog.mz_databases": SystemRows._databases,
    "mz_catalog.mz_schemas": SystemRows._schemas,
    "mz_catalog.mz_objects": SystemRows._objects,
    "mz_catalog.mz_relations": SystemRows._relations,
    "mz_catalog.mz_tables": SystemRows._tables,
    "mz_catalog.mz_views": SystemRows._views,
    "mz_catalog.mz_materialized_views": SystemRows._materialized_views,
    "mz_catalog.mz_indexes": SystemRows._indexes,
    "mz_catalog.mz_index_columns": SystemRows._index_columns,
    "mz_catalog.mz_columns": SystemRows._columns,
    "mz_catalog.mz_roles": SystemRows._roles,
    "mz_catalog.mz_clusters": SystemRows._clusters,
    "mz_catalog.mz_cluster_replicas": SystemRows._replicas,
    "mz_internal.mz_storage_shards": SystemRows._storage_shards,
    "mz_internal.mz_frontiers": SystemRows._frontiers,
    "mz_internal.mz_hydration_statuses": SystemRows._hydration,
    "mz_internal.mz_object_dependencies": SystemRows._dependencies,
    "mz_internal.mz_object_statuses": SystemRows._statuses,
    "mz_internal.mz_cluster_replica_statuses": SystemRows._replica_statuses,
    "mz_internal.mz_sessions": SystemRows._sessions,
    "mz_internal.mz_subscriptions": SystemRows._subscriptions,
    "mz_internal.mz_wallclock_global_lag": SystemRows._lags,
    "mz_internal.mz_group_commits": SystemRows._group_commits,
}
