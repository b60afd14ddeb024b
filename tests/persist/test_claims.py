"""Who compacts what: claims in the state, work that a crash left, steps that hang or are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, commands, new_shard_id
from penstock.persist.compact import compact
from penstock.persist.state import Claim, HollowPart, LinkedBatch, State, apply
from penstock.runtime import VirtualClock
from tests.persist.shards import SCHEMA, append, snapshot

FAN_IN = 4
CONFIG: dict[str, Any] = {
    "inline_bytes": 0,
    "cache_bytes": 0,
    "compaction_fan_in": FAN_IN,
    "compaction_timeout_ms": 1000,
}


def batches(count: int) -> State:
    part = HollowPart("k", "parquet", 1, 1, 1, 1, 0, 0)
    return State(seqno=9, upper=count, batches=tuple(LinkedBatch(n, n, 0, (part,)) for n in range(count)))


def claim(state: State, ids: tuple[int, ...], claimant: str, now_ms: int) -> tuple[bool, State]:
    step = commands.claim(state, ids=ids, claimant=claimant, now_ms=now_ms, lease_ms=100)
    if step.diff is None:
        return step.result, state
    return step.result, apply(state, replace(step.diff, seqno=state.seqno + 1))


def test_a_claim_keeps_others_away_until_it_ends() -> None:
    ok, state = claim(batches(8), (1, 2, 3), "a", 1000)
    assert ok
    assert state.claims == {1: Claim((1, 2, 3), "a", 1000, 100)}
    assert commands.claimed(state, claimant="b", now_ms=1050) == {1, 2, 3}
    assert commands.claimed(state, claimant="a", now_ms=1050) == frozenset(), "its own does not stop it"
    assert claim(state, (3, 4), "b", 1050) == (False, state)
    ok, both = claim(state, (4, 5), "b", 1050)
    assert ok
    assert sorted(both.claims) == [1, 4]
    ok, state = claim(state, (3, 4), "b", 1100)
    assert ok, "whoever took it has died"
    assert list(state.claims) == [3]
    assert commands.claimed(state, claimant="c", now_ms=1_050) == {3, 4}
    assert commands.claimed(state, claimant="c", now_ms=900) == frozenset(), "one from the future ends as well"
    assert claim(batches(8), (3, 5), "a", 1)[0] is False, "not side by side"
    assert claim(batches(2), (7,), "a", 1)[0] is False, "gone"


def test_own_claims_are_taken_anew_and_those_of_replaced_batches_go() -> None:
    _, state = claim(batches(8), (1, 2, 3), "a", 1000)
    ok, state = claim(state, (2, 3), "a", 1010)
    assert ok
    assert list(state.claims) == [2]
    step = commands.replace_batches(
        state,
        ids=(3, 4),
        since=state.since,
        parts=state.batches[0].parts * 2,
        uncertain=False,  # type: ignore[arg-type]
    )
    assert step.diff is not None
    assert step.diff.claims == {2: None}


class Watched(MemBlob):
    """Holds up what compaction writes while `closed`; counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.begun = asyncio.Event()
        self.outputs = 0

    async def set(self, key: str, value: bytes) -> None:
        if "/compaction/" in key:
            self.outputs += 1
            self.begun.set()
            await self.open.wait()
        await super().set(key, value)


async def fill(client: PersistClient, shard: Any, first: int, count: int, rows: int = 1500) -> None:
    writer = await client.open_writer(shard, SCHEMA, purpose="test")
    for t in range(first, first + count):
        await append(writer, [(k, t, 1) for k in range(rows)], t, t + 1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 what changes it has no event
            await asyncio.sleep(0.001)


def test_of_two_processes_one_compacts() -> None:
    async def main() -> None:
        blob, consensus = Watched(), MemConsensus()
        first, second = (PersistClient(blob, consensus, config=PersistConfig(**CONFIG)) for _ in range(2))
        shard = new_shard_id()
        blob.open.clear()
        await fill(first, shard, 0, FAN_IN)
        await blob.begun.wait()
        assert len(first._shards[shard].state.claims) == 1
        await fill(second, shard, FAN_IN, FAN_IN - 1)  # each of these commits sees that work is due, and claimed
        state = await second._shards[shard].fetch()
        assert len(state.batches) == 2 * FAN_IN - 1
        assert blob.outputs == 1, "nobody did the same work"
        blob.open.set()
        await first._maintenance[shard].idle()
        await second._maintenance[shard].idle()
        state = await second._shards[shard].fetch()
        assert len(state.batches) == FAN_IN
        assert state.claims == {}
        for client in (first, second):
            await client.close()

    asyncio.run(main())


def test_what_a_dead_process_had_claimed_is_found_again() -> None:
    """The backlog is in the state: no request is lost with the process that had it."""

    async def main() -> None:
        blob, consensus, clock = Watched(), MemConsensus(), VirtualClock(1_000_000)
        config = PersistConfig(**CONFIG)
        dying = PersistClient(blob, consensus, clock=clock, config=config)
        shard = new_shard_id()
        blob.open.clear()
        await fill(dying, shard, 0, FAN_IN)
        await blob.begun.wait()
        for task in list(dying._tasks._tasks):
            task.cancel()  # the process is gone, in the middle of it
        blob.open.set()
        again = PersistClient(blob, consensus, clock=clock, config=config)
        writer = await again.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, [], FAN_IN, FAN_IN + 1)
        await again._maintenance[shard].idle()
        assert len(again._shards[shard].state.batches) == FAN_IN, "it may still be at it"
        clock.advance(2)
        await append(writer, [], FAN_IN + 1, FAN_IN + 2)
        await again._maintenance[shard].idle()
        state = again._shards[shard].state
        assert len(state.batches) == 1
        assert state.claims == {}
        reader = await again.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, FAN_IN) == {(k, FAN_IN): FAN_IN for k in range(1500)}
        await again.close()

    asyncio.run(main())


