"""The kind of a store's error survives the committer's wire: what cannot succeed is reported, not tried for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.committer import CommitterServer, InProcessConsensus, InvalidRequest, RpcConsensus
from penstock.persist import (
    CasResult,
    LocalPubSub,
    MemBlob,
    MemConsensus,
    PersistClient,
    SeqNo,
    StoreFull,
    StoreUnusable,
    Versioned,
    new_shard_id,
)
from penstock.runtime import Determinate, ExternalError, Frontier, Indeterminate
from tests.persist.shards import SCHEMA, updates


class Failing(MemConsensus):
    error: Exception | None = None
    sets = 0

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        self.sets += 1
        if self.error is not None:
            raise self.error
        return await super().compare_and_set(key, new)


@asynccontextmanager
async def serving(store: MemConsensus, tmp_path: Path) -> AsyncIterator[RpcConsensus]:
    server = CommitterServer(InProcessConsensus(store), LocalPubSub())
    consensus = RpcConsensus(await server.listen(f"unix:{tmp_path}/c"))
    try:
        yield consensus
    finally:
        await consensus.close()
        await server.close(0.1)


@pytest.mark.parametrize("error", [StoreFull("no room"), StoreUnusable("read-only")], ids=["full", "unusable"])
def test_a_store_that_refuses_is_asked_once(error: StoreUnusable, tmp_path: Path) -> None:
    async def main() -> None:
        store = Failing()
        async with serving(store, tmp_path) as consensus:
            client = PersistClient(MemBlob(), consensus)
            writer = await client.open_writer(new_shard_id(), SCHEMA, purpose="test")
            store.error, before = error, store.sets
            async with asyncio.timeout(3):
                with pytest.raises(type(error), match=error.message):
                    await writer.compare_and_append(updates([(1, 0, 1)]), Frontier(0), Frontier(1))
            assert store.sets == before + 1
            store.error = None
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Determinate, Indeterminate, StoreFull, StoreUnusable, InvalidRequest])
def test_every_kind_arrives_as_what_it_was(kind: type[ExternalError], tmp_path: Path) -> None:
    async def main() -> None:
        store = Failing()
        async with serving(store, tmp_path) as consensus:
            store.error = kind("the store's words")
            with pytest.raises(ExternalError, match="the store's words") as caught:
                await consensus.compare_and_set("s", Versioned(SeqNo(0), b""))
            assert type(caught.value) is kind

    asyncio.run(main())
