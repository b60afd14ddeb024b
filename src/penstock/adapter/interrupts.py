"""Making a running statement stop: a cancel request, a timeout, or the end of the server.

A statement's awaits run inside `Interruptible.guard`, which is `asyncio.timeout` with a second trigger. Task
cancellation from outside (a client that is gone) is something else and passes through untouched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from penstock.runtime import SqlError

T = TypeVar("T")


class Interruptible:
    """The interruption state of one session."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None
        self._reason: SqlError | None = None

    def interrupt(self, reason: SqlError) -> None:
        """Make what runs now raise `reason`; nothing happens when nothing runs."""
        if self._scope is not None:
            self._reason = reason
            self._scope.reschedule(asyncio.get_running_loop().time())

    def deadline(self, timeout_s: float | None) -> float | None:
        """The moment, on the loop's clock, at which a statement that begins now times out."""
        return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s

    async def run(self, work: Awaitable[T], deadline: float | None) -> T:
        """Await `work` until `deadline`. Raises the reason of an interruption, or `SqlError` 57014 for the timeout."""
        outer = self._scope
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                self._scope = scope
                return await work
        except TimeoutError:
            if not scope.expired():
                raise
            reason, self._reason = self._reason, None
            raise reason or SqlError("canceling statement due to statement timeout", sqlstate="57014") from None
        finally:
            self._scope = outer

    async def guard(self, batches: AsyncGenerator[T, None], deadline: float | None) -> AsyncGenerator[T, None]:
        """`batches`, where each step can be interrupted. Closing it closes them."""
        async with aclosing(batches):
            while True:
                try:
                    item = await self.run(anext(batches), deadline)
                except StopAsyncIteration:
                    return
                yield item
