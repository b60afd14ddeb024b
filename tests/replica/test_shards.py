"""Filtered reads of peeks: what passes is the same as without the filter, and less is fetched for it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from penstock.persist import (
    And,
    Compare,
    Filter,
    MemBlob,
    MemConsensus,
    Operator,
    PersistClient,
    PersistConfig,
    matching,
    new_shard_id,
)
from penstock.persist.txn import TxnsWriter
from penstock.replica.shards import Shards
from penstock.runtime import Frontier, SystemClock, TaskOwner, Timestamp, Updates
from penstock.storage import rows_to_shard

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])
# Each commit is a part with statistics, and nothing is remembered.
HOLLOW = PersistConfig(inline_bytes=0, stats_from_bytes=0, cache_bytes=0, maintenance=False)
Change = tuple[int | None, str | None, int]


class CountingBlob(MemBlob):
    def __init__(self) -> None:
        super().__init__()
        self.gets = 0

    async def get(self, key: str) -> bytes | None:
        self.gets += 1
        return await super().get(key)


class Collection:
    """A table or a view, written at times 1, 2, ..., and read as peeks do."""

    def __init__(self, *, is_table: bool) -> None:
        self.is_table, self.blob = is_table, CountingBlob()
        self.client = PersistClient(self.blob, MemConsensus(), config=HOLLOW)
        self.tasks, self.shard, log = TaskOwner("test"), new_shard_id(), new_shard_id()
        self.shards = Shards(self.client, log, SystemClock(), self.tasks)
        self.log, self.now = log, 0

    async def write(self, *commits: list[Change]) -> None:
        txns = await TxnsWriter.open(self.client, self.log)
        if self.is_table:
            assert await txns.register({self.shard: SCHEMA}, Timestamp(0)) is None
        writer = None if self.is_table else await self.shards.open_view_writer(self.shard, SCHEMA, "test")
        for commit in commits:
            self.now += 1
            columns = [
                pa.array([k for k, _, _ in commit], pa.int64()),
                pa.array([v for _, v, _ in commit], pa.string()),
            ]
            changes = Updates(
                pa.RecordBatch.from_arrays(columns, schema=SCHEMA),
                np.full(len(commit), self.now, np.uint64),
                np.array([diff for _, _, diff in commit], np.int64),
            )
            if writer is None:
                assert await txns.commit_at({self.shard: [changes]}, Timestamp(self.now)) is None
                await txns.apply_le(Timestamp(self.now))
            else:
                lower, upper = Frontier(self.now if self.now > 1 else 0), Frontier(self.now + 1)
                assert await writer.compare_and_append(rows_to_shard(changes, SCHEMA), lower, upper) is None
        await txns.close()

    async def read(self, at: int, columns: list[str] | None = None, filter_: Filter | None = None) -> Updates:
        found = await self.shards.rows_at(
            self.shard, SCHEMA, Timestamp(at), is_table=self.is_table, columns=columns, filter_=filter_
        )
        assert (found.diffs > 0).all()
        return found

    async def close(self) -> None:
        await self.tasks.close()
        await self.client.close()


def counted(found: Updates, columns: list[str] | None = None) -> Counter[tuple[object, ...]]:
    names = SCHEMA.names if columns is None else columns
    values = [found.rows.column(name).to_pylist() for name in names]
    rows = list(zip(*values, strict=True)) if values else [()] * len(found)
    counts: Counter[tuple[object, ...]] = Counter()
    for row, diff in zip(rows, found.diffs.tolist(), strict=True):
        counts[row] += diff
    return counts


@pytest.mark.parametrize("is_table", [True, False], ids=["table", "view"])
def test_parts_without_a_row_that_passes_are_not_fetched(is_table: bool) -> None:
    async def main() -> None:
        collection = Collection(is_table=is_table)
        await collection.write(*([(10 * part + i, f"v{i}", 1) for i in range(10)] for part in range(8)))
        near = And((Compare("k", Operator.GE, 35), Compare("k", Operator.LE, 42)))
        for columns in (None, ["v"], ["k"], []):
            await collection.read(8, columns)
            collection.blob.gets = 0
            assert int((await collection.read(8, columns)).diffs.sum()) == 80
            assert collection.blob.gets == 8
            collection.blob.gets = 0
            found = await collection.read(8, columns, near)
            assert int(found.diffs.sum()) == 8
            assert found.schema.names == (SCHEMA.names if columns is None else columns)
            assert collection.blob.gets == 2
        collection.blob.gets = 0
        assert len(await collection.read(8, None, Compare("k", Operator.GT, 80))) == 0
        assert collection.blob.gets == 0
        await collection.close()

    asyncio.run(main())


@pytest.mark.parametrize("is_table", [True, False], ids=["table", "view"])
@pytest.mark.parametrize("seed", range(8))
def test_what_passes_is_what_passes_of_the_whole(is_table: bool, seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        present: Counter[tuple[int | None, str | None]] = Counter()
        commits: list[list[Change]] = []
        for _ in range(12):
            commit: list[Change] = []
            for _ in range(rng.randrange(1, 6)):
                gone = [row for row, count in present.items() if count]
                if gone and rng.random() < 0.4:
                    row, diff = rng.choice(gone), -1
                else:
                    row, diff = (rng.choice([None, *range(8)]), rng.choice([None, "", "a", "b" * 40, "c"])), 1
                present[row] += diff
                commit.append((*row, diff))
            commits.append(commit)
        collection = Collection(is_table=is_table)
        await collection.write(*commits)
        for _ in range(20):
            at, columns = rng.randrange(1, 13), rng.choice([None, ["k"], ["v"], []])
            leaves = [
                Compare("k", rng.choice(list(Operator)), rng.choice([None, *range(-1, 9)])),
                Compare("v", rng.choice(list(Operator)), rng.choice(["", "a", "b" * 40, "b" * 39, "z"])),
            ]
            filter_ = And(tuple(rng.sample(leaves, rng.choice([1, 2]))))
            whole = await collection.read(at)
            expected = counted(whole.filter(matching(filter_, whole.rows)), columns)
            assert counted(await collection.read(at, columns, filter_), columns) == expected
        await collection.close()

    asyncio.run(main())
