"""Compaction of parts with several schemas keeps the columns of all of them."""

from __future__ import annotations

import asyncio

import pyarrow as pa

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, SchemaId, new_shard_id
from penstock.runtime import Frontier, Timestamp, Updates

OLD = pa.schema([("k", pa.int64())])
NEW = pa.schema([("k", pa.int64()), ("v", pa.string())])


def test_values_of_a_new_column_survive_next_to_rows_without_it() -> None:
    async def main() -> None:
        config = PersistConfig(compaction_fan_in=2, cache_bytes=0)
        client, shard = PersistClient(MemBlob(), MemConsensus(), config=config), new_shard_id()
        old = await client.open_writer(shard, OLD, purpose="test")
        await client.compare_and_evolve_schema(shard, SchemaId(0), NEW)
        new = await client.open_writer(shard, NEW, purpose="test")
        expected = []
        for time in range(16):
            writer = new if time % 3 == 1 else old
            row = {"k": time} if writer is old else {"k": time, "v": f"v{time}"}
            expected.append({"v": None, **row})
            updates = Updates.at(pa.RecordBatch.from_pylist([row], schema=writer.schema), Timestamp(time))
            assert await writer.compare_and_append(updates, Frontier(time), Frontier(time + 1)) is None
            await client._maintenance[shard].idle()
        assert len(client._shards[shard].state.batches) < 8, "it was compacted"
        reader = await client.open_reader(shard, NEW, purpose="test")
        found = [row for part in [p async for p in reader.snapshot(Timestamp(15))] for row in part.rows.to_pylist()]
        assert sorted(found, key=lambda row: row["k"]) == [{"k": row["k"], "v": row["v"]} for row in expected]
        await client.close()

    asyncio.run(main())
