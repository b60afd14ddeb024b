"""A catalog in memory, and running planned queries over rows given as Python values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from penstock.runtime import GlobalId, SqlError, conform
from penstock.sql import (
    CatalogItem,
    ItemKind,
    QueryPlan,
    RelationDesc,
    Session,
    map_datafusion_error,
    new_context,
    parse_one,
    plan_query,
)
from penstock.sql import statements as st

Rows = Sequence[Mapping[str, Any]]


class SmallCatalog:
    """A `CatalogView` over a dictionary; every name is in materialize.public."""

    database = "materialize"
    search_path = ("public",)

    def __init__(self) -> None:
        self.items: dict[str, CatalogItem] = {}
        self.tables: dict[str, pa.RecordBatch] = {}

    def table(self, name: str, desc: RelationDesc, rows: Rows | pa.Table = ()) -> CatalogItem:
        item = self._add(name, desc, ItemKind.TABLE, "")
        schema = desc.arrow
        if isinstance(rows, pa.Table):
            self.tables[item.id] = rows.combine_chunks().to_batches()[0]
        else:
            self.tables[item.id] = pa.RecordBatch.from_pylist(list(rows), schema=schema)
        return item

    def view(self, create_sql: str) -> CatalogItem:
        statement = parse_one(create_sql)
        assert isinstance(statement, st.CreateView)
        names = [c.last for c in statement.columns] if statement.columns else None
        plan = plan_query(statement.query, self, for_view=True, columns=names)
        return self._add(statement.name.last, plan.desc, ItemKind.VIEW, create_sql)

    def _add(self, name: str, desc: RelationDesc, kind: ItemKind, sql: str) -> CatalogItem:
        number = len(self.items) + 1
        full = ("materialize", "public", name)
        item = CatalogItem(GlobalId(f"u{number}"), kind, full, desc, sql, oid=20000 + number)
        self.items[name] = item
        return item

    def resolve(self, parts: tuple[str, ...]) -> CatalogItem:
        if parts[:-1] not in ((), ("public",), ("materialize", "public")) or parts[-1] not in self.items:
            raise SqlError(f'unknown catalog item "{".".join(parts)}"', sqlstate="42P01")
        return self.items[parts[-1]]

    def plan(self, text: str, **options: Any) -> QueryPlan:
        statement = parse_one(text)
        assert isinstance(statement, st.Query)
        return plan_query(statement, self, **options)

    def run(self, text: str, parameters: Sequence[str | None] = (), *, mz_now: int = 0, **options: Any) -> pa.Table:
        """The answer of `text`, conformed to the plan's description. Raises what a client would see."""
        plan = self.plan(text, **options).bind(parameters)
        return self.execute(plan, mz_now=mz_now)

    def execute(self, plan: QueryPlan, *, mz_now: int = 0) -> pa.Table:
        ctx = new_context(mz_now=mz_now)
        for name, item_id in plan.inputs.items():
            ctx.register_record_batches(name, [[self.tables[item_id]]])
        try:
            batches = ctx.sql(plan.datafusion_sql).collect()
        except Exception as error:  # DataFusion raises plain exceptions
            raise map_datafusion_error(error) from error
        # names may repeat in a result: rows are told apart by position
        fields = [field.with_name(f"c{i}").with_nullable(True) for i, field in enumerate(plan.desc.arrow)]
        schema = pa.schema(fields)
        return pa.Table.from_batches([conform(batch, schema) for batch in batches], schema=schema)

    def rows(self, text: str, parameters: Sequence[str | None] = (), **options: Any) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.run(text, parameters, **options).to_pylist()]

    def value(self, expression: str, **options: Any) -> Any:
        """The value of one expression."""
        return self.rows(f"select {expression}", **options)[0][0]


SESSION = Session(now_us=1_600_000_000_000_000, user="me", database="materialize", schema="public")
