"""Rollups and garbage collection: bounded, repeatable, and safe in whatever state a crash leaves them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.persist import (
    SCAN_ALL,
    CorruptStateError,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    SeqNo,
    Versioned,
    new_shard_id,
)
from penstock.persist import commands as commands_of
from penstock.persist.collect import collect_garbage, collectable, removed_keys, roll_up
from penstock.persist.commands import Applied
from penstock.persist.compact import compact
from penstock.persist.state import Reader, Rollup, State
from tests.persist.shards import SCHEMA, append, snapshot

CONFIG: dict[str, Any] = {"inline_bytes": 0, "cache_bytes": 0, "rollup_every": 8, "compaction_fan_in": 3}


class Observed(MemConsensus):
    """Remembers how much was read and removed in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.scanned: list[int] = []
        self.truncated: list[int] = []

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        versions = await super().scan(key, from_, limit)
        self.scanned.append(len(versions))
        return versions

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        removed = await super().truncate(key, seqno)
        self.truncated.append(removed)
        return removed


def rolled_up(state: State, versions: Iterable[int]) -> State:
    """`state` with a rollup of each of `versions`, as far as they are kept."""
    for seqno in versions:
        step = commands_of.add_rollup(state, seqno=seqno, rollup=Rollup(f"v{seqno}", 1), uncertain=False)
        assert step.diff is not None
        rollups = {k: v for k, v in (state.rollups | step.diff.rollups).items() if v is not None}
        state = replace(state, seqno=seqno, rollups=rollups)
    return state


def test_rollups_of_a_held_shard_stay_few_and_evenly_spread() -> None:
    held = State(seqno=0, readers={"r": Reader(0, 0, 0, 1000, "test")})
    listed = sorted(rolled_up(held, range(0, 40_000, 100)).rollups)
    assert len(listed) == commands_of.ROLLUPS_MAX
    assert (listed[0], listed[-1]) == (0, 39_900)
    gaps = [b - a for a, b in pairwise(listed)]
    assert max(gaps) <= 3 * 40_000 / commands_of.ROLLUPS_MAX, gaps


def test_rollups_that_somebody_may_be_collecting_up_to_stay() -> None:
    """Whoever collects may be slow; once he has truncated, the oldest version still has its rollup."""
    reader = Reader(0, 0, 0, 1000, "test")
    state = rolled_up(State(seqno=0, readers={"r": reader}), range(0, 1600, 100))
    state = replace(state, readers={"r": replace(reader, hold=1450)})
    target = collectable(state, 5000)
    assert target == 1400
    state = rolled_up(state, range(1600, 9000, 100))
    assert target in state.rollups
    assert len(state.rollups) == 15 + commands_of.ROLLUPS_MAX - 1, "those that are held are fewer"
    step = commands_of.collect(state, seqno=target)
    assert step.diff is not None
    assert min(k for k in state.rollups if k not in step.diff.rollups) == target


def test_rollups_stay_bounded_where_nobody_can_collect() -> None:
    listed = sorted(rolled_up(State(seqno=0), range(0, 40_000, 100)).rollups)
    assert len(listed) == 4 * commands_of.ROLLUPS_MAX
    assert (listed[0], listed[-1]) == (0, 39_900)


def test_maybe_gc_goes_no_further_than_configured_or_the_holds_allow() -> None:
    rollups = {seqno: Rollup(f"v{seqno}", 1) for seqno in (0, 100, 180, 500, 900)}
    state = State(seqno=1000, rollups=rollups, collected=0)
    assert collectable(state, 200) == 180
    assert collectable(state, 50) == 100, "one gap at least"
    assert collectable(State(seqno=1000, rollups=rollups, collected=180), 50) == 500
    assert collectable(State(seqno=1000, rollups=rollups, collected=900), 50) is None
    assert collectable(State(seqno=120, rollups=rollups, collected=0), 5000) == 100, "never past a hold"


def test_a_stuck_shard_that_gets_unstuck_is_collected_in_bounded_steps() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), Observed()
        config = PersistConfig(**CONFIG, collect_versions=300, hold_versions=1)
        client, stuck = (PersistClient(blob, consensus, config=config) for _ in range(2))
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        holder = await stuck.open_reader(shard, SCHEMA, purpose="test")
        for t in range(1500):
            await append(writer, [(t % 3, t, 1)] if t % 10 == 0 else [], t, t + 1)
        await client._maintenance[shard].idle()
        state = client._shards[shard].state
        live = len(await consensus.scan(shard, SeqNo(0)))
        assert live > 1500, "the hold keeps everything"
        await holder.expire()
        consensus.scanned.clear()
        await append(writer, [], 1500, 1501)
        await client._maintenance[shard].idle()
        assert len(consensus.truncated) >= 4, "step by step"
        assert max(consensus.truncated) <= 300
        assert max(consensus.scanned) <= 1024, "however many versions there are, a page is in memory"
        assert len(await consensus.scan(shard, SeqNo(0))) < 30
        state = client._shards[shard].state
        left = {key.partition("/")[2] for key, _ in await blob.list_prefix("")}
        to_come = set().union(*[keys async for keys in removed_keys(client._shards[shard], None)])
        assert left <= state.keys() | to_come, "nothing was forgotten on the way"
        for one in (client, stuck):
            await one.close()

    asyncio.run(main())


