"""subscribe_misses_the_commit_between: what was committed between a read and the subscription was never heard of.

A reader of another process reads the state, and its subscription reaches the server only after the next commit. The
server answers a subscription with the shard's head, so the reader learns of that commit without its next poll.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa

from penstock.committer import CommitterServer, InProcessConsensus, RpcPubSub
from penstock.persist import LocalPubSub, MemBlob, MemConsensus, PersistClient, PersistConfig, new_shard_id
from penstock.runtime import Frontier, Timestamp, Updates

SCHEMA = pa.schema([("k", pa.int64())])
NEVER_POLLS = PersistConfig(poll_min_ms=3_600_000, poll_max_ms=3_600_000)


def test_a_commit_before_the_subscription_arrives_is_not_missed(tmp_path: Path) -> None:
    async def main() -> None:
        consensus, blob, local = InProcessConsensus(MemConsensus()), MemBlob(), LocalPubSub()
        address, shard = f"unix:{tmp_path}/c", new_shard_id()
        here = PersistClient(blob, consensus, pubsub=local)
        writer = await here.open_writer(shard, SCHEMA, purpose="test")
        pubsub = RpcPubSub(address)
        there = PersistClient(blob, consensus, pubsub=pubsub, config=NEVER_POLLS)
        reader = await there.open_reader(shard, SCHEMA, purpose="test")
        listen = await reader.listen(Timestamp(0))
        waiting = asyncio.ensure_future(anext(listen))
        await asyncio.sleep(0)
        await writer.compare_and_append(Updates.empty(SCHEMA), Frontier(0), Frontier(5))
        server = CommitterServer(consensus, local)
        await server.listen(address)  # only now can the subscription arrive
        async with asyncio.timeout(6):
            assert (await waiting).progress == 5
        await there.close()
        await here.close()
        await pubsub.close()
        await server.close()
        await consensus.close()

    asyncio.run(main())
