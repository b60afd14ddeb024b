"""Each part that travels keeps its blob by itself: returning the lease of one takes nothing from the others."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import LeaseLost, MemBlob, MemConsensus, PersistClient, PersistConfig, new_shard_id
from penstock.runtime import Frontier, Timestamp
from tests.persist.shards import SCHEMA, append, tally

# Upkeep at every few versions, holds that follow at once, and no cache that hides a deleted blob.
EAGER = PersistConfig(inline_bytes=0, cache_bytes=0, rollup_every=4, hold_versions=1, compaction_fan_in=2)


@pytest.mark.parametrize("kind", ["snapshot", "listen"])
def test_parts_outlive_the_reading_of_their_neighbours(kind: str) -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        idle = PersistConfig(inline_bytes=0, cache_bytes=0, maintenance=False)
        filling, elsewhere = (PersistClient(blob, consensus, config=idle) for _ in range(2))
        first = await filling.open_writer(shard, SCHEMA, purpose="test")
        for time in range(4):
            await append(first, [(time, time, 1)], time, time + 1)
        await filling.close()

        client = PersistClient(blob, consensus, config=EAGER)
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        if kind == "snapshot":
            parts = await reader.snapshot_parts(Timestamp(3))
        else:
            listen = await reader.listen(Timestamp(0))
            parts = list((await listen.next_parts()).parts)
            await listen.aclose()
        tickets = [part.to_bytes() for part in parts]
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        since = await client.open_since(shard, "controller", purpose="test")

        async def upkeep(first: int, end: int) -> None:
            for time in range(first, end):
                await append(writer, [(time, time, 1)], time, time + 1)
                await since.compare_and_downgrade_since(0, 0, Frontier(time))
                await reader.downgrade_since(Frontier(time))
                await client._maintenance[shard].idle()

        while len(parts) > 1:
            parts.pop().release()
        await upkeep(4, 60)
        kept = {"snapshot": {(0, 3): 1}, "listen": {(1, 1): 1}}[kind]
        assert tally([await elsewhere.fetch(tickets[0])]) == kept
        parts.clear()
        await upkeep(60, 100)
        for ticket in tickets:
            with pytest.raises(LeaseLost):
                await elsewhere.fetch(ticket)
        await client.close()
        await elsewhere.close()

    asyncio.run(main())
