"""A compaction whose inputs are gone changes nothing, and deletes its own output only if nobody can have come to use
it.
"""

from __future__ import annotations

import asyncio

from penstock.persist import CasResult, MemBlob, MemConsensus, PersistClient, PersistConfig, Versioned, new_shard_id
from penstock.persist.commands import Applied
from penstock.persist.compact import compact
from penstock.persist.shard import Shard
from penstock.runtime import Frontier, Indeterminate, Timestamp
from tests.persist.shards import SCHEMA, append, expected_at, snapshot, tally

CONFIG = PersistConfig(inline_bytes=0, cache_bytes=0, maintenance=False)
LOG = [(time % 3, time, 1) for time in range(8)]


class Gated(MemConsensus):
    """Compare-and-sets wait for the gate; a lost answer is one of a set that took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.after_lost_answer: asyncio.Event | None = None

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        if not self.gate.is_set():
            self.waiting.set()
            await self.gate.wait()
        result = await super().compare_and_set(key, new)
        lost, self.after_lost_answer = self.after_lost_answer, None
        if lost is not None:
            self.waiting.set()
            await lost.wait()
            raise Indeterminate("the answer was lost")
        return result


class Setup:
    """Two clients on one shard with as many batches as `LOG` has changes."""

    def __init__(self) -> None:
        self.blob, self.inner, self.slow, self.id = MemBlob(), MemConsensus(), Gated(), new_shard_id()
        self.slow._logs = self.inner._logs
        self.first = PersistClient(self.blob, self.slow, config=CONFIG)
        self.second = PersistClient(self.blob, self.inner, config=CONFIG)

    async def fill(self) -> None:
        writer = await self.second.open_writer(self.id, SCHEMA, purpose="test")
        for key, time, diff in LOG:
            await append(writer, [(key, time, diff)], time, time + 1)

    async def shard(self, client: PersistClient) -> Shard:
        shard = await client._open(self.id)
        await shard.fetch()
        return shard

    async def keys(self) -> set[str]:
        return {key.partition("/")[2] for key, _ in await self.blob.list_prefix(f"{self.id}/")}

    async def close(self) -> None:
        await self.first.close()
        await self.second.close()


def test_the_slower_of_two_changes_nothing_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        setup = Setup()
        await setup.fill()
        mine, theirs = await setup.shard(setup.first), await setup.shard(setup.second)
        inputs = mine.state.batches[:4]
        setup.slow.gate.clear()
        slower = asyncio.create_task(compact(mine, inputs))
        await setup.slow.waiting.wait()  # its output is stored, and about to be linked
        outputs = await setup.keys() - mine.state.keys()
        assert await compact(theirs, inputs) is Applied.YES
        setup.slow.gate.set()
        assert await slower is Applied.NO
        left = await setup.keys()
        assert outputs.isdisjoint(left), "its own blobs are deleted"
        assert (await theirs.fetch()).keys() <= left, "the winner's are not"
        reader = await setup.second.open_reader(setup.id, SCHEMA, purpose="test")
        assert await snapshot(reader, 7) == expected_at(LOG, 7)
        await setup.close()

    asyncio.run(main())


def test_an_output_that_was_linked_unnoticed_and_merged_further_is_left_to_its_readers() -> None:
    async def main() -> None:
        setup = Setup()
        await setup.fill()
        mine, theirs = await setup.shard(setup.first), await setup.shard(setup.second)
        answer = setup.slow.after_lost_answer = asyncio.Event()
        unsure = asyncio.create_task(compact(mine, mine.state.batches[:4]))
        await setup.slow.waiting.wait()
        reader = await setup.second.open_reader(setup.id, SCHEMA, purpose="test")
        leased = await reader.snapshot(Timestamp(7))  # reads the output that `unsure` does not know to be linked
        assert await compact(theirs, (await theirs.fetch()).batches) is Applied.YES
        answer.set()
        assert await unsure is Applied.UNKNOWN
        assert tally([part async for part in leased]) == expected_at(LOG, 7)
        await setup.close()

    asyncio.run(main())


def test_batches_that_took_the_place_of_the_inputs_are_not_replaced() -> None:
    async def main() -> None:
        setup = Setup()
        await setup.fill()
        mine, theirs = await setup.shard(setup.first), await setup.shard(setup.second)
        inputs = mine.state.batches[2:6]
        assert await compact(theirs, theirs.state.batches[1:4]) is Applied.YES
        writer = await setup.second.open_writer(setup.id, SCHEMA, purpose="test")
        await append(writer, [(9, 8, 1)], 8, 9)
        assert await compact(mine, inputs) is Applied.NO
        reader = await setup.first.open_reader(setup.id, SCHEMA, purpose="test")
        assert await snapshot(reader, 8) == expected_at([*LOG, (9, 8, 1)], 8)
        assert Frontier((await mine.fetch()).upper) == 9
        await setup.close()

    asyncio.run(main())
