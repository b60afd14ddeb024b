"""Runs, merges and accumulators beyond what operator tests reach: much data, many runs."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from penstock.dataflow import SortKey, exact_sum
from penstock.dataflow.accumulators import Accumulators
from penstock.dataflow.arrangement import Trace
from penstock.dataflow.groups import group_rows
from penstock.dataflow.ordered import build, heads, merge_in_slices, merge_ordered
from penstock.dataflow.run import Run, ranges
from penstock.runtime import Updates, hash_columns

KV = pa.schema([("k", pa.int64()), ("v", pa.int64())])


def change(keys: np.ndarray, values: np.ndarray, diffs: np.ndarray) -> Updates:
    return Updates(pa.record_batch([keys, values], schema=KV), np.zeros(len(keys), np.uint64), diffs)


def summed(runs: tuple[Run, ...]) -> Updates:
    parts = [Updates(run.rows, np.zeros(len(run), np.uint64), run.all_diffs()) for run in runs]
    return Updates.concat(parts).consolidate() if parts else Updates.empty(KV)


def as_dict(updates: Updates) -> dict[tuple[int, int], int]:
    keys, values = (column.to_pylist() for column in updates.rows.columns)
    return dict(zip(zip(keys, values, strict=True), updates.diffs.tolist(), strict=True))


@pytest.mark.parametrize("ordered", [False, True])
def test_merging_keeps_the_sum_and_few_runs(ordered: bool) -> None:
    rng = np.random.default_rng(3)
    order = [SortKey(1)]
    if ordered:
        trace = Trace(lambda a, b: merge_ordered(a, b, order), lambda a, b: merge_in_slices(a, b, order))
    else:
        trace = Trace()
    everything: list[Updates] = []
    for size in [200_000, 90_000, 300, 1000, 20, 40_000, *[700] * 60]:
        keys = rng.integers(0, 5000, size)
        updates = change(keys, rng.integers(0, 50, size), rng.choice([-1, 1, 1], size))
        everything.append(updates)
        hashes = hash_columns([updates.rows.column(0)], size)
        run = build(hashes, updates.rows, updates.diffs, order) if ordered else Run.sort(hashes, updates).untimed()
        trace.insert(run)
        trace.merge_some()
    expected = as_dict(Updates.concat(everything).consolidate())
    assert as_dict(summed(trace.runs)) == expected
    while trace.merge_some():
        pass
    assert as_dict(summed(trace.runs)) == expected
    assert len(trace.runs) <= 4
    for run in trace.runs:
        assert (np.diff(run.keys.astype(object)) >= 0).all()
    trace.merge_fully()
    while trace.merge_some():
        pass
    (whole,) = trace.runs
    assert as_dict(summed(trace.runs)) == expected
    assert len(whole) == len(expected), "a full merge leaves nothing that cancels"


def test_a_merge_survives_new_runs_and_dropped_times() -> None:
    """Compaction replaces runs every second; a merge that takes longer must still come to its end."""
    rng = np.random.default_rng(4)
    trace = Trace()
    for _ in range(2):
        updates = change(rng.integers(0, 10**6, 300_000), rng.integers(0, 9, 300_000), np.ones(300_000, np.int64))
        trace.insert(Run.build(updates, [0]).untimed())
    steps = 0
    while len(trace.runs) > 1 and len(trace.runs[0]) < 600_000:
        trace.merge_some()
        new = Run.build(change(np.arange(5), np.arange(5), np.ones(5, np.int64)), [0])
        trace.insert(new)
        trace.replace(tuple(run.untimed() for run in trace.runs))
        steps += 1
        assert steps < 100
    assert sum(map(len, trace.runs)) == 600_000 + 5 * steps


def test_lookup_by_directory_finds_what_binary_search_finds() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.integers(0, 60_000, 100_000), np.full(30_000, 17), [0, 0]])
    run = Run.build(change(values, values, np.ones(len(values), np.int64)), [0])
    run = Run(np.sort(np.append(run.keys[:-2], np.array([0, 2**64 - 1], np.uint64))), run.rows, run.times, run.diffs)
    probes = np.append(rng.choice(run.keys, 300), rng.integers(0, 2**63, 300).astype(np.uint64) * np.uint64(2))
    probes = np.append(probes, np.array([0, 2**64 - 1], np.uint64))
    lows, highs = ranges(run, probes)
    assert (lows == np.searchsorted(run.keys, probes, "left")).all()
    assert (highs == np.searchsorted(run.keys, probes, "right")).all()


def test_heads_of_large_groups_read_no_more_than_they_need() -> None:
    rng = np.random.default_rng(6)
    order = [SortKey(1)]
    rows = pa.record_batch([np.zeros(50_000, np.int64), rng.permutation(50_000)], schema=KV)
    hashes = hash_columns([rows.column(0)], rows.num_rows)
    runs = [build(hashes, rows, np.ones(50_000, np.int64), order)]
    gone = pa.record_batch([np.zeros(300, np.int64), np.arange(300)], schema=KV)
    runs.append(build(hashes[:300], gone, np.full(300, -1), order))
    head = heads(runs, [0], order, hashes[:1], rows.slice(0, 1).select([0]), 3)
    positive = head.counts > 0
    assert head.rows.column(1).to_numpy()[positive][:3].tolist() == [300, 301, 302]
    assert len(head.counts) < 2000


def test_accumulators_forget_the_dead() -> None:
    state = Accumulators(1, KV)
    total: dict[int, int] = {}
    for start in range(0, 400_000, 20_000):
        for keys, sign in ((np.arange(start, start + 20_000), 1), (np.arange(start - 20_000, start - 10), -1)):
            keys = keys[keys >= 0]
            if len(keys) == 0:
                continue
            rows = pa.record_batch([keys, keys % 7], schema=KV)
            groups = group_rows(rows)
            rows = rows.take(pa.array(groups.firsts))
            slots = state.find(groups.hashes, rows, exact=groups.exact)
            (old,) = state.read(slots)
            state.write(slots, groups.hashes, rows, [old + sign], exact=groups.exact)
            for key in keys.tolist():
                total[key] = total.get(key, 0) + sign
    alive = np.array([key for key, count in total.items() if count])
    rows = pa.record_batch([alive, alive % 7], schema=KV)
    slots = state.find(hash_columns(rows.columns, len(alive)), rows, exact=False)
    assert (slots >= 0).all()
    assert (state.read(slots)[0] == 1).all()
    assert state.slots < 250_000
    assert (state.find(hash_columns(rows.columns, len(alive)) + np.uint64(1), rows, exact=False) == -1).all()


def test_float_sums_are_the_nearest_double_of_the_exact_sum() -> None:
    rng = random.Random(7)
    special = [5e-324, -5e-324, 2.2e-308, 0.0, -0.0, 0.1, -0.3, 1e16, -1e16, 2.0**53, 2.0**-53, 1.7e308, -1.7e308]
    for _ in range(1500):
        count = rng.randint(1, 9)
        values = [
            rng.choice(
                [rng.choice(special), rng.uniform(-1e3, 1e3), rng.uniform(-1, 1) * 10.0 ** rng.uniform(-300, 300)]
            )
            for _ in range(count)
        ]
        limbs = {number: part.sum(keepdims=True) for number, part in exact_sum.split(np.array(values)).items()}
        result = float(exact_sum.round_to_double(limbs, 1)[0])
        try:
            expected = float(sum(map(Fraction, values)))
        except OverflowError:
            expected = math.inf if sum(map(Fraction, values)) > 0 else -math.inf
        assert result == expected


def test_grouping_ids_needs_no_hash_table_and_agrees_with_one() -> None:
    rng = np.random.default_rng(8)
    for values in (
        rng.integers(-500, 500, 50_000),
        rng.integers(-(2**62), 2**62, 50_000),
        np.full(50_000, -(2**63)),
        np.array([-(2**63), 2**63 - 1] * 25_000),
    ):
        groups = group_rows(pa.record_batch([values], names=["k"]))
        distinct = np.unique(values)
        assert groups.count == len(distinct)
        assert (values[groups.firsts][groups.codes] == values).all()
        assert (groups.hashes == hash_columns([pa.array(values[groups.firsts])], groups.count)).all()