def test_a_claimed_compaction_that_was_superseded_leaves_no_blobs() -> None:
    async def main() -> None:
        blob, consensus = Watched(), MemConsensus()
        config = PersistConfig(**CONFIG, maintenance=False)
        free = MemBlob()
        free._objects = blob._objects
        first, second = (PersistClient(one, consensus, config=config) for one in (blob, free))
        shard = new_shard_id()
        await fill(first, shard, 0, FAN_IN)
        await second._open(shard)
        mine, theirs = first._shards[shard], second._shards[shard]
        blob.open.clear()
        slow = asyncio.create_task(compact(mine, mine.state.batches, "mine"))
        await blob.begun.wait()
        assert (await compact(theirs, theirs.state.batches)).value == "yes"  # one that takes no notice of claims
        blob.open.set()
        assert (await slow).value == "no"
        keys = {key.partition("/")[2] for key, _ in await blob.list_prefix("")}
        referenced = (await theirs.fetch()).keys()
        assert {key for key in keys if key.startswith("compaction/")} <= referenced
        for client in (first, second):
            await client.close()

    asyncio.run(main())


def test_compactions_of_a_process_are_few_at_a_time() -> None:
    async def main() -> None:
        blob = Watched()
        client = PersistClient(blob, MemConsensus(), config=PersistConfig(**CONFIG, compaction_concurrency=2))
        blob.open.clear()
        shards = [new_shard_id() for _ in range(5)]
        for shard in shards:
            await fill(client, shard, 0, FAN_IN)
        await until(lambda: blob.outputs == 2)
        for shard in shards:  # meanwhile everything else goes on
            await fill(client, shard, FAN_IN, 1)
        assert blob.outputs == 2
        blob.open.set()
        for shard in shards:
            await client._maintenance[shard].idle()
            assert len(client._shards[shard].state.batches) <= 2
        await client.close()

    asyncio.run(main())


def test_small_merges_do_not_wait_for_a_long_one() -> None:
    """They make the room in the state again that spares appends the blob store."""

    async def main() -> None:
        blob = Watched()
        config = PersistConfig(
            **CONFIG | {"inline_bytes": 32 * 1024, "compaction_timeout_ms": 60_000}, compaction_concurrency=1
        )
        client = PersistClient(blob, MemConsensus(), config=config)
        shard = new_shard_id()
        blob.open.clear()
        await fill(client, shard, 0, FAN_IN, rows=50_000)  # 1.5 MiB each in memory: of medium size together
        await blob.begun.wait()
        state = client._shards[shard]
        long = {batch.id for batch in state.state.batches}
        for first in range(FAN_IN, 10 * FAN_IN, FAN_IN):
            await fill(client, shard, first, FAN_IN, rows=20)
            await until(lambda: sum(batch.rows == 20 for batch in state.state.batches) < FAN_IN)
        assert long < {batch.id for batch in state.state.batches}, "it is still at work"
        assert blob.outputs == 1
        blob.open.set()
        await client._maintenance[shard].idle()
        assert long.isdisjoint({batch.id for batch in state.state.batches})
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        last = 10 * FAN_IN - 1
        assert len(await snapshot(reader, last)) == 50_000
        await client.close()

    asyncio.run(main())


