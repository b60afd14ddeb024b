"""The only source of time.

Code takes a `Clock` and never calls ``time`` or ``asyncio.sleep`` by itself, so that a simulation can run an hour in
a second and a test can stand still.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

from penstock.runtime.frontier import Timestamp


class Clock(Protocol):
    """Wall-clock time, monotonic time and sleep."""

    def now_ms(self) -> Timestamp:
        """Wall-clock milliseconds since the epoch. May go back when an operator sets the host's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`. Cancellable."""
        ...


class SystemClock:
    """The host's clock."""

    def now_ms(self) -> Timestamp:
        return Timestamp(time.time_ns() // 1_000_000)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class VirtualClock:
    """A clock that moves only when `advance` is called; sleepers wake in order of their deadlines."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_s = now_ms / 1000
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ms(self) -> Timestamp:
        return Timestamp(round(self._now_s * 1000))

    def monotonic(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which the next sleeper wakes, or None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def advance(self, seconds: float) -> None:
        """Move time forward and wake whoever is due. Their code runs when the event loop next does."""
        self._now_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
