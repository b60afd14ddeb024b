"""The listening side: accepts connections, bounds them, and passes cancel requests to their target."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge

from penstock.adapter.session_api import Coordinator
from penstock.runtime import SqlError, TaskOwner
from penstock.server.authentication import Authenticator
from penstock.server.connection import MAX_STARTUP_BYTES, Connection, ConnectionConfig
from penstock.server.messages import error_response
from penstock.server.wire import Wire

_log = structlog.get_logger("penstock.server")
_OPEN = Gauge("penstock_pgwire_connections", "Open client connections.")
_REFUSED = Counter("penstock_pgwire_refused_total", "Connections refused because there were too many.")
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where to listen and what to allow. Port 0: any free one.

    `authenticator` None: everyone is who they say they are; accepted only on loopback addresses. `tls`
    None: SSLRequest is answered with no. `require_tls`: refuse clients that do not encrypt. Bytes and
    seconds as the names say.
    """

    host: str = "127.0.0.1"
    port: int = 6875
    authenticator: Authenticator | None = None
    tls: ssl.SSLContext | None = None
    require_tls: bool = False
    connections_max: int = 5000
    message_bytes_max: int = 64 << 20
    startup_timeout_s: float = 30.0
    shutdown_timeout_s: float = 10.0


class PgServer:
    """Serves the PostgreSQL protocol from `start` to `close`."""

    def __init__(self, coordinator: Coordinator, config: ServerConfig = ServerConfig()) -> None:
        if config.authenticator is None and not _is_loopback(config.host):
            raise ValueError(
                f"refusing to listen on {config.host!r} without passwords: anyone who reaches it would be "
                "administrator. Configure an authenticator, or listen on a loopback address"
            )
        if config.require_tls and config.tls is None:
            raise ValueError("require_tls needs a TLS context")
        self._coordinator = coordinator
        self._config = config
        self._tasks = TaskOwner("pgwire")
        self._running: dict[Connection, asyncio.Task[None]] = {}
        self._by_process: dict[int, Connection] = {}
        self._server: asyncio.Server | None = None
        self._connection_config = ConnectionConfig(
            coordinator=coordinator,
            authenticator=config.authenticator,
            tls=config.tls,
            require_tls=config.require_tls,
            max_message_bytes=config.message_bytes_max,
            startup_timeout_s=config.startup_timeout_s,
            on_cancel_request=self._cancel,
            on_ready=self._register,
        )

    async def start(self) -> None:
        """Listen. OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Wire(self._accept, limit=MAX_STARTUP_BYTES),
            self._config.host,
            self._config.port,
            backlog=_BACKLOG,
            reuse_address=True,
        )

    @property
    def port(self) -> int:
        """The port listened on."""
        assert self._server is not None, "the server is not started"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """Open connections, also those that are still starting."""
        return len(self._running)

    async def close(self) -> None:
        """Stop listening, tell every client, close their sessions. May be called twice."""
        if self._server is not None:
            self._server.close()
        error = SqlError("terminating connection due to administrator command", sqlstate="57P01")
        tasks = list(self._running.values())
        for connection, task in list(self._running.items()):
            connection.terminate(error)
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._config.shutdown_timeout_s)
            if late:
                _log.warning("connections did not close in time", count=len(late))
        await self._tasks.close()

    def _accept(self, wire: Wire) -> None:
        if len(self._running) >= self._config.connections_max:
            _REFUSED.inc()
            wire.send(error_response(SqlError("sorry, too many clients already", sqlstate="53300"), "FATAL"))
            wire.close()
            return
        _keep_alive(wire)
        connection = Connection(wire, self._connection_config)
        task = self._tasks.spawn(connection.run(), "connection")
        self._running[connection] = task
        _OPEN.inc()
        wire.on_lost = task.cancel
        task.add_done_callback(lambda _: self._forget(connection))

    def _register(self, connection: Connection) -> None:
        assert connection.session is not None
        self._by_process[connection.session.process_id] = connection

    def _forget(self, connection: Connection) -> None:
        _OPEN.dec()
        del self._running[connection]
        session = connection.session
        if session is not None and self._by_process.get(session.process_id) is connection:
            del self._by_process[session.process_id]

    def _cancel(self, process_id: int, secret: int) -> None:
        if self._coordinator.cancel(process_id, secret) and process_id in self._by_process:
            self._by_process[process_id].interrupt()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keep_alive(wire: Wire) -> None:
    """Let the kernel notice clients that vanished without a word."""
    assert wire.transport is not None
    sock = wire.transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
