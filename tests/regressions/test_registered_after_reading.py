"""Register first, then read: a commit that falls between the two is heard of by push, not left to a slow poll."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from penstock.committer import CommitterServer, InProcessConsensus, RpcPubSub
from penstock.persist import (
    SCAN_ALL,
    LocalPubSub,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    SeqNo,
    ShardId,
    Versioned,
    new_shard_id,
)
from penstock.runtime import Frontier
from tests.persist.shards import SCHEMA, append

POLL_NEVER_MS = 3_600_000


class Interrupted(MemConsensus):
    """Runs `between[method]` once, after the next such read was answered and before the reader has the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.between: dict[str, Callable[[], Awaitable[None]]] = {}

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        found = await super().head(key, linearized=linearized)
        await self._interrupt("head")
        return found

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        found = await super().scan(key, from_, limit)
        await self._interrupt("scan")
        return found

    async def _interrupt(self, method: str) -> None:
        between = self.between.pop(method, None)
        if between is not None:
            await between()


def test_a_remote_subscriber_hears_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        shard = ShardId("s-one")
        old, new = Versioned(SeqNo(0), b"old"), Versioned(SeqNo(1), b"new")
        store, local = Interrupted(), LocalPubSub()
        await store.compare_and_set(shard, old)

        async def commit() -> None:
            local.publish(shard, new)

        store.between["head"] = commit
        async with AsyncExitStack() as stack:
            server = CommitterServer(InProcessConsensus(store), local)
            await server.listen(f"unix:{tmp_path}/c")
            stack.push_async_callback(server.close, 0.1)
            client, seen, head_seen = RpcPubSub(f"unix:{tmp_path}/c"), list[Versioned](), asyncio.Event()
            stack.push_async_callback(client.close)

            def on_diff(version: Versioned) -> None:
                seen.append(version)
                if version == old:
                    head_seen.set()  # it is sent after whatever came before it

            client.subscribe(shard, on_diff)
            async with asyncio.timeout(20):
                await head_seen.wait()
            assert new in seen

    asyncio.run(main())


def test_a_client_that_opens_a_shard_hears_of_it() -> None:
    async def main() -> None:
        blob, store, pubsub = MemBlob(), Interrupted(), LocalPubSub()
        config = PersistConfig(poll_max_ms=POLL_NEVER_MS, maintenance=False)
        writing, opening = (PersistClient(blob, store, pubsub=pubsub, config=config) for _ in range(2))
        shard = new_shard_id()
        writer = await writing.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(1, 0, 1)], 0, 1)
        store.between["scan"] = lambda: append(writer, [(2, 1, 1)], 1, 2)
        watcher = await opening.open_writer(shard, SCHEMA, purpose="test")
        async with asyncio.timeout(3):
            assert await watcher.wait_for_upper_past(Frontier(1)) == 2
        await writing.close()
        await opening.close()

    asyncio.run(main())
