"""Property 8: the shard's since never passes a live critical hold, never goes back, and a holder that was fenced cannot
move it: over random histories of readers that come, move, leave and expire.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from penstock.persist import Fenced, MemBlob, MemConsensus, PersistClient, PersistConfig, ReaderExpired, new_shard_id
from penstock.persist.read import ReadHandle
from penstock.persist.since import SinceHandle
from penstock.runtime import Frontier, VirtualClock
from tests.persist.shards import SCHEMA, append


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_of_readers(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        clock, blob, consensus, shard = VirtualClock(1_000_000), MemBlob(), MemConsensus(), new_shard_id()
        config = PersistConfig(maintenance=False, reader_lease_ms=1000)
        clients = [PersistClient(blob, consensus, clock=clock, config=config) for _ in range(2)]
        writer = await clients[0].open_writer(shard, SCHEMA, purpose="test")
        held = {name: await clients[0].open_since(shard, name, purpose="test", opaque=1) for name in ("a", "b")}
        fenced: list[tuple[str, SinceHandle, int]] = []
        readers: list[ReadHandle] = []
        newest = 0
        for t in range(120):
            step = dice.choice(["append", "critical", "takeover", "fenced", "open", "downgrade", "expire", "hang"])
            name = dice.choice(["a", "b"])
            if step == "append":
                await append(writer, [], int(await writer.fetch_recent_upper()), int(writer.upper) + 1)
            elif step == "critical":
                one = held[name]
                assert (
                    await one.compare_and_downgrade_since(one.opaque, one.opaque, Frontier(dice.randrange(t + 1)))
                    is None
                )
            elif step == "takeover":
                old = held[name]
                held[name] = await dice.choice(clients).open_since(shard, name, purpose="test")
                taken = held[name]
                assert await taken.compare_and_downgrade_since(taken.opaque, t + 2, Frontier(0)) is None
                fenced.append((name, old, old.opaque))
            elif step == "fenced" and fenced:
                name, old, opaque = dice.choice(fenced)
                before = held[name].since
                answer = await old.compare_and_downgrade_since(opaque, opaque, Frontier(10_000))
                assert isinstance(answer, Fenced)
                assert answer.since == before, "it moved nothing"
            elif step == "open":
                readers.append(await dice.choice(clients).open_reader(shard, SCHEMA, purpose="test"))
            elif step == "downgrade" and readers:
                try:
                    await dice.choice(readers).downgrade_since(Frontier(dice.randrange(t + 1)))
                except ReaderExpired:
                    pass
            elif step == "expire" and readers:
                await readers.pop(dice.randrange(len(readers))).expire()
            elif step == "hang":
                clock.advance(dice.choice([0.3, 2.0]))
            state = await clients[0]._shards[shard].fetch()
            assert state.since >= newest, "never back"
            newest = state.since
            holds = [int(one.since) for one in held.values()]
            assert state.since <= min(holds), f"since {state.since} is past a hold of {holds}"
        for client in clients:
            await client.close()

    asyncio.run(main())
