"""persist's conformance suite over the committer, in this process and through the wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.committer import CommitterServer, InProcessConsensus, RpcConsensus, ShardCache
from penstock.persist import Consensus, LocalPubSub, MemConsensus, SqliteConsensus
from tests.persist.consensus_suite import admits_one_winner_per_version, conforms

KINDS = [
    "in process",
    "in process, no cache",
    "in process over sqlite",
    "rpc by unix socket",
    "rpc by tcp",
    "rpc, no committer",
]


@asynccontextmanager
async def opened(kind: str, path: Path) -> AsyncIterator[Consensus]:
    backing: Consensus = SqliteConsensus(path / "c.db") if "sqlite" in kind else MemConsensus()
    cache = ShardCache(shards_max=0) if "no cache" in kind else ShardCache()
    store = backing if "no committer" in kind else InProcessConsensus(backing, cache=cache)
    if "rpc" not in kind:
        yield store
        await store.close()
        return
    server = CommitterServer(store, LocalPubSub())
    client = RpcConsensus(await server.listen("127.0.0.1:0" if "tcp" in kind else f"unix:{path}/c.sock"))
    yield client
    await client.close()
    await server.close()
    await store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_committer_conforms(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(kind, tmp_path) as store:
            await conforms(store)

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_the_committer_admits_one_winner_per_version(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(kind, tmp_path) as store:
            await admits_one_winner_per_version(store)

    asyncio.run(main())
