"""A reader's since that is being moved must not be moved past a read that begins meanwhile."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from penstock.persist import (
    CasResult,
    MemBlob,
    MemConsensus,
    PersistClient,
    SinceError,
    Versioned,
    new_shard_id,
)
from penstock.runtime import Frontier, Timestamp, Updates

SCHEMA = pa.schema([("k", pa.int64())])


class GatedConsensus(MemConsensus):
    """Compare-and-sets wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        await self.gate.wait()
        return await super().compare_and_set(key, new)


def test_a_read_below_a_since_under_way_is_refused_at_once() -> None:
    async def main() -> None:
        consensus = GatedConsensus()
        client = PersistClient(MemBlob(), consensus)
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        assert await writer.compare_and_append(Updates.empty(SCHEMA), Frontier(0), Frontier(100)) is None
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        consensus.gate.clear()
        moving = asyncio.ensure_future(reader.downgrade_since(Frontier(50)))
        while reader.lease._given_up != 50:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert reader.lease.since == 0, "not durable yet"
        assert reader.since == 50, "what can be read"
        with pytest.raises(SinceError):
            await reader.listen(Timestamp(40))
        listen = await reader.listen(Timestamp(50))
        consensus.gate.set()
        await moving
        assert reader.since == 50
        assert (await anext(listen)).progress == 100
        await client.close()

    asyncio.run(main())
