"""What every consensus store must do, whatever it is made of. Run by the tests of each room that has one."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from penstock.persist import BATCH_MAX, BatchingConsensus, CasResult, Consensus, SeqNo, StoreFailure, Versioned
from penstock.runtime import Determinate


async def conforms(store: Consensus) -> None:
    """The contract of `Consensus`, on an empty store."""

    async def cas(key: str, seqno: int, data: bytes = b"x") -> CasResult:
        return await store.compare_and_set(key, Versioned(SeqNo(seqno), data))

    assert await store.head("k") is None
    assert await store.scan("k", SeqNo(0)) == []
    with pytest.raises(Determinate):
        await store.truncate("k", SeqNo(0))
    assert await cas("k", 1) is CasResult.MISMATCH, "an unknown key begins at 0"
    assert await store.list_keys() == []
    assert await cas("k", 0, b"zero") is CasResult.COMMITTED
    assert await cas("k", 0) is CasResult.MISMATCH
    assert await cas("k", 2) is CasResult.MISMATCH, "no gaps"
    with pytest.raises(Determinate):
        await cas("k", -1)
    with pytest.raises(Determinate):
        await cas("k", 2**62)
    for seqno in range(1, 10):
        assert await cas("k", seqno, b"%d" % seqno) is CasResult.COMMITTED
    assert await cas("other", 0, b"") is CasResult.COMMITTED
    assert await store.head("k") == (9, b"9")
    assert await store.head("k", linearized=False) == (9, b"9")
    assert [v.seqno for v in await store.scan("k", SeqNo(4))] == [4, 5, 6, 7, 8, 9]
    assert [v.seqno for v in await store.scan("k", SeqNo(4), 2)] == [4, 5]
    assert await store.scan("k", SeqNo(10)) == []
    assert await store.truncate("k", SeqNo(3)) == 3
    assert await store.truncate("k", SeqNo(3)) == 0
    assert await store.truncate("k", SeqNo(1)) == 0
    with pytest.raises(Determinate):
        await store.truncate("k", SeqNo(10))
    assert (await store.scan("k", SeqNo(0)))[0] == (3, b"3")
    assert await cas("k", 0) is CasResult.MISMATCH, "a truncated log does not begin again"
    assert await cas("k", 3) is CasResult.MISMATCH
    assert await store.scan("k", SeqNo(0), 1) == [(3, b"3")], "a limit counts what is there"
    assert await store.scan("k", SeqNo(9)) == [(9, b"9")]
    assert await store.truncate("k", SeqNo(9)) == 6
    assert await cas("k", 9) is CasResult.MISMATCH
    assert await cas("k", 10) is CasResult.COMMITTED
    assert await store.scan("other", SeqNo(0)) == [(0, b"")]
    big = bytes(range(256)) * 4096
    assert await cas("other", 1, big) is CasResult.COMMITTED
    assert await store.head("other") == (1, big)
    assert await cas("with/odd %2F'\"…", 0, b"odd") is CasResult.COMMITTED
    assert await store.head("with/odd %2F'\"…") == (0, b"odd")
    assert await store.list_keys() == ["k", "other", "with/odd %2F'\"…"]


async def admits_one_winner_per_version(store: Consensus) -> None:
    """Racing clients: each version has exactly one author, and the log has no gaps."""
    wins: list[tuple[int, int]] = []

    async def client(number: int) -> None:
        for seqno in range(20):
            if await compare_and_set(store, "k", seqno, b"%d" % number) is CasResult.COMMITTED:
                wins.append((seqno, number))

    await asyncio.gather(*(client(number) for number in range(8)))
    log = await store.scan("k", SeqNo(0))
    assert [(v.seqno, int(v.data)) for v in log] == sorted(wins)
    assert [v.seqno for v in log] == list(range(len(log)))


async def survives_truncation_under_appends(store: Consensus) -> None:
    """Writers that never look race a truncator that keeps one version only: no version is ever written twice.

    The dangerous writer is one that was paused between reading the head and writing: what it expects was truncated
    meanwhile, and what it writes was there once.
    """
    wins: list[int] = []
    writers_done = asyncio.Event()

    async def writer() -> None:
        for _ in range(3):
            for seqno in range(15):
                if await compare_and_set(store, "k", seqno, b"x") is CasResult.COMMITTED:
                    wins.append(seqno)

    async def truncator() -> None:
        while not writers_done.is_set():
            head = await store.head("k")
            if head is not None:
                with suppress(Determinate):  # a serialization failure: nothing happened
                    await store.truncate("k", head.seqno)
            await asyncio.sleep(0)

    truncating = asyncio.ensure_future(truncator())
    await asyncio.gather(*(writer() for _ in range(6)))
    writers_done.set()
    await truncating
    head = await store.head("k")
    assert head is not None
    assert sorted(wins) == list(range(head.seqno + 1)), "each version once, none left out"


async def agrees_between_handles(first: Consensus, second: Consensus, elsewhere: Consensus) -> None:
    """Two handles on one location see each other's commits and truncations at once; another location sees nothing."""
    for seqno in range(6):
        writer, reader = (first, second) if seqno % 2 == 0 else (second, first)
        assert await compare_and_set(writer, "shared", seqno, b"%d" % seqno) is CasResult.COMMITTED
        assert await reader.head("shared") == (seqno, b"%d" % seqno)
        assert await compare_and_set(reader, "shared", seqno, b"late") is CasResult.MISMATCH
    assert await second.truncate("shared", SeqNo(4)) == 4
    assert [v.seqno for v in await first.scan("shared", SeqNo(0))] == [4, 5]
    assert await first.list_keys() == await second.list_keys() == ["shared"]
    assert await elsewhere.head("shared") is None
    assert await elsewhere.list_keys() == []


