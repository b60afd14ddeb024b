"""Two processes on one shard, of which a test stops the first for as long as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Generic, TypeVar

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig
from penstock.runtime import VirtualClock

S = TypeVar("S", bound=MemConsensus)
T = TypeVar("T")


class TwoProcesses(Generic[S]):
    """`first` reaches consensus by way of `stopping`, `second` goes on; time is what the test makes of it."""

    def __init__(self, stopping: S, config: PersistConfig) -> None:
        self.blob, self.clock, self.stopping = MemBlob(), VirtualClock(1_000_000_000), stopping
        going = MemConsensus()
        stopping._logs = going._logs
        self.first = PersistClient(self.blob, stopping, clock=self.clock, config=config)
        self.second = PersistClient(self.blob, going, clock=self.clock, config=config)

    async def patiently(self, work: Awaitable[T]) -> T:
        """The result of `work`, with time going on meanwhile."""
        running = asyncio.ensure_future(work)
        while not running.done():
            self.clock.advance(0.01)
            await asyncio.sleep(0)
        return await running

    async def close(self) -> None:
        await self.first.close()
        await self.second.close()
