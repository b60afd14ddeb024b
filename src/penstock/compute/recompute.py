"""Aggregates and window functions that are computed again for the groups a change touches.

The rows of each group are kept. For every time at which something changed, the rows of the touched groups
before and after go through one DataFusion plan, and the difference of the answers is sent. The cost follows
the size of the touched groups.

The plan sees the rows in an order that is a function of the rows themselves, so that replicas agree also
where a function depends on the order and the query does not say which.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.compute.fragment import CurrentBatch
from penstock.compute.ir import Aggregate, Reduce, SortKey, Window, WindowFunction
from penstock.compute.scalar_sql import render_literal
from penstock.dataflow import ERRORS_SCHEMA, Collection
from penstock.dataflow.graph import Slices, StatefulOperator
from penstock.dataflow.run import Run
from penstock.dataflow.trace import IndexTrace
from penstock.runtime import Frontier, Timestamp, Updates, conform
from penstock.runtime.updates import take_rows
from penstock.sql.functions import new_context

_SIDE = "__side"
"""Column of the plan's input: 0 for the rows before a change, 1 for those after it."""


class _Plan:
    """A prepared query over ``batch``: the input's columns as c0 .. cn and the side. Its first result
    column is the side.
    """

    def __init__(self, types: list[pa.DataType], sql: str) -> None:
        self.schema = pa.schema([*((f"c{i}", kind) for i, kind in enumerate(types)), (_SIDE, pa.int8())])
        context = new_context()
        self._current = CurrentBatch(self.schema)
        context.register_dataset("batch", self._current)
        self._context = context
        self._plan = context.sql(sql).execution_plan()

    def run(self, rows: pa.RecordBatch) -> list[pa.RecordBatch]:
        self._current.batch = rows
        try:
            return [batch.to_pyarrow() for batch in self._context.execute(self._plan, 0)]
        finally:
            self._current.batch = None


class Recompute(StatefulOperator):
    """Keeps rows by `key`; see the module's text. `schema`: of the results."""

    def __init__(self, source: Collection, key: list[int], plan: _Plan, schema: pa.Schema, *, always: bool) -> None:
        super().__init__(source.dataflow, f"recompute-{key}", schema, [source.operator])
        self._key = tuple(key)
        self._plan = plan
        self._always = always
        self._state = IndexTrace(self.name, source.schema, self._key, Frontier(0))
        self._begun = False

    def activate(self) -> Slices | None:
        if self._always and not self._begun:
            # an aggregate without a key has a row even if nothing ever arrives
            self._begun = True
            self.send(self._evaluate([(self._nothing(), 1)], Timestamp(self.dataflow.as_of)))
        return super().activate()

    def close(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        updates = Updates.concat(bundle)
        order = np.argsort(updates.times, kind="stable")
        times, starts = np.unique(updates.times[order], return_index=True)
        ends = np.append(starts[1:], len(order))
        for time, start, end in zip(times, starts, ends, strict=True):
            self._change(updates.take(order[start:end]), Timestamp(int(time)))
            yield

    def maintain(self) -> bool:
        return self._state.merge_some()

    def _change(self, changes: Updates, time: Timestamp) -> None:
        state = self._state
        keys = changes.rows.select(list(self._key)) if self._key else None
        before = self._read(keys)
        state.append([Run.build(changes, self._key)], Updates.empty(ERRORS_SCHEMA), Frontier(time + 1))
        state.allow_compaction(Frontier(time))
        if state.compact():
            self.dataflow.want_maintenance(self)
        after = self._read(keys)
        self.send(self._evaluate([(before, -1), (after, 1)], time))
        for rows, sign in ((before, -1), (after, 1)):
            wrong = int((rows.diffs < 0).sum())
            if wrong:
                message = f"{self.name}: rows are retracted that were never inserted"
                error = pa.record_batch([["XX000"], [message]], schema=ERRORS_SCHEMA)
                self.send_errors(Updates.at(error, time, sign))

    def _read(self, keys: pa.RecordBatch | None) -> Updates:
        """The rows of the groups `keys` (None: all)."""
        if self._state.upper == 0:
            return self._nothing()
        return self._state.read_updates(Timestamp(self._state.upper - 1), keys)[0]

    def _nothing(self) -> Updates:
        return Updates.empty(self._state.schema)

    def _evaluate(self, sides: list[tuple[Updates, int]], time: Timestamp) -> Updates:
        parts = []
        for updates, sign in sides:
            counts = np.maximum(updates.diffs, 0)
            rows = take_rows(updates.rows, np.repeat(np.arange(len(updates)), counts))
            side = pa.repeat(pa.scalar(0 if sign < 0 else 1, pa.int8()), rows.num_rows)
            parts.append(pa.RecordBatch.from_arrays([*rows.columns, side], schema=self._plan.schema))
        results: list[Updates] = []
        for batch in self._plan.run(pa.concat_batches(parts)):
            sign_of = np.where(batch.column(0).to_numpy(zero_copy_only=False) == 0, -1, 1).astype(np.int64)
            rows = conform(batch.select(list(range(1, batch.num_columns))), self.schema)
            results.append(Updates(rows, np.full(len(sign_of), time, np.uint64), sign_of))
        if self._always:
            results += self._defaults(sides, results, time)
        return Updates.concat(results).consolidate() if results else Updates.empty(self.schema)

    def _defaults(self, sides: list[tuple[Updates, int]], results: list[Updates], time: Timestamp) -> list[Updates]:
        """The row of an aggregate without a key for each side that had no rows."""
        present = {int(sign) for part in results for sign in np.unique(part.diffs)}
        missing = [sign for _, sign in sides if sign not in present]
        row = pa.RecordBatch.from_arrays([_of_nothing(field) for field in self.schema], schema=self.schema)
        return [Updates.at(row, time, sign) for sign in missing]


def _of_nothing(field: pa.Field) -> pa.Array:
    """An aggregate over no rows: counts are 0 (their fields say so), everything else NULL."""
    if field.metadata and b"zero" in field.metadata:
        return pa.array([0], field.type)
    return pa.nulls(1, field.type)


def recompute_windows(source: Collection, rel: Window) -> Collection:
    """The operator of a `Window`."""
    width = rel.input.arity
    columns = ", ".join(f"c{i}" for i in range(width))
    functions = ", ".join(f"{_window(function)} AS w{i}" for i, function in enumerate(rel.functions))
    sql = f"SELECT {_SIDE}, {columns}, {functions} FROM batch"
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(rel.types)])
    plan = _Plan(list(rel.input.types), sql)
    operator = Recompute(source, list(rel.partition), plan, schema, always=False)
    return Collection.of(operator, source, fallible=True)


