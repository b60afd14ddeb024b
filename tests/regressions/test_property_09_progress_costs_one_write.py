"""Property 9: an append without updates is one write to consensus and none to the blobs; the state does not grow."""

from __future__ import annotations

import asyncio
from collections import Counter

from penstock.persist import CasResult, MemBlob, MemConsensus, PersistClient, PersistConfig, Versioned, new_shard_id
from penstock.persist.state import encode_rollup
from tests.persist.shards import SCHEMA, append

CALLS: Counter[str] = Counter()


class CountingConsensus(MemConsensus):
    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        CALLS["cas"] += 1
        return await super().compare_and_set(key, new)


class CountingBlob(MemBlob):
    async def set(self, key: str, value: bytes) -> None:
        CALLS["set"] += 1
        await super().set(key, value)


def test_progress() -> None:
    async def main() -> None:
        config = PersistConfig(inline_bytes=0, rollup_every=1_000_000)
        client = PersistClient(CountingBlob(), CountingConsensus(), config=config)
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        await append(writer, [], 1, 2)
        state = client._shards[shard]
        size = len(encode_rollup(state.state))
        CALLS.clear()
        for t in range(2, 502):
            await append(writer, [], t, t + 1)
        assert CALLS == {"cas": 500}
        assert len(encode_rollup(state.state)) <= size + 16
        await client.close()

    asyncio.run(main())
