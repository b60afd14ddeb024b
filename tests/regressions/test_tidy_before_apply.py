"""A write leaves the transaction log only once it is in its shard, whatever fails or is killed in between."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import (
    CasResult,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    StoreFull,
    Versioned,
    new_shard_id,
)
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Timestamp
from tests.persist.shards import SCHEMA, expected_at, tally, updates


class Full(MemConsensus):
    """Has no room for anything more of the shard `full`."""

    full = ""

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        if key == self.full:
            raise StoreFull("no room")
        return await super().compare_and_set(key, new)


@pytest.mark.parametrize("inline_bytes", [0, 32 * 1024])
def test_a_write_that_could_not_be_applied_stays_in_the_log(inline_bytes: int) -> None:
    async def main() -> None:
        blob, consensus, config = MemBlob(), Full(), PersistConfig(inline_bytes=inline_bytes)
        client = PersistClient(blob, consensus, config=config)
        log_shard, table = new_shard_id(), new_shard_id()
        txns = await TxnsWriter.open(client, log_shard)
        assert await txns.register({table: SCHEMA}, Timestamp(1)) is None
        assert await txns.commit_at({table: [updates([(1, 10, 1)])]}, Timestamp(10)) is None
        consensus.full = table
        with pytest.raises(StoreFull):
            await txns.apply_le(Timestamp(10))
        for time in (11, 12):  # retracts whatever counts as applied
            assert await txns.commit_at({}, Timestamp(time)) is None
        consensus.full = ""
        # The process is killed here; another one takes over.
        successor = PersistClient(blob, consensus, config=config)
        taken_over = await TxnsWriter.open(successor, log_shard)
        assert await taken_over.commit_at({table: [updates([(2, 20, 1)])]}, Timestamp(20)) is None
        reader = await TxnsReader.open(successor, log_shard)
        handle = await reader.open_reader(table, SCHEMA, purpose="test")
        await taken_over.apply_le(Timestamp(20))
        for time in (12, 20):
            found = tally([part async for part in handle.snapshot(Timestamp(time))])
            assert found == expected_at([(1, 10, 1), (2, 20, 1)], time)
        for opened in (reader, taken_over, successor, txns, client):
            await opened.close()

    asyncio.run(main())
