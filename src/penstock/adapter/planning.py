"""Planning for sessions: parsed statements and query plans, cached; views as plans of the engine.

The cache is keyed by everything a plan depends on, so a catalog change, another search path or other parameter types
miss it by themselves. Plain views that have an index on the session's cluster are planned as collections of their
own: the index answers for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import pyarrow as pa
from sqlglot import exp

from penstock.catalog import CatalogState, SessionCatalog
from penstock.compute import Rel, from_substrait
from penstock.runtime import GlobalId, SqlError
from penstock.sql import CatalogItem, ItemKind, QueryPlan, SqlType, optimize, parse, parse_one, plan_query
from penstock.sql import Session as PlanSession
from penstock.sql import statements as ast

CACHED = 1024
CACHED_TEXT_MAX = 16 << 10
"""Longer texts are seldom repeated (INSERTs of many rows) and are not kept."""


V = TypeVar("V")


class Cache(Generic[V]):
    """Least recently used entries go first."""

    def __init__(self, size: int = CACHED) -> None:
        self._size = size
        self._entries: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        return None

    def put(self, key: Hashable, value: V) -> None:
        self._entries[key] = value
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


class IndexedCatalog(SessionCatalog):
    """A session's catalog on one cluster: a plain view with an index there is a collection to read, not to expand."""

    def __init__(
        self, base: SessionCatalog, cluster_id: str | None, system: dict[tuple[str, str], CatalogItem]
    ) -> None:
        super().__init__(base.state, database=base.database, search_path=base.search_path, system=system)
        self._cluster_id = cluster_id
        self.key = (base.state.version, base.database, tuple(base.search_path), cluster_id)
        """Everything that names and plans depend on besides the statement."""

    def find(self, parts: tuple[str, ...]) -> CatalogItem | None:
        item = super().find(parts)
        if item is not None and item.kind is ItemKind.VIEW and self._indexed(item.id):
            return replace(item, kind=ItemKind.MATERIALIZED_VIEW)
        return item

    def _indexed(self, id_: GlobalId) -> bool:
        return any(index.cluster_id == self._cluster_id for index in self.state.indexes_on.get(id_, ()))


class Planner:
    """Plans of all sessions. Planning is a millisecond or a few of pure computation."""

    def __init__(self) -> None:
        self._parsed: Cache[Sequence[ast.Statement]] = Cache()
        self._plans: Cache[tuple[object, QueryPlan]] = Cache()
        self._rels: Cache[tuple[Rel, list[GlobalId]]] = Cache()

    def parse(self, text: str) -> Sequence[ast.Statement]:
        """The statements of `text`. SqlError 42601 with a position."""
        if len(text) > CACHED_TEXT_MAX:
            return parse(text)
        found = self._parsed.get(text)
        if found is None:
            found = tuple(parse(text))
            self._parsed.put(text, found)
        return found

    def query(
        self,
        tree: exp.Expression,
        catalog: IndexedCatalog,
        parameter_types: Sequence[SqlType | None],
        session: PlanSession,
    ) -> QueryPlan:
        """The plan of a query of a session; kept for the next time where nothing of the session is folded in."""
        return self.kept(
            tree, catalog, parameter_types, lambda: plan_query(tree, catalog, parameter_types, session=session)
        )

    def kept(
        self,
        statement: object,
        catalog: IndexedCatalog,
        parameter_types: Sequence[SqlType | None],
        plan: Callable[[], QueryPlan],
    ) -> QueryPlan:
        """What `plan` once made of `statement`, which is known again by its identity, or what it makes of it now."""
        key = (id(statement), catalog.key, tuple(parameter_types))
        found = self._plans.get(key)
        if found is not None:
            one, known = found
            if one is statement:  # the entry keeps its statement alive, so an equal id is the same statement
                return known
        made = plan()
        if not made.session_dependent and not made.volatile:
            self._plans.put(key, (statement, made))
        return made

    def view_query(self, catalog: SessionCatalog, tree: exp.Expression) -> QueryPlan:
        """The plan of a view's query. SqlError 0A000 for what a view may not contain."""
        return plan_query(tree, catalog, for_view=True)

    def view(self, state: CatalogState, item: CatalogItem) -> tuple[Rel, list[GlobalId]]:
        """The engine's plan of a view or materialized view, and the collections that it reads."""
        key = (item.id, item.create_sql, state.version)
        found = self._rels.get(key)
        if found is None:
            plan = self.view_query(SessionCatalog(state, database=item.name[0]), self._definition(item).tree)
            found = (self.rel(state, plan), list(dict.fromkeys(plan.inputs.values())))
            self._rels.put(key, found)
        return found

    def rel(self, state: CatalogState, plan: QueryPlan) -> Rel:
        """`plan` as the engine runs it. SqlError 0A000 naming what cannot be maintained."""
        schemas = {name: _schema(state, id_) for name, id_ in plan.inputs.items()}
        substrait = optimize(plan, schemas)
        return from_substrait(substrait, {name: (plan.inputs[name], schema) for name, schema in schemas.items()})

    def definition(self, item: CatalogItem) -> str:
        """The query of a view as text."""
        return self._definition(item).sql

    @staticmethod
    def _definition(item: CatalogItem) -> ast.Query:
        statement = parse_one(item.create_sql)
        assert isinstance(statement, ast.CreateView | ast.CreateMaterializedView), item.create_sql
        return statement.query


def _schema(state: CatalogState, id_: GlobalId) -> pa.Schema:
    item = state.items.get(id_)
    if item is None or item.desc is None:
        raise SqlError(
            "a view cannot read system relations",
            sqlstate="0A000",
            detail=f"{id_} is answered from the coordinator's memory and has no history.",
        )
    return item.desc.arrow