def _window(function: WindowFunction) -> str:
    call = function.sql.format(*(f"c{i}" for i in function.args))
    partition = ", ".join([_SIDE, *(f"c{i}" for i in function.partition)])
    order = f" ORDER BY {_order(function.order)}" if function.order else ""
    return f"{call} OVER (PARTITION BY {partition}{order} {function.frame})"


def recompute_aggregates(source: Collection, rel: Reduce) -> Collection:
    """The operator of a `Reduce` with an aggregate that has no accumulator."""
    keys = [f"c{i}" for i in rel.key]
    width = rel.input.arity
    calls = [_aggregate(aggregate, width) for aggregate in rel.aggregates]
    group = ", ".join([_SIDE, *keys])
    outputs = ", ".join([_SIDE, *keys, *(f"{call} AS a{i}" for i, call in enumerate(calls))])
    sql = f"SELECT {outputs} FROM batch GROUP BY {group}"
    fields = [pa.field(f"c{i}", kind) for i, kind in enumerate(rel.types)]
    for i, aggregate in enumerate(rel.aggregates):
        if aggregate.function == "count":
            fields[len(keys) + i] = fields[len(keys) + i].with_metadata({"zero": "0"})
    plan = _Plan(list(rel.input.types), sql)
    operator = Recompute(source, list(rel.key), plan, pa.schema(fields), always=not rel.key)
    return Collection.of(operator, source, fallible=True)


def _aggregate(aggregate: Aggregate, width: int) -> str:
    arguments = [f"c{i}" for i in aggregate.args] + [render_literal(literal) for literal in aggregate.parameters]
    if not arguments:
        return "count(*)"
    distinct = "DISTINCT " if aggregate.distinct else ""
    order = aggregate.order
    if aggregate.function in ("string_agg", "array_agg") and not aggregate.distinct:
        named = {key.column for key in order}
        order = (*order, *(SortKey(i) for i in range(width) if i not in named))
    elif aggregate.function in ("string_agg", "array_agg"):
        order = order or tuple(SortKey(i) for i in aggregate.args)
    clause = f" ORDER BY {_order(order)}" if order and aggregate.function in ("string_agg", "array_agg") else ""
    return f"{aggregate.function}({distinct}{', '.join(arguments)}{clause})"


def _order(order: tuple[SortKey, ...]) -> str:
    return ", ".join(
        f"c{key.column} {'DESC' if key.descending else 'ASC'} NULLS {'FIRST' if key.nulls_first else 'LAST'}"
        for key in order
    )
