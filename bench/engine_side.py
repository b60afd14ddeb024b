"""A job in the engine alone: DataFusion's plan, rendered on a worker, fed with Arrow batches. No shards, no protocol.

What is measured is what a replica does between its sources and its sinks. DuckDB's plan would be as good; the plan
comes from DataFusion because the engine takes its plans from there.
"""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
from datafusion import SessionContext
from datafusion.substrait import Producer

from bench.jobs import Change, Job
from bench.peers import Measured, memory_mb_peak
from penstock.compute import DataflowDescription, SubscribeSink, from_substrait
from penstock.compute.description import ShardImport
from penstock.compute.render import render
from penstock.dataflow import Worker
from penstock.runtime import Frontier, GlobalId, Timestamp, Updates

RESULT, SINK = GlobalId("u100"), GlobalId("u101")
INGEST_ROWS = 1_000_000
"""Rows per batch at first, as a snapshot's parts would come."""


def engine(job: Job, batches: int) -> Measured:
    """`initial_s`: from the first batch handed over to the whole answer at the sink."""
    view = _View(job)
    started = time.perf_counter()
    for name, table in job.tables.items():
        for rows in table.combine_chunks().to_batches(max_chunksize=INGEST_ROWS):
            view.send(name, Updates.at(rows, Timestamp(1)))
    view.close(1)
    initial_s = time.perf_counter() - started
    batch_ms = []
    for number, changes in enumerate(job.batches(batches), start=2):
        updates = [(change.table, _updates(change, number)) for change in changes]
        started = time.perf_counter()
        for name, changed in updates:
            view.send(name, changed)
        view.close(number)
        batch_ms.append((time.perf_counter() - started) * 1000)
    return Measured(initial_s, batch_ms, memory_mb_peak(), view.answer())


class _View:
    """The job's query as a running dataflow on a worker that the caller's thread steps."""

    def __init__(self, job: Job) -> None:
        context = SessionContext()
        names = {name: GlobalId(f"u{number}") for number, name in enumerate(job.tables, start=1)}
        for name, table in job.tables.items():
            context.register_record_batches(name, [table.schema.empty_table().to_batches() or [_none(table.schema)]])
        plan = Producer.to_substrait_plan(context.sql(job.query).optimized_logical_plan(), context).encode()
        rel = from_substrait(plan, {name: (names[name], job.tables[name].schema) for name in job.tables})
        description = DataflowDescription(
            id=GlobalId("bench"),
            imports={
                names[name]: ShardImport(shard="", schema=job.tables[name].schema, txns=False) for name in job.tables
            },
            objects=((RESULT, rel),),
            exports=(SubscribeSink(id=SINK, on=RESULT),),
            as_of=Timestamp(1),
        )
        self._worker = Worker()
        self._received: list[Updates] = []
        self._frontier = Frontier(0)
        self._rendered = render(description, self._worker, indexes={}, sinks={SINK: self._take})
        self._names = names

    def send(self, table: str, updates: Updates) -> None:
        if not self._rendered.inputs[self._names[table]].send(updates):
            self._worker.step()

    def close(self, time: int) -> None:
        """Everything at `time` has been sent: run until the sink has seen it."""
        for handle in self._rendered.inputs.values():
            handle.advance_to(Frontier(time + 1))
        while self._frontier <= time:
            self._worker.step()

    def answer(self) -> list[tuple[int, int, int]]:
        rows = Updates.concat(self._received).advance_to(Timestamp(2**62)).consolidate()
        assert (rows.diffs == 1).all()
        columns = (column.to_pylist() for column in rows.rows.columns)
        return sorted((int(k), int(n), int(total)) for k, n, total in zip(*columns, strict=True))

    def _take(self, oks: Updates, errs: Updates, frontier: Frontier) -> None:
        assert not len(errs), errs.rows.to_pylist()
        self._received.append(oks)
        self._frontier = frontier


def _updates(change: Change, time: int) -> Updates:
    rows = pa.concat_tables([change.deleted, change.inserted]).combine_chunks().to_batches()[0]
    diffs = np.repeat([-1, 1], [change.deleted.num_rows, change.inserted.num_rows]).astype(np.int64)
    return Updates(rows, np.full(len(diffs), time, dtype=np.uint64), diffs)


def _none(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
