"""What everybody may expect of a shard's handles, under several configurations. Names follow the model's own tests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa
import pytest

from penstock.persist import (
    Fenced,
    InvalidUsage,
    MemBlob,
    MemConsensus,
    Mismatch,
    PersistClient,
    PersistConfig,
    SchemaMismatch,
    SeqNo,
    SinceError,
    Versioned,
    new_shard_id,
)
from penstock.persist import inspect as inspecting
from penstock.persist.compact import compact
from penstock.persist.partstore import new_part_name, part_time_ms
from penstock.persist.state import decode_diff
from penstock.persist.store import CasResult
from penstock.runtime import DONE, Frontier, Timestamp, VirtualClock
from tests.persist.shards import (
    SCHEMA,
    Change,
    append,
    expected_after,
    expected_at,
    read_until,
    snapshot,
    tally,
    updates,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "inline": {},
    "blobs": {"inline_bytes": 0},
    "tiny-parts": {"inline_bytes": 0, "part_bytes": 10, "uploads": 1, "cache_bytes": 0},
    "eager-upkeep": {"rollup_every": 3, "compaction_fan_in": 2, "hold_versions": 1, "inline_bytes": 100},
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
DATA = [(1, 1, 1), (2, 2, 1), (3, 3, 1)]


class Place:
    """A pair of stores and clients on it; all are closed at the end."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.blob, self.consensus = MemBlob(), MemConsensus()
        self.config = PersistConfig(**{"poll_min_ms": 1, "poll_max_ms": 5, **config})
        self._clients: list[PersistClient] = []

    def client(self) -> PersistClient:
        self._clients.append(PersistClient(self.blob, self.consensus, config=self.config))
        return self._clients[-1]

    async def blobs(self) -> int:
        return len(await self.blob.list_prefix(""))


def run(config: dict[str, Any], main: Callable[[Place], Awaitable[None]]) -> None:
    async def with_place() -> None:
        place = Place(config)
        try:
            async with asyncio.timeout(30):
                await main(place)
        finally:
            for client in place._clients:
                await client.close()

    asyncio.run(with_place())


@each_config
def test_sanity_check(config: dict[str, Any]) -> None:
    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        other = await client.open_reader(shard, SCHEMA, purpose="test")
        assert (writer.upper, reader.since) == (0, 0)
        await append(writer, DATA[:2], 0, 3)
        assert await snapshot(reader, 1) == expected_at(DATA, 1)
        listen = await reader.listen(Timestamp(1))
        assert tally(await read_until(listen, 3)) == expected_after(DATA[:2], 1)
        await append(writer, DATA[2:], 3, 4)
        assert tally(await read_until(listen, 4)) == expected_after(DATA, 2)
        assert other.since == 0, "since is each reader's own: that of the listening one has gone on"
        await other.downgrade_since(Frontier(2))
        assert other.since == 2

    run(config, main)


@each_config
def test_open_reader_writer(config: dict[str, Any]) -> None:
    async def main(place: Place) -> None:
        first, second, shard, other = place.client(), place.client(), new_shard_id(), new_shard_id()
        writer = await first.open_writer(shard, SCHEMA, purpose="test")
        await append(writer, DATA, 0, 4)
        reader = await second.open_reader(shard, SCHEMA, purpose="test")
        assert reader.upper == 4, "another client has it at once"
        assert await snapshot(reader, 3) == expected_at(DATA, 3)
        beside = await second.open_writer(other, SCHEMA, purpose="test")
        assert beside.upper == 0, "another shard has nothing of it"
        again = await second.open_writer(shard, SCHEMA, purpose="test")
        await append(again, [(9, 4, 1)], 4, 5)
        assert await writer.fetch_recent_upper() == 5
        assert await snapshot(await first.open_reader(shard, SCHEMA, purpose="test"), 4) == expected_at(
            [*DATA, (9, 4, 1)], 4
        )

    run(config, main)


