"""The connection to one replica: dials for ever, replays what the replica must know, then streams both ways.

Contract:

* Each connection begins with Hello and a replay of the history as it is at that moment; every command sent
  from then on follows it, in order. Commands sent while there is no connection are dropped: the history has
  them.
* Responses are handed over in order, and none after the connection they came over was given up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import structlog

from penstock.committer import CHANNEL_OPTIONS
from penstock.control.specs import ReplicaId
from penstock.replica import compute_pb2 as pb
from penstock.replica import compute_pb2_grpc as pb_grpc
from penstock.runtime import Clock

_log = structlog.get_logger("penstock.control.replica")

_BACKOFF_SECONDS_MIN = 0.02
_BACKOFF_SECONDS_MAX = 0.25
_COMMANDS_QUEUED_MAX = 100_000


class ReplicaEvents(Protocol):
    """Who hears of a replica. Called on the connection's event loop; must not block."""

    def replay(self) -> list[pb.Command]:
        """What the replica must be told at this moment."""
        ...

    def connected(self, replica: ReplicaId) -> None:
        """The replica has taken over the replayed commands, and nothing but them."""
        ...

    def responded(self, replica: ReplicaId, response: pb.Response) -> None: ...

    def disconnected(self, replica: ReplicaId) -> None:
        """No response to anything sent so far will come."""
        ...


class ReplicaConnection:
    """`run` is its life; `send` may be called at any time on the same event loop."""

    def __init__(
        self,
        replica: ReplicaId,
        address: Callable[[], str],
        epoch: int,
        events: ReplicaEvents,
        clock: Clock,
    ) -> None:
        """`address` is asked before each attempt. `epoch`: the coordinator's; replicas refuse lower ones."""
        self._replica, self._address, self._epoch = replica, address, epoch
        self._events, self._clock = events, clock
        self._queue: asyncio.Queue[pb.Command] | None = None

    @property
    def online(self) -> bool:
        return self._queue is not None

    def send(self, command: pb.Command) -> None:
        """Queue a command on the present connection, if there is one."""
        if self._queue is None:
            return
        if self._queue.qsize() >= _COMMANDS_QUEUED_MAX:
            _log.error("replica does not take its commands; reconnecting", replica=self._replica)
            self._queue = None
            return
        self._queue.put_nowait(command)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        backoff = _BACKOFF_SECONDS_MIN
        while True:
            started = self._clock.monotonic()
            try:
                await self._session()
            except grpc.aio.AioRpcError as error:
                _log.debug(
                    "replica connection ended",
                    replica=self._replica,
                    code=error.code().name,
                    details=error.details(),
                )
            finally:
                self._queue = None
                self._events.disconnected(self._replica)
            backoff = min(backoff * 2, _BACKOFF_SECONDS_MAX)
            if self._clock.monotonic() - started > 1.0:
                backoff = _BACKOFF_SECONDS_MIN
            await self._clock.sleep(backoff)

    async def _session(self) -> None:
        async with grpc.aio.insecure_channel(self._address(), options=CHANNEL_OPTIONS) as channel:
            stub: Any = pb_grpc.ComputeStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Session()
            nonce = os.urandom(16)
            await call.write(pb.Command(hello=pb.Hello(epoch=self._epoch, nonce=nonce)))
            queue: asyncio.Queue[pb.Command] = asyncio.Queue()
            for command in self._events.replay():
                queue.put_nowait(command)
            self._queue = queue
            writing = asyncio.ensure_future(self._write(call, queue))
            try:
                await self._read(call, nonce)
            finally:
                writing.cancel()
                call.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Any, queue: asyncio.Queue[pb.Command]) -> None:
        while self._queue is queue:
            await call.write(await queue.get())
        call.cancel()

    async def _read(self, call: Any, nonce: bytes) -> None:
        while True:
            response = await call.read()
            if response is grpc.aio.EOF:
                return
            if response.WhichOneof("kind") == "ready":
                if response.ready.nonce == nonce:
                    self._events.connected(self._replica)
                continue
            self._events.responded(self._replica, response)
