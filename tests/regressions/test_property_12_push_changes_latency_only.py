"""Property 12: readers see the same with pushed diffs, without them, and with a push that loses and reorders them."""

from __future__ import annotations

import asyncio
import random

import pytest

from penstock.persist import (
    LocalPubSub,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    PubSub,
    ShardId,
    Versioned,
    new_shard_id,
)
from penstock.runtime import Timestamp
from tests.persist.shards import SCHEMA, append, expected_after, expected_at, read_until, snapshot, tally


class Careless(LocalPubSub):
    """Loses some messages, doubles some, and keeps some back for later."""

    def __init__(self) -> None:
        super().__init__()
        self._dice = random.Random(3)
        self._late: list[tuple[ShardId, Versioned]] = []

    def publish(self, shard: ShardId, version: Versioned) -> None:
        self._late.append((shard, version))
        if self._dice.random() < 0.3:
            return
        self._dice.shuffle(self._late)
        for one in self._late[: self._dice.randint(0, 3)]:
            for _ in range(self._dice.choice([0, 1, 1, 2])):
                super().publish(*one)
        del self._late[:2]


@pytest.mark.parametrize("push", [None, LocalPubSub, Careless])
def test_the_same_is_seen(push: type[LocalPubSub] | None) -> None:
    async def main() -> None:
        pubsub: PubSub | None = push() if push is not None else None
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        config = PersistConfig(poll_min_ms=1, poll_max_ms=5)
        writing, reading = (PersistClient(blob, consensus, pubsub=pubsub, config=config) for _ in range(2))
        writer = await writing.open_writer(shard, SCHEMA, purpose="test")
        reader = await reading.open_reader(shard, SCHEMA, purpose="test")
        holder = await reading.open_reader(shard, SCHEMA, purpose="test")
        log = [(t % 7, t, 1) for t in range(60)]
        async with asyncio.timeout(2):
            listen = await reader.listen(Timestamp(0))
            seen = asyncio.create_task(read_until(listen, 60))
            for t, change in enumerate(log):
                await append(writer, [change], t, t + 1)
                await asyncio.sleep(0)
            assert tally(await seen) == expected_after(log, 0)
            for as_of in (0, 30, 59):
                assert await snapshot(holder, as_of) == expected_at(log, as_of)
        for client in (writing, reading):
            await client.close()

    asyncio.run(main())
