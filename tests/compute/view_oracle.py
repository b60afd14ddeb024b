"""The oracle: what a rendered view must show at every time is what DataFusion answers on the inputs at that
time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from datafusion import SessionConfig, SessionContext
from datafusion.substrait import Producer

from penstock.compute import DataflowDescription, Rel, ShardImport, SubscribeSink, from_substrait
from penstock.compute.render import RenderedDataflow, render
from penstock.dataflow import Worker
from penstock.runtime import DONE, Frontier, GlobalId, Timestamp, Updates
from penstock.sql.null_aware import mark_null_aware

History = Sequence[tuple[str, Updates]]
"""Changes by table, in any order; what they sum to is never negative."""


def context(tables: Mapping[str, pa.Table]) -> SessionContext:
    made = SessionContext(SessionConfig().with_target_partitions(1))
    for name, table in tables.items():
        batches = table.to_batches() or [no_rows(table.schema)]
        made.register_record_batches(name, [batches])
    return made


def no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def lower(sql: str, schemas: Mapping[str, pa.Schema]) -> Rel:
    planned = context({name: pa.Table.from_batches([], schema=schema) for name, schema in schemas.items()})
    optimized = planned.sql(sql).optimized_logical_plan()
    plan = mark_null_aware(optimized, Producer.to_substrait_plan(optimized, planned).encode())
    return from_substrait(plan, {name: (name, schema) for name, schema in schemas.items()})


class View:
    """One rendered query with its inputs and everything it has sent."""

    def __init__(self, rel: Rel, schemas: Mapping[str, pa.Schema], as_of: int = 0, until: Frontier = DONE) -> None:
        self.rel = rel
        self.oks: list[Updates] = []
        self.errs: list[Updates] = []
        self.frontier = Frontier(0)
        self.worker = Worker()
        description = DataflowDescription(
            GlobalId("v"),
            {GlobalId(name): ShardImport(f"s-{name}", schema, True) for name, schema in schemas.items()},
            ((GlobalId("v"), rel),),
            (SubscribeSink(GlobalId("out"), GlobalId("v")),),
            Timestamp(as_of),
            until,
        )
        description = DataflowDescription.decode(description.encode())
        self.rendered: RenderedDataflow = render(
            description, self.worker, indexes={}, sinks={GlobalId("out"): self._receive}
        )

    def _receive(self, oks: Updates, errs: Updates, frontier: Frontier) -> None:
        self.oks.append(oks)
        self.errs.append(errs)
        self.frontier = frontier

    def send(self, table: str, updates: Updates) -> None:
        self.rendered.inputs[GlobalId(table)].send(updates)

    def advance(self, frontier: int) -> None:
        """Close all times below `frontier` and run until nothing is left to do."""
        for handle in self.rendered.inputs.values():
            handle.advance_to(Frontier(frontier))
        while self.worker.step():
            pass
        failure = self.rendered.dataflow.error
        if failure is not None:
            raise failure
        assert self.frontier >= frontier, f"frontier {self.frontier} after inputs are closed up to {frontier}"

    def at(self, time: int) -> Counter[tuple[Any, ...]]:
        """The rows at `time` with their multiplicities."""
        return contents(self.oks, time)

    def errors_at(self, time: int) -> Counter[tuple[Any, ...]]:
        return contents(self.errs, time)


def contents(parts: Sequence[Updates], time: int) -> Counter[tuple[Any, ...]]:
    counted: Counter[tuple[Any, ...]] = Counter()
    for part in parts:
        part = part.filter(part.times <= np.uint64(time))
        for row, diff in zip(rows_of(part.rows), part.diffs.tolist(), strict=True):
            counted[row] += diff
    assert all(count >= 0 for count in counted.values()), f"negative rows at {time}: {counted}"
    return Counter({row: count for row, count in counted.items() if count})


def rows_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    columns = [[_plain(value) for value in column.to_pylist()] for column in batch.columns]
    return list(zip(*columns, strict=True)) if columns else [()] * batch.num_rows


def _plain(value: Any) -> Any:
    """Floats to 9 digits: a sum of floats is exact here and depends on the order there."""
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return float(f"{value:.9g}") + 0.0
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Decimal):
        return value.normalize()
    return value


def table_at(schema: pa.Schema, history: History, name: str, time: int) -> pa.Table:
    """The contents of a table at `time`."""
    parts = [updates for table, updates in history if table == name]
    if not parts:
        return pa.Table.from_batches([], schema=schema)
    whole = Updates.concat(parts)
    whole = whole.filter(whole.times <= np.uint64(time)).advance_to(Timestamp(time)).consolidate()
    rows = whole.rows.take(pa.array(np.repeat(np.arange(len(whole)), np.maximum(whole.diffs, 0))))
    return pa.Table.from_batches([rows], schema=schema)


def expected(sql: str, schemas: Mapping[str, pa.Schema], history: History, time: int) -> Counter[tuple[Any, ...]] | str:
    """DataFusion's answer at `time`, or the word "error"."""
    tables = {name: table_at(schema, history, name, time) for name, schema in schemas.items()}
    try:
        batches = context(tables).sql(sql).collect()
    except Exception:
        return "error"
    return Counter(row for batch in batches for row in rows_of(batch))


def check(sql: str, schemas: Mapping[str, pa.Schema], history: History, *, steps: Sequence[int] | None = None) -> View:
    """Render `sql`, feed `history`, and compare at every time. `steps`: where the frontier stops on the
    way.
    """
    view = View(lower(sql, schemas), schemas)
    times = sorted({int(time) for _, updates in history for time in updates.times} | {0})
    sent: set[int] = set()
    for stop in [*(steps or []), times[-1] + 1]:
        for number, (name, updates) in enumerate(history):
            if number not in sent and len(updates) and int(updates.times.max()) < stop:
                view.send(name, updates)
                sent.add(number)
        view.advance(stop)
    for time in times:
        compare(view, sql, schemas, history, time)
    return view


class ViewFails(AssertionError):
    """The view has an error where DataFusion has an answer."""


def compare(view: View, sql: str, schemas: Mapping[str, pa.Schema], history: History, time: int) -> None:
    """Fail unless `view` shows at `time` what DataFusion answers."""
    want = expected(sql, schemas, history, time)
    errors = view.errors_at(time)
    if isinstance(want, str):
        # DataFusion computes some expressions before the filter that drops their rows; a view never does.
        assert errors or " where " in sql or " join " in sql, f"DataFusion fails at {time}, the view does not: {sql}"
        return
    if errors:
        raise ViewFails(f"the view fails at {time} with {errors}, DataFusion answers {want}: {sql}")
    got = view.at(time)
    assert got == want, f"at {time}\n missing {want - got}\n surplus {got - want}\n in {sql}"
