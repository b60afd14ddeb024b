"""Property 1: the versions of a shard are one history. Every compare-and-set that was acknowledged is in it, at its
place, once, for ever; none that was refused is; and whoever reads sees a prefix at least as long as what was
acknowledged before he began.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from penstock.persist import CasResult, Consensus, MemConsensus, SeqNo, SqliteConsensus, Versioned

CLIENTS, ATTEMPTS = 4, 40


class History:
    """What clients did to one key, checked as it happens."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, bytes] = {}
        self.refused: set[bytes] = set()

    async def write(self, consensus: Consensus, client: int) -> None:
        dice = random.Random(client)
        for attempt in range(ATTEMPTS):
            newest = max(self.acknowledged, default=-1)
            head = await consensus.head("s1")
            seen = -1 if head is None else head.seqno
            assert seen >= newest, f"the head was {seen} after {newest} had been acknowledged"
            seqno = max(0, seen + dice.choice([1, 1, 1, 0, 2]))
            data = b"%d %d" % (client, attempt)
            outcome = await consensus.compare_and_set("s1", Versioned(SeqNo(seqno), data))
            if outcome is CasResult.COMMITTED:
                assert seqno not in self.acknowledged, f"version {seqno} was acknowledged twice"
                self.acknowledged[seqno] = data
            else:
                self.refused.add(data)

    async def read(self, consensus: Consensus) -> None:
        for _ in range(ATTEMPTS):
            before = dict(self.acknowledged)
            versions = {version.seqno: version.data for version in await consensus.scan("s1", SeqNo(0))}
            assert sorted(versions) == list(range(len(versions))), "no holes"
            assert before.items() <= versions.items(), "what was acknowledged is there"
            assert self.refused.isdisjoint(versions.values()), "what was refused is not"


@pytest.mark.parametrize("kind", ["mem", "sqlite"])
def test_versions_are_one_history(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        if kind == "mem":
            stores: list[Consensus] = [MemConsensus()]
        else:
            stores = [SqliteConsensus(tmp_path / "c.db") for _ in range(2)]
        history = History()
        await asyncio.gather(
            *(history.write(stores[client % len(stores)], client) for client in range(CLIENTS)),
            *(history.read(store) for store in stores),
        )
        for store in stores:
            versions = await store.scan("s1", SeqNo(0))
            assert {version.seqno: version.data for version in versions} == history.acknowledged
        assert len(history.acknowledged) > ATTEMPTS
        assert history.refused
        for store in stores:
            await store.close()

    asyncio.run(main())
