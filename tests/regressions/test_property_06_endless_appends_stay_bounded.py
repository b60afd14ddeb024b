"""Property 6: with upkeep, live versions, batches and blobs stay bounded under endless appends."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, SeqNo, new_shard_id
from penstock.runtime import Frontier
from tests.persist.shards import SCHEMA, append, snapshot

EVERY = 16


@pytest.mark.parametrize("reading", [False, True])
def test_nothing_grows(reading: bool) -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        client = PersistClient(blob, consensus, config=PersistConfig(inline_bytes=0, rollup_every=EVERY))
        since = await client.open_since(shard, "c", purpose="test")
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test") if reading else None
        sizes = []
        for t in range(600):
            # The same five keys come and go.
            await append(writer, [(t % 5, t, 1), ((t + 1) % 5, t, -1)], t, t + 1)
            if t % 100 == 99:
                await since.compare_and_downgrade_since(0, 0, Frontier(t - 1))
                if reader is not None:
                    await reader.downgrade_since(Frontier(t - 1))
                await client._maintenance[shard].idle()
                live = len(await consensus.scan(shard, SeqNo(0)))
                sizes.append((live, len(client._shards[shard].state.batches), len(await blob.list_prefix(""))))
        assert max(live for live, _, _ in sizes) <= 3 * EVERY, sizes
        assert max(batches for _, batches, _ in sizes) <= 40, sizes
        assert max(blobs for _, _, blobs in sizes) <= 120, sizes
        last = await client.open_reader(shard, SCHEMA, purpose="test")
        assert sum((await snapshot(last, 599)).values()) == 0
        await client.close()

    asyncio.run(main())