def test_what_a_lane_finds_done_may_be_work_for_another() -> None:
    """Somebody else has merged what this process was at: with that, a larger merge is due, and no commit tells."""

    async def main() -> None:
        blob, free, consensus, shard = Watched(), MemBlob(), MemConsensus(), new_shard_id()
        free._objects = blob._objects
        theirs = PersistClient(free, consensus, config=PersistConfig(**CONFIG, maintenance=False))
        await fill(theirs, shard, 0, FAN_IN - 1, rows=80_000)
        await fill(theirs, shard, FAN_IN - 1, FAN_IN, rows=20_000)
        config = PersistConfig(**CONFIG | {"compaction_timeout_ms": 60_000}, compaction_small_bytes=100_000)
        client = PersistClient(blob, consensus, config=config)
        blob.open.clear()
        await fill(client, shard, 2 * FAN_IN - 1, 1, rows=1)
        await blob.begun.wait()  # of medium size
        other = theirs._shards[shard]
        await other.fetch()
        assert (await compact(other, other.state.batches[FAN_IN - 1 : -1])).value == "yes"
        blob.open.set()
        await client._maintenance[shard].idle()
        assert [batch.rows for batch in client._shards[shard].state.batches] == [FAN_IN * 80_000, 1]
        for one in (client, theirs):
            await one.close()

    asyncio.run(main())


def test_few_wide_rows_are_claimed_as_well() -> None:
    async def main() -> None:
        blob = Watched()
        client = PersistClient(blob, MemConsensus(), config=PersistConfig(**CONFIG, compaction_small_bytes=100))
        blob.open.clear()
        shard = new_shard_id()
        await fill(client, shard, 0, FAN_IN, rows=20)
        await blob.begun.wait()
        assert client._shards[shard].state.claims
        blob.open.set()
        await client._maintenance[shard].idle()
        assert not client._shards[shard].state.claims
        await client.close()

    asyncio.run(main())


def test_merged_batches_make_room_in_the_cache() -> None:
    """Whoever writes keeps what he wrote, for he merges it next; then it is of no use to anybody."""

    async def main() -> None:
        config = PersistConfig(**CONFIG | {"cache_bytes": 64 << 20})
        client = PersistClient(MemBlob(), MemConsensus(), config=config)
        shard = new_shard_id()
        await fill(client, shard, 0, 30)
        await client._maintenance[shard].idle()
        live = {key for batch in client._shards[shard].state.batches for key in batch.keys}
        assert {key for _, key, _ in client._stores.foreground.cache._parts} == live
        await client.close()

    asyncio.run(main())


class Stuck(MemBlob):
    """Operations on keys with `hang` in them never end; on keys with `fail` in them they are defective."""

    hang = fail = "nothing"

    async def set(self, key: str, value: bytes) -> None:
        if self.fail in key:
            raise ZeroDivisionError("a defect")
        if self.hang in key:
            await asyncio.Event().wait()
        await super().set(key, value)


@pytest.mark.parametrize("how", ["hang", "fail"])
@pytest.mark.parametrize("which", ["/compaction/", "/v"])
def test_a_step_that_hangs_or_is_wrong_stops_no_other_and_is_taken_up_again(how: str, which: str) -> None:
    async def main() -> None:
        blob, clock = Stuck(), VirtualClock(1_000_000)
        config = PersistConfig(
            **CONFIG, rollup_every=8, compaction_concurrency=1, upkeep_concurrency=1, upkeep_timeout_ms=1000
        )
        client = PersistClient(blob, MemConsensus(), clock=clock, config=config)
        shard, other = new_shard_id(), new_shard_id()
        setattr(blob, how, f"{shard}{which}")
        await fill(client, shard, 0, 12, rows=2)
        lane = client._maintenance[shard]._lanes[2 if which == "/compaction/" else 0]
        await until(lambda: lane.running is not None)
        if which == "/compaction/":
            await until(lambda: bool(client._shards[shard].state.rollups))
        else:
            await until(lambda: len(client._shards[shard].state.batches) < 2 * FAN_IN)

        async def time_passes() -> None:
            while True:
                clock.advance(0.2)
                await asyncio.sleep(0.001)

        passing = asyncio.create_task(time_passes())
        await fill(client, other, 0, 12, rows=2)
        await until(lambda: len(client._shards[other].state.batches) < 2 * FAN_IN)
        await until(lambda: bool(client._shards[other].state.rollups))
        setattr(blob, how, "nothing")

        def healed() -> bool:
            state = client._shards[shard].state
            return bool(state.rollups) and len(state.batches) < 2 * FAN_IN

        await until(healed)  # without another commit: it tries again by itself
        passing.cancel()
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 11) == {(0, 11): 12, (1, 11): 12}
        await client.close()

    asyncio.run(main())
