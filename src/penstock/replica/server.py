"""The gRPC service of a replica: one session at a time with a compute controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog

from penstock.replica import compute_pb2 as pb
from penstock.replica import compute_pb2_grpc as pb_grpc
from penstock.replica.instance import Instance
from penstock.replica.outbox import Outbox

_log = structlog.get_logger("penstock.replica.server")


class ComputeService(pb_grpc.ComputeServicer):
    """Feeds commands to an `Instance` and its responses back.

    A newer session ends the one before it, unless its coordinator is an older one: then it is refused.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._epoch = 0
        self._beginning = asyncio.Lock()

    async def Session(
        self, requests: AsyncIterator[pb.Command], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Response]:
        """One connection, from Hello until either side ends it."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("kind") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first command must be Hello")
            return
        if first.hello.epoch < self._epoch:
            problem = f"a coordinator of epoch {self._epoch} has connected; epoch {first.hello.epoch} is refused"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
            return
        self._epoch = first.hello.epoch
        async with self._beginning:
            outbox = await self._instance.begin_session(first.hello.nonce)
        _log.info("controller connected", epoch=first.hello.epoch, peer=context.peer())
        commands = asyncio.ensure_future(self._commands(requests, outbox))
        try:
            while (response := await outbox.next()) is not None:
                yield response
        finally:
            commands.cancel()
            await asyncio.gather(commands, return_exceptions=True)
            await self._instance.end_session(outbox)
            _log.info("controller disconnected", epoch=first.hello.epoch)

    async def _commands(self, requests: AsyncIterator[pb.Command], outbox: Outbox) -> None:
        """Carry out what arrives. A bug in doing so ends the session, not the process: the controller comes back."""
        try:
            async for command in requests:
                await self._instance.handle(command)
        except Exception as error:
            _log.error("session failed", exc_info=error)
        finally:
            outbox.close()
