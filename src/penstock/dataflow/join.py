"""Inner join of two arrangements.

With A and B complete below f and their changes dA, dB in ``[f, g)``, the change of the join is

    dA B  +  A dB  +  dA dB

where a pair gets the product of the diffs and the later of the two times. Rows of A and B without a time are
complete before any time of the bundle. Each term is a lookup of sorted runs in sorted runs; its matches are
enumerated and cut into slices of bounded size, so that one huge key costs time, not memory.

A side may lag behind the other: the join acts up to the lesser of the two frontiers and keeps bundles until
they are used up. While it does, it holds the runs from before them; when it has caught up, it reads the
shared arrangement itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from penstock.dataflow.arrangement import Arrange, Bundle, arrange
from penstock.dataflow.graph import Collection, Operator, Slices
from penstock.dataflow.linear import BatchFunction, apply
from penstock.dataflow.run import Indices, Run, exact_hash, expand, ranges, same_rows
from penstock.runtime import Frontier, InternalError, Updates
from penstock.runtime.updates import take_rows

_PAIRS_PER_SLICE = 1 << 18
_COALESCE_ROWS = 1 << 15


class _Side:
    """One input of a join: its arrangement and the bundles that were not used up."""

    def __init__(self, arrangement: Arrange) -> None:
        self.arrangement = arrangement
        self._bundles: list[Bundle] = []
        self._used: tuple[Run, ...] = ()  # the part of the first bundle that is already joined

    def push(self, bundles: list[Bundle]) -> None:
        # copies: a self-join receives the same bundle on both sides, and each side uses it up on its own
        self._bundles.extend(replace(bundle) for bundle in bundles)

    def contents(self) -> tuple[Run, ...]:
        """Everything that has been joined so far."""
        if self._bundles:
            return (*self._bundles[0].before, *self._used)
        return self.arrangement.trace.runs

    def take_below(self, frontier: Frontier) -> list[Run]:
        """The changes below `frontier`, which count as joined from now on."""
        taken: list[Run] = []
        while self._bundles:
            bundle = self._bundles[0]
            if bundle.upper <= frontier:
                taken.extend(bundle.delta)
                del self._bundles[0]
                self._used = ()
                continue
            rest: list[Run] = []
            for run in bundle.delta:
                assert run.times is not None
                below = run.times < np.uint64(frontier)
                if below.any():
                    part = run.filter(below)
                    taken.append(part)
                    self._used = (*self._used, part.untimed())
                    run = run.filter(~below)
                if len(run):
                    rest.append(run)
            bundle.delta = tuple(rest)
            break
        return taken


class Join(Operator):
    """The inner join of two arrangements on their keys. `columns`: which of left's and right's columns to
    send."""

    def __init__(
        self,
        left: Arrange,
        right: Arrange,
        columns: Sequence[int],
        schema: pa.Schema,
        *,
        null_equals_null: bool,
        residual: BatchFunction | None,
    ) -> None:
        super().__init__(left.dataflow, f"join-{list(left.key)}={list(right.key)}", schema, [left, right])
        self._sides = (_Side(left), _Side(right))
        width = len(left.schema)
        self._from_left = [i for i in columns if i < width]
        self._from_right = [i - width for i in columns if i >= width]
        # where each sent column is found in "left's, then right's"
        self._arrange_out = [
            self._from_left.index(i) if i < width else len(self._from_left) + self._from_right.index(i - width)
            for i in columns
        ]
        self._null_equals_null = null_equals_null
        self._residual = residual
        self._pair_schema = pa.schema(
            [(left.schema.field(i) if i < width else right.schema.field(i - width)) for i in columns]
        )
        self._out: list[Updates] = []

    def activate(self) -> Slices | None:
        for side, port in zip(self._sides, self.ports, strict=True):
            side.push(port.take())
        frontier = self.input_frontier
        if frontier <= self.frontier:
            return None
        left, right = self._sides
        left_before, right_before = left.contents(), right.contents()
        left_delta, right_delta = left.take_below(frontier), right.take_below(frontier)
        if not left_delta and not right_delta:
            self.advance(frontier)
            return None
        return self._join(left_delta, right_before, left_before, right_delta, frontier)

    def _join(
        self,
        left_delta: list[Run],
        right_before: Sequence[Run],
        left_before: Sequence[Run],
        right_delta: list[Run],
        frontier: Frontier,
    ) -> Slices:
        for delta in left_delta:
            yield from self._pairs(delta, (*right_before, *right_delta), delta_is_left=True)
        for delta in right_delta:
            yield from self._pairs(delta, left_before, delta_is_left=False)
        self._flush()
        self.advance(frontier)

    def _pairs(self, delta: Run, others: Sequence[Run], *, delta_is_left: bool) -> Slices:
        """Send what `delta` makes with each of `others`."""
        mine, theirs = (0, 1) if delta_is_left else (1, 0)
        my_key = self._sides[mine].arrangement.key
        their_key = self._sides[theirs].arrangement.key
        if not self._null_equals_null:
            delta = _without_nulls(delta, my_key)
        exact = exact_hash(delta.rows, my_key)
        for other in others:
            if len(other) == 0 or len(delta) == 0:
                continue
            lows, highs = ranges(other, delta.keys)
            verify = not (exact and exact_hash(other.rows, their_key))
            for probes, found in _matches(lows, highs):
                if verify:
                    same = same_rows(delta.rows, my_key, probes, other.rows, their_key, found)
                    if not same.all():
                        probes, found = probes[same], found[same]
                if len(probes) == 0:
                    continue
                self._emit(delta, probes, other, found, delta_is_left=delta_is_left)
                if len(probes) >= _COALESCE_ROWS:
                    yield
            yield

    def _emit(self, delta: Run, at: Indices, other: Run, found: Indices, *, delta_is_left: bool) -> None:
        assert delta.times is not None
        times = delta.times[at]
        if other.times is not None:
            times = np.maximum(times, other.times[found])
        if delta.diffs is None and other.diffs is None:
            diffs = np.ones(len(at), np.int64)
        else:
            diffs = delta.diffs_at(at) * other.diffs_at(found)
        left, left_at, right, right_at = (delta, at, other, found) if delta_is_left else (other, found, delta, at)
        columns = [
            *take_rows(left.rows.select(self._from_left), left_at).columns,
            *take_rows(right.rows.select(self._from_right), right_at).columns,
        ]
        if columns:
            rows = pa.RecordBatch.from_arrays([columns[i] for i in self._arrange_out], schema=self._pair_schema)
        else:
            rows = take_rows(left.rows.select([]), left_at)
        pairs = Updates(rows, times, diffs)
        if self._residual is not None:
            pairs, errors = apply(self._residual, pairs)
            if errors is not None:
                self.send_errors(errors)
        if pairs.rows.schema != self.schema:
            raise InternalError(f"{self.name}: made {pairs.rows.schema}, declared was {self.schema}")
        self._out.append(pairs)
        if sum(map(len, self._out)) >= _COALESCE_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Small results travel together: each batch costs those below it a fixed time."""
        if self._out:
            out, self._out = self._out, []
            self.send(Updates.concat(out))


