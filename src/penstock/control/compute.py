"""The compute controller: which dataflows run on which cluster, and what their replicas report.

It owns the clusters (see `Cluster`), a connection per replica, and the order in which things start: as-ofs are chosen
before dataflows are created, holds are taken before both, and replicas may drop what they run besides only after
everything was created.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from penstock.compute import DataflowDescription, IndexExport, SubscribeSink, ViewSink
from penstock.control.answers import PeekStream, SubscribeStream
from penstock.control.as_of import AsOfs, select_as_ofs
from penstock.control.as_of import Flow as PlannedFlow
from penstock.control.cluster import INDEX_RETAIN_MS, Cluster, ExportKind, inputs_of
from penstock.control.holds import ReadHold
from penstock.control.orchestrator import Orchestrator
from penstock.control.peek_message import peek_message
from penstock.control.replica_connection import ReplicaConnection
from penstock.control.specs import (
    ClusterId,
    ClusterSpec,
    Frontiers,
    Health,
    ObjectStatus,
    Peek,
    ReplicaId,
    ReplicaSpec,
)
from penstock.control.storage import StorageController
from penstock.persist import ShardId
from penstock.runtime import (
    DONE,
    Clock,
    Frontier,
    GlobalId,
    InternalError,
    SqlError,
    SystemClock,
    TaskOwner,
    Timestamp,
)

_log = structlog.get_logger("penstock.control.compute")

_TICK_SECONDS = 1.0


class ComputeController:
    """Owns clusters, their replicas and dataflows. Belongs to one event loop, on which it must be made."""

    def __init__(
        self,
        storage: StorageController,
        orchestrator: Orchestrator,
        *,
        txns_shard: ShardId,
        clock: Clock | None = None,
        bypass_committer: bool = False,
    ) -> None:
        """`bypass_committer`: whether replicas reach the consensus store directly, until `configure` says otherwise."""
        self._storage, self._orchestrator, self._txns_shard = storage, orchestrator, txns_shard
        self._clock = clock or SystemClock()
        self._clusters: dict[ClusterId, Cluster] = {}
        self._cluster_of: dict[GlobalId, Cluster] = {}
        self._quarantined: dict[GlobalId, ObjectStatus] = {}
        self._connections: dict[ReplicaId, TaskOwner] = {}
        self._tasks = TaskOwner("compute-controller")
        self._tasks.spawn(self._maintain(), "maintain")
        self._initialized = False
        self._bypass_committer = bypass_committer

    def configure(self, *, bypass_committer: bool) -> None:
        """Tell all replicas, those to come included. Returns before they have heard of it."""
        self._bypass_committer = bypass_committer
        for cluster in self._clusters.values():
            cluster.configure(bypass_committer=bypass_committer)

    # Clusters

    async def create_cluster(self, spec: ClusterSpec) -> None:
        """Start its replicas; returns before they answer."""
        if spec.id in self._clusters:
            raise InternalError(f"cluster {spec.id} was created twice")
        cluster = Cluster(spec, self._txns_shard, self._clock, bypass_committer=self._bypass_committer)
        self._clusters[spec.id] = cluster
        if self._initialized:
            cluster.initialization_complete()
        for replica in spec.replicas:
            await self.create_replica(spec.id, replica)

    async def drop_cluster(self, id_: ClusterId) -> None:
        """End its replicas. Its dataflows go with it; peeks and subscriptions get an error."""
        cluster = self._clusters[id_]
        cluster.fail_answers(SqlError(f"cluster {cluster.spec.name} was dropped", sqlstate="57P01"))
        for export in list(cluster.exports):
            self._cluster_of.pop(export, None)
        cluster.drop(list(cluster.exports))
        for replica in list(cluster.replicas):
            await self.drop_replica(id_, replica)
        del self._clusters[id_]

    async def create_replica(self, cluster: ClusterId, spec: ReplicaSpec) -> None:
        """One more replica: it runs all dataflows of the cluster."""
        address = await self._orchestrator.ensure(spec.id)
        owner = self._clusters[cluster]
        connection = ReplicaConnection(spec.id, lambda: address, self._storage.epoch, owner, self._clock)
        owner.add_replica(spec.id, connection)
        self._connections[spec.id] = TaskOwner(f"replica-{spec.id}")
        self._connections[spec.id].spawn(connection.run(), "connection")

    async def drop_replica(self, cluster: ClusterId, replica: ReplicaId) -> None:
        """One less. What was held for it is released when its process is gone."""
        await self._connections.pop(replica).close()
        await self._orchestrator.drop(replica)
        self._clusters[cluster].remove_replica(replica)

    def replicas_online(self, cluster: ClusterId) -> dict[ReplicaId, bool]:
        """Whether each replica is connected at this moment."""
        return {id_: connection.online for id_, connection in self._clusters[cluster].replicas.items()}

    # Dataflows

    async def bootstrap(
        self, dataflows: Sequence[tuple[ClusterId, DataflowDescription]], now: Timestamp
    ) -> dict[GlobalId, str]:
        """At start: choose an as-of per dataflow (what the descriptions say is ignored), hold inputs, create them.

        `dataflows`: indexes and views, inputs before users. `now`: the oracle's read time. Returns those that could
        not be started without a hole in their history, with the reason; they are quarantined, everything else runs.
        """
        planned = {description.id: _planned(description) for _, description in dataflows}
        indexes = {sink.id for _, flow in dataflows for sink in flow.exports if isinstance(sink, IndexExport)}
        durable = {id_ for flow in planned.values() for id_ in flow.inputs} - indexes
        holds = {id_: self._storage.acquire_hold(id_) for id_ in durable}
        quarantined: dict[GlobalId, str] = {}
        try:
            while True:  # a flow that cannot run must not hold back what it reads
                running = [flow for flow in planned.values() if flow.id not in quarantined]
                selected = self._select(running, holds, now)
                if not selected.failures:
                    break
                quarantined |= selected.failures
                quarantined |= _stranded(running, quarantined, indexes)
            for cluster, description in dataflows:
                if description.id in quarantined:
                    self._quarantine(description, quarantined[description.id])
                elif selected.chosen[description.id] != DONE:
                    as_of = Timestamp(selected.chosen[description.id])
                    chosen = msgspec.structs.replace(description, as_of=as_of)
                    await self.create_dataflow(cluster, chosen, self._holds_for(chosen, holds))
        finally:
            for hold in holds.values():
                hold.release()
        return quarantined

    def initialization_complete(self) -> None:
        """All dataflows of the catalog are created: replicas may drop what they run besides."""
        self._initialized = True
        for cluster in self._clusters.values():
            cluster.initialization_complete()

    async def create_dataflow(
        self, cluster: ClusterId, description: DataflowDescription, holds: dict[GlobalId, ReadHold]
    ) -> None:
        """Run an index or view. `holds`: one per input (a durable collection, or an index), at or before the as-of;
        taken over, also when this fails.
        """
        try:
            upper = Frontier(0)
            for sink in description.exports:
                if isinstance(sink, ViewSink):
                    upper = await self._begin_view(sink.id, description.as_of)
            flow = self._clusters[cluster].create(description, dict(holds), upper)
        except BaseException:
            for hold in holds.values():
                hold.release()
            raise
        for id_ in flow.exports:
            self._cluster_of[id_] = self._clusters[cluster]
            self._quarantined.pop(id_, None)

    async def drop_collections(self, ids: Iterable[GlobalId]) -> None:
        """End these indexes and views. Their holds on inputs end after the replicas were told."""
        for id_ in ids:
            if self._quarantined.pop(id_, None) is None:
                self._cluster_of.pop(id_).drop([id_])

    def acquire_hold(self, id_: GlobalId, at: Frontier | None = None) -> ReadHold:
        """A hold on an index. Raises `SinceError`, or `KeyError` for unknown ids."""
        export = self._cluster_of[id_].exports[id_]
        if export.kind is not ExportKind.INDEX:
            raise InternalError(f"{id_} is no index: read it from its shard")
        return export.book.acquire(at)

    def frontiers(self, id_: GlobalId) -> Frontiers:
        """Of an index (where it can be read), or of a view's dataflow. Raises `KeyError` for unknown ids."""
        return self._cluster_of[id_].frontiers(id_)

    def hydrated(self, id_: GlobalId) -> bool:
        """Whether some replica has computed it beyond its as-of. True on clusters without replicas."""
        return id_ not in self._quarantined and self._cluster_of[id_].hydrated(id_)

    def statuses(self) -> list[ObjectStatus]:
        """The latest of each object on each replica, and of quarantined objects."""
        reported = [status for cluster in self._clusters.values() for status in cluster.statuses()]
        return [*self._quarantined.values(), *reported]

    # Answers

    def peek(self, cluster: ClusterId, peek: Peek, holds: Sequence[ReadHold]) -> PeekStream:
        """Rows of the answer; waits until the inputs are complete at the timestamp, and through replica restarts.

        `holds`: on every index and durable collection that is read; taken over. An async iterator of record batches,
        which raises `SqlError` (`DataError` when the inputs hold an error at that time). `aclose()` cancels it; it
        must be called unless the iterator was read to its end.
        """
        owner = self._clusters[cluster]
        uuid = os.urandom(16)
        stream = PeekStream(uuid, holds, lambda replica: owner.grant_chunk(stream, replica), owner.cancel_peek)
        owner.peek(stream, peek_message(uuid, peek))
        return stream

    async def subscribe(
        self, cluster: ClusterId, description: DataflowDescription, holds: dict[GlobalId, ReadHold]
    ) -> SubscribeStream:
        """Changes of the description's one `SubscribeSink`: contiguous events from its as-of on.

        `holds` as for `create_dataflow`. The stream ends after an event with the upper `DONE` or an error; `aclose()`
        ends it earlier, and must be called unless it was read to its end.
        """
        (sink,) = description.exports
        if not isinstance(sink, SubscribeSink):
            raise InternalError(f"dataflow {description.id} has no subscribe sink")
        owner = self._clusters[cluster]
        await self.create_dataflow(cluster, description, holds)

        def finish(_: SubscribeStream) -> None:
            if self._cluster_of.pop(sink.id, None) is not None:
                owner.drop([sink.id])

        stream = SubscribeStream(Frontier(description.as_of), finish)
        owner.exports[sink.id].stream = stream
        return stream

    async def close(self) -> None:
        """Disconnect from the replicas and end the orchestrator's processes. Nothing is dropped."""
        await self._tasks.close()
        await self._storage.stop_following()  # or the durable sinces would follow the holds that are released below
        for cluster in self._clusters.values():
            cluster.fail_answers(SqlError("the server is shutting down", sqlstate="57P01"))
        for connection in self._connections.values():
            await connection.close()
        await self._orchestrator.close()
        for cluster in self._clusters.values():
            cluster.release_all()

    async def _begin_view(self, id_: GlobalId, as_of: Timestamp) -> Frontier:
        """A view that was never written can be read from its as-of on, not before. Returns its durable upper."""
        upper = self._storage.frontiers(id_).upper
        if upper == 0:
            await self._storage.begin_at(id_, Frontier(as_of))
        return upper

    def _select(self, running: Sequence[PlannedFlow], holds: dict[GlobalId, ReadHold], now: Timestamp) -> AsOfs:
        storage = {id_: Frontiers(hold.since, self._storage.frontiers(id_).upper) for id_, hold in holds.items()}
        for flow in running:
            if flow.sink is not None and flow.sink not in storage:
                storage[flow.sink] = self._storage.frontiers(flow.sink)
        return select_as_ofs(running, storage, now)

    def _holds_for(
        self, description: DataflowDescription, durable: dict[GlobalId, ReadHold]
    ) -> dict[GlobalId, ReadHold]:
        return {
            id_: durable[id_].clone() if is_durable else self.acquire_hold(id_, Frontier(description.as_of))
            for id_, is_durable in inputs_of(description).items()
        }

    def _quarantine(self, description: DataflowDescription, why: str) -> None:
        for sink in description.exports:
            message = (
                f"{sink.id} was not started, because its history would get a hole: {why}. What it holds already can be "
                f"read up to there; drop and recreate it to compute it anew"
            )
            _log.error("quarantined", id=sink.id, why=why)
            self._quarantined[sink.id] = ObjectStatus(sink.id, None, Health.QUARANTINED, message, self._clock.now_ms())

    def _input_upper(self, id_: GlobalId) -> Frontier:
        if id_ in self._cluster_of:
            return self._cluster_of[id_].frontiers(id_).upper
        return self._storage.frontiers(id_).upper

    async def _maintain(self) -> None:
        while True:
            await self._clock.sleep(_TICK_SECONDS)
            for cluster in self._clusters.values():
                cluster.tick(self._input_upper)


def _planned(description: DataflowDescription) -> PlannedFlow:
    inputs = tuple(inputs_of(description))
    (sink,) = description.exports
    if isinstance(sink, ViewSink):
        return PlannedFlow(description.id, inputs, sink=sink.id)
    return PlannedFlow(description.id, inputs, retention_ms=INDEX_RETAIN_MS)


def _stranded(
    flows: Sequence[PlannedFlow], quarantined: dict[GlobalId, str], indexes: set[GlobalId]
) -> dict[GlobalId, str]:
    """Those that read an index of a quarantined flow, directly or not. `flows`: inputs before users."""
    reasons: dict[GlobalId, str] = {}
    for flow in flows:
        for input_ in flow.inputs:
            if input_ in indexes and (input_ in quarantined or input_ in reasons) and flow.id not in quarantined:
                reasons[flow.id] = f"its index {input_} is quarantined"
    return reasons
