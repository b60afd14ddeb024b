"""Property 2: an append is there exactly once if it was acknowledged, and not at all if it was refused, whatever mix of
errors the stores answer with and whoever races it.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from penstock.persist import (
    MemBlob,
    MemConsensus,
    Mismatch,
    PersistClient,
    PersistConfig,
    UnreliableBlob,
    UnreliableConsensus,
    new_shard_id,
)
from penstock.runtime import Frontier, SystemClock
from tests.persist.shards import SCHEMA, Change, expected_at, snapshot, updates


class Hasty(SystemClock):
    """Sleeps a thousandth of a second at most: pauses between attempts are not what is tested."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(min(seconds, 0.001))


@pytest.mark.parametrize("seed", range(4))
def test_acknowledged_once_refused_never(seed: int) -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        faults = {"happens": 0.7, "answer_lost": 0.3}
        config = PersistConfig(inline_bytes=[0, 4096][seed % 2], rollup_every=16, poll_min_ms=1, poll_max_ms=2)
        log: list[Change] = []

        async def write(number: int) -> None:
            client = PersistClient(
                UnreliableBlob(blob, 10 * seed + number, **faults),
                UnreliableConsensus(consensus, 10 * seed + number, **faults),
                clock=Hasty(),
                config=config,
            )
            dice = random.Random(10 * seed + number)
            writer = await client.open_writer(shard, SCHEMA, purpose="test")
            upper = await writer.fetch_recent_upper()
            for attempt in range(25):
                new = Frontier(upper + dice.randint(1, 2))
                changes = [(1000 * number + attempt, upper, 1)]
                result = await writer.compare_and_append(updates(changes), upper, new)
                if result is None:
                    log.extend(changes)
                upper = result.current_upper if isinstance(result, Mismatch) else new
            await client.close()

        async with asyncio.timeout(30):
            await asyncio.gather(write(0), write(1))
        client = PersistClient(blob, consensus)
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, int(reader.upper) - 1) == expected_at(log, int(reader.upper) - 1)
        assert len(log) > 20
        await client.close()

    asyncio.run(main())