def test_maybe_gc_active_gc_collectors_at_the_same_time_do_no_harm() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(**CONFIG, maintenance=False)
        clients = [PersistClient(blob, consensus, config=config) for _ in range(3)]
        shard = new_shard_id()
        writers = [await client.open_writer(shard, SCHEMA, purpose="test") for client in clients]
        shards = [client._shards[shard] for client in clients]
        for t in range(60):
            await append(writers[t % 3], [(t, t, 1)], t, t + 1)
            if t % 15 == 14:
                await roll_up(shards[0], await shards[0].fetch())
        await compact(shards[0], shards[0].state.batches[:40])
        await roll_up(shards[0], shards[0].state)
        for one in shards:
            await one.fetch()
        listed = sorted(shards[0].state.rollups)
        steps = [collect_garbage(one, SeqNo(seqno)) for one in shards for seqno in listed[1:]]
        outcomes = await asyncio.gather(*steps)
        assert Applied.YES in outcomes
        state = await shards[1].fetch()
        assert state.collected == listed[-1]
        assert set(state.rollups) == {listed[-1]}
        assert len(await consensus.scan(shard, SeqNo(0))) < 10
        reader = await clients[2].open_reader(shard, SCHEMA, purpose="test")
        assert len(await snapshot(reader, 59)) == 60
        for client in clients:
            await client.close()

    asyncio.run(main())


class Killed(BaseException):
    """The process is killed here."""


class Mortal:
    """A store that is killed at its `dies_at`th deletion, truncation or commit."""

    def __init__(self, inner: Any, life: list[int]) -> None:
        self.inner = inner
        self.life = life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in ("delete", "truncate", "compare_and_set"):
            return method

        async def maybe(*arguments: Any) -> Any:
            self.life[0] -= 1
            if self.life[0] == 0:
                raise Killed
            return await method(*arguments)

        return maybe


@pytest.mark.parametrize("dies_at", [1, 2, 5, 9, 20, 41, 42, 43, 60])
def test_regression_gc_skipped_req_and_interrupted(dies_at: int) -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(**CONFIG, maintenance=False)
        client = PersistClient(blob, consensus, config=config)
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        for t in range(40):
            await append(writer, [(t, t, 1)], t, t + 1)
        mine = client._shards[shard]
        await roll_up(mine, mine.state)
        await compact(mine, mine.state.batches)
        await roll_up(mine, mine.state)
        life = [dies_at]
        dying = PersistClient(Mortal(blob, life), Mortal(consensus, life), config=config)  # type: ignore[arg-type]
        theirs = await dying._open(shard)
        try:
            while (seqno := collectable(theirs.state, 10)) is not None:
                await collect_garbage(theirs, seqno)
        except Killed:
            pass
        fresh = PersistClient(blob, consensus, config=config)
        reader = await fresh.open_reader(shard, SCHEMA, purpose="test")
        assert len(await snapshot(reader, 39)) == 40, "what is referred to is there, whenever it died"
        again = fresh._shards[shard]
        while (seqno := collectable(again.state, 10)) is not None:
            await collect_garbage(again, seqno)
        assert again.state.collected == again.state.latest_rollup
        left = {key.partition("/")[2] for key, _ in await blob.list_prefix("")}
        assert {key for key in left if not key.startswith("v")} <= again.state.keys(), "and nothing else is left"
        assert len(await snapshot(reader, 39)) == 40
        for one in (client, fresh):
            await one.close()

    asyncio.run(main())


def test_nothing_is_collected_without_its_rollup() -> None:
    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        client = PersistClient(blob, consensus, config=PersistConfig(**CONFIG, maintenance=False))
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        for t in range(10):
            await append(writer, [(t, t, 1)], t, t + 1)
        mine = client._shards[shard]
        await roll_up(mine, mine.state)
        [(seqno, rollup)] = mine.state.rollups.items()
        await blob.delete(f"{shard}/{rollup.key}")
        with pytest.raises(CorruptStateError, match="nothing is collected"):
            await collect_garbage(mine, SeqNo(seqno))
        assert (await consensus.scan(shard, SeqNo(0)))[0].seqno == 0
        await client.close()

    asyncio.run(main())


class Slow(MemBlob):
    """Holds up rollups while `closed`."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def set(self, key: str, value: bytes) -> None:
        if "/v" in key:
            await self.open.wait()
        await super().set(key, value)


def test_a_rollup_that_came_late_can_be_collected_up_to_at_once() -> None:
    """Holds follow lazily; a rollup beyond them was of no use, and the versions before it stayed until the next one."""

    async def main() -> None:
        blob, consensus = Slow(), MemConsensus()
        client = PersistClient(blob, consensus, config=PersistConfig(rollup_every=64))
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        await client.open_reader(shard, SCHEMA, purpose="test")
        for t in range(400):  # faster than the rollups are written
            await append(writer, [], t, t + 1)
        blob.open.set()
        await client._maintenance[shard].idle()
        assert len(await consensus.scan(shard, SeqNo(0))) <= 64 + 4
        await client.close()

    asyncio.run(main())
