"""pg_catalog and information_schema: what psql's ``\\d``, drivers and BI tools ask a PostgreSQL about itself.

A query that reads these relations, or calls one of their functions, never reaches the planner: it is rewritten into
DataFusion's words and answered at once from a snapshot of the catalog, in one process, without a timestamp. The
adapter asks `is_catalog_query` of each query's tree and, when it is one, uses `describe` and `answer` in place of
planning and peeking:

    snapshot = Snapshot(catalog_state, SessionInfo(database, user, search_path, ...), system_relations)
    if is_catalog_query(tree):
        desc, table = answer(tree, snapshot, parameters)

Answers are exact about Penstock's own objects; what a PostgreSQL has and Penstock has not (policies, triggers,
inheritance, ...) are relations with the true columns and no rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from sqlglot import exp

from penstock.adapter.pg_catalog.engine import run
from penstock.adapter.pg_catalog.parameters import literal, parameter_types
from penstock.adapter.pg_catalog.rewrite import is_catalog_query, rewrite
from penstock.adapter.pg_catalog.snapshot import SessionInfo, Snapshot
from penstock.sql.types import RelationDesc, SqlType

__all__ = ["SessionInfo", "Snapshot", "answer", "describe", "is_catalog_query"]


def answer(
    tree: exp.Expression,
    snapshot: Snapshot,
    parameters: Sequence[object | None] = (),
    *,
    tables: Mapping[str, pa.Table] | None = None,
) -> tuple[RelationDesc, pa.Table]:
    """The result of a catalog query. Blocks for milliseconds; may run in a thread.

    `parameters`: values for $1, $2, ...; `tables`: contents of system relations of other schemas that the query may
    join with, by ``schema.name``. SqlError 42P01 for an unknown relation, 0A000 for what cannot be answered.
    """
    tables = tables or {}
    return run(rewrite(tree, snapshot, [literal(value) for value in parameters], tables.keys()), snapshot, tables)


def describe(
    tree: exp.Expression,
    snapshot: Snapshot,
    given: Sequence[int] = (),
    *,
    tables: Mapping[str, pa.Table] | None = None,
) -> tuple[list[SqlType], RelationDesc]:
    """Types of the parameters (`given`: OIDs that the client declared, 0 for none) and the result's columns."""
    kinds = parameter_types(tree, given)
    desc, _ = answer(tree, snapshot, [None] * len(kinds), tables=tables)
    return kinds, desc
