"""A bounded pool of connections to PostgreSQL, made for a store that must tell its failures apart.

Why not psycopg's own pool: it connects in background workers, so that who waits learns only that the wait was
too long, after all of it, and never that the server is down or refuses the password. Here whoever needs a
connection opens it and gets the server's own words at once.

A call that takes too long, or whose caller has gone, cannot simply be cancelled: psycopg then asks the server to
cancel and waits for the answer, for ever if the server is frozen. So a deadline *severs* the connection: the
socket is shut down, and what waits on it ends with a connection error.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

from psycopg import AsyncConnection, OperationalError
from psycopg.pq import TransactionStatus

from penstock.runtime import Clock, randomness

Connection: TypeAlias = AsyncConnection[tuple[object, ...]]

_LIFETIME_SPREAD = 0.1
"""Lifetimes differ by up to this fraction, so that connections do not all end at one moment."""


class PoolExhausted(OperationalError):
    """All connections were in use for as long as a caller was willing to wait."""


class PoolClosed(OperationalError):
    """The pool was closed."""


@dataclass(frozen=True)
class PoolLimits:
    """`connections` at once; how long to wait for a free one, for a new one, for an answer; age of a connection."""

    connections: int = 20
    wait_s: float = 60.0
    connect_s: float = 5.0
    answer_s: float = 30.0
    lifetime_s: float = 300.0


@dataclass
class _Pooled:
    connection: Connection
    expires_at: float


class ConnectionPool:
    """At most ``limits.connections`` connections, opened when needed, the most recently used first.

    `prepare` is run on each new connection. Belongs to one event loop.
    """

    def __init__(
        self, conninfo: str, limits: PoolLimits, prepare: Callable[[Connection], Awaitable[None]], clock: Clock
    ) -> None:
        self._conninfo = conninfo
        self._limits = limits
        self._prepare = prepare
        self._clock = clock
        self._free = asyncio.Semaphore(limits.connections)
        self._idle: list[_Pooled] = []
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode for one operation of at most ``limits.answer_s`` seconds.

        Raises `PoolExhausted`, `PoolClosed`, or psycopg's error of connecting. A connection that comes back
        broken takes all idle ones with it: what broke it (a restart, a network) broke them too.
        """
        await self._acquire()
        try:
            pooled = await self._take()
            severing = asyncio.get_running_loop().call_later(self._limits.answer_s, _sever, pooled.connection)
            try:
                yield pooled.connection
            finally:
                severing.cancel()
                await self._give_back(pooled)
        finally:
            self._free.release()

    async def close(self) -> None:
        """Wait for operations under way (each at most ``limits.answer_s``), then close all connections."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self._limits.connections):
            await self._free.acquire()
        await self._discard_idle()
        for _ in range(self._limits.connections):
            self._free.release()  # whoever still waits is told that the pool is closed

    async def _acquire(self) -> None:
        if not self._closed:
            try:
                async with asyncio.timeout(self._limits.wait_s):
                    await self._free.acquire()
            except TimeoutError as error:
                raise PoolExhausted(
                    f"none of {self._limits.connections} connections became free within {self._limits.wait_s:g} s"
                ) from error
            if not self._closed:
                return
            self._free.release()
        raise PoolClosed("the connection pool is closed")

    async def _take(self) -> _Pooled:
        now = self._clock.monotonic()
        while self._idle:
            pooled = self._idle.pop()
            if not pooled.connection.closed and pooled.expires_at > now:
                return pooled
            await _close(pooled.connection)
        return await self._connect()

    async def _connect(self) -> _Pooled:
        connection: Connection = await AsyncConnection.connect(
            self._conninfo, autocommit=True, prepare_threshold=0, connect_timeout=max(2, round(self._limits.connect_s))
        )
        severing = asyncio.get_running_loop().call_later(self._limits.answer_s, _sever, connection)
        try:
            await self._prepare(connection)
        except BaseException:
            await _close(connection)
            raise
        finally:
            severing.cancel()
        spread = 1 - _LIFETIME_SPREAD * randomness().random()
        return _Pooled(connection, self._clock.monotonic() + self._limits.lifetime_s * spread)

    async def _give_back(self, pooled: _Pooled) -> None:
        connection = pooled.connection
        if connection.closed:
            await self._discard_idle()
        elif connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(pooled)
            return
        await _close(connection)

    async def _discard_idle(self) -> None:
        while self._idle:
            await _close(self._idle.pop().connection)


async def _close(connection: Connection) -> None:
    """Closing a connection tells the server, without waiting for it; a broken one has nobody to tell."""
    with suppress(OperationalError):
        await connection.close()


def _sever(connection: Connection) -> None:
    """Shut the socket down under a connection; whoever waits for an answer on it gets a connection error."""
    if connection.closed:
        return
    with suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)
