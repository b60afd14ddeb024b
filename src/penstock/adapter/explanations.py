"""EXPLAIN: the plan that runs, and why a query reads at the time it does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING

import pyarrow as pa

from penstock.adapter.key_lookups import Lookup
from penstock.adapter.listings import to_table
from penstock.adapter.reads import Source
from penstock.adapter.session_api import Rows
from penstock.adapter.system_rows import is_system
from penstock.adapter.timestamps import Choice
from penstock.compute import explain
from penstock.runtime import DONE, SqlError
from penstock.sql import RelationDesc
from penstock.sql import statements as ast
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.types import TEXT

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session


class Explanations:
    """Answers EXPLAIN."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    def describe(self, statement: ast.Explain) -> RelationDesc:
        """One column of text."""
        what = "Timestamp" if statement.stage is ast.ExplainStage.TIMESTAMP else "Optimized Plan"
        return RelationDesc.of((what, TEXT))

    async def explain(self, session: Session, statement: ast.Explain) -> Rows:
        """The explanation, one line per row."""
        if statement.format is not ast.ExplainFormat.TEXT:
            raise SqlError("EXPLAIN AS JSON is not supported", sqlstate="0A000", hint="Use EXPLAIN ... AS TEXT.")
        if statement.stage is ast.ExplainStage.TIMESTAMP:
            lines = await self._timestamp(session, statement)
        else:
            lines = self._plan(session, statement)
        desc = self.describe(statement)
        table = to_table(desc, [(line,) for line in lines])

        async def batches() -> AsyncGenerator[pa.RecordBatch, None]:
            for batch in table.to_batches():
                yield batch

        return Rows(desc, batches(), lambda _: "EXPLAIN")

    def _plan(self, session: Session, statement: ast.Explain) -> list[str]:
        state, planner = self._c.catalog.state, self._c.planner
        if statement.name is not None:
            item = self._c.plain_view(session).resolve(statement.name.parts)
            if item.kind is ItemKind.INDEX:
                item = state.items[state.index_target(item.id)]
            if item.kind not in (ItemKind.VIEW, ItemKind.MATERIALIZED_VIEW):
                raise SqlError(f'"{item.name[2]}" has no plan: it is a {item.kind.value}', sqlstate="42809")
            rel, _ = planner.view(state, item)
            return explain(rel).splitlines()
        query = statement.query
        if isinstance(query, ast.CreateIndex) or query is None:
            raise SqlError("EXPLAIN CREATE INDEX is not supported", sqlstate="0A000", hint="EXPLAIN the view instead.")
        if not isinstance(query, ast.Query):
            plan = planner.view_query(self._c.plain_view(session), query.query.tree)
            return explain(planner.rel(state, plan)).splitlines()
        plan = self._c.plan(session, query.tree)
        user = [id_ for id_ in plan.inputs.values() if not is_system(id_)]
        try:
            lines = explain(planner.rel(state, plan)).splitlines() if user else ["Constant or system relations"]
        except SqlError as error:
            if error.sqlstate != "0A000":
                raise
            lines = [f"One-off query ({error.message})"]
        sources = self._c.reads.sources(session, user)
        return [*lines, *self._reads(sources.values(), Lookup.of_query(plan, query.tree, ()))]

    def _reads(self, sources: Iterable[Source], lookup: Lookup | None) -> list[str]:
        lines = []
        for source in sources:
            name = ".".join(source.item.name)
            if source.index is None:
                comparisons = lookup.comparisons(source.item) if lookup is not None else ()
                which = " and ".join(f"{one.column} {one.operator} {one.value}" for one in comparisons)
                parts = f", the parts that may have rows with {which}" if which else ""
                lines.append(f"Source {name} ({source.item.id}): read from its shard{parts}")
                continue
            keys = self._c.reads.keys(source, lookup)
            how = f"lookup of {keys.num_rows} key(s)" if keys is not None else "full scan"
            lines.append(f"Source {name} ({source.item.id}): index {source.index.name[2]}, {how}")
        return lines

    async def _timestamp(self, session: Session, statement: ast.Explain) -> list[str]:
        if not isinstance(statement.query, ast.Query):
            raise SqlError("EXPLAIN TIMESTAMP takes a query", sqlstate="42601")
        plan = self._c.plan(session, statement.query.tree)
        sources = self._c.reads.sources(session, [id_ for id_ in plan.inputs.values() if not is_system(id_)])
        when = await self._c.reads.when(session, statement.query.as_of)
        choice, holds = await self._c.reads.choose(session, sources, when)
        try:
            return self._timestamp_lines(session, choice, [source.item for source in sources.values()])
        finally:
            for hold in holds:
                hold.release()

    def _timestamp_lines(self, session: Session, choice: Choice, items: list[CatalogItem]) -> list[str]:
        oracle = choice.oracle_read_ts
        lines = [
            f"                query timestamp: {choice.timestamp}",
            f"          oracle read timestamp: {'' if oracle is None else oracle}",
            f"largest not in advance of upper: {choice.largest_complete}",
            f"                          upper:[{'' if choice.upper == DONE else choice.upper}]",
            f"                          since:[{choice.since}]",
            f"        can respond immediately: {str(choice.responds_immediately).lower()}",
            "                       timeline: EpochMilliseconds",
            f"              session wall time: {self._c.clock.now_ms()}",
        ]
        for item, frontiers in zip(items, choice.inputs.values(), strict=True):
            lines += [
                "",
                f"source {'.'.join(item.name)} ({item.id}):",
                f"                  read frontier:[{frontiers.since}]",
                f"                 write frontier:[{'' if frontiers.upper == DONE else frontiers.upper}]",
            ]
        lines += ["", "binding constraints:"]
        lines += [f"  at least {bound.bound}: {bound.reason}" for bound in choice.constraints]
        return lines
