"""Bootstrap and end of the database: opens the stores, fences older coordinators, brings everything back to life.

The order is what protects readers. The catalog's fence comes first: from then on no older coordinator commits. Then
the transactions shard is read and what earlier coordinators committed is applied. Storage collections are opened at
their durable sinces, dataflows choose their as-ofs and take their holds; only after that may any since move again and
may replicas drop what they run besides. A view that cannot be started is quarantined with a reason; the rest starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from penstock.adapter.coordinator import Coordinator
from penstock.adapter.dataflows import DataflowBuilder, collection_spec
from penstock.adapter.group_commit import FencedError, GroupCommitter
from penstock.adapter.oracle import TimestampOracle
from penstock.adapter.planning import Planner
from penstock.adapter.system_variables import USE_COMMITTER, bypass_committer, bypasses_committer
from penstock.catalog import TXNS_SHARD_SETTING, Catalog, CatalogFenced, CatalogState
from penstock.committer import (
    AddressError,
    CommitterServer,
    CredentialFiles,
    CredentialsError,
    HopelessStore,
    InProcessConsensus,
    RoutedConsensus,
    RpcConsensus,
    RpcPubSub,
    connected_when_ready,
    open_when_ready,
)
from penstock.compute import DataflowDescription
from penstock.control import (
    ClusterId,
    ClusterSpec,
    ComputeController,
    ProcessOrchestrator,
    ReplicaId,
    ReplicaSpec,
    StorageController,
)
from penstock.persist import (
    Blob,
    Consensus,
    LocalPubSub,
    PersistClient,
    PersistConfig,
    PubSub,
    ShardId,
    StoreUnusable,
    Sweeper,
    open_blob_when_ready,
)
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Clock, ExternalError, GlobalId, PenstockError, SystemClock, TaskOwner, step_back
from penstock.sql.items import CatalogItem, ItemKind

_log = structlog.get_logger("penstock.bootstrap")

STORE_RETRY_MS = 15_000
"""A statement waits this long for a failing store before it gets the store's error."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """Where everything is. `run_dir`: sockets and replica logs; its path must be short.

    `external_committer`: the address of a committer that this process and its replicas dial; `consensus_url` is then
    needed only for bypassing it, and may be empty. Empty: the committer is in this process.
    """

    consensus_url: str
    blob_url: str
    run_dir: Path
    tick_s: float = 1.0
    external_committer: str = ""
    committer_credentials: CredentialFiles = field(default_factory=CredentialFiles)


class Environment:
    """A whole database in this process, but for the wire. `open` once, `close` once."""

    def __init__(self, config: EnvironmentConfig, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._stack = AsyncExitStack()
        self._failed = asyncio.Event()
        self._coordinator: Coordinator | None = None
        self.failure: str | None = None
        """Why the database had to stop by itself."""

    @property
    def coordinator(self) -> Coordinator:
        """Where sessions come from; once `open` has returned."""
        assert self._coordinator is not None, "the environment is not open"
        return self._coordinator

    async def open(self) -> None:
        """Start everything. Raises PenstockError when that cannot be; `close` must be called all the same.

        Waits without limit for stores that are not up yet.
        """
        config, clock, stack = self._config, self._clock, self._stack
        blob = await _open_blob(config, clock)
        stack.push_async_callback(blob.close)
        if config.external_committer:
            way = await _dial_committer(config, clock, stack)
        else:
            way = await _host_committer(config, clock, stack)
        consensus = RoutedConsensus(way.consensus, config.consensus_url)
        stack.push_async_callback(consensus.close)
        settings = PersistConfig(store_retry_ms=STORE_RETRY_MS)
        client = PersistClient(blob, consensus, clock=clock, pubsub=way.pubsub, config=settings)
        stack.push_async_callback(client.close)

        catalog = await Catalog.open(client)
        stack.push_async_callback(_best_effort(catalog.close))
        bypass = bypasses_committer(catalog.state.settings)
        if bypass:
            await _bypass_committer(consensus)
        txns_shard = ShardId(catalog.state.settings[TXNS_SHARD_SETTING])
        txns = await TxnsWriter.open(client, txns_shard)
        stack.push_async_callback(txns.close)
        oracle = TimestampOracle(clock, step_back(txns.upper))
        committer = GroupCommitter(txns, oracle, clock, _fence(catalog), tick_s=config.tick_s)
        tasks = TaskOwner("coordinator", on_failure=self._task_failed)
        stack.push_async_callback(tasks.close)
        tasks.spawn(committer.run(), "group-commit")
        tasks.spawn(Sweeper(client, txns.keys_to_keep).run(), "sweep")
        tables = {ShardId(i.shard_id): i.desc.arrow for i in _tables(catalog.state) if i.shard_id and i.desc}
        # also without tables: this append is what stops a coordinator that was fenced a moment ago from committing
        await committer.register(tables)
        reader = await TxnsReader.open(client, txns_shard)
        stack.push_async_callback(reader.close)

        storage = await StorageController.open(
            client, reader, catalog.epoch, clock=clock, on_fenced=lambda error: self._fail(error.message)
        )
        stack.push_async_callback(storage.close)
        orchestrator = ProcessOrchestrator(
            config.run_dir,
            way.target,
            config.blob_url,
            clock=clock,
            arguments=way.replica_arguments,
            consensus_url=config.consensus_url,
        )
        compute = ComputeController(storage, orchestrator, txns_shard=txns_shard, clock=clock, bypass_committer=bypass)
        stack.push_async_callback(compute.close)
        planner = Planner()
        broken = await self._revive(catalog.state, planner, oracle, storage, compute)
        self._coordinator = Coordinator(
            catalog=catalog,
            planner=planner,
            oracle=oracle,
            committer=committer,
            storage=storage,
            compute=compute,
            clock=clock,
            tasks=tasks,
            broken=broken,
            consensus=consensus,
            on_fatal=self._fail,
        )
        stack.push_async_callback(self._coordinator.close)
        tasks.spawn(_finish_drops(client, catalog.state), "finish-drops")

    async def _revive(
        self,
        state: CatalogState,
        planner: Planner,
        oracle: TimestampOracle,
        storage: StorageController,
        compute: ComputeController,
    ) -> dict[GlobalId, str]:
        """Collections, clusters and dataflows of the catalog. Returns what could not be planned, with the reason."""
        durable = [collection_spec(item) for item in state.items.values() if item.shard_id is not None]
        await storage.create_collections(durable)
        for cluster_id, cluster in state.clusters.items():
            replicas = state.replicas_of(cluster_id)
            specs = tuple(ReplicaSpec(ReplicaId(id_), replica.name) for id_, replica in replicas.items())
            await compute.create_cluster(ClusterSpec(ClusterId(cluster_id), cluster.name, specs))
        builder = DataflowBuilder(state, planner)
        flows: list[tuple[ClusterId, DataflowDescription]] = []
        broken: dict[GlobalId, str] = {}
        for item in state.items.values():
            make = {ItemKind.MATERIALIZED_VIEW: builder.materialized_view, ItemKind.INDEX: builder.index}.get(item.kind)
            if make is None:
                continue
            try:
                flows.append((ClusterId(item.cluster_id or ""), make(item)))
            except PenstockError as error:
                broken[item.id] = error.message
                _log.error("cannot be planned and is not started", id=item.id, name=item.name, error=error.message)
        quarantined = await compute.bootstrap(flows, oracle.read_ts())
        compute.initialization_complete()
        storage.initialization_complete()
        _log.info(
            "open",
            epoch=state.epoch,
            collections=len(durable),
            dataflows=len(flows) - len(quarantined),
            quarantined=sorted(quarantined),
            unplannable=sorted(broken),
        )
        return broken

    async def failed(self) -> None:
        """Return when the database can no longer go on; `failure` says why."""
        await self._failed.wait()

    async def close(self) -> None:
        """Stop everything, in the opposite order of its start. Never raises for a store that fails."""
        await self._stack.aclose()

    def _task_failed(self, name: str, error: BaseException) -> None:
        message = error.message if isinstance(error, PenstockError) else repr(error)
        self._fail(f"{name} failed: {message}")

    def _fail(self, why: str) -> None:
        if self.failure is None:
            self.failure = why
            _log.error("the coordinator must stop", why=why)
            self._failed.set()


@dataclass(frozen=True)
class _WayToConsensus:
    """How this process reaches consensus, and what its replicas are told to dial."""

    consensus: Consensus
    pubsub: PubSub
    target: str
    replica_arguments: tuple[str, ...] = ()


async def _open_blob(config: EnvironmentConfig, clock: Clock) -> Blob:
    try:
        return await open_blob_when_ready(config.blob_url, clock)
    except (ValueError, HopelessStore) as error:
        raise StoreUnusable(str(error)) from error


async def _host_committer(config: EnvironmentConfig, clock: Clock, stack: AsyncExitStack) -> _WayToConsensus:
    """The committer in this process, which calls it directly: the store is not opened with one that creates tables
    that were dropped under it, because here that would hide the loss of everything.
    """
    try:
        store = await open_when_ready(config.consensus_url, clock)
    except (ValueError, HopelessStore) as error:
        raise StoreUnusable(str(error)) from error
    consensus = InProcessConsensus(store)
    stack.push_async_callback(consensus.close)
    pubsub = LocalPubSub()
    server = CommitterServer(consensus, pubsub)
    target = f"unix:{config.run_dir / 'committer.sock'}"
    await server.listen(target)
    stack.push_async_callback(server.close, 0.2)
    return _WayToConsensus(consensus, pubsub, target)


async def _dial_committer(config: EnvironmentConfig, clock: Clock, stack: AsyncExitStack) -> _WayToConsensus:
    """A committer that somebody else runs. It outlives this process; so do the reads and writes of all who dial it, but
    for the replicas that this process starts, which end with it.
    """
    target = config.external_committer
    try:
        credentials = config.committer_credentials.load()
        consensus = RpcConsensus(target, credentials=credentials, clock=clock)
        pubsub = RpcPubSub(target, credentials=credentials, clock=clock)
    except (AddressError, CredentialsError) as error:
        raise StoreUnusable(f"cannot use the committer at {target}: {error}") from error
    stack.push_async_callback(consensus.close)
    stack.push_async_callback(pubsub.close)
    await connected_when_ready(consensus, clock)
    return _WayToConsensus(consensus, pubsub, target, tuple(config.committer_credentials.arguments()))


async def _bypass_committer(consensus: RoutedConsensus) -> None:
    try:
        await bypass_committer(consensus)
    except ValueError as error:
        raise StoreUnusable(
            f"{USE_COMMITTER} is off, and the committer cannot be bypassed: {error}; start with --consensus and the"
            " URL of the committer's store"
        ) from error


def _tables(state: CatalogState) -> list[CatalogItem]:
    return [item for item in state.items.values() if item.kind is ItemKind.TABLE]


def _fence(catalog: Catalog) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        try:
            await catalog.check_leader()
        except CatalogFenced as error:
            raise FencedError(error.message) from error

    return check


def _best_effort(close: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def closed() -> None:
        try:
            async with asyncio.timeout(1.0):
                await close()
        except (PenstockError, TimeoutError) as error:
            _log.warning("not closed orderly", error=repr(error))

    return closed


async def _finish_drops(client: PersistClient, state: CatalogState) -> None:
    """Delete the data of objects whose drop was interrupted. Idempotent; what fails is tried at the next start."""
    for shard in state.unfinalized_shards:
        try:
            await client.finalize(ShardId(shard))
        except ExternalError as error:
            _log.warning("the data of a dropped object is still there", shard=shard, error=error.message)
