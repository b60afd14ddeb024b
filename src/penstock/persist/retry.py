"""Patience with a failing store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from penstock.persist import metrics
from penstock.persist.store import StoreUnusable
from penstock.runtime import Clock, ExternalError

T = TypeVar("T")

_log = structlog.get_logger("penstock.persist")

_FIRST_S = 0.004
_LIMIT_S = 2.0
_LOG_FROM_ATTEMPT = 3


class Patience:
    """Pauses between attempts of one operation: doubling from 4 ms to 2 s, until `limit_ms` have passed."""

    def __init__(self, clock: Clock, limit_ms: int, what: str) -> None:
        self._clock = clock
        self._limit_s = limit_ms / 1000
        self._what = what
        self._started = clock.monotonic()
        self._pause_s = _FIRST_S
        self.attempts = 0

    async def wait(self, error: ExternalError) -> None:
        """Sleep before the next attempt, or raise `error` when there is no point in one."""
        self.attempts += 1
        metrics.STORE_RETRIES.inc()
        waited_s = self._clock.monotonic() - self._started
        if isinstance(error, StoreUnusable) or waited_s >= self._limit_s:
            raise error
        if self.attempts >= _LOG_FROM_ATTEMPT:
            _log.warning("store operation fails", what=self._what, attempts=self.attempts, error=error.message)
        await self._clock.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, _LIMIT_S)


async def patiently(operation: Callable[[], Awaitable[T]], clock: Clock, limit_ms: int, what: str) -> T:
    """Run an idempotent `operation` until it answers. Raises its last `ExternalError` after `limit_ms`."""
    patience = Patience(clock, limit_ms, what)
    while True:
        try:
            return await operation()
        except ExternalError as error:
            await patience.wait(error)
