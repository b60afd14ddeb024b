"""What every consensus store must do, whatever it is made of. Run by the tests of each room that has one."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import CasResult, Consensus, SeqNo, Versioned
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
    assert await store.truncate("k", SeqNo(9)) == 6
    assert await cas("k", 9) is CasResult.MISMATCH
    assert await cas("k", 10) is CasResult.COMMITTED
    assert await store.scan("other", SeqNo(0)) == [(0, b"")]
    assert await store.list_keys() == ["k", "other"]


async def admits_one_winner_per_version(store: Consensus) -> None:
    """Racing clients: each version has exactly one author, and the log has no gaps."""
    wins: list[tuple[int, int]] = []

    async def client(number: int) -> None:
        for seqno in range(20):
            data = b"%d" % number
            if await store.compare_and_set("k", Versioned(SeqNo(seqno), data)) is CasResult.COMMITTED:
                wins.append((seqno, number))

    await asyncio.gather(*(client(number) for number in range(8)))
    log = await store.scan("k", SeqNo(0))
    assert [(v.seqno, int(v.data)) for v in log] == sorted(wins)
    assert [v.seqno for v in log] == list(range(len(log)))
