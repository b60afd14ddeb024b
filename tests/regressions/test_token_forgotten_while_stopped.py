"""An append whose answer was lost, and whose process was then stopped for longer than its writer's lease, is not taken
for lost: its token is gone, so that it is missing proves nothing.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pytest

from penstock.persist import (
    SCAN_ALL,
    CasResult,
    MemConsensus,
    Mismatch,
    PersistConfig,
    SeqNo,
    Versioned,
    new_shard_id,
)
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Frontier, Indeterminate, Timestamp
from tests.persist.shards import SCHEMA, append, expected_at, snapshot, updates
from tests.persist.stopped import TwoProcesses
from tests.persist.txn.cluster import contents, rows

T = TypeVar("T")
CONFIG = PersistConfig(inline_bytes=0, cache_bytes=0, maintenance=False)
STOPPED_S = CONFIG.writer_lease_ms / 1000 * 1.1


class Stopping(MemConsensus):
    """Loses the answer to the next compare-and-set of `key`, and stops the process when it looks what became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.key: str | None = None
        self._stops_at: str | None = None
        self.stopped, self.resumed = asyncio.Event(), asyncio.Event()

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        result = await super().compare_and_set(key, new)
        if key == self.key:
            self.key, self._stops_at = None, key
            raise Indeterminate("the answer was lost")
        return result

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        if key == self._stops_at:
            self._stops_at = None
            self.stopped.set()
            await self.resumed.wait()
        return await super().scan(key, from_, limit)


class World(TwoProcesses[Stopping]):
    def __init__(self) -> None:
        super().__init__(Stopping(), CONFIG)


@pytest.mark.parametrize("stopped_s", [1.0, STOPPED_S])
def test_an_append(stopped_s: float) -> None:
    async def main() -> None:
        world, shard = World(), new_shard_id()
        writer = await world.first.open_writer(shard, SCHEMA, purpose="test")
        other = await world.second.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        world.stopping.key = shard
        late = asyncio.ensure_future(writer.compare_and_append(updates([(7, 1, 1)]), Frontier(1), Frontier(2)))
        await world.patiently(world.stopping.stopped.wait())
        world.clock.advance(stopped_s)
        assert await other.compare_and_append(updates([(8, 2, 1)]), Frontier(2), Frontier(3)) is None
        world.stopping.resumed.set()
        if stopped_s < STOPPED_S:
            assert await world.patiently(late) is None
        else:
            with pytest.raises(Indeterminate, match="had expired"):
                await world.patiently(late)
        reader = await world.second.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 2) == expected_at([(1, 0, 1), (7, 1, 1), (8, 2, 1)], 2)
        await world.close()

    asyncio.run(main())


def test_a_writer_that_never_was_there_lost_its_race() -> None:
    """The first append of a writer leaves no entry where it did not happen; soon after, that is proof enough."""

    async def main() -> None:
        world, shard = World(), new_shard_id()
        writer = await world.first.open_writer(shard, SCHEMA, purpose="test")
        other = await world.second.open_writer(shard, SCHEMA, purpose="test")
        world.stopping.key = shard
        mine = world.stopping._logs
        world.stopping._logs = {key: list(log) for key, log in mine.items()}  # what is sent now goes nowhere
        late = asyncio.ensure_future(writer.compare_and_append(updates([(7, 0, 1)]), Frontier(0), Frontier(1)))
        await world.patiently(world.stopping.stopped.wait())
        world.stopping._logs = mine
        assert await other.compare_and_append(updates([(8, 0, 1)]), Frontier(0), Frontier(1)) is None
        world.stopping.resumed.set()
        assert await world.patiently(late) == Mismatch(Frontier(1))
        await world.close()

    asyncio.run(main())


def test_a_transaction() -> None:
    async def main() -> None:
        world, shard, txns = World(), new_shard_id(), new_shard_id()
        writer = await TxnsWriter.open(world.first, txns)
        assert await writer.register({shard: SCHEMA}, Timestamp(1)) is None
        world.stopping.key = txns
        late = asyncio.ensure_future(writer.commit_at({shard: [rows(2, (7, "large"))]}, Timestamp(2)))
        await world.patiently(world.stopping.stopped.wait())
        world.clock.advance(STOPPED_S)
        reader = await TxnsReader.open(world.second, txns)
        world.stopping.resumed.set()
        with pytest.raises(Indeterminate, match="had expired"):
            await world.patiently(late)
        handle = await reader.open_reader(shard, SCHEMA, purpose="test")
        assert await world.patiently(contents(handle, 2)) == {(7, "large"): 1}
        await reader.close()
        await writer.close()
        await world.close()

    asyncio.run(main())
