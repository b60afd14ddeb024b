"""Merging runs: the same contents as consolidating everything at once, within memory, whatever the types."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.persist import MemBlob, MemConsensus, PersistClient, PersistConfig, ReadHandle, new_shard_id
from penstock.persist.compact import compact
from penstock.persist.merge import Run, grouped, runs_of, sorted_and_consolidated
from penstock.persist.order import Keys, leading_words
from penstock.persist.parts import decode_object
from penstock.persist.policy import Policy
from penstock.persist.schema import FIRST_SCHEMA
from penstock.persist.shard import Shard
from penstock.persist.state import HollowPart, LinkedBatch
from penstock.runtime import Frontier, Timestamp, Updates
from tests.persist.shards import SCHEMA, append, expected_at, most_urgent, snapshot

SORTABLE: dict[str, list[Any]] = {
    "int64": [-(2**63), -5, 0, 7, 2**63 - 1],
    "uint64": [0, 1, 2**63, 2**64 - 1],
    "int8": [-128, 0, 127],
    "float64": [-1e300, -1.5, 0.0, 2.5, 1e300],
    "string": ["", "a", "ab", "abcdefgh", "b", "é"],
    "binary": [b"", b"\x00", b"\x01\x02", b"\xff"],
    "date32": [date(1960, 1, 1), date(1970, 1, 1), date(2024, 5, 1)],
    "timestamp[us]": [datetime(1960, 1, 1), datetime(2020, 1, 1)],
    "bool": [False, True],
}


@pytest.mark.parametrize("kind", SORTABLE)
def test_structured_lowers_follow_the_values(kind: str) -> None:
    column = pa.array(SORTABLE[kind], pa.timestamp("us") if kind.startswith("timestamp") else pa.type_for_alias(kind))
    words = leading_words(column).tolist()
    assert words == sorted(words)
    assert len(set(words)) >= len(words) - 1, "up to eight bytes tell them apart"
    shuffled = column.take(pa.array(range(len(column)))[::-1]).slice(1)
    assert leading_words(shuffled).tolist() == words[::-1][1:], "slices too"
    with_null = pa.concat_arrays([column, pa.nulls(1, column.type)])
    assert leading_words(with_null).tolist() == [*words, 0]


def test_types_without_an_order_are_sorted_by_hash() -> None:
    rows = pa.record_batch({"d": [Decimal("1.5"), Decimal("2.5")], "n": [1, 2]})
    keys = Keys.of(rows)
    assert keys.leading.tolist() == [0, 0]
    assert keys.hashes[0] != keys.hashes[1]
    assert leading_words(pa.array([[1], []])).tolist() == [0, 0]
    assert (
        leading_words(pa.array(["b", "a"]).dictionary_encode()).tolist() == leading_words(pa.array(["b", "a"])).tolist()
    )


def part(rows: int, run: int, memory: int, batch: int = 0) -> HollowPart:
    return HollowPart(f"p{batch}-{run}-{rows}", "parquet", memory // 4, 0, rows, rows, 0, 0, run, memory)


def test_runs_are_grouped_within_memory_two_at_least() -> None:
    parts = (part(1, 1, 10), part(2, 1, 20), part(3, 2, 5), part(4, 0, 7), part(5, 0, 9))
    runs = runs_of([LinkedBatch(0, 0, 0, parts)], FIRST_SCHEMA)
    assert [run.memory for run in runs] == [20, 5, 7, 9], "a sorted run costs its largest part"
    assert [[run.memory for run in group] for group in grouped(runs, 25)] == [[20, 5], [7, 9]]
    assert [[run.memory for run in group] for group in grouped(runs, 1)] == [[20, 5], [7, 9]]
    assert [[run.memory for run in group] for group in grouped(runs, 1000)] == [[20, 5, 7, 9]]
    assert grouped([Run(runs[0].parts, 99)], 1)[0][0].memory == 99


async def _filled(config: PersistConfig, batches: int, rows: int) -> tuple[PersistClient, Shard, ReadHandle, list[Any]]:
    client = PersistClient(MemBlob(), MemConsensus(), config=config)
    shard = new_shard_id()
    since = await client.open_since(shard, "c", purpose="test")
    writer = await client.open_writer(shard, SCHEMA, purpose="test")
    reader = await client.open_reader(shard, SCHEMA, purpose="test")
    log = []
    for t in range(batches):
        changes = [(k, t, 1 if t % 2 == 0 or k % 5 else -1) for k in range(rows)]
        log += changes
        await append(writer, changes, t, t + 1)
    await reader.downgrade_since(Frontier(batches - 1))
    await since.compare_and_downgrade_since(0, 0, Frontier(batches - 1))
    return client, client._shards[shard], reader, log


@pytest.mark.parametrize("memory", [1, 20_000, 100_000, 1 << 24])
def test_the_output_is_sorted_runs_of_what_was_there(memory: int) -> None:
    async def main() -> None:
        config = PersistConfig(
            inline_bytes=0, cache_bytes=0, part_bytes=5_000, compaction_memory_bytes=memory, maintenance=False
        )
        client, shard, reader, log = await _filled(config, batches=8, rows=400)
        last = len({t for _, t, _ in log}) - 1
        rounds = 0
        while True:
            await compact(shard, shard.state.batches)
            [batch] = shard.state.batches
            assert batch.since == shard.state.since
            assert await snapshot(reader, last) == expected_at(log, last)
            rounds += 1
            runs: dict[int, list[Updates]] = {}
            for one in batch.parts:
                assert isinstance(one, HollowPart)
                data = await client._stores.foreground.blob.get(f"{shard.id}/{one.key}")
                assert data is not None
                runs.setdefault(one.run, []).append(decode_object(data, one, SCHEMA))
            for number, pieces in runs.items():
                whole = Updates.concat(pieces)
                assert number > 0
                keys = Keys.of(whole.rows)
                place = np.lexsort((keys.hashes, keys.leading))
                assert (place == np.arange(len(whole))).all(), "parts of a run follow one another"
                assert len(whole.consolidate()) == len(whole), "within a run equal rows are one"
            if not most_urgent(Policy(config), shard.state):
                break
            assert rounds < 10
        assert len(runs) == 1, "in the end it is one run, however little memory there is"
        assert (rounds == 1) == (memory == 1 << 24)
        await client.close()

    asyncio.run(main())


def test_memory_is_bounded_while_a_merge_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    async def main() -> None:
        nonlocal most
        memory = 400_000
        config = PersistConfig(
            inline_bytes=0, cache_bytes=0, part_bytes=20_000, compaction_memory_bytes=memory, maintenance=False
        )
        client, shard, _, _ = await _filled(config, batches=8, rows=10_000)
        total = sum(one.memory for b in shard.state.batches for one in b.parts if isinstance(one, HollowPart))
        assert total > 4 * memory
        from penstock.persist import merge

        reached = merge.Merge._reached

        def watched(self: merge.Merge, runs: Any) -> Updates:
            nonlocal most
            most = max(most, sum(run.block.nbytes for run in runs if run.block is not None))
            return reached(self, runs)

        monkeypatch.setattr(merge.Merge, "_reached", watched)
        await compact(shard, shard.state.batches)
        assert 0 < most <= memory
        await client.close()

    asyncio.run(main())


def test_a_run_in_the_wrong_order_costs_size_not_contents() -> None:
    rows = pa.record_batch([pa.array([3, 1, 2, 1]), pa.array(["c", "a", "b", "a"])], schema=SCHEMA)
    whole = sorted_and_consolidated(Updates.at(rows, Timestamp(4)), Timestamp(9))
    assert whole.rows.column(0).to_pylist() == [1, 2, 3]
    assert whole.diffs.tolist() == [2, 1, 1]
    assert set(whole.times.tolist()) == {9}


def nan(payload: int) -> float:
    """One of the many floats that are no number."""
    return float(np.array([0x7FF8000000000000 | payload], dtype=np.uint64).view(np.float64)[0])


LEADING = {
    "few-values": st.integers(0, 2),
    "mostly-distinct": st.integers(0, 60),
    "floats": st.sampled_from([0.0, -0.0, 1.5, nan(0), nan(1), nan(1 << 63), None]),
    "equal-in-eight-bytes": st.sampled_from(["abcdefgh", "abcdefghi", "abcdefghj", "b", None]),
    "without-an-order": st.lists(st.integers(0, 1), max_size=1),
}


@pytest.mark.parametrize("kind", LEADING)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_sorting_sums_equal_rows_wherever_they_are(kind: str, data: st.DataObject) -> None:
    """Rows are hashed only where the leading column ties: what comes out is the same."""
    changes = data.draw(
        st.lists(st.tuples(LEADING[kind], st.integers(0, 1), st.integers(0, 3), st.integers(-1, 2)), max_size=40)
    )
    since = Timestamp(data.draw(st.integers(0, 3)))
    leading, second, times, diffs = (list(one) for one in zip(*changes, strict=True)) if changes else ([], [], [], [])
    types = {"floats": pa.float64(), "equal-in-eight-bytes": pa.string(), "without-an-order": pa.list_(pa.int64())}
    rows = pa.record_batch([pa.array(leading, types.get(kind, pa.int64())), pa.array(second, pa.int64())], ["a", "b"])
    updates = Updates(rows, np.array(times, dtype=np.uint64), np.array(diffs, dtype=np.int64))
    merged = sorted_and_consolidated(updates, since)
    assert contents(merged) == contents(updates.advance_to(since).consolidate())
    assert len(merged) == len(updates.advance_to(since).consolidate())
    keys = Keys.of(merged.rows)
    order = list(zip(keys.leading.tolist(), keys.hashes.tolist(), strict=True))
    assert order == sorted(order)


def contents(updates: Updates) -> Counter[tuple[str, int]]:
    total: Counter[tuple[str, int]] = Counter()
    for row, time, diff in zip(updates.rows.to_pylist(), updates.times.tolist(), updates.diffs.tolist(), strict=True):
        total[repr([v + 0.0 if isinstance(v, float) else v for v in row.values()]), time] += diff
    return Counter({key: diff for key, diff in total.items() if diff})


@pytest.mark.parametrize("distinct", [5, 5_000])
def test_a_bound_parts_the_updates_where_the_order_does(distinct: int) -> None:
    rng = np.random.default_rng(1)
    rows = pa.record_batch({"a": rng.integers(0, distinct, 2_000), "b": rng.integers(0, 9, 2_000)})
    whole = Keys.of(rows)
    places = list(zip(whole.leading, whole.hashes, strict=True))
    for bound in [places[0], places[1_000], max(places)]:
        fresh = Keys.of(rows)  # which has hashed nothing yet
        assert fresh.up_to(bound).tolist() == [place <= bound for place in places]
        some = rng.integers(0, 2_000, 300)
        assert fresh.take(some, rows.take(pa.array(some))).greatest() == max(places[index] for index in some)
