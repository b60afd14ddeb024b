"""`CommitterServer`: the committer's gRPC services, on a server of one's own or on another's."""

from __future__ import annotations

import os

import grpc
import structlog

from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer.address import SERVER_OPTIONS, AddressError, check_address, unix_path
from penstock.committer.pubsub_service import PubSubService
from penstock.committer.service import ConsensusService
from penstock.persist import Consensus, PubSub
from penstock.runtime import Clock, SystemClock

_log = structlog.get_logger("penstock.committer")

GRACE_S = 1.0
"""How long calls in flight may go on when the server closes."""


class CommitterServer:
    """Serves `consensus` (normally an `InProcessConsensus`) and `pubsub` (the process's own) to other
    processes.

    It owns neither of the two. Use `listen` for a server of its own, or `add_to` one that exists: that one
    must be made with `SERVER_OPTIONS` (no cap on message sizes), and the owner calls `close` before stopping
    it, else the endless pub-sub streams hold it up.
    """

    def __init__(self, consensus: Consensus, pubsub: PubSub, *, clock: Clock | None = None) -> None:
        self._consensus = ConsensusService(consensus, clock if clock is not None else SystemClock())
        self._pubsub = PubSubService(consensus, pubsub)
        self._server: grpc.aio.Server | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add both services to `server`, which is not started yet."""
        pb_grpc.add_ConsensusServicer_to_server(self._consensus, server)  # type: ignore[no-untyped-call]
        pb_grpc.add_PubSubServicer_to_server(self._pubsub, server)  # type: ignore[no-untyped-call]

    async def listen(self, address: str) -> str:
        """Start to serve on ``unix:/path`` or ``host:port`` (loopback; port 0 takes a free one); once per
        object.

        Returns the address with the port that was taken. Raises `AddressError` when the address is not
        allowed or not free. A Unix socket left over by a killed process is replaced; that no other process
        serves on it is for the caller to make sure (a lock on the data directory).
        """
        check_address(address)
        if self._server is not None:
            raise RuntimeError(f"the committer listens already; it cannot listen on {address} too")
        server = grpc.aio.server(options=SERVER_OPTIONS)
        self.add_to(server)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressError(f"the committer cannot listen on {address}: {error}") from error
        path = unix_path(address)
        if path is not None:
            os.chmod(path, 0o600)
        else:
            address = f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server
        _log.info("the committer listens", address=address)
        return address

    async def close(self, grace_s: float = GRACE_S) -> None:
        """End the streams, let calls in flight finish for `grace_s` seconds, stop. May be called twice."""
        self._pubsub.close()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)
