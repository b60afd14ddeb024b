"""cached_head_behind: a head from the cache answered a question that needs the newest one.

Two committers, or a committer and a process that writes directly, can be on one store during a rollout. A linearized
head then sees what the other has written; only who says that an old one will do gets it from the cache.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from penstock.committer import CommitterServer, InProcessConsensus, RpcConsensus
from penstock.persist import CasResult, LocalPubSub, MemConsensus
from tests.committer.batching import version


def test_a_linearized_head_reaches_the_store(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemConsensus()
        committers = [InProcessConsensus(store), InProcessConsensus(store)]
        servers = [CommitterServer(committer, LocalPubSub()) for committer in committers]
        first, second = [RpcConsensus(await server.listen(f"unix:{tmp_path}/{i}")) for i, server in enumerate(servers)]
        assert await first.compare_and_set("s", version(0)) is CasResult.COMMITTED
        assert await second.compare_and_set("s", version(1)) is CasResult.COMMITTED
        assert await first.head("s", linearized=False) == version(0), "an old one will do"
        assert await first.head("s") == version(1)
        assert await first.head("s", linearized=False) == version(1), "what was read is remembered"
        assert await second.compare_and_set("s", version(2)) is CasResult.COMMITTED
        assert await first.compare_and_set("s", version(2)) is CasResult.MISMATCH, "the store checks"
        assert await first.compare_and_set("s", version(3)) is CasResult.COMMITTED
        for client in (first, second):
            await client.close()
        for server in servers:
            await server.close()

    asyncio.run(main())
