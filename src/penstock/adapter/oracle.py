"""The timestamp oracle: which time the next write gets and at which time a strict read reads.

Why the state lives in memory: there is one coordinator at a time (fenced through the catalog), and the only times
that must survive it are those that a client has seen. A client sees a time once the write at it is applied, and a
write is applied only after the transactions shard has durably passed it. So the shard's upper *is* the durable
oracle: a new coordinator starts at ``step_back(upper)``, which is at or beyond every time that was ever handed to a
reader. Times that were allocated but never committed may be handed out again; nobody has seen them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import NamedTuple

import structlog

from penstock.runtime import Clock, Timestamp

_log = structlog.get_logger("penstock.oracle")

RUNAWAY_MS = 10_000
"""An allocated time further than this ahead of the clock is logged: the clock jumped back, or writes outrun it."""


class WriteTimestamp(NamedTuple):
    """`timestamp`: the write's time. `advance_to`: what a shard's upper becomes once it is written."""

    timestamp: Timestamp
    advance_to: Timestamp


class TimestampOracle:
    """Linearizable read and write times of one timeline; used from one event loop."""

    def __init__(self, clock: Clock, initially: Timestamp) -> None:
        self._clock = clock
        self._read = initially
        self._write = initially
        self._waiters: list[tuple[Timestamp, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def write_ts(self) -> WriteTimestamp:
        """A new time, strictly above every earlier read and write time and not behind the clock."""
        now = self._clock.now_ms()
        self._write = Timestamp(max(self._write + 1, self._read + 1, now))
        if self._write > now + RUNAWAY_MS:
            _log.error("write time runs ahead of the clock", write_ts=self._write, now_ms=now)
        return WriteTimestamp(self._write, Timestamp(self._write + 1))

    def peek_write_ts(self) -> Timestamp:
        """The last write time allocated."""
        return self._write

    def read_ts(self) -> Timestamp:
        """The time of the latest applied write: reading there sees all that was acknowledged."""
        return self._read

    def apply_write(self, timestamp: Timestamp) -> None:
        """The write at `timestamp` is durable: reads from now on see it."""
        self._write = max(self._write, timestamp)
        if timestamp <= self._read:
            return
        self._read = timestamp
        while self._waiters and self._waiters[0][0] <= timestamp:
            _, _, waiter = heapq.heappop(self._waiters)
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until_read(self, timestamp: Timestamp) -> None:
        """Return once ``read_ts() >= timestamp``. Cancel-safe."""
        if self._read >= timestamp:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (timestamp, next(self._order), waiter))
        await waiter

    def ahead_of_clock_s(self) -> float:
        """Seconds by which the last write time is in the future; zero or less when it is not."""
        return (self._write - self._clock.now_ms()) / 1000
