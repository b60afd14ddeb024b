"""The compute controller: which dataflows run on which cluster, and what their replicas report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from penstock.control.holds import ReadHold
from penstock.control.orchestrator import Orchestrator
from penstock.control.specs import (
    ClusterId,
    ClusterSpec,
    Frontiers,
    ObjectStatus,
    Peek,
    ReplicaId,
    ReplicaSpec,
    SubscribeEvent,
)
from penstock.control.storage import StorageController
from penstock.runtime import Clock, Frontier, GlobalId, Timestamp

if TYPE_CHECKING:
    from penstock.compute import DataflowDescription
    from penstock.persist import ShardId


class ComputeController:
    """Owns clusters, their replicas and dataflows."""

    def __init__(
        self,
        storage: StorageController,
        orchestrator: Orchestrator,
        *,
        txns_shard: ShardId,
        clock: Clock | None = None,
    ) -> None:
        self._storage, self._orchestrator, self._txns_shard = storage, orchestrator, txns_shard

    async def create_cluster(self, spec: ClusterSpec) -> None:
        """Start its replicas; returns before they answer."""
        raise NotImplementedError

    async def drop_cluster(self, id_: ClusterId) -> None:
        """End its replicas. It must not have dataflows any more."""
        raise NotImplementedError

    async def create_replica(self, cluster: ClusterId, spec: ReplicaSpec) -> None:
        """One more replica: it runs all dataflows of the cluster."""
        raise NotImplementedError

    async def drop_replica(self, cluster: ClusterId, replica: ReplicaId) -> None:
        """One less."""
        raise NotImplementedError

    async def bootstrap(
        self, dataflows: Sequence[tuple[ClusterId, DataflowDescription]], now: Timestamp
    ) -> dict[GlobalId, str]:
        """At start: choose an as-of per dataflow (what the descriptions say is ignored), hold the inputs,
        create them.

        `dataflows`: indexes and views, inputs before users. `now`: the oracle's read time. Returns those that
        could not be started without a hole in their history, with the reason; they are quarantined,
        everything else runs.
        """
        raise NotImplementedError

    def initialization_complete(self) -> None:
        """All dataflows of the catalog are created: replicas may drop what they run besides."""
        raise NotImplementedError

    async def create_dataflow(
        self, cluster: ClusterId, description: DataflowDescription, holds: dict[GlobalId, ReadHold]
    ) -> None:
        """Run an index or view. `holds`: one per import at or before ``description.as_of``; taken over."""
        raise NotImplementedError

    async def drop_collections(self, ids: Iterable[GlobalId]) -> None:
        """End these indexes and views. Their holds on inputs end after the replicas were told."""
        raise NotImplementedError

    def acquire_hold(self, id_: GlobalId, at: Frontier | None = None) -> ReadHold:
        """A hold on an index. Raises `SinceError`, or `KeyError` for unknown ids."""
        raise NotImplementedError

    def peek(self, cluster: ClusterId, peek: Peek, holds: Sequence[ReadHold]) -> AsyncIterator[pa.RecordBatch]:
        """Rows of the answer; waits until the inputs are complete at the timestamp, and through replica
        restarts.

        `holds`: on every index and shard that is read; taken over, also when the iterator is never started.
        Raises `SqlError` (`DataError` when the inputs hold an error at that time). `aclose()` cancels.
        """
        raise NotImplementedError

    def subscribe(
        self, cluster: ClusterId, description: DataflowDescription, holds: dict[GlobalId, ReadHold]
    ) -> AsyncIterator[SubscribeEvent]:
        """Changes of the description's one `SubscribeSink`: contiguous events from its as-of on; `aclose()`
        ends it.
        """
        raise NotImplementedError

    def frontiers(self, id_: GlobalId) -> Frontiers:
        """Of an index (where it can be read) or a view's dataflow."""
        raise NotImplementedError

    def hydrated(self, id_: GlobalId) -> bool:
        """Whether some replica has computed it beyond its as-of. True on clusters without replicas."""
        raise NotImplementedError

    def statuses(self) -> list[ObjectStatus]:
        """The latest of each object on each replica."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnect from the replicas and end the orchestrator's processes."""
        raise NotImplementedError
