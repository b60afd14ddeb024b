"""What was fetched belongs to the time it was fetched for, whichever fetch is done first."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, fetching, new_shard_id
from penstock.runtime import Timestamp
from tests.persist.shards import SCHEMA, append, expected_after, expected_at, snapshot, tally

SLOW_S = 0.3


class SlowFirst(MemBlob):
    """The first read is answered long after those that began later."""

    first = True

    async def get(self, key: str) -> bytes | None:
        if self.first:
            self.first = False
            await asyncio.sleep(SLOW_S)
        return await super().get(key)


def test_a_slow_part_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "GROUP_ROWS", 1)

    async def main() -> None:
        blob = SlowFirst()
        config = PersistConfig(inline_bytes=0, cache_bytes=0, maintenance=False)
        client = PersistClient(blob, MemConsensus(), config=config)
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        log = [(time, time, 1) for time in range(6)]
        for change in log:
            await append(writer, [change], change[1], change[1] + 1)
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        seen = []
        listen = await reader.listen(Timestamp(0))
        while listen.frontier < 6:
            event = await anext(listen)
            seen += event.updates
            assert tally(seen) == expected_after(log[: event.progress], 0), f"at progress {event.progress}"
        blob.first = True
        assert await snapshot(reader, 4) == expected_at(log, 4)
        await client.close()

    asyncio.run(main())
