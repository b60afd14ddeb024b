"""The committer alone, as a process: what ``penstock persistd`` runs.

It stands next to the metadata store and survives restarts of coordinators, so that replicas go on reading and writing
shards while a coordinator is replaced. It keeps nothing: it may be killed at any moment, and two may run on one store.
"""

from __future__ import annotations

import wsgiref.simple_server
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import cast

import prometheus_client
import structlog

from penstock.committer.address import AddressError, check_address, unix_path
from penstock.committer.cache import ShardCache
from penstock.committer.credentials import NO_CREDENTIALS, Credentials
from penstock.committer.heartbeat import beat_for_ever
from penstock.committer.in_process import InProcessConsensus
from penstock.committer.recreate import RecreatingConsensus, ResettableStore
from penstock.committer.server import CommitterServer
from penstock.committer.waiting import open_when_ready
from penstock.persist import Consensus, LocalPubSub
from penstock.persist.store import BatchingConsensus, SchemaOwner
from penstock.runtime import Clock, SystemClock, TaskOwner

_log = structlog.get_logger("penstock.persistd")


@dataclass(frozen=True)
class PersistdConfig:
    """`listen`, `metrics_listen`: addresses; `stats_interval_s`: seconds between heartbeats, 0 for none."""

    consensus_url: str
    listen: str
    credentials: Credentials = NO_CREDENTIALS
    metrics_listen: str | None = None
    stats_interval_s: float = 30.0
    cache_shards: int = 10_000


class Persistd:
    """A committer with a server of its own. `open` once, `close` once."""

    def __init__(self, config: PersistdConfig, *, clock: Clock | None = None) -> None:
        """Raises `AddressError` for an address that may not be listened on: before anything is waited for."""
        check_address(config.listen, authenticated=config.credentials.authenticates_clients)
        self._config = config
        self._clock = clock if clock is not None else SystemClock()
        self._stack = AsyncExitStack()
        self.address = config.listen
        """Where it listens, with the port that was taken, once open."""
        self.metrics_address: str | None = None

    async def open(self) -> None:
        """Wait for the store, then serve. Raises `HopelessStore` and `AddressError`; `close` is called all the same."""
        config, stack = self._config, self._stack
        if config.metrics_listen is not None:
            self.metrics_address = self._serve_metrics(config.metrics_listen)
        store = await open_when_ready(config.consensus_url, self._clock)
        committer = self._committer(store)
        stack.push_async_callback(committer.close)
        server = CommitterServer(committer, LocalPubSub(), credentials=config.credentials, clock=self._clock)
        stack.push_async_callback(server.close)
        self.address = await server.listen(config.listen)
        if config.stats_interval_s > 0:
            tasks = TaskOwner("persistd")
            stack.push_async_callback(tasks.close)
            tasks.spawn(beat_for_ever(config.stats_interval_s, self._clock), "heartbeat")

    async def close(self) -> None:
        """Answer what was taken, for a moment, then stop."""
        await self._stack.aclose()

    def _committer(self, store: Consensus) -> InProcessConsensus:
        cache = ShardCache(self._config.cache_shards)
        if isinstance(store, SchemaOwner) and isinstance(store, BatchingConsensus):
            resettable = cast(ResettableStore, store)
            store = RecreatingConsensus(resettable, on_reset=lambda: committer.forget_all())
        committer = InProcessConsensus(store, cache=cache, clock=self._clock)
        return committer

    def _serve_metrics(self, address: str) -> str:
        host, colon, port = address.rpartition(":")
        if unix_path(address) is not None or not colon or not port.isdecimal() or int(port) > 65_535:
            raise AddressError(f"metrics are served on host:port, not on {address!r}")
        try:
            server, _ = prometheus_client.start_http_server(int(port), host.strip("[]"))
        except OSError as error:
            raise AddressError(f"cannot serve metrics on {address}: {error.strerror or error}") from error
        self._stack.callback(_close_metrics, server)
        taken = f"{host}:{server.server_port}"
        _log.info("metrics are served", address=taken)
        return taken


def _close_metrics(server: wsgiref.simple_server.WSGIServer) -> None:
    server.shutdown()
    server.server_close()
