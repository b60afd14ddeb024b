"""Queries through the sql room's planner: what a client writes, as SQL for DataFusion and as a maintained plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from penstock.compute import Rel, from_substrait
from penstock.runtime import GlobalId, SqlError
from penstock.sql import (
    CatalogItem,
    Column,
    ItemKind,
    QueryPlan,
    RelationDesc,
    SqlType,
    optimize,
    parse_one,
    plan_query,
)
from penstock.sql import statements as st


class Catalog:
    """Tables of one schema."""

    database = "materialize"
    search_path: Sequence[str] = ("public",)

    def __init__(self, tables: Mapping[str, RelationDesc]) -> None:
        self._items = {
            name: CatalogItem(GlobalId(f"u{i}"), ItemKind.TABLE, ("materialize", "public", name), desc)
            for i, (name, desc) in enumerate(tables.items())
        }

    def resolve(self, parts: tuple[str, ...]) -> CatalogItem:
        if parts[-1] not in self._items:
            raise SqlError(f"unknown relation {parts[-1]}", sqlstate="42P01")
        return self._items[parts[-1]]

    def schema(self, id_: GlobalId) -> pa.Schema:
        desc = next(item.desc for item in self._items.values() if item.id == id_)
        assert desc is not None
        return desc.arrow


def desc_of(schema: pa.Schema) -> RelationDesc:
    return RelationDesc(tuple(Column(field.name, SqlType.from_arrow(field), True) for field in schema))


def plan(sql: str, tables: Mapping[str, RelationDesc]) -> tuple[QueryPlan, Rel]:
    """The planned query and its maintained form, which reads collections by their ids u0, u1, ..."""
    query = parse_one(sql)
    assert isinstance(query, st.Query)
    catalog = Catalog(tables)
    planned = plan_query(query, catalog, for_view=True)
    schemas = {name: catalog.schema(id_) for name, id_ in planned.inputs.items()}
    inputs = {name: (id_, schemas[name]) for name, id_ in planned.inputs.items()}
    return planned, from_substrait(optimize(planned, schemas), inputs)
