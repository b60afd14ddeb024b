"""What a read is about to fetch is leased before its reader's hold moves on: collection cannot delete it meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, ReadHandle, new_shard_id
from penstock.runtime import Frontier, Timestamp
from tests.persist.shards import SCHEMA, append, expected_after, expected_at, tally

# Upkeep at every few versions, holds that follow at once, and no cache to hide a deleted blob.
EAGER = PersistConfig(inline_bytes=0, cache_bytes=0, rollup_every=4, hold_versions=1, compaction_fan_in=2)


class SlowBlob(MemBlob):
    """One read, the next when `hold` is set, waits for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.held = ""
        self.reading, self.gate = asyncio.Event(), asyncio.Event()

    async def get(self, key: str) -> bytes | None:
        if self.hold:
            self.hold, self.held = False, key
            self.reading.set()
            await self.gate.wait()
        return await super().get(key)


async def read(reader: ReadHandle, kind: str) -> dict[tuple[int, int], int]:
    if kind == "snapshot":
        return tally([part async for part in reader.snapshot(Timestamp(5))])
    listen = await (reader.listen if kind == "listen" else reader.subscribe)(Timestamp(1))
    seen = []
    while listen.frontier < 6:
        seen += (await anext(listen)).updates
    return tally(seen)


@pytest.mark.parametrize("kind", ["snapshot", "listen", "subscribe"])
def test_collection_waits_for_what_is_being_read(kind: str) -> None:
    async def main() -> None:
        blob, consensus, shard = SlowBlob(), MemConsensus(), new_shard_id()
        filling = PersistClient(blob, consensus, config=PersistConfig(inline_bytes=0, maintenance=False))
        first = await filling.open_writer(shard, SCHEMA, purpose="test")
        log = [(time, time, 1) for time in range(6)]
        for change in log:
            await append(first, [change], change[1], change[1] + 1)
        await filling.close()

        client = PersistClient(blob, consensus, config=EAGER)
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        since = await client.open_since(shard, "controller", purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test")

        async def settled() -> None:
            await client._maintenance[shard].idle()

        async def upkeep(first: int, end: int) -> None:
            for time in range(first, end):
                await append(writer, [(time, time, 1)], time, time + 1)
                await since.compare_and_downgrade_since(0, 0, Frontier(time))
                await settled()

        await settled()
        blob.hold = True
        reading = asyncio.create_task(read(reader, kind))
        await blob.reading.wait()
        await upkeep(6, 60)
        blob.gate.set()
        found = await reading
        expected = {"snapshot": expected_at(log, 5), "listen": expected_after(log, 1)}
        expected["subscribe"] = expected_at(log, 1) + expected["listen"]
        assert {row: count for row, count in found.items() if row[1] < 6} == expected[kind]
        await reader.expire()
        await upkeep(60, 100)
        assert await blob.get(blob.held) is None, "it was the read alone that kept it"
        await client.close()

    asyncio.run(main())
