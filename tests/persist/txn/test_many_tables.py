"""What a commit costs when there are many tables: it is paid for the tables that are written, not for the others."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from penstock.persist import CasResult, LocalPubSub, MemConsensus, PersistConfig, Versioned, new_shard_id
from penstock.persist.txn import TxnsListen
from penstock.runtime import Timestamp, VirtualClock
from tests.persist.txn.cluster import SCHEMA, Cluster, cluster, contents, rows

TABLES = 1000


class Counting(MemConsensus):
    """Counts compare-and-sets by shard, and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: Counter[str] = Counter()
        self.reads = 0

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        self.commits[key] += 1
        return await super().compare_and_set(key, new)

    async def scan(self, *arguments: object) -> list[Versioned]:
        self.reads += 1
        return await super().scan(*arguments)  # type: ignore[arg-type]


def test_a_thousand_idle_tables_advance_by_one_write() -> None:
    async def main() -> None:
        consensus = Counting()
        async with cluster(consensus=consensus, config=PersistConfig(maintenance=False)) as c:
            writer = await c.writer()
            shards = {new_shard_id(): SCHEMA for _ in range(TABLES)}
            assert await writer.register(shards, Timestamp(1)) is None
            reader = await c.reader()
            handles = [await reader.open_reader(shard, SCHEMA, purpose="test") for shard in shards]
            consensus.commits.clear()
            consensus.reads = 0
            busy, *idle = handles
            for ts in range(10, 20):
                assert await writer.commit_at({busy.shard: [rows(ts, (ts, "v"))]}, Timestamp(ts)) is None
            await reader.wait_for_upper_past(Timestamp(19))
            assert consensus.commits == {c.txns: 10}, "one write each, and none to any table"
            assert consensus.reads <= 10, "pushed, not polled"
            assert {handle.upper for handle in handles} == {20}
            assert await contents(idle[7], 19) == {}
            assert await contents(busy, 19) == {(ts, "v"): 1 for ts in range(10, 20)}
            assert consensus.commits == {c.txns: 10}, "reading writes nothing"
            await writer.apply_le(Timestamp(19))
            assert set(consensus.commits) <= {c.txns, busy.shard}, "only the written table is touched"

    asyncio.run(main())


@pytest.mark.parametrize("listeners", [10, TABLES])
def test_a_commit_wakes_the_listeners_of_its_tables_and_few_others(listeners: int) -> None:
    commits = 40

    async def main() -> None:
        clock = VirtualClock(1_000)
        c = Cluster(pubsub=LocalPubSub(), clock=clock)
        writer = await c.writer()
        shards = [new_shard_id() for _ in range(listeners)]
        assert await writer.register(dict.fromkeys(shards, SCHEMA), Timestamp(1)) is None
        reader = await c.reader()
        events: Counter[int] = Counter()
        reached: Counter[int] = Counter()

        async def follow(number: int, listen: TxnsListen) -> None:
            async for event in listen:
                events[number] += 1
                reached[number] = int(event.progress)

        async with asyncio.TaskGroup() as tasks:
            followers = []
            for number, shard in enumerate(shards):
                handle = await reader.open_reader(shard, SCHEMA, purpose="test")
                followers.append(tasks.create_task(follow(number, await handle.listen(Timestamp(1)))))
            await settled()
            clock.advance(1)
            await settled()
            events.clear()
            for ts in range(10, 10 + commits):  # all of them within one moment
                assert await writer.commit_at({shards[0]: [rows(ts, (ts, "v"))]}, Timestamp(ts)) is None
                await settled()
                assert reached[0] == ts + 1, "whoever follows the written table has it at once"
            assert events[0] == commits
            assert sum(events.values()) <= commits + 64, "the others are told of progress in turn"
            while min(reached[number] for number in range(listeners)) < 10 + commits:
                before = sum(events.values())
                clock.advance(0.01)
                await settled()
                assert 0 < sum(events.values()) - before <= 64
            assert sum(events.values()) <= commits + 64 + listeners, "one event brings them all there"
            for follower in followers:
                follower.cancel()
        await c.close()

    async def settled() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(main())
