"""A coordinator's controllers as a process of their own, for tests that kill one.

It dials a committer and a replica that others run, has the replica maintain the view ``u2`` as a copy of the shard
``u1``, says ``READY`` and lives until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from penstock.committer import CredentialFiles, RpcConsensus, RpcPubSub
from penstock.compute import DataflowDescription, ShardImport, ViewSink
from penstock.control import ClusterSpec, CollectionSpec, ComputeController, ReplicaId, ReplicaSpec, StorageController
from penstock.persist import FileBlob, PersistClient
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import GlobalId, Timestamp
from tests.control.environment import CLUSTER, SCHEMA, TXNS, copy_of, shard_of

REPLICA = ReplicaId("r1")
INPUT, VIEW = GlobalId("u1"), GlobalId("u2")


class RunByOthers:
    """An orchestrator of replicas that it neither starts nor ends."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def ensure(self, replica: ReplicaId) -> str:
        return self._address

    async def drop(self, replica: ReplicaId) -> None:
        """It goes on."""

    async def close(self) -> None:
        """They go on."""


def description() -> DataflowDescription:
    made = GlobalId("u2-rows")
    imports = {INPUT: ShardImport(shard_of(INPUT), SCHEMA, False)}
    sink = ViewSink(VIEW, made, shard_of(VIEW), SCHEMA)
    return DataflowDescription(VIEW, imports, ((made, copy_of(INPUT)),), (sink,), Timestamp(0))


async def main(committer: str, token_file: str, blobs: str, replica: str, epoch: str) -> None:
    credentials = CredentialFiles(Path(token_file)).load({})
    consensus = RpcConsensus(committer, credentials=credentials)
    pubsub = RpcPubSub(committer, credentials=credentials)
    client = PersistClient(FileBlob(blobs), consensus, pubsub=pubsub)
    log = await TxnsWriter.open(client, TXNS)
    await log.register({}, Timestamp(int(epoch)))
    storage = await StorageController.open(client, await TxnsReader.open(client, TXNS), int(epoch))
    compute = ComputeController(storage, RunByOthers(replica), txns_shard=TXNS)
    collections = [CollectionSpec(id_, shard_of(id_), SCHEMA, False) for id_ in (INPUT, VIEW)]
    await storage.create_collections(collections)
    await compute.create_cluster(ClusterSpec(CLUSTER, "test", (ReplicaSpec(REPLICA, REPLICA),)))
    failed = await compute.bootstrap([(CLUSTER, description())], Timestamp(0))
    assert failed == {}, failed
    compute.initialization_complete()
    storage.initialization_complete()
    while not compute.replicas_online(CLUSTER)[REPLICA]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print("READY", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
