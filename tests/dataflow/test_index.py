"""Indexes: readable at every time they promise, under compaction and merging, by key and whole."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dataflow import ERRORS_SCHEMA, Dataflow, NegativeMultiplicity, NotReadable, Worker, index
from penstock.runtime import Frontier, Timestamp, Updates
from tests.dataflow.oracle import TIMES, batch, contents, settle, tuples, updates

KV = pa.schema([("k", pa.int64()), ("s", pa.string())])
ROWS = st.tuples(st.sampled_from([None, 0, 1, 2]), st.sampled_from([None, "", "a", "b"]))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(ROWS, st.integers(0, TIMES), st.sampled_from([1, 1, 2, -1])), max_size=25),
    st.lists(st.tuples(st.integers(0, TIMES), st.booleans()), max_size=8),
    st.sampled_from([[0], [1], [0, 1], []]),
)
def test_reads_at_every_time_in_since_and_upper(
    changes: list[tuple[Any, int, int]], compactions: list[tuple[int, bool]], key: list[int]
) -> None:
    dataflow = Dataflow("test", Timestamp(0))
    handle, collection = dataflow.input("in", KV)
    trace = index(collection, key)
    worker = Worker()
    worker.install(dataflow)
    for time in range(TIMES + 1):
        now = [change for change in changes if change[1] == time]
        if now:
            handle.send(updates(now, KV))
        handle.advance_to(Frontier(time + 1))
        for frontier, whole in compactions:
            if frontier == time:
                trace.allow_compaction(Frontier(frontier))
                if whole:
                    settle(worker)
        worker.step()
        assert (trace.upper, trace.since <= time) == (time + 1, True)
        for at in range(trace.since, trace.upper):
            expected = contents(changes, at)
            oks, errs = trace.read_updates(Timestamp(at))
            assert total(oks) == expected
            assert int((oks.diffs < 0).sum()) == sum(n < 0 for n in expected.values()), "something is left to cancel"
            assert len(errs) == 0
            probes: list[Any] = [(None, "a"), (1, ""), (1, ""), (7, "z")]
            probe_rows = [tuple(probe[i] for i in key) for probe in probes]
            some, _ = trace.read_updates(Timestamp(at), batch(probe_rows, pa.schema([KV.field(i) for i in key])))
            wanted = {row: n for row, n in expected.items() if tuple(row[i] for i in key) in probe_rows}
            assert total(some) == wanted


def test_reads_outside_since_and_upper_are_refused() -> None:
    trace, handle, worker = small_index()
    handle.advance_to(Frontier(5))
    settle(worker)
    trace.allow_compaction(Frontier(3))
    handle.advance_to(Frontier(6))
    settle(worker)
    assert (trace.since, trace.upper) == (3, 6)
    for time in (2, 6):
        with pytest.raises(NotReadable, match=f"cannot be read at {time}: it holds the times from 3 to before 6"):
            trace.read(Timestamp(time))


def test_multiplicities_are_expanded_and_negative_ones_are_errors() -> None:
    trace, handle, worker = small_index()
    handle.send(updates([((1, "a"), 0, 3), ((2, "b"), 1, -1)], KV))
    handle.advance_to(Frontier(2))
    settle(worker)
    assert tuples(trace.read(Timestamp(0))[0]) == [(1, "a")] * 3
    with pytest.raises(NegativeMultiplicity, match="'k': 2"):
        trace.read(Timestamp(1))


def test_errors_have_times_and_are_retracted() -> None:
    trace, handle, worker = small_index()
    error = ("22012", "division by zero")
    handle.send_errors(updates([(error, 1, 2), (error, 3, -2)], ERRORS_SCHEMA))
    handle.advance_to(Frontier(5))
    settle(worker)
    assert [tuples(trace.read(Timestamp(t))[1]) for t in range(5)] == [[], [error] * 2, [error] * 2, [], []]
    trace.allow_compaction(Frontier(4))
    handle.advance_to(Frontier(6))
    settle(worker)
    assert tuples(trace.read(Timestamp(4))[1]) == []


def test_state_stays_small_under_churn_and_reads_stay_exact() -> None:
    """A row that changes for ever costs no memory for ever, and no frontier waits for a merge."""
    trace, handle, worker = small_index()
    rng = np.random.default_rng(1)
    live = np.zeros(3000, np.int64)
    for time in range(150):
        old = np.flatnonzero(live)[:500]
        new = rng.choice(np.flatnonzero(live == 0), 800, replace=False)
        live[old], live[new] = 0, 1
        rows = pa.record_batch([np.append(old, new), pa.array(["x"] * (len(old) + 800))], schema=KV)
        handle.send(Updates(rows, np.full(len(rows), time, np.uint64), np.repeat([-1, 1], [len(old), 800])))
        handle.advance_to(Frontier(time + 1))
        trace.allow_compaction(Frontier(time))
        settle(worker)
        if len(np.flatnonzero(live == 0)) < 800:
            live_now = trace.read(Timestamp(time))[0].column(0).to_pylist()
            assert sorted(live_now) == np.flatnonzero(live).tolist()
            break
    rows_read = trace.read(Timestamp(trace.upper - 1))[0].column(0).to_pylist()
    assert sorted(rows_read) == np.flatnonzero(live).tolist()
    assert trace.rows < 40_000


def test_reads_from_another_thread_see_one_state() -> None:
    """Every time moves one unit from one key to another: any consistent read sums to the same."""
    trace, handle, worker = small_index()
    schema_rows = [((i, "x"), 0, 10) for i in range(10)]
    handle.send(updates(schema_rows, KV))
    handle.advance_to(Frontier(1))
    settle(worker)
    stop = threading.Event()
    wrong: list[object] = []
    reads = threading.Semaphore(0)

    def read() -> None:
        while not stop.is_set():
            try:
                oks, _ = trace.read_updates(Timestamp(trace.upper - 1))
            except NotReadable:
                continue  # compacted between the two looks
            if int(oks.diffs.sum()) != 100:
                wrong.append(oks)
            reads.release()

    thread = threading.Thread(target=read)
    thread.start()
    rng = np.random.default_rng(2)
    for time in range(1, 300):
        a, b = rng.integers(0, 10, 2).tolist()
        handle.send(updates([((a, "x"), time, -1), ((b, "x"), time, 1)], KV))
        handle.advance_to(Frontier(time + 1))
        trace.allow_compaction(Frontier(time - 5 if time > 5 else 0))
        settle(worker)
    for _ in range(20):
        assert reads.acquire(timeout=30)
    stop.set()
    thread.join(30)
    assert not wrong


def total(changes: Updates) -> dict[Any, int]:
    return contents(list(zip(tuples(changes.rows), changes.times.tolist(), changes.diffs.tolist(), strict=True)), TIMES)


def small_index() -> Any:
    dataflow = Dataflow("test", Timestamp(0))
    handle, collection = dataflow.input("in", KV)
    trace = index(collection, [0])
    worker = Worker()
    worker.install(dataflow)
    return trace, handle, worker