@each_config
def test_multi_shard(config: dict[str, Any]) -> None:
    async def main(place: Place) -> None:
        client = place.client()
        shards = [new_shard_id() for _ in range(3)]
        logs = [[(100 * n + t, t, 1) for t in range(n + 2)] for n in range(3)]
        for shard, log in zip(shards, logs, strict=True):
            writer = await client.open_writer(shard, SCHEMA, purpose="test")
            await append(writer, log, 0, len(log))
        for shard, log in zip(shards, logs, strict=True):
            reader = await client.open_reader(shard, SCHEMA, purpose="test")
            assert reader.upper == len(log)
            assert await snapshot(reader, len(log) - 1) == expected_at(log, len(log) - 1)

    run(config, main)


@each_config
def test_invalid_usage(config: dict[str, Any]) -> None:
    """A caller's mistakes are told at once; nothing is written."""

    async def main(place: Place) -> None:
        client, shard, other = place.client(), new_shard_id(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        foreign = await (await client.open_writer(other, SCHEMA, purpose="test")).batch(
            updates(DATA), Frontier(0), Frontier(4)
        )
        mine = await writer.batch(updates(DATA), Frontier(0), Frontier(4))
        appends: list[Callable[[], Awaitable[object]]] = [
            lambda: writer.compare_and_append(updates(DATA), Frontier(3), Frontier(2)),
            lambda: writer.compare_and_append(updates([]), Frontier(3), Frontier(2)),
            lambda: writer.compare_and_append(updates(DATA), Frontier(0), Frontier(0)),
            lambda: writer.compare_and_append(updates(DATA), Frontier(0), Frontier(3)),
            lambda: writer.compare_and_append(updates(DATA), Frontier(2), Frontier(9)),
            lambda: writer.compare_and_append_batches([foreign], Frontier(0), Frontier(4)),
            lambda: writer.compare_and_append_batches([mine], Frontier(0), Frontier(3)),
            lambda: writer.compare_and_append_batches([mine], Frontier(1), Frontier(4)),
            lambda: writer.batch(updates(DATA), Frontier(9), Frontier(2)),
        ]
        for wrong in appends:
            with pytest.raises(InvalidUsage):
                await wrong()
        other_type = pa.schema([("k", pa.int32()), ("v", pa.string())])
        for opening in (client.open_writer, client.open_reader):
            with pytest.raises(SchemaMismatch, match="k int64, v string"):
                await opening(shard, other_type, purpose="test")
        with pytest.raises(SchemaMismatch):
            await client.open_writer(shard, pa.schema([("k", pa.int64())]), purpose="test")
        diffs = [decode_diff(shard, one.data) for one in await place.consensus.scan(shard, SeqNo(0))]
        assert not any(diff.append or diff.upper for diff in diffs)
        assert writer.upper == 0
        assert await writer.compare_and_append_batches([mine], Frontier(0), Frontier(4)) is None

    run(config, main)


@each_config
def test_fetch_upper(config: dict[str, Any]) -> None:
    async def main(place: Place) -> None:
        shard = new_shard_id()
        first = await place.client().open_writer(shard, SCHEMA, purpose="test")
        second = await place.client().open_writer(shard, SCHEMA, purpose="test")
        await append(first, DATA, 0, 4)
        assert (first.upper, second.upper) == (4, 0), "what this process knows"
        assert await second.fetch_recent_upper() == 4
        assert second.upper == 4
        assert await second.wait_for_upper_past(Frontier(3)) == 4
        waiting = asyncio.create_task(second.wait_for_upper_past(Frontier(4)))
        await append(first, [], 4, 9)
        assert await waiting == 9

    run(config, main)


@each_config
def test_overlapping_append(config: dict[str, Any]) -> None:
    check_refused(config, [(0, 4), (2, 6), (0, 9)])


@each_config
def test_append_with_a_gap(config: dict[str, Any]) -> None:
    check_refused(config, [(5, 6), (7, 20)])


def check_refused(config: dict[str, Any], bounds: list[tuple[int, int]]) -> None:
    """At the upper, never around it: updates and stored batches alike."""

    async def main(place: Place) -> None:
        shard = new_shard_id()
        first = await place.client().open_writer(shard, SCHEMA, purpose="test")
        second = await place.client().open_writer(shard, SCHEMA, purpose="test")
        await append(first, DATA, 0, 4)
        for lower, upper in bounds:
            rows = updates([(7, upper - 1, 1)])
            assert await second.compare_and_append(rows, Frontier(lower), Frontier(upper)) == Mismatch(Frontier(4))
            batch = await second.batch(rows, Frontier(lower), Frontier(upper))
            late = await second.compare_and_append_batches([batch], Frontier(lower), Frontier(upper))
            assert late == Mismatch(Frontier(4))
            await second.delete_batch(batch)
        await append(second, [(7, 4, 1)], 4, 6)
        reader = await place.client().open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 5) == expected_at([*DATA, (7, 4, 1)], 5)

    run(config, main)