def _without_nulls(run: Run, key: tuple[int, ...]) -> Run:
    for column in key:
        values = run.rows.column(column)
        if values.null_count:
            run = run.filter(values.is_valid().to_numpy(zero_copy_only=False))
    return run


def _matches(lows: Indices, highs: Indices) -> Iterator[tuple[Indices, Indices]]:
    """(probe, position) pairs of all ranges, in slices of bounded size."""
    matching = np.flatnonzero(highs > lows)
    if len(matching) == 0:
        return
    starts = lows[matching]
    counts = highs[matching] - starts
    ends = np.cumsum(counts)
    total = int(ends[-1])
    for start in range(0, total, _PAIRS_PER_SLICE):
        probes, positions = expand(starts, counts, ends, start, min(start + _PAIRS_PER_SLICE, total))
        yield matching[probes], positions


def join(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    *,
    null_equals_null: bool = False,
    columns: list[int] | None = None,
    residual: BatchFunction | None = None,
    schema: pa.Schema | None = None,
) -> Collection:
    """Inner equi-join; empty keys make a cross join. Rows: all columns of `left`, then of `right`.

    `null_equals_null`: compare keys with IS NOT DISTINCT FROM. `columns`: send only these of the joined
    columns, in this order; what is not sent is not copied. `residual`: applied to every pair (after
    `columns`) as by `map_filter`, its results have `schema`.
    """
    if len(left_key) != len(right_key):
        raise ValueError(f"join of {len(left_key)} with {len(right_key)} key columns")
    for ours, theirs in zip(left_key, right_key, strict=True):
        mine, other = left.schema.field(ours).type, right.schema.field(theirs).type
        if mine != other and not (pa.types.is_integer(mine) and pa.types.is_integer(other)):
            raise ValueError(f"join key of type {mine} with one of type {other}")
    fields = [*left.schema, *right.schema]
    columns = list(range(len(fields))) if columns is None else columns
    if len(set(columns)) != len(columns):
        raise ValueError(f"a joined column is asked for twice: {columns}")
    if schema is None:
        schema = pa.schema([fields[i] for i in columns])
    operator = Join(
        arrange(left, left_key, keep_nulls=null_equals_null),
        arrange(right, right_key, keep_nulls=null_equals_null),
        columns,
        schema,
        null_equals_null=null_equals_null,
        residual=residual,
    )
    return Collection.of(operator, left, right, fallible=residual is not None)
