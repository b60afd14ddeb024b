"""Each operation of the transaction log, the races between them, and random histories of racing workers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from penstock.persist import PersistClient, ShardId, new_shard_id
from penstock.persist.errors import InvalidUsage
from penstock.persist.txn import TooLate, TxnsReader, TxnsWriter
from penstock.runtime import Frontier, Timestamp
from tests.persist.txn.cluster import FAST, SCHEMA, Cluster, Followed, Row, cluster, contents, rows, table


async def own_upper(client: PersistClient, shard: ShardId) -> int:
    """The shard's own upper, by the newest state."""
    return int((await (await client._open(shard)).fetch()).upper)


def test_commit_at() -> None:
    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            first, second = await table(writer, 1), await table(writer, 2)
            assert (
                await writer.commit_at({first: [rows(5, (1, "a"))], second: [rows(5, (2, "b"))]}, Timestamp(5)) is None
            )
            assert writer.upper == 6
            for late in (0, 5):
                assert await writer.commit_at({first: [rows(late, (9, "x"))]}, Timestamp(late)) == TooLate(Frontier(6))
            assert await writer.commit_at({}, Timestamp(6)) is None, "time alone"
            reader = await c.reader()
            handles = [await reader.open_reader(shard, SCHEMA, purpose="test") for shard in (first, second)]
            assert [await contents(handle, 4) for handle in handles] == [{}, {}]
            assert [await contents(handle, 6) for handle in handles] == [{(1, "a"): 1}, {(2, "b"): 1}]
            with pytest.raises(InvalidUsage, match="not registered"):
                await writer.commit_at({new_shard_id(): [rows(9, (1, "a"))]}, Timestamp(9))
            assert writer.upper == 7, "what was refused moved nothing"

    asyncio.run(main())


@pytest.mark.parametrize("inline_bytes", [32 * 1024, 0])
def test_apply_and_tidy(inline_bytes: int) -> None:
    async def main() -> None:
        async with cluster(config=replace(FAST, inline_bytes=inline_bytes)) as c:
            writer = await c.writer()
            shard = await table(writer, 1)
            client = c.client()
            log = writer._log
            for ts in (3, 4, 5):
                assert await writer.commit_at({shard: [rows(ts, (ts, "v"))]}, Timestamp(ts)) is None
            await log.wait_past(Timestamp(5))
            assert len(log.unapplied(shard)) == 3
            assert await own_upper(client, shard) == 2, "committed, not applied"
            await writer.apply_le(Timestamp(4))
            assert await own_upper(client, shard) == 5, "past the newest write up to 4, and no further"
            await writer.apply_le(Timestamp(4))  # again: no harm
            assert await own_upper(client, shard) == 5
            assert len(log.unapplied(shard)) == 3, "retracted along with a later commit only"
            assert await writer.commit_at({}, Timestamp(8)) is None
            await log.wait_past(Timestamp(8))
            assert [write.ts for write in log.unapplied(shard)] == [5]
            await writer.apply_le(Timestamp(100))
            assert await own_upper(client, shard) == 6
            assert await writer.commit_at({}, Timestamp(9)) is None
            await log.wait_past(Timestamp(9))
            assert log.unapplied(shard) == []
            assert log.unapplied_bytes == 0
            assert await writer.commit_at({}, Timestamp(10)) is None, "each retraction is made once"
            reader = await c.reader()
            handle = await reader.open_reader(shard, SCHEMA, purpose="test")
            assert await contents(handle, 10) == {(3, "v"): 1, (4, "v"): 1, (5, "v"): 1}

    asyncio.run(main())


def test_advance_physical_uppers_past() -> None:
    """Applying moves the uppers of the shards that were written; those of all others stay where they are."""

    async def main() -> None:
        async with cluster() as c:
            writer = await c.writer()
            written, idle = await table(writer, 1), await table(writer, 2)
            client = c.client()
            assert [await own_upper(client, shard) for shard in (written, idle)] == [2, 3]
            for ts in range(10, 20):
                assert await writer.commit_at({written: [rows(ts, (ts, "v"))]}, Timestamp(ts)) is None
            await writer.apply_le(Timestamp(19))
            assert [await own_upper(client, shard) for shard in (written, idle)] == [20, 3]
            reader = await c.reader()
            handle = await reader.open_reader(idle, SCHEMA, purpose="test")
            assert handle.upper == 20
            followed = Followed(await handle.subscribe(Timestamp(15)), 15)
            assert (await followed.until(20)).history == {}
            assert await own_upper(client, idle) == 3, "reading it moves it neither"
            assert await writer.forget([idle], Timestamp(30)) is None
            assert await own_upper(client, idle) == 31, "it has its own time again, past all transactions"

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_register_forget_races(seed: int) -> None:
    """Two coordinators register and forget the same shards; whatever one was told is what everybody sees."""

    async def main() -> None:
        async with cluster() as c:
            writers = [await c.writer() for _ in range(2)]
            shards = [new_shard_id() for _ in range(2)]
            told: dict[ShardId, list[tuple[int, bool]]] = {shard: [] for shard in shards}

            async def work(number: int) -> None:
                dice = random.Random(100 * seed + number)
                writer = writers[number]
                for _ in range(25):
                    shard = dice.choice(shards)
                    ts = Timestamp(writer.upper + dice.randrange(3))
                    if dice.random() < 0.5:
                        late = await writer.register({shard: SCHEMA}, ts)
                        what = True
                    else:
                        late = await writer.forget([shard], ts)
                        what = False
                    if late is None:
                        told[shard].append((int(ts), what))
                    else:
                        await asyncio.sleep(0)

            await asyncio.gather(work(0), work(1))
            upper = await writers[0]._writer.fetch_recent_upper()
            reader = await c.reader()
            await reader.wait_for_upper_past(Frontier(upper - 1))
            for shard, history in told.items():
                times = [ts for ts, _ in history]
                assert len(times) == len(set(times)), "of two at one time one was told that it is too late"
                if history:
                    assert reader.is_registered(shard) == max(history)[1]
            registered = [shard for shard in shards if reader.is_registered(shard)]
            assert set(writers[1].registered) >= set(registered)

    asyncio.run(main())


