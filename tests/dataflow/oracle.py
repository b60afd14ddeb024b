"""A slow reference for every operator: collections as counters of tuples, one time after the other.

A test gives a history of changes, the operators to build, and a model: a function from the inputs' contents
at a time to the output's contents at that time. The history is sent in arbitrary batches with arbitrary moves
of the frontiers; what comes out must add up to the model at every single time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from penstock.dataflow import Collection, Dataflow, InputHandle, Worker
from penstock.runtime import DONE, Frontier, Timestamp, Updates

Row = tuple[Any, ...]
Contents = Counter[Row]
Change = tuple[int, Row, int, int]  # input, row, time, diff
Model = Callable[[list[Contents]], tuple[Contents, Contents | None]]
"""Contents of rows and of errors; None: any errors will do, and rows are not compared."""

TIMES = 8


@dataclass(frozen=True)
class History:
    """`changes` in the order they are sent; before each change at `cuts` the frontiers move as far as they
    can."""

    changes: list[Change]
    cuts: list[int]


def normal(value: Any) -> Any:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value + 0.0
    if isinstance(value, list):
        return tuple(value)
    return value


def batch(rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) if rows else [[] for _ in schema]
    if not len(schema):
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
    return pa.RecordBatch.from_arrays(
        [pa.array(list(column), type=field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def updates(changes: list[tuple[Row, int, int]], schema: pa.Schema) -> Updates:
    return Updates(
        batch([row for row, _, _ in changes], schema),
        np.array([time for _, time, _ in changes], dtype=np.uint64),
        np.array([diff for _, _, diff in changes], dtype=np.int64),
    )


def tuples(rows: pa.RecordBatch) -> list[Row]:
    if rows.num_columns == 0:
        return [()] * rows.num_rows
    columns = [column.to_pylist() for column in rows.columns]
    return [tuple(normal(value) for value in row) for row in zip(*columns, strict=True)]


class Output:
    """Collects what an inspected collection says, and checks that it keeps its promises."""

    def __init__(self) -> None:
        self.oks: list[tuple[Row, int, int]] = []
        self.errs: list[tuple[Row, int, int]] = []
        self.frontier = Frontier(0)

    def __call__(self, oks: Updates, errs: Updates, frontier: Frontier) -> None:
        assert frontier > self.frontier
        for part, seen in ((oks, self.oks), (errs, self.errs)):
            assert ((part.times >= np.uint64(self.frontier)) & (part.times < np.uint64(frontier))).all()
            seen.extend(zip(tuples(part.rows), part.times.tolist(), part.diffs.tolist(), strict=True))
        self.frontier = frontier

    def at(self, time: int) -> tuple[Contents, Contents]:
        return contents(self.oks, time), contents(self.errs, time)


def contents(changes: list[tuple[Row, int, int]], time: int) -> Contents:
    total: Contents = Counter()
    for row, at, diff in changes:
        if at <= time:
            total[row] += diff
    return Counter({row: count for row, count in total.items() if count})


def settle(worker: Worker) -> None:
    """Step until nothing is left to do."""
    for _ in range(100_000):
        if not worker.step():
            return
    raise AssertionError("the worker does not come to rest")


def run(
    build: Callable[[Dataflow, list[Collection]], Collection],
    schemas: list[pa.Schema],
    history: History,
    *,
    as_of: int = 0,
    until: int = DONE,
) -> tuple[Output, Dataflow]:
    """Build, send the history, close the inputs, and return what came out."""
    dataflow = Dataflow("test", Timestamp(as_of), Frontier(until))
    handles: list[InputHandle] = []
    collections: list[Collection] = []
    for i, schema in enumerate(schemas):
        handle, collection = dataflow.input(f"in{i}", schema)
        handles.append(handle)
        collections.append(collection)
    output = Output()
    build(dataflow, collections).inspect(output)
    failures: list[BaseException] = []
    worker = Worker(on_failure=lambda _, error: failures.append(error))
    worker.install(dataflow)
    pending: list[list[tuple[Row, int, int]]] = [[] for _ in schemas]
    for i, (source, row, time, diff) in enumerate(history.changes):
        if i in history.cuts:
            _send(handles, pending, schemas)
            for number, handle in enumerate(handles):
                later = [t for s, _, t, _ in history.changes[i:] if s == number]
                handle.advance_to(Frontier(min(later, default=TIMES + 1)))
            settle(worker)
        pending[source].append((row, time, diff))
    _send(handles, pending, schemas)
    for handle in handles:
        handle.close()
    settle(worker)
    if failures:
        raise failures[0]
    assert output.frontier == DONE
    return output, dataflow


def _send(handles: list[InputHandle], pending: list[list[tuple[Row, int, int]]], schemas: list[pa.Schema]) -> None:
    for handle, changes, schema in zip(handles, pending, schemas, strict=True):
        if changes:
            handle.send(updates(changes, schema))
            changes.clear()


def check(
    build: Callable[[Dataflow, list[Collection]], Collection],
    model: Model,
    schemas: list[pa.Schema],
    history: History,
    *,
    as_of: int = 0,
) -> None:
    """The output adds up to `model` at every time."""
    output, _ = run(build, schemas, history, as_of=as_of)
    inputs = [[(row, time, diff) for s, row, time, diff in history.changes if s == i] for i in range(len(schemas))]
    for time in range(as_of, TIMES + 2):
        now = [
            Counter({tuple(normal(v) for v in row): n for row, n in contents(changes, time).items()})
            for changes in inputs
        ]
        oks, errs = model(now)
        got_oks, got_errs = output.at(time)
        if errs is None:
            assert got_errs, f"no error at {time}: {now}"
            continue
        assert got_errs == errs, f"errors at {time}: {got_errs}, not {errs}, for {now}"
        assert got_oks == oks, f"rows at {time}: {got_oks}, not {oks}, for {now}"


@st.composite
def histories(draw: st.DrawFn, rows: list[st.SearchStrategy[Row]], *, valid: bool = True, size: int = 14) -> History:
    """Changes to several inputs. `valid`: no row ever occurs fewer than zero times."""
    count = draw(st.integers(0, size))
    raw: list[tuple[int, Row, int, int]] = []
    for _ in range(count):
        source = draw(st.integers(0, len(rows) - 1))
        row = draw(rows[source])
        time = draw(st.integers(0, TIMES))
        copies = draw(st.sampled_from([1, 1, 1, 2]))
        raw.append((source, row, time, copies))
        gone = draw(st.sampled_from([None, None, 0, 1, 3]))
        if gone is not None and time + gone <= TIMES:
            raw.append((source, row, time + gone, -draw(st.integers(1, copies))))
    if not valid:
        for _ in range(draw(st.integers(1, 3))):
            source = draw(st.integers(0, len(rows) - 1))
            raw.append((source, draw(rows[source]), draw(st.integers(0, TIMES)), draw(st.sampled_from([-1, 1]))))
    # Sent in any order that agrees with the frontiers, which only move to times that are not needed any more.
    order = draw(st.permutations(raw)) if draw(st.booleans()) else sorted(raw, key=lambda change: change[2])
    cuts = draw(st.lists(st.integers(0, max(len(order) - 1, 0)), max_size=6))
    return History(list(order), cuts)
