"""A process that slept longer than its leases does not expire itself with the commit that it wakes up to."""

from __future__ import annotations

import asyncio

from penstock.persist import (
    CasResult,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    Versioned,
    new_shard_id,
)
from penstock.runtime import Frontier, Indeterminate, Timestamp, VirtualClock
from tests.persist.shards import SCHEMA, append, expected_at, snapshot, updates

CONFIG = PersistConfig(reader_lease_ms=1_000, writer_lease_ms=60_000, maintenance=False)
LONG_S = 3_600.0


class LosesAnswer(MemConsensus):
    """The next compare-and-set takes effect, and its answer is lost."""

    lost = False

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        result = await super().compare_and_set(key, new)
        lost, self.lost = self.lost, False
        if lost:
            raise Indeterminate("the answer was lost")
        return result


class Sleeper:
    """A client whose clock jumps."""

    def __init__(self) -> None:
        self.clock, self.consensus, self.id = VirtualClock(10_000), LosesAnswer(), new_shard_id()
        self.client = PersistClient(MemBlob(), self.consensus, clock=self.clock, config=CONFIG)

    def sleep(self) -> None:
        """The machine is suspended: not even its own timers run."""
        self.clock._now_s += LONG_S


def test_a_reader_survives_its_own_renewal() -> None:
    async def main() -> None:
        sleeper = Sleeper()
        writer = await sleeper.client.open_writer(sleeper.id, SCHEMA, purpose="test")
        for time in range(6):
            await append(writer, [(time, time, 1)], time, time + 1)
        reader = await sleeper.client.open_reader(sleeper.id, SCHEMA, purpose="test")
        sleeper.sleep()
        await reader.downgrade_since(Frontier(3))
        assert await snapshot(reader, 5) == expected_at([(time, time, 1) for time in range(6)], 5)
        sleeper.sleep()
        await append(writer, [], 6, 7)  # renews the reader in passing
        listen = await reader.listen(Timestamp(3))
        assert (await anext(listen)).progress == 7
        await sleeper.client.close()

    asyncio.run(main())


def test_a_writer_survives_its_own_append() -> None:
    """Its entry holds the token by which an append with a lost answer is recognized."""

    async def main() -> None:
        sleeper = Sleeper()
        writer = await sleeper.client.open_writer(sleeper.id, SCHEMA, purpose="test")
        await append(writer, [(0, 0, 1)], 0, 1)
        sleeper.sleep()
        sleeper.consensus.lost = True
        appending = asyncio.create_task(writer.compare_and_append(updates([(1, 1, 1)]), Frontier(1), Frontier(2)))
        async with asyncio.timeout(10):
            while not appending.done():
                sleeper.clock.advance(0.01)
                await asyncio.sleep(0)
        assert appending.result() is None
        reader = await sleeper.client.open_reader(sleeper.id, SCHEMA, purpose="test")
        assert await snapshot(reader, 1) == expected_at([(0, 0, 1), (1, 1, 1)], 1)
        await sleeper.client.close()

    asyncio.run(main())
