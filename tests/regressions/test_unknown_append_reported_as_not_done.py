"""Where even reading back fails, an unknown outcome stays unknown, whatever the error of the reading says of itself.

An append took effect, its answer was lost, and the look at the shard after that surely did not happen. "Surely did not
happen" was what the writer was told of its append, and the blobs of a committed append were deleted.
"""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import (
    SCAN_ALL,
    CasResult,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    SeqNo,
    Versioned,
    new_shard_id,
)
from penstock.runtime import Determinate, Frontier, Indeterminate
from tests.persist.shards import SCHEMA, append, snapshot, updates


class Failing(MemConsensus):
    """From a compare-and-set whose answer is lost on, nothing can be read."""

    failing = False
    broken = False

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        result = await super().compare_and_set(key, new)
        if self.failing:
            self.broken = True
            raise Indeterminate("the answer was lost")
        return result

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        if self.broken:
            raise Determinate("cannot be reached")
        return await super().scan(key, from_, limit)


def test_the_writer_is_not_told_that_it_did_not_happen_and_its_blobs_stay() -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), Failing(), new_shard_id()
        config = PersistConfig(inline_bytes=0, store_retry_ms=20, maintenance=False)
        client = PersistClient(blob, consensus, config=config)
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(0, 0, 1)], 0, 1)
        consensus.failing = True
        with pytest.raises(Indeterminate, match="answer was lost"):
            await writer.compare_and_append(updates([(1, 1, 1)]), Frontier(1), Frontier(2))
        consensus.failing = consensus.broken = False
        assert await writer.fetch_recent_upper() == 2, "it did happen"
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 1) == {(0, 1): 1, (1, 1): 1}
        await client.close()

    asyncio.run(main())
