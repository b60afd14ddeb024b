"""Where the cached state of a shard is behind, it is no reason for a negative answer: the newest state decides."""

from __future__ import annotations

import asyncio

from penstock.persist import MemBlob, MemConsensus, Mismatch, PersistClient, PersistConfig, new_shard_id
from penstock.runtime import Frontier
from tests.persist.shards import SCHEMA, append, expected_at, snapshot, updates

NEVER_POLLS = PersistConfig(poll_min_ms=3_600_000, poll_max_ms=3_600_000, maintenance=False)


def test_appends_are_judged_by_the_newest_upper() -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        behind, ahead = (PersistClient(blob, consensus, config=NEVER_POLLS) for _ in range(2))
        stale = await behind.open_writer(shard, SCHEMA, purpose="test")
        fresh = await ahead.open_writer(shard, SCHEMA, purpose="test")
        await append(fresh, [(1, 0, 1)], 0, 10)
        assert stale.upper == 0
        await append(stale, [(2, 10, 1)], 10, 20)  # it heard of this upper in another way
        await append(fresh, [(3, 20, 1)], 20, 30)
        lost = await stale.compare_and_append(updates([(4, 20, 1)]), Frontier(20), Frontier(25))
        assert lost == Mismatch(Frontier(30))
        lost = await fresh.compare_and_append(updates([(4, 5, 1)]), Frontier(5), Frontier(6))
        assert lost == Mismatch(Frontier(30))
        assert await stale.fetch_recent_upper() == 30
        reader = await behind.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 29) == expected_at([(1, 0, 1), (2, 10, 1), (3, 20, 1)], 29)
        await behind.close()
        await ahead.close()

    asyncio.run(main())


def test_a_fence_is_judged_by_the_newest_holder() -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        behind, ahead = (PersistClient(blob, consensus, config=NEVER_POLLS) for _ in range(2))
        stale = await behind.open_since(shard, "controller", purpose="test", opaque=1)
        fresh = await ahead.open_since(shard, "controller", purpose="test")
        assert await fresh.compare_and_downgrade_since(1, 2, Frontier(5)) is None
        assert await stale.compare_and_downgrade_since(2, 3, Frontier(6)) is None
        fenced = await fresh.compare_and_downgrade_since(2, 2, Frontier(9))
        assert fenced is not None
        assert (fenced.opaque, fenced.since) == (3, 6)
        await behind.close()
        await ahead.close()

    asyncio.run(main())
