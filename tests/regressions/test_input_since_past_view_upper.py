"""A view whose input was compacted past the view's own upper must not keep anything else from starting.

Elsewhere the coordinator met this at boot, as a constraint that cannot be satisfied, and panicked on every start: a
since never goes back. Here the view is quarantined with a status that says how to mend it, and everything else runs.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pyarrow as pa

from penstock.compute import DataflowDescription, ShardImport, ViewSink
from penstock.control import ClusterId, ClusterSpec, CollectionSpec, ComputeController, Health, StorageController
from penstock.persist import MemBlob, MemConsensus, PersistClient, ShardId, new_shard_id
from penstock.runtime import Frontier, GlobalId, Timestamp, Updates
from penstock.storage import view_schema

SCHEMA = pa.schema([("a", pa.int64())])
INPUT, BROKEN, SOUND = GlobalId("u1"), GlobalId("u2"), GlobalId("u3")
CLUSTER = ClusterId("c1")


class NoReplicas:
    """An orchestrator that is never asked for anything: the cluster is paused."""

    async def close(self) -> None:
        pass


def view(id_: GlobalId, shards: dict[GlobalId, ShardId]) -> DataflowDescription:
    imports = {INPUT: ShardImport(shards[INPUT], SCHEMA, False)}
    return DataflowDescription(id_, imports, (), (ViewSink(id_, INPUT, shards[id_], SCHEMA),), Timestamp(0))


def test_the_view_is_quarantined_and_the_rest_starts() -> None:
    async def main() -> None:
        client = PersistClient(MemBlob(), MemConsensus())
        shards = {id_: new_shard_id() for id_ in (INPUT, BROKEN, SOUND)}
        storage = await StorageController.open(client, SimpleNamespace(upper=Frontier(0)), 1)
        compute = ComputeController(storage, NoReplicas(), txns_shard=new_shard_id())
        for id_, upper in ((INPUT, 200), (BROKEN, 100), (SOUND, 150)):
            writer = await client.open_writer(shards[id_], view_schema(SCHEMA), purpose="test")
            nothing = Updates.empty(view_schema(SCHEMA))
            assert await writer.compare_and_append(nothing, Frontier(0), Frontier(upper)) is None
        await storage.create_collections([CollectionSpec(id_, shards[id_], SCHEMA, False) for id_ in shards])
        await storage.begin_at(INPUT, Frontier(141))  # has contents: changes nothing
        (collection,) = (c for c in storage._collections.values() if c.spec.id == INPUT)
        collection.implied.downgrade(Frontier(141))

        await compute.create_cluster(ClusterSpec(CLUSTER, "test"))
        flows = [(CLUSTER, view(id_, shards)) for id_ in (BROKEN, SOUND)]
        quarantined = await compute.bootstrap(flows, Timestamp(199))

        assert list(quarantined) == [BROKEN]
        (status,) = compute.statuses()
        assert (status.id, status.health) == (BROKEN, Health.QUARANTINED)
        assert "100" in status.message
        assert "141" in status.message
        assert "recreate" in status.message
        assert compute.frontiers(SOUND).since == 149
        await compute.close()
        await storage.close()
        await client.close()

    asyncio.run(main())
