"""A listener that has heard of a large write can read it from its blobs, however late, whatever became of them."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, new_shard_id
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Frontier, Timestamp
from tests.persist.shards import SCHEMA, Tally, tally, updates

# Everything is a large write, upkeep comes at every few versions, and no cache hides a deleted blob.
EAGER = PersistConfig(inline_bytes=0, cache_bytes=0, rollup_every=4, hold_versions=1, compaction_fan_in=2)


@pytest.mark.parametrize("kind", ["listen", "snapshot"])
def test_its_blobs_are_kept_for_whoever_has_heard_of_it(kind: str) -> None:
    async def main() -> None:
        blob, consensus, table = MemBlob(), MemConsensus(), new_shard_id()
        client = PersistClient(blob, consensus, config=EAGER)
        writer = await TxnsWriter.open(client, log := new_shard_id())
        assert await writer.register({table: SCHEMA}, Timestamp(0)) is None
        readers = await TxnsReader.open(client, log)
        handle = await readers.open_reader(table, SCHEMA, purpose="test")
        listen = await handle.listen(Timestamp(0))
        assert await writer.commit_at({table: [updates([(1, 1, 1)])]}, Timestamp(1)) is None
        await readers.wait_for_upper_past(Frontier(1))
        (key,) = [key for key, _ in await blob.list_prefix(f"{table}/w")]
        snapshot = handle.snapshot(Timestamp(1))
        if kind == "snapshot":
            await listen.aclose()
            await snapshot

        since = await client.open_since(table, "controller", purpose="test")

        async def upkeep(first: int, end: int) -> None:
            for time in range(first, end):
                assert await writer.commit_at({table: [updates([(time, time, 1)])]}, Timestamp(time)) is None
                await readers.wait_for_upper_past(Frontier(time))
                await writer.apply_le(Timestamp(time))
                await since.compare_and_downgrade_since(0, 0, Frontier(time))
                await client._maintenance[table].idle()

        await upkeep(2, 60)
        assert await blob.get(key) is not None
        if kind == "snapshot":
            assert tally([part async for part in snapshot]) == {(1, 1): 1}
        else:
            seen = []
            while listen.frontier < 60:
                seen += (await anext(listen)).updates
            assert tally(seen) == Tally({(time, time): 1 for time in range(1, 60)})
        await handle.expire()
        await upkeep(60, 100)
        assert await blob.get(key) is None, "it was the reader alone that kept it"
        for opened in (readers, writer, client):
            await opened.close()

    asyncio.run(main())