@each_config
@pytest.mark.parametrize("contiguous", [True, False])
def test_contiguous_and_noncontiguous_per_writer(config: dict[str, Any], contiguous: bool) -> None:
    """Two writers take turns: in stretches of their own, or one after the other at every time."""

    async def main(place: Place) -> None:
        shard = new_shard_id()
        writers = [await place.client().open_writer(shard, SCHEMA, purpose="test") for _ in range(2)]
        log = [(t, t, 1) for t in range(12)]
        for t, change in enumerate(log):
            await append(writers[t // 6 if contiguous else t % 2], [change], t, t + 1)
        for writer in writers:
            assert await writer.fetch_recent_upper() == 12
        reader = await place.client().open_reader(shard, SCHEMA, purpose="test")
        for as_of in (0, 5, 11):
            assert await snapshot(reader, as_of) == expected_at(log, as_of)

    run(config, main)


@each_config
def test_concurrency(config: dict[str, Any]) -> None:
    """Two writers of the same definite data: the loser of each race finds the work done, and nothing is doubled."""

    async def main(place: Place) -> None:
        shard = new_shard_id()
        log = [(t % 5, t, 1) for t in range(60)]

        async def write() -> int:
            writer = await place.client().open_writer(shard, SCHEMA, purpose="test")
            upper, won = 0, 0
            while upper < len(log):
                new = min(upper + 7, len(log))
                result = await writer.compare_and_append(updates(log[upper:new]), Frontier(upper), Frontier(new))
                won += result is None
                upper = new if result is None else int(result.current_upper)
                await asyncio.sleep(0)
            return won

        won = await asyncio.gather(write(), write())
        assert sum(won) <= len(log)
        reader = await place.client().open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 59) == expected_at(log, 59)

    run(config, main)


@each_config
def test_finalize_shard(config: dict[str, Any]) -> None:
    check_finalized(config, [(t, t, 1) for t in range(10)])


@each_config
def test_finalize_empty_shard(config: dict[str, Any]) -> None:
    check_finalized(config, [])


def check_finalized(config: dict[str, Any], log: list[Change]) -> None:
    """One small record stays, and every handle says so."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        for change in log:
            await append(writer, [change], change[1], change[1] + 1)
        upkeep = client._maintenance[shard]
        await client.finalize(shard)
        await upkeep.idle()  # what it had begun may have stored a blob since
        await client.finalize(shard)
        assert await place.blobs() == 0
        [left] = await place.consensus.scan(shard, SeqNo(0))
        assert len(left.data) < 100
        with pytest.raises(SinceError):
            await snapshot(reader, 3)
        assert await writer.compare_and_append(updates([]), Frontier(0), Frontier(1)) == Mismatch(DONE)
        again = await place.client().open_writer(shard, SCHEMA, purpose="test")
        assert again.upper == DONE
        assert len(await place.consensus.scan(shard, SeqNo(0))) == 1, "nothing can be added to it"

    run(config, main)


def test_ids_round_trip() -> None:
    shard, name = new_shard_id(), new_part_name(1_234_567_890_123, 7)
    assert re.fullmatch(r"s[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", shard)
    assert part_time_ms(name) == 1_234_567_890_123
    assert part_time_ms("rollup") is None
    assert part_time_ms("p-not-hex-at-all") is None
    assert new_part_name(5, 0) < new_part_name(6, 0), "names sort by age"
    assert new_shard_id() != new_shard_id()


class Counting(MemConsensus):
    writes = 0

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        self.writes += 1
        return await super().compare_and_set(key, new)


def test_empty_batches() -> None:
    """Progress costs one write to consensus and none to the blobs."""

    async def main(place: Place) -> None:
        place.consensus = Counting()
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        place.consensus.writes = 0
        for t in range(100):
            await append(writer, [], t, t + 1)
        assert place.consensus.writes == 100
        assert await place.blobs() == 0
        assert len(client._shards[shard].state.batches) == 1
        batch = await writer.batch(updates([]), Frontier(100), Frontier(101))
        assert await writer.compare_and_append_batches([batch], Frontier(100), Frontier(101)) is None
        assert await place.blobs() == 0

    run({"maintenance": False, "inline_bytes": 0}, main)


@each_config
def test_compare_and_append_batch_multi(config: dict[str, Any]) -> None:
    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        batches = [
            await writer.batch(updates(some), Frontier(lower), Frontier(upper))
            for some, lower, upper in ((DATA[:2], 0, 3), ([(8, 0, 1), (9, 3, 1)], 0, 4), (DATA[2:], 2, 4), ([], 0, 4))
        ]
        assert await writer.compare_and_append_batches(batches, Frontier(0), Frontier(5)) is None
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 4) == expected_at([*DATA, (8, 0, 1), (9, 3, 1)], 4)

    run(config, main)


def test_handle_opaque_token() -> None:
    async def main(place: Place) -> None:
        shard = new_shard_id()
        old = await place.client().open_since(shard, "c", purpose="test", opaque=1)
        new = await place.client().open_since(shard, "c", purpose="test", opaque=99)
        assert (new.since, new.opaque) == (0, 1), "what is there, not what was asked for"
        assert await new.compare_and_downgrade_since(1, 2, Frontier(3)) is None
        assert await old.compare_and_downgrade_since(1, 1, Frontier(9)) == Fenced(2, Frontier(3))
        assert await old.compare_and_downgrade_since(2, 2, Frontier(2)) is None
        assert (old.since, old.opaque) == (3, 2)

    run({}, main)


def test_rate_limit() -> None:
    """A listen makes its since durable now and then, not with each event."""

    async def main() -> None:
        consensus, clock = Counting(), VirtualClock(1_000_000)
        client = PersistClient(MemBlob(), consensus, clock=clock, config=PersistConfig(maintenance=False))
        shard = new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        listen = await (await client.open_reader(shard, SCHEMA, purpose="test")).listen(Timestamp(0))
        consensus.writes = 0
        for t in range(50):
            await append(writer, [(t, t, 1)], t, t + 1)
            if t:
                await read_until(listen, t + 1)
        assert consensus.writes == 50
        clock.advance(31)
        await append(writer, [], 50, 51)
        await read_until(listen, 51)
        while client._shards[shard].state.since == 0:  # noqa: ASYNC110 renewed in the background
            await asyncio.sleep(0)
        assert client._shards[shard].state.since >= 49
        assert consensus.writes <= 52
        await client.close()

    asyncio.run(main())


class Slow(MemBlob):
    """Counts uploads under way; the first ends when there are `awaited` of them."""

    def __init__(self, awaited: int) -> None:
        super().__init__()
        self.now = self.most = 0
        self._awaited, self._enough = awaited, asyncio.Event()

    async def set(self, key: str, value: bytes) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == self._awaited:
            self._enough.set()
        await self._enough.wait()
        await super().set(key, value)
        self.now -= 1


@pytest.mark.parametrize("uploads", [1, 3])
def test_batch_builder_flushing(uploads: int) -> None:
    """Parts are uploaded side by side, but only so many at a time: back-pressure instead of memory."""

    async def main() -> None:
        blob = Slow(awaited=uploads)
        config = PersistConfig(inline_bytes=0, part_bytes=200, uploads=uploads)
        client = PersistClient(blob, MemConsensus(), config=config)
        writer = await client.open_writer(new_shard_id(), SCHEMA, purpose="test")
        batch = await writer.batch(updates([(k, 0, 1) for k in range(100)]), Frontier(0), Frontier(1))
        assert len(batch.keys) > 5
        assert blob.most == uploads
        await client.close()

    asyncio.run(main())


def test_batch_builder_keys_and_batch_delete() -> None:
    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        batch = await writer.batch(updates(DATA), Frontier(0), Frontier(4))
        [(key, _)] = await place.blob.list_prefix("")
        assert [f"{shard}/{one}" for one in batch.keys] == [key]
        assert re.fullmatch(rf"{shard}/{writer.writer_id}/p[0-9a-f]{{16}}-[0-9a-f]{{32}}", key)
        await writer.delete_batch(batch)
        await writer.delete_batch(batch)
        assert await place.blobs() == 0

    run({"inline_bytes": 0}, main)


def test_regression_minimum_since() -> None:
    """The output of compaction carries the since it was made for, and its times are advanced to it."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        log = [(t % 2, t, 1) for t in range(6)]
        for t, change in enumerate(log):
            await append(writer, [change], t, t + 1)
        await reader.downgrade_since(Frontier(3))
        mine = client._shards[shard]
        await compact(mine, mine.state.batches)
        [batch] = mine.state.batches
        assert batch.since == 3
        assert {part.time_min for part in batch.parts} == {3}
        assert batch.rows == 4
        for as_of in (3, 4, 5):
            assert await snapshot(reader, as_of) == expected_at(log, as_of)

    run({"maintenance": False, "inline_bytes": 0}, main)


def test_compaction_partial_order() -> None:
    """Times are totally ordered here, but arrive in any order within a batch: merging must not lean on it."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        log = [(1, 9, 1), (1, 0, 1), (2, 4, 1), (1, 4, -1), (1, 14, 1), (2, 11, -1), (3, 10, 1), (1, 12, 2)]
        for lower in (0, 10):
            changes = [change for change in log if lower <= change[1] < lower + 10]
            await append(writer, changes, lower, lower + 10)
        await reader.downgrade_since(Frontier(4))
        mine = client._shards[shard]
        await compact(mine, mine.state.batches)
        assert mine.state.batches[0].rows == 6, "what happened by time 4 is one change of each row"
        for as_of in range(4, 20):
            assert await snapshot(reader, as_of) == expected_at(log, as_of)

    run({"maintenance": False, "inline_bytes": 0}, main)


def test_rewrite_ts_example() -> None:
    """A stored batch keeps its times: at other ones its updates are written again, and nothing is doubled."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        late = await writer.batch(updates([(1, 0, 1), (2, 0, 1)]), Frontier(0), Frontier(1))
        await append(writer, [(9, 0, 1)], 0, 5)
        assert await writer.compare_and_append_batches([late], Frontier(0), Frontier(1)) == Mismatch(Frontier(5))
        with pytest.raises(InvalidUsage, match="a batch from 0 up to 1"):
            await writer.compare_and_append_batches([late], Frontier(5), Frontier(6))
        await writer.delete_batch(late)
        again = await writer.batch(updates([(1, 5, 1), (2, 5, 1)]), Frontier(5), Frontier(6))
        assert await writer.compare_and_append_batches([again], Frontier(5), Frontier(6)) is None
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 5) == expected_at([(9, 0, 1), (1, 5, 1), (2, 5, 1)], 5)
        assert set(late.keys).isdisjoint(key.partition("/")[2] for key, _ in await place.blob.list_prefix(""))

    run({"maintenance": False, "inline_bytes": 0}, main)


