"""The committer's own rules: when the cache answers, and what it must never answer."""

import asyncio
from collections.abc import Callable

from penstock.committer import InProcessConsensus
from penstock.persist import CasResult, MemConsensus, SeqNo, Versioned


class CountingConsensus(MemConsensus):
    """Counts the heads and compare-and-sets that reach the store."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 0
        self.sets = 0

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        self.heads += 1
        return await super().head(key, linearized=linearized)

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        self.sets += 1
        return await super().compare_and_set(key, new)


def version(seqno: int, data: bytes = b"x") -> Versioned:
    return Versioned(SeqNo(seqno), data)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_a_linearized_head_always_reaches_the_store() -> None:
    async def main() -> None:
        store = CountingConsensus()
        committer = InProcessConsensus(store)
        await committer.compare_and_set("s", version(0))
        await store.compare_and_set("s", version(1, b"written past the committer"))
        assert await committer.head("s", linearized=False) == version(0)
        assert store.heads == 0
        assert await committer.head("s") == version(1, b"written past the committer")
        assert await committer.head("s", linearized=False) == version(1, b"written past the committer")
        assert store.heads == 1
        await committer.close()

    asyncio.run(main())


def test_a_mismatch_refreshes_the_cache_in_the_background() -> None:
    async def main() -> None:
        store = CountingConsensus()
        committer = InProcessConsensus(store)
        await committer.compare_and_set("s", version(0))
        for seqno in range(1, 4):
            await store.compare_and_set("s", version(seqno))
        assert await committer.compare_and_set("s", version(1)) is CasResult.MISMATCH
        await until(lambda: store.heads == 1)
        await until(lambda: committer._cache.get("s") == version(3))
        reached = store.sets
        assert await committer.compare_and_set("s", version(2)) is CasResult.MISMATCH
        assert store.sets == reached, "known to be behind: the store need not be asked"
        assert await committer.compare_and_set("s", version(4)) is CasResult.COMMITTED
        await committer.close()

    asyncio.run(main())


def test_a_lagging_refresh_cannot_undo_a_newer_commit() -> None:
    async def main() -> None:
        store = CountingConsensus()
        committer = InProcessConsensus(store)
        await committer.compare_and_set("s", version(0))
        slow = asyncio.Event()
        plain = store.head

        async def slow_head(key: str, *, linearized: bool = True) -> Versioned | None:
            found = await plain(key, linearized=linearized)
            await slow.wait()
            return found

        store.head = slow_head  # type: ignore[method-assign]
        reading = asyncio.ensure_future(committer.head("s"))
        await asyncio.sleep(0)
        await committer.compare_and_set("s", version(1))
        slow.set()
        assert await reading == version(0)
        assert await committer.head("s", linearized=False) == version(1)
        await committer.close()

    asyncio.run(main())


def test_scan_fills_the_cache_only_forward() -> None:
    async def main() -> None:
        store = CountingConsensus()
        for seqno in range(5):
            await store.compare_and_set("s", version(seqno))
        committer = InProcessConsensus(store)
        assert await committer.head("s") == version(4)
        assert len(await committer.scan("s", SeqNo(0), 2)) == 2
        assert await committer.head("s", linearized=False) == version(4)
        assert await committer.truncate("s", SeqNo(4)) == 4
        assert await committer.list_keys() == ["s"]
        await committer.close()

    asyncio.run(main())
