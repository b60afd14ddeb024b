"""The transaction log forgets no time at which it still holds a write, however far it is asked to forget."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import MemBlob, MemConsensus, PersistClient, ShardId, new_shard_id
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Timestamp
from tests.persist.shards import SCHEMA, expected_after, read_until, tally, updates


async def since_of(client: PersistClient, shard: ShardId) -> int:
    """What holds the log's detail on behalf of all writers; readers come and go."""
    return (await client._open(shard)).state.criticals["txns"].since


@pytest.mark.parametrize("read_first", [True, False])
def test_the_log_stays_at_its_oldest_write(read_first: bool) -> None:
    async def main() -> None:
        stores = MemBlob(), MemConsensus()
        client = PersistClient(*stores)
        log_shard, table, other = (new_shard_id() for _ in range(3))
        txns = await TxnsWriter.open(client, log_shard)
        assert await txns.register({table: SCHEMA, other: SCHEMA}, Timestamp(1)) is None
        assert await txns.commit_at({table: [updates([(1, 10, 1)])]}, Timestamp(10)) is None
        assert await txns.commit_at({other: [updates([(2, 20, 1)])]}, Timestamp(20)) is None
        assert await txns.commit_at({}, Timestamp(100)) is None
        assert txns.upper == 101
        if read_first:
            await txns._log.wait_past(Timestamp(100))
        await txns.compact_to(Timestamp(100))
        assert await since_of(client, log_shard) <= 10
        await txns.apply_le(Timestamp(15))
        await txns.compact_to(Timestamp(100))
        assert await since_of(client, log_shard) <= 10, "applied, but still in the log"
        assert await txns.commit_at({}, Timestamp(110)) is None  # retracts what was applied
        await txns._log.wait_past(Timestamp(110))
        await txns.compact_to(Timestamp(110))
        assert await since_of(client, log_shard) == 20
        second = PersistClient(*stores)
        reader = await TxnsReader.open(second, log_shard)
        for shard, change in ((table, (1, 10, 1)), (other, (2, 20, 1))):
            handle = await reader.open_reader(shard, SCHEMA, purpose="test")
            seen = await read_until(await handle.listen(Timestamp(1)), 111)
            assert tally(seen) == expected_after([change], 1), "at its own time"
        for opened in (reader, txns, second, client):
            await opened.close()

    asyncio.run(main())
