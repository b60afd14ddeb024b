"""Descriptions of dataflows: which collections a plan reads and how, and what is to become of its result.

A collection is read from an index of the same cluster when there is one, else from its shard. A view's plan is its
query with plain views expanded, so a description computes one object.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.adapter.planning import Planner
from penstock.catalog import CatalogState
from penstock.compute import (
    DataflowDescription,
    Export,
    Import,
    IndexExport,
    IndexImport,
    Rel,
    ShardImport,
    SubscribeSink,
    ViewSink,
)
from penstock.compute.ir import columns_of
from penstock.compute.normalize import project
from penstock.control import CollectionSpec, ComputeController, ReadHold, StorageController
from penstock.persist import ShardId
from penstock.runtime import DONE, MIN_TIME, Frontier, GlobalId, InternalError, Timestamp
from penstock.sql import RelationDesc
from penstock.sql.items import CatalogItem, ItemKind


class DataflowBuilder:
    """Builds descriptions against one state of the catalog."""

    def __init__(self, state: CatalogState, planner: Planner) -> None:
        self._state = state
        self._planner = planner

    def materialized_view(self, item: CatalogItem, as_of: Timestamp = MIN_TIME) -> DataflowDescription:
        """The dataflow that maintains a materialized view in its shard."""
        assert item.desc is not None
        assert item.shard_id is not None
        rel, inputs = self._planner.view(self._state, item)
        sink = ViewSink(item.id, item.id, item.shard_id, item.desc.arrow)
        return self._describe(item.id, item.cluster_id, rel, inputs, item.desc, sink, as_of)

    def index(self, item: CatalogItem, as_of: Timestamp = MIN_TIME) -> DataflowDescription:
        """The dataflow that keeps an index in memory: over a plain view it computes the view, else it copies."""
        on = self._state.items[self._state.index_target(item.id)]
        assert on.desc is not None
        sink = IndexExport(item.id, on.id, self._state.index_key(item.id))
        if on.kind is ItemKind.VIEW:
            rel, inputs = self._planner.view(self._state, on)
            return self._describe(item.id, item.cluster_id, rel, inputs, on.desc, sink, as_of)
        imports = self.imports(item.cluster_id, [on.id], before=item.id)
        return DataflowDescription(item.id, imports, (), (sink,), as_of)

    def subscribe(
        self,
        id_: GlobalId,
        cluster_id: str,
        rel: Rel | None,
        inputs: Iterable[GlobalId],
        desc: RelationDesc,
        *,
        as_of: Timestamp,
        with_snapshot: bool,
        up_to: Frontier,
    ) -> DataflowDescription:
        """The dataflow of a SUBSCRIBE: of the plan `rel`, or (None) of its single input as it is."""
        if rel is None:
            (on,) = inputs
            sink = SubscribeSink(id_, on, with_snapshot, up_to)
            return DataflowDescription(id_, self.imports(cluster_id, [on]), (), (sink,), as_of, up_to)
        sink = SubscribeSink(id_, id_, with_snapshot, up_to)
        return self._describe(id_, cluster_id, rel, inputs, desc, sink, as_of, until=up_to)

    def imports(
        self, cluster_id: str | None, ids: Iterable[GlobalId], *, before: GlobalId | None = None
    ) -> dict[GlobalId, Import]:
        """How a dataflow on the cluster reads each of `ids`. Indexes as young as `before` are not used."""
        return {id_: self._import(cluster_id, self._state.items[id_], before) for id_ in ids}

    def _import(self, cluster_id: str | None, item: CatalogItem, before: GlobalId | None) -> Import:
        assert item.desc is not None
        for index in self._state.indexes_on.get(item.id, ()):
            if index.cluster_id == cluster_id and (before is None or int(index.id[1:]) < int(before[1:])):
                return IndexImport(index.id, item.id, item.desc.arrow)
        if item.shard_id is None:
            raise InternalError(f"{item.id} ({item.name[2]}) has neither a shard nor an index on cluster {cluster_id}")
        return ShardImport(item.shard_id, item.desc.arrow, item.kind is ItemKind.TABLE)

    def _describe(
        self,
        id_: GlobalId,
        cluster_id: str | None,
        rel: Rel,
        inputs: Iterable[GlobalId],
        desc: RelationDesc,
        sink: Export,
        as_of: Timestamp,
        *,
        until: Frontier = DONE,
    ) -> DataflowDescription:
        named = project(rel, columns_of(rel), tuple(column.name for column in desc.columns))
        # a dataflow's own collections may not read themselves back through an index made later
        imports = self.imports(cluster_id, inputs, before=id_ if id_.startswith("u") else None)
        return DataflowDescription(id_, imports, ((sink.on, named),), (sink,), as_of, until)


def acquire_inputs(
    description: DataflowDescription, storage: StorageController, compute: ComputeController
) -> dict[GlobalId, ReadHold]:
    """A hold on every input of `description` at the earliest time possible. On an error none is kept."""
    holds: dict[GlobalId, ReadHold] = {}
    try:
        for name, source in description.imports.items():
            if isinstance(source, IndexImport):
                holds[source.index] = compute.acquire_hold(source.index)
            else:
                holds[name] = storage.acquire_hold(name)
    except BaseException:
        for hold in holds.values():
            hold.release()
        raise
    return holds


def collection_spec(item: CatalogItem) -> CollectionSpec:
    """What the storage controller is told of a table or materialized view."""
    assert item.desc is not None
    assert item.shard_id is not None
    return CollectionSpec(item.id, ShardId(item.shard_id), item.desc.arrow, item.kind is ItemKind.TABLE)
