"""An append whose answer was lost is decided by reading back: it happened once, and its writer is told so."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import CasResult, MemBlob, MemConsensus, Mismatch, PersistClient, Versioned, new_shard_id
from penstock.runtime import Frontier, Indeterminate
from tests.persist.shards import SCHEMA, append, snapshot, updates


class Unsure(MemConsensus):
    """The next compare-and-set takes effect or not, and nobody is told."""

    happens: bool | None = None

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        happens, self.happens = self.happens, None
        if happens is None:
            return await super().compare_and_set(key, new)
        if happens:
            await super().compare_and_set(key, new)
        raise Indeterminate("the answer was lost")


@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("rival", [True, False])
def test_it_is_in_the_shard_exactly_if_the_writer_was_told_so(happens: bool, rival: bool) -> None:
    async def main() -> None:
        blob, consensus, shard = MemBlob(), Unsure(), new_shard_id()
        client, other = (PersistClient(blob, consensus) for _ in range(2))
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        rival_writer = await other.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [(0, 0, 1)], 0, 1)
        consensus.happens = happens
        appending = asyncio.create_task(writer.compare_and_append(updates([(1, 1, 1)]), Frontier(1), Frontier(2)))
        expected = {(0, 2): 1}
        if rival:  # in the pause before the outcome is looked up, at the time that is in doubt and at the next one
            while consensus.happens is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            lower = 2 if happens else 1
            await append(rival_writer, [(7, 2, 1)], lower, 3)
            expected[7, 2] = 1
        result = await appending
        if rival and not happens:
            assert result == Mismatch(Frontier(3))
        else:
            assert result is None
            expected[1, 2] = 1
        if not rival:
            await append(rival_writer, [], 2, 3)
        reader = await other.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 2) == expected
        await client.close()
        await other.close()

    asyncio.run(main())
