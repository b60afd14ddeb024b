"""A coordinator's controllers with real replicas as child processes, without SQL.

An `Environment` lives on one data directory and may be started again on it: what is durable is all it remembers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from penstock.committer import CommitterServer, InProcessConsensus
from penstock.compute import DataflowDescription, Export, IndexExport, ShardImport, SubscribeSink, ViewSink
from penstock.compute.ir import Get, Rel, fields_of
from penstock.control import (
    ClusterId,
    ClusterSpec,
    CollectionSpec,
    ComputeController,
    IndexRead,
    Peek,
    ProcessOrchestrator,
    ReplicaId,
    ReplicaSpec,
    ShardRead,
    StorageController,
)
from penstock.control.answers import SubscribeStream
from penstock.persist import FileBlob, LocalPubSub, PersistClient, ShardId, SqliteConsensus, WriteHandle
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Frontier, GlobalId, Timestamp, Updates
from penstock.storage import rows_to_shard, view_schema

SCHEMA = pa.schema([pa.field("k", pa.int64()), pa.field("v", pa.int64())])
CLUSTER = ClusterId("c1")
REPLICA = ReplicaId("r1")
TXNS = ShardId("s00000000-0000-0000-0000-000000000001")
DEADLINE_SECONDS = 60


def shard_of(id_: str) -> ShardId:
    """A shard id made from a collection's."""
    return ShardId(f"s00000000-0000-0000-0000-{id_.encode().hex():0>12}")


def rows(*updates: tuple[int, int, int, int]) -> Updates:
    """Updates from tuples (k, v, time, diff)."""
    columns = list(zip(*updates, strict=True)) if updates else [(), (), (), ()]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(columns[0], pa.int64()), pa.array(columns[1], pa.int64())], schema=SCHEMA
    )
    return Updates(batch, np.array(columns[2], np.uint64), np.array(columns[3], np.int64))


