"""How gRPC's asyncio streams end, made one: every way in which a stream breaks is `Disconnected`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import grpc

T = TypeVar("T")


class Disconnected(Exception):
    """The stream ended; its text and cause say why.

    `refused`: the server turned the credentials down. `orderly`: the server ended it with all said that it had to say.
    """

    def __init__(self, why: str, *, refused: bool = False, orderly: bool = False) -> None:
        super().__init__(why)
        self.refused = refused
        self.orderly = orderly


async def or_disconnected(operation: Awaitable[T]) -> T:
    """`operation` on a stream; however gRPC says that the stream is gone, it raises `Disconnected`."""
    try:
        return await operation
    except grpc.aio.AioRpcError as error:
        refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        raise Disconnected(f"{error.code().name}: {error.details()}", refused=refused) from error
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
        raise Disconnected(str(error) or type(error).__name__) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # gRPC cancels its own futures when a connection goes; nobody cancelled us.
        raise Disconnected("the connection was cancelled") from None
