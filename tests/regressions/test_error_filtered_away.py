"""An error in a view is seen by whoever reads the view, also where the rows asked for are elsewhere."""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa
import pytest

from penstock.dataflow import ERRORS_SCHEMA
from penstock.persist import Compare, MemBlob, MemConsensus, Operator, PersistClient, PersistConfig, new_shard_id
from penstock.replica.shards import Shards
from penstock.runtime import DataError, Frontier, SystemClock, TaskOwner, Timestamp, Updates
from penstock.storage import errors_to_shard, rows_to_shard, view_schema

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])


@pytest.mark.parametrize("columns", [None, ["v"], []], ids=str)
def test_an_error_is_seen_whatever_is_asked_for(columns: list[str] | None) -> None:
    async def main() -> None:
        config = PersistConfig(inline_bytes=0, stats_from_bytes=0, maintenance=False)
        client, shard = PersistClient(MemBlob(), MemConsensus(), config=config), new_shard_id()
        tasks = TaskOwner("test")
        shards = Shards(client, new_shard_id(), SystemClock(), tasks)
        writer = await client.open_writer(shard, view_schema(SCHEMA), purpose="test")
        rows = pa.RecordBatch.from_pydict({"k": [1, 2], "v": ["a", "b"]}, schema=SCHEMA)
        failed = pa.RecordBatch.from_arrays([pa.array(["22012"]), pa.array(["division by zero"])], schema=ERRORS_SCHEMA)
        changes = [
            rows_to_shard(Updates.at(rows, Timestamp(0)), SCHEMA),
            errors_to_shard(Updates.at(failed, Timestamp(1)), SCHEMA),
            errors_to_shard(Updates(failed, np.array([2], np.uint64), np.array([-1])), SCHEMA),
        ]
        for time, change in enumerate(changes):
            assert await writer.compare_and_append(change, Frontier(time), Frontier(time + 1)) is None
        wanted = Compare("k", Operator.EQ, 1)

        async def read(at: int) -> Updates:
            return await shards.rows_at(shard, SCHEMA, Timestamp(at), is_table=False, columns=columns, filter_=wanted)

        with pytest.raises(DataError, match="division by zero"):
            await read(1)
        for at in (0, 2):
            assert (await read(at)).rows.to_pylist() == [
                {name: value for name, value in {"k": 1, "v": "a"}.items() if columns is None or name in columns}
            ]
        await tasks.close()
        await client.close()

    asyncio.run(main())