def test_regression_update_state_after_upper_mismatch() -> None:
    """A writer whose cached upper is behind asks the store before it says mismatch, and appends."""

    async def main(place: Place) -> None:
        shard = new_shard_id()
        first, second = place.client(), place.client()
        one = await first.open_writer(shard, SCHEMA, purpose="test")
        other = await second.open_writer(shard, SCHEMA, purpose="test")
        await append(one, [(1, 0, 1)], 0, 1)
        assert other.upper == 0, "it has not heard of it"
        await append(other, [(2, 1, 1)], 1, 2)
        assert await one.compare_and_append(updates([(3, 1, 1)]), Frontier(1), Frontier(2)) == Mismatch(Frontier(2))
        reader = await first.open_reader(shard, SCHEMA, purpose="test")
        assert await snapshot(reader, 1) == expected_at([(1, 0, 1), (2, 1, 1)], 1)

    run({"poll_min_ms": 60_000, "poll_max_ms": 60_000, "maintenance": False}, main)


def test_disabled_compaction() -> None:
    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        for t in range(50):
            await append(writer, [(t, t, 1)], t, t + 1)
        await client._maintenance[shard].idle()
        state = client._shards[shard].state
        assert (len(state.batches), state.rollups, state.collected) == (50, {}, 0)
        assert await snapshot(await client.open_reader(shard, SCHEMA, purpose="test"), 49) == expected_at(
            [(t, t, 1) for t in range(50)], 49
        )

    run({"maintenance": False, "rollup_every": 5, "compaction_fan_in": 2}, main)


