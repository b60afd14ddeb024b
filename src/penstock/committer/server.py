"""`CommitterServer`: the committer's gRPC services, on a server of one's own or on another's."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer.address import SERVER_OPTIONS, AddressError, check_address, unix_path
from penstock.committer.authentication import TokenInterceptor
from penstock.committer.credentials import NO_CREDENTIALS, Credentials
from penstock.committer.peers import Peers
from penstock.committer.pubsub_service import PubSubService
from penstock.committer.service import ConsensusService
from penstock.persist import Consensus, PubSub
from penstock.runtime import Clock, SystemClock

_log = structlog.get_logger("penstock.committer")

GRACE_S = 1.0
"""How long operations that were taken may go on when the server closes."""


class CommitterServer:
    """Serves `consensus` (normally an `InProcessConsensus`) and `pubsub` (the process's own) to other
    processes, and gRPC's health service with them.

    It owns neither of the two. Use `listen` for a server of its own, or `add_to` one that exists: that one
    must be made with `SERVER_OPTIONS` (no cap on message sizes), and the owner calls `close` before stopping
    it, else the endless streams hold it up.
    """

    def __init__(
        self,
        consensus: Consensus,
        pubsub: PubSub,
        *,
        credentials: Credentials = NO_CREDENTIALS,
        clock: Clock | None = None,
    ) -> None:
        self._credentials = credentials
        self._peers = Peers()
        clock = clock if clock is not None else SystemClock()
        self._consensus = ConsensusService(consensus, clock, self._peers)
        self._pubsub = PubSubService(consensus, pubsub, self._peers)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the services to `server`, which is not started yet."""
        pb_grpc.add_ConsensusServicer_to_server(self._consensus, server)  # type: ignore[no-untyped-call]
        pb_grpc.add_PubSubServicer_to_server(self._pubsub, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def listen(self, address: str) -> str:
        """Start to serve on ``unix:/path`` or ``host:port`` (port 0 takes a free one); once per object.

        The host must be a loopback address unless the credentials authenticate clients.

        Returns the address with the port that was taken. Raises `AddressError` when the address is not
        allowed or not free. A Unix socket left over by a killed process is replaced; that no other process
        serves on it is for the caller to make sure (a lock on the data directory).
        """
        check_address(address, authenticated=self._credentials.authenticates_clients)
        if self._server is not None:
            raise RuntimeError(f"the committer listens already; it cannot listen on {address} too")
        door = TokenInterceptor(self._credentials, self._peers)
        server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[door])
        self.add_to(server)
        port = self._bind(server, address)
        path = unix_path(address)
        if path is not None:
            os.chmod(path, 0o600)
        else:
            address = f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        _log.info("the committer listens", address=address, tls=self._credentials.tls)
        return address

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        tls = self._credentials.server_credentials()
        if tls is not None and unix_path(address) is not None:
            raise AddressError(f"TLS is for TCP addresses, {address!r} is a Unix socket")
        try:
            return server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
        except RuntimeError as error:
            raise AddressError(f"the committer cannot listen on {address}: {error}") from error

    async def close(self, grace_s: float = GRACE_S) -> None:
        """End the streams, let operations that were taken finish for `grace_s` seconds, stop. May be called twice."""
        self._pubsub.close()
        self._consensus.close()
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            with suppress(asyncio.TimeoutError):
                await server.stop(grace_s)