class Environment:
    """Everything below the adapter. Use ``async with``."""

    def __init__(self, directory: Path, *, epoch: int = 1, replicas: int = 1) -> None:
        self.directory, self.epoch = directory, epoch
        self.replicas = [ReplicaId(f"r{number}") for number in range(1, replicas + 1)]
        self.shards: dict[str, WriteHandle] = {}
        self.tables: set[str] = set()
        self._killed: dict[ReplicaId, int] = {}

    async def __aenter__(self) -> Environment:
        self.consensus = InProcessConsensus(SqliteConsensus(str(self.directory / "consensus.sqlite")))
        self.blob = FileBlob(str(self.directory / "blob"))
        pubsub = LocalPubSub()
        self.committer = CommitterServer(self.consensus, pubsub)
        self.target = f"unix:{self.directory}/committer.sock"
        await self.committer.listen(self.target)
        self.client = PersistClient(self.blob, self.consensus, pubsub=pubsub)
        self.log = await TxnsWriter.open(self.client, TXNS)
        self.txns = await TxnsReader.open(self.client, TXNS)
        self.storage = await StorageController.open(self.client, self.txns, self.epoch)
        blob_url = f"file:{self.directory}/blob"
        self.orchestrator = ProcessOrchestrator(self.directory / "run", self.target, blob_url)
        self.compute = ComputeController(self.storage, self.orchestrator, txns_shard=TXNS)
        specs = tuple(ReplicaSpec(id_, id_) for id_ in self.replicas)
        await self.compute.create_cluster(ClusterSpec(CLUSTER, "test", specs))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for log in sorted((self.directory / "run").glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-8000:]}")
        await self.compute.close()
        await self.storage.close()
        await self.txns.close()
        await self.log.close()
        await self.client.close()
        await self.committer.close()
        await self.consensus.close()
        await self.blob.close()

    async def create_tables(self, *ids: str, ts: int = 0) -> None:
        """Tables, registered at `ts` unless they are already."""
        self.tables |= set(ids)
        assert await self.log.register({shard_of(id_): SCHEMA for id_ in ids}, Timestamp(ts)) is None
        specs = [CollectionSpec(GlobalId(id_), shard_of(id_), SCHEMA, True) for id_ in ids]
        await self.storage.create_collections(specs)

    async def insert(self, ts: int, **writes: list[tuple[int, int, int]]) -> None:
        """Commit rows (k, v, diff) to tables at `ts`, in one transaction."""
        updates = {shard_of(id_): [rows(*((k, v, ts, diff) for k, v, diff in new))] for id_, new in writes.items()}
        assert await self.log.commit_at(updates, Timestamp(ts)) is None

    async def create(self, *ids: str) -> None:
        """Durable collections without contents."""
        specs = [CollectionSpec(GlobalId(id_), shard_of(id_), SCHEMA, False) for id_ in ids]
        await self.storage.create_collections(specs)

    async def write(self, id_: str, updates: Updates, upper: int) -> None:
        """Append to the shard of a collection, which somebody else's sink would write."""
        if id_ not in self.shards:
            self.shards[id_] = await self.client.open_writer(shard_of(id_), view_schema(SCHEMA), purpose="test")
        writer = self.shards[id_]
        lower = await writer.fetch_recent_upper()
        assert await writer.compare_and_append(rows_to_shard(updates, SCHEMA), lower, Frontier(upper)) is None

    async def create_view(self, id_: str, input_: str, as_of: int, plan: Rel | None = None) -> None:
        """Maintain `plan` (default: a copy of `input_`) as the view `id_`, whose collection exists."""
        description = self.view(id_, input_, as_of, plan)
        hold = self.storage.acquire_hold(GlobalId(input_), Frontier(as_of))
        await self.compute.create_dataflow(CLUSTER, description, {GlobalId(input_): hold})

    async def create_index(self, id_: str, input_: str, as_of: int) -> None:
        description = self.index(id_, input_, as_of)
        hold = self.storage.acquire_hold(GlobalId(input_), Frontier(as_of))
        await self.compute.create_dataflow(CLUSTER, description, {GlobalId(input_): hold})

    def view(self, id_: str, input_: str, as_of: int, plan: Rel | None = None) -> DataflowDescription:
        made = GlobalId(f"{id_}-rows")
        sink = ViewSink(GlobalId(id_), made, shard_of(id_), SCHEMA)
        return self._description(id_, input_, as_of, ((made, plan or copy_of(input_)),), sink)

    def index(self, id_: str, input_: str, as_of: int) -> DataflowDescription:
        return self._description(id_, input_, as_of, (), IndexExport(GlobalId(id_), GlobalId(input_), (0,)))

    async def subscribe(self, id_: str, input_: str, as_of: int, *, with_snapshot: bool = True) -> SubscribeStream:
        sink = SubscribeSink(GlobalId(id_), GlobalId(input_), with_snapshot)
        hold = self.storage.acquire_hold(GlobalId(input_), Frontier(as_of))
        description = self._description(id_, input_, as_of, (), sink)
        return await self.compute.subscribe(CLUSTER, description, {GlobalId(input_): hold})

    def _description(self, id_: str, input_: str, as_of: int, objects: tuple, sink: Export) -> DataflowDescription:
        imports = {GlobalId(input_): ShardImport(shard_of(input_), SCHEMA, input_ in self.tables)}
        return DataflowDescription(GlobalId(id_), imports, objects, (sink,), Timestamp(as_of))

    async def peek_index(self, id_: str, at: int, query: str | None = None, keys: pa.RecordBatch | None = None) -> list:
        read = IndexRead(GlobalId(id_), keys)
        peek = Peek(Timestamp(at), query, {"t": read})
        return await self.fetch(peek, [self.compute.acquire_hold(GlobalId(id_), Frontier(at))])

    async def peek_shard(
        self,
        id_: str,
        at: int,
        query: str | None = None,
        *,
        columns: tuple[str, ...] | None = None,
        max_result_bytes: int = 1 << 30,
    ) -> list:
        read = ShardRead(shard_of(id_), SCHEMA, id_ in self.tables, columns)
        peek = Peek(Timestamp(at), query, {"t": read}, max_result_bytes)
        return await self.fetch(peek, [self.storage.acquire_hold(GlobalId(id_), Frontier(at))])

    async def fetch(self, peek: Peek, holds: list) -> list[tuple[object, ...]]:
        """All rows of the answer, sorted."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            batches = [batch async for batch in self.compute.peek(CLUSTER, peek, holds)]
        return sorted(row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))

    async def contents(self, id_: str, at: int) -> Counter[tuple[int, int]]:
        """What the shard of a collection holds at a time, read directly."""
        if id_ in self.tables:
            reader = await self.txns.open_reader(shard_of(id_), SCHEMA, purpose="check")
        else:
            reader = await self.client.open_reader(shard_of(id_), view_schema(SCHEMA), purpose="check")
        found: Counter[tuple[int, int]] = Counter()
        async for updates in reader.snapshot(Timestamp(at)):
            columns = [updates.rows.column(0).to_pylist(), updates.rows.column(1).to_pylist(), updates.diffs.tolist()]
            for k, v, diff in zip(*columns, strict=True):
                found[k, v] += diff
        await reader.expire()
        return Counter({row: count for row, count in found.items() if count})

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait until `condition` holds."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                result = condition()
                if result is True or (result is not False and await result):
                    return
                await asyncio.sleep(0.005)

    async def written(self, id_: str, upper: int) -> None:
        """Wait until the collection is durable up to `upper`."""
        await self.until(lambda: self.storage.frontiers(GlobalId(id_)).upper >= upper)

    async def kill(self, replica: ReplicaId = REPLICA) -> None:
        """SIGKILL, as from nowhere; first waits until the process after the one that was killed last runs."""

        def killed() -> bool:
            pid = self.orchestrator.pids().get(replica)
            if pid is None or pid == self._killed.get(replica):
                return False  # dead already: the orchestrator has not heard of its end, or waits before the next
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False  # it ended by itself, which is not heard of either
            self._killed[replica] = pid
            return True

        await self.until(killed)


def copy_of(input_: str) -> Rel:
    return Get(input_, fields_of(SCHEMA))
