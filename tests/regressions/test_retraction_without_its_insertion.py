"""A filtered read leaves out a row with all that ever happened to it, though only some of its parts are left out."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from penstock.persist import Compare, MemBlob, MemConsensus, Operator, PersistClient, PersistConfig, new_shard_id
from penstock.persist.txn import TxnsWriter
from penstock.replica.shards import Shards
from penstock.runtime import SystemClock, TaskOwner, Timestamp, Updates

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])


def one(time: int, diff: int, *rows: tuple[int, str]) -> Updates:
    columns = [pa.array([k for k, _ in rows]), pa.array([v for _, v in rows])]
    return Updates.at(pa.RecordBatch.from_arrays(columns, schema=SCHEMA), Timestamp(time), diff)


@pytest.mark.parametrize("columns", [None, ["v"], []], ids=str)
def test_no_row_occurs_less_than_never(columns: list[str] | None) -> None:
    async def main() -> None:
        config = PersistConfig(inline_bytes=0, stats_from_bytes=0, maintenance=False)
        client, log, table = PersistClient(MemBlob(), MemConsensus(), config=config), new_shard_id(), new_shard_id()
        tasks = TaskOwner("test")
        shards = Shards(client, log, SystemClock(), tasks)
        writer = await TxnsWriter.open(client, log)
        assert await writer.register({table: SCHEMA}, Timestamp(0)) is None
        commits = [
            [one(1, 1, (1, "low"), (2, "low"))],
            [one(2, -1, (1, "low")), one(2, 1, (9, "high"), (8, "high"))],
            [one(3, -1, (8, "high")), one(3, 1, (3, "low"))],
        ]
        for time, commit in enumerate(commits, 1):
            assert await writer.commit_at({table: commit}, Timestamp(time)) is None
            await writer.apply_le(Timestamp(time))
        high = Compare("k", Operator.GE, 8)
        for at, expected in [(1, 0), (2, 2), (3, 1)]:
            found = await shards.rows_at(table, SCHEMA, Timestamp(at), is_table=True, columns=columns, filter_=high)
            assert (found.diffs > 0).all()
            assert int(found.diffs.sum()) == expected
            if columns is None or columns:
                assert set(found.rows.column("v").to_pylist()) <= {"high"}
        await tasks.close()
        await writer.close()
        await client.close()

    asyncio.run(main())