def test_apply_unbatched_cmd_truncate() -> None:
    """A hundred appends with upkeep leave few versions: a small multiple of the distance between rollups."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        for t in range(100):
            await append(writer, [(t, t, 1)], t, t + 1)
        await client._maintenance[shard].idle()
        assert len(await place.consensus.scan(shard, SeqNo(0))) <= 2 * 8 + 4

    run({"rollup_every": 8, "inline_bytes": 0}, main)


def test_usage_funnel() -> None:
    """Every byte of a shard is in one place of the funnel; sizes of parts and of full states are those of the store."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        held = await client.open_reader(shard, SCHEMA, purpose="test")
        for t in range(20):
            await append(writer, [(t, t, 1)], t, t + 1)
        leased = await held.snapshot(Timestamp(19))
        await client._maintenance[shard].idle()
        mine = client._shards[shard]
        await compact(mine, mine.state.batches)
        await writer.batch(updates([(9, 20, 1)]), Frontier(20), Frontier(21))
        view = await inspecting.blobs(place.consensus, place.blob, shard, now_ms=0, leaked_after_ms=1)
        sizes = dict(await place.blob.list_prefix(""))
        amounts = [getattr(view, name) for name in inspecting._AMOUNTS]
        assert sum(one.bytes for one in amounts) == sum(sizes.values())
        assert sum(one.blobs for one in amounts) == len(sizes)
        state = mine.state
        assert view.current_parts.bytes == sum(sizes[f"{shard}/{key}"] for b in state.batches for key in b.keys)
        assert view.current_rollups.bytes == sum(rollup.size for rollup in state.rollups.values())
        assert view.older.blobs > 0
        assert view.pending.blobs == 1
        assert view.problems == []
        await leased.aclose()

    run({"inline_bytes": 0, "rollup_every": 4}, main)


def test_watch_concurrent_notifications() -> None:
    """Everybody who waits for a state hears of it, from snapshots and listens alike, with one fetch behind them all."""

    async def main(place: Place) -> None:
        client, shard = place.client(), new_shard_id()
        writer = await client.open_writer(shard, SCHEMA, purpose="test")
        reader = await client.open_reader(shard, SCHEMA, purpose="test")
        waiting = [asyncio.create_task(snapshot(reader, as_of)) for as_of in range(5) for _ in range(10)]
        listens = [await reader.listen(Timestamp(0)) for _ in range(10)]
        heard = [asyncio.create_task(read_until(listen, 5)) for listen in listens]
        uppers = [asyncio.create_task(writer.wait_for_upper_past(Frontier(4))) for _ in range(10)]
        for t in range(5):
            await append(writer, [(t, t, 1)], t, t + 1)
        log = [(t, t, 1) for t in range(5)]
        assert await asyncio.gather(*waiting) == [expected_at(log, as_of) for as_of in range(5) for _ in range(10)]
        assert [tally(seen) for seen in await asyncio.gather(*heard)] == [expected_after(log, 0)] * 10
        assert set(await asyncio.gather(*uppers)) == {5}
        assert not client._shards[shard]._waiters

    run({}, main)