class Worker:
    """One process that writes, registers, forgets, applies and reads at random; its own caches."""

    def __init__(self, seed: int, writer: TxnsWriter, reader: TxnsReader, shards: list[ShardId]) -> None:
        self.dice = random.Random(seed)
        self.writer, self.reader, self.shards = writer, reader, shards
        self.name = seed
        self.committed: list[tuple[ShardId, int, Row, int]] = []
        self.reads: list[tuple[ShardId, int, Followed]] = []
        self.steps: Counter[str] = Counter()

    async def run(self, steps: int) -> None:
        for number in range(steps):
            step = self.dice.choices(
                [self.write, self.register, self.forget, self.update, self.start_read], weights=[10, 2, 1, 4, 3]
            )[0]
            await step(self.dice.choice(self.shards), number)
            await asyncio.sleep(0)

    async def write(self, shard: ShardId, number: int) -> None:
        for _ in range(50):
            ts = Timestamp(self.writer.upper)
            others = [one for one in self.shards if self.dice.random() < 0.3 or one == shard]
            row = (self.name * 1000 + number, "v")
            try:
                late = await self.writer.commit_at({one: [rows(ts, row)] for one in others}, ts)
            except InvalidUsage:  # one of them is not registered
                self.steps["refused"] += 1
                return
            if late is None:
                self.committed += [(one, int(ts), row, 1) for one in others]
                self.steps["written"] += 1
                return
            self.steps["raced"] += 1

    async def register(self, shard: ShardId, _: int) -> None:
        if await self.writer.register({shard: SCHEMA}, Timestamp(self.writer.upper)) is None:
            self.steps["registered"] += 1

    async def forget(self, shard: ShardId, _: int) -> None:
        if await self.writer.forget([shard], Timestamp(self.writer.upper)) is None:
            self.steps["forgotten"] += 1

    async def update(self, _: ShardId, __: int) -> None:
        await self.writer.apply_le(Timestamp(max(0, self.writer.upper - self.dice.randrange(3))))
        self.steps["applied"] += 1

    async def start_read(self, shard: ShardId, _: int) -> None:
        if not self.reader.is_registered(shard):
            return
        handle = await self.reader.open_reader(shard, SCHEMA, purpose="test")
        as_of = max(int(handle.since), int(self.reader.upper) - 1 - self.dice.randrange(5), 0)
        self.reads.append((shard, as_of, Followed(await handle.subscribe(Timestamp(as_of)), as_of)))
        self.steps["reading"] += 1


@pytest.mark.parametrize("seed", range(4))
def test_stress_correctness(seed: int) -> None:
    """Two workers, a hundred random steps each, over two shards, each with caches of its own."""

    async def main() -> None:
        async with cluster() as c:
            shards = [new_shard_id() for _ in range(2)]
            workers = await asyncio.gather(*(worker(c, 2 * seed + number, shards) for number in range(2)))
            while await workers[0].writer.register(dict.fromkeys(shards, SCHEMA), Timestamp(workers[0].writer.upper)):
                pass
            await asyncio.gather(*(one.run(100) for one in workers))
            last = workers[0].writer
            while await last.register(dict.fromkeys(shards, SCHEMA), Timestamp(last.upper)) is not None:
                pass
            await last.apply_le(Timestamp(last.upper - 1))
            end = int(last.upper)
            log = sorted(entry for one in workers for entry in one.committed)
            for one in workers:
                for shard, as_of, followed in one.reads:
                    await followed.until(end)
                    expected: dict[int, Counter[Row]] = {}
                    for where, ts, row, diff in log:
                        if where == shard and ts < end:
                            expected.setdefault(max(ts, as_of), Counter())[row] += diff
                    found = {time: change for time, change in followed.history.items() if time < end}
                    assert found == expected, (one.name, shard, as_of)
            steps = sum((one.steps for one in workers), Counter())
            assert steps["written"] > 20
            assert steps["reading"] > 5
            assert steps["raced"] + steps["refused"] > 0, "the workers got into each other's way"

    async def worker(c: Cluster, seed: int, shards: list[ShardId]) -> Worker:
        return Worker(seed, await c.writer(), await c.reader(), shards)

    asyncio.run(main())
