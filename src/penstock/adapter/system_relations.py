"""System relations: what the coordinator knows about itself, as tables.

Their columns stand here as text; who fills them is `system_rows`. They are made on demand, only those a query names,
from the coordinator's memory at that moment: there is no shard behind them, so they have no history and no timestamp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import pyarrow as pa

from penstock.sql import RelationDesc, type_named

_COLUMNS = {
    "mz_catalog.mz_databases": "id text, oid oid, name text, owner_id text",
    "mz_catalog.mz_schemas": "id text, oid oid, database_id text, name text, owner_id text",
    "mz_catalog.mz_objects": "id text, oid oid, schema_id text, name text, type text, owner_id text, cluster_id text",
    "mz_catalog.mz_relations": "id text, oid oid, schema_id text, name text, type text, owner_id text, cluster_id text",
    "mz_catalog.mz_tables": "id text, oid oid, schema_id text, name text, owner_id text, create_sql text",
    "mz_catalog.mz_views": "id text, oid oid, schema_id text, name text, definition text, owner_id text,"
    " create_sql text",
    "mz_catalog.mz_materialized_views": "id text, oid oid, schema_id text, name text, cluster_id text,"
    " definition text, owner_id text, create_sql text",
    "mz_catalog.mz_indexes": "id text, oid oid, name text, on_id text, cluster_id text, owner_id text, create_sql text",
    "mz_catalog.mz_index_columns": "index_id text, index_position uint8, on_position uint8, on_expression text,"
    " nullable boolean",
    "mz_catalog.mz_columns": "id text, name text, position uint8, nullable boolean, type text, default text,"
    " type_oid oid, type_mod integer",
    "mz_catalog.mz_sources": "id text, oid oid, schema_id text, name text, type text, owner_id text",
    "mz_catalog.mz_sinks": "id text, oid oid, schema_id text, name text, type text, owner_id text",
    "mz_catalog.mz_connections": "id text, oid oid, schema_id text, name text, type text, owner_id text",
    "mz_catalog.mz_secrets": "id text, oid oid, schema_id text, name text, owner_id text",
    "mz_catalog.mz_types": "id text, oid oid, schema_id text, name text, category text, owner_id text",
    "mz_catalog.mz_roles": "id text, oid oid, name text, inherit boolean, rolsuper boolean",
    "mz_catalog.mz_clusters": "id text, name text, owner_id text, managed boolean, size text, replication_factor uint4",
    "mz_catalog.mz_cluster_replicas": "id text, name text, cluster_id text, size text, owner_id text",
    "mz_internal.mz_storage_shards": "object_id text, shard_id text",
    "mz_internal.mz_frontiers": "object_id text, read_frontier mz_timestamp, write_frontier mz_timestamp",
    "mz_internal.mz_hydration_statuses": "object_id text, replica_id text, hydrated boolean",
    "mz_internal.mz_object_dependencies": "object_id text, referenced_object_id text",
    "mz_internal.mz_object_statuses": "object_id text, name text, status text, error text, updated_at timestamptz",
    "mz_internal.mz_cluster_replica_statuses": "replica_id text, status text, reason text",
    "mz_internal.mz_sessions": "id text, connection_id uint4, role_id text, client_ip text, connected_at timestamptz",
    "mz_internal.mz_subscriptions": "id text, session_id text, cluster_id text, created_at timestamptz,"
    " referenced_object_ids text[]",
    "mz_internal.mz_wallclock_global_lag": "object_id text, lag interval",
    "mz_internal.mz_group_commits": "commits uint8, writes uint8",
}


@cache
def system_relations() -> dict[str, RelationDesc]:
    """``schema.name`` -> columns, of every system relation that the coordinator answers from memory."""
    return {name: _desc(columns) for name, columns in _COLUMNS.items()}


def _desc(columns: str) -> RelationDesc:
    pairs = (column.strip().partition(" ") for column in re.split(r",\s*", columns))
    return RelationDesc.of(*((name, type_named(kind)) for name, _, kind in pairs))


def to_table(name: str, rows: Sequence[Sequence[object]]) -> pa.Table:
    """`rows` (tuples in the order of the columns) as the Arrow table of the system relation `name`."""
    schema = system_relations()[name].arrow
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(list(values), type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
