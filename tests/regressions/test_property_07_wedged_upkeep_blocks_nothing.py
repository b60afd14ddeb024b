"""Property 7: a step of upkeep that hangs is given up after its limit, and taken up again; meanwhile, and after it,
every other step goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, new_shard_id
from penstock.runtime import VirtualClock
from tests.persist.shards import SCHEMA, append, snapshot


class Hanging(MemBlob):
    """Writes of compaction never end while `hang`."""

    hang = True

    async def set(self, key: str, value: bytes) -> None:
        if self.hang and "/compaction/" in key:
            await asyncio.Event().wait()
        await super().set(key, value)


def test_what_hangs_is_given_up_and_taken_up_again() -> None:
    async def main() -> None:
        blob, clock, shard, other = Hanging(), VirtualClock(1_000_000), new_shard_id(), new_shard_id()
        config = PersistConfig(
            inline_bytes=0, compaction_fan_in=4, compaction_concurrency=1, compaction_timeout_ms=1000, rollup_every=8
        )
        client = PersistClient(blob, MemConsensus(), clock=clock, config=config)

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(2):
                while not condition():
                    clock.advance(0.2)
                    await asyncio.sleep(0.001)

        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        for t in range(20):
            await append(writer, [(t, t, 1)], t, t + 1)
        state = client._shards[shard]
        await until(lambda: state.state.collected > 0)  # rollups and collection do not wait for compaction
        assert len(state.state.batches) == 20
        blob.hang = False
        await until(lambda: len(state.state.batches) < 8)  # nobody commits: it tries again by itself
        second = await client.open_writer(other, SCHEMA, purpose="test")
        for t in range(20):
            await append(second, [(t, t, 1)], t, t + 1)
        await until(lambda: len(client._shards[other].state.batches) < 8)  # the slot was given back
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert len(await snapshot(reader, 19)) == 20
        await client.close()

    asyncio.run(main())
