"""A part is left out by its statistics only if no row of it passes: bounds that are cut off are rounded outwards."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from penstock.persist import (
    Compare,
    Filter,
    MemBlob,
    MemConsensus,
    Not,
    Operator,
    PersistClient,
    PersistConfig,
    new_shard_id,
)
from penstock.runtime import Frontier, Timestamp, Updates

SCHEMA = pa.schema([("s", pa.string()), ("f", pa.float64())])
LONG = "a" * 40


@pytest.mark.parametrize(
    "filter_",
    [
        Compare("s", Operator.EQ, LONG),
        Compare("s", Operator.GT, LONG[:35]),
        Compare("s", Operator.GE, LONG),
        Not(Compare("s", Operator.LT, LONG)),
        Compare("f", Operator.GT, 5.0),
    ],
    ids=str,
)
def test_a_row_that_passes_is_read(filter_: Filter) -> None:
    async def main() -> None:
        config = PersistConfig(inline_bytes=0, stats_from_bytes=0)
        client, shard = PersistClient(MemBlob(), MemConsensus(), config=config), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        rows = pa.RecordBatch.from_pydict({"s": [LONG], "f": [float("nan")]}, schema=SCHEMA)
        assert await writer.compare_and_append(Updates.at(rows, Timestamp(0)), Frontier(0), Frontier(1)) is None
        (part,) = client._shards[shard].state.batches[0].parts
        assert part.stats  # type: ignore[union-attr]
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert [len(part) async for part in reader.snapshot(Timestamp(0), filter_=filter_)] == [1]
        await client.close()

    asyncio.run(main())
