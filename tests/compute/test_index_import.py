"""An index shared between dataflows: its importers see exact times, and leave nothing behind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.compute import DataflowDescription, IndexExport, IndexImport, ShardImport, SubscribeSink
from penstock.compute.render import RenderedDataflow, render
from penstock.dataflow import Worker
from penstock.runtime import Frontier, GlobalId, Timestamp, Updates

SCHEMA = pa.schema([pa.field("a", pa.int64())])
TABLE, INDEX, READER = GlobalId("u1"), GlobalId("i1"), GlobalId("t1")
Seen = list[tuple[int, int, int]]


def rows(*updates: tuple[int, int, int]) -> Updates:
    values, times, diffs = zip(*updates, strict=True)
    batch = pa.RecordBatch.from_arrays([pa.array(values, pa.int64())], schema=SCHEMA)
    return Updates(batch, np.array(times, np.uint64), np.array(diffs, np.int64))


def run(worker: Worker) -> None:
    while worker.step():
        pass


def indexed(worker: Worker) -> RenderedDataflow:
    description = DataflowDescription(
        INDEX, {TABLE: ShardImport("s", SCHEMA, True)}, (), (IndexExport(INDEX, TABLE, (0,)),), Timestamp(1)
    )
    return render(description, worker, indexes={}, sinks={})


def imported(worker: Worker, index: RenderedDataflow, as_of: int) -> tuple[RenderedDataflow, Seen]:
    seen: Seen = []

    def note(oks: Updates, errs: Updates, frontier: Frontier) -> None:
        seen.extend(zip(oks.rows.column(0).to_pylist(), oks.times.tolist(), oks.diffs.tolist(), strict=True))

    description = DataflowDescription(
        READER, {TABLE: IndexImport(INDEX, TABLE, SCHEMA)}, (), (SubscribeSink(READER, TABLE),), Timestamp(as_of)
    )
    return render(description, worker, indexes=index.indexes, sinks={READER: note}), seen


def test_an_importer_sees_exact_times_and_leaves_nothing_behind() -> None:
    worker = Worker()
    index = indexed(worker)
    feed, trace = index.inputs[TABLE], index.indexes[INDEX]
    feed.send(rows((1, 1, 1), (2, 3, 1)))
    feed.advance_to(Frontier(4))
    run(worker)
    reader, seen = imported(worker, index, as_of=3)
    feed.send(rows((1, 5, -1), (3, 6, 2)))
    trace.allow_compaction(Frontier(7))
    feed.advance_to(Frontier(8))
    run(worker)
    assert sorted(seen) == [(1, 3, 1), (1, 5, -1), (2, 3, 1), (3, 6, 2)]
    (handle,) = reader.dataflow.inputs
    worker.drop(reader.dataflow)
    for time in range(8, 12):
        feed.send(rows((time, time, 1)))
        feed.advance_to(Frontier(time + 1))
        run(worker)
    assert handle.abandoned
    assert handle._messages == []
    assert len(seen) == 4