async def takes_batches(store: BatchingConsensus) -> None:
    """`compare_and_set_many`: each change has its own result, in the order given."""
    keys = [f"key {number:02}" for number in range(BATCH_MAX)]

    async def write(seqnos: dict[str, int], data: bytes = b"") -> list[CasResult | StoreFailure]:
        return await store.compare_and_set_many([(k, Versioned(SeqNo(s), data)) for k, s in seqnos.items()])

    assert await write({}) == []
    assert await write({"never written": 1}) == [CasResult.MISMATCH]
    assert await write(dict.fromkeys(reversed(keys), 0)) == [CasResult.COMMITTED] * BATCH_MAX
    assert await write(dict.fromkeys(keys, 0)) == [CasResult.MISMATCH] * BATCH_MAX
    mixed = {keys[5]: 1, keys[1]: 2, "new": 0, keys[2]: 1, keys[3]: 0, keys[4]: -1, "gap": 7}
    results = await write(mixed, b"second")
    committed, mismatch = CasResult.COMMITTED, CasResult.MISMATCH
    assert [*results[:5], results[6]] == [committed, mismatch, committed, committed, mismatch, mismatch]
    assert isinstance(results[5], Determinate), "a version that no store can hold is its own failure"
    assert await store.head(keys[5]) == (1, b"second")
    assert await store.head(keys[4]) == (0, b"")
    assert await store.head("new") == (0, b"second")
    await store.truncate(keys[5], SeqNo(1))
    assert await write({keys[5]: 0, keys[2]: 2}) == [mismatch, committed], "a truncated log does not begin again"


async def compare_and_set(store: Consensus, key: str, seqno: int, data: bytes) -> CasResult:
    """As the store's, but tried again when it surely did not happen: stores may report conflicts that way."""
    for _ in range(1000):
        try:
            return await store.compare_and_set(key, Versioned(SeqNo(seqno), data))
        except Determinate:
            await asyncio.sleep(0.001)
    raise AssertionError(f"version {seqno} of {key} was never decided")


CASES = [conforms, admits_one_winner_per_version, survives_truncation_under_appends]
