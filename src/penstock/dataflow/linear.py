"""Operators without state: what they do to a change does not depend on any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.graph import ERRORS_SCHEMA, Collection, Dataflow, Operator, Slices
from penstock.runtime import DONE, InternalError, Updates

_SLICE_ROWS = 1 << 18

Indices = npt.NDArray[np.int64]


def _no_indices() -> Indices:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class BatchResult:
    """What a function made of a batch of n rows.

    `rows`: the m results. `selection`: int64[m], for each the input row it came from (None: m == n, in
    order). An input row may appear any number of times. `errors`: rows of `ERRORS_SCHEMA`, each from the
    input row in `error_selection`.
    """

    rows: pa.RecordBatch
    selection: Indices | None = None
    errors: pa.RecordBatch | None = None
    error_selection: Indices = field(default_factory=_no_indices)


BatchFunction = Callable[[pa.RecordBatch], BatchResult]
"""A function of each row alone: equal rows give equal results and errors in any batch, or retractions would
not cancel."""


def apply(function: BatchFunction, updates: Updates) -> tuple[Updates, Updates | None]:
    """`function` on all rows: results and errors with the times and diffs of the rows they came from."""
    result = function(updates.rows)
    if result.selection is None:
        oks = updates.with_rows(result.rows)
    else:
        oks = Updates(result.rows, updates.times[result.selection], updates.diffs[result.selection])
    if result.errors is None or result.errors.num_rows == 0:
        return oks, None
    at = result.error_selection
    return oks, Updates(result.errors, updates.times[at], updates.diffs[at])


class _MapFilter(Operator):
    def __init__(self, source: Operator, function: BatchFunction, schema: pa.Schema) -> None:
        super().__init__(source.dataflow, "map-filter", schema, [source])
        self._function = function

    def activate(self) -> Slices | None:
        port = self.ports[0]
        batches, frontier = port.take(), port.frontier
        if sum(map(len, batches)) <= _SLICE_ROWS:
            for updates in batches:
                self._apply(updates)
            self.advance(frontier)
            return None
        return self._slowly(batches, frontier)

    def _slowly(self, batches: list[Updates], frontier: int) -> Slices:
        for updates in batches:
            for start in range(0, len(updates), _SLICE_ROWS):
                self._apply(updates.slice(start, start + _SLICE_ROWS))
                yield
        self.advance(frontier)  # type: ignore[arg-type]

    def _apply(self, updates: Updates) -> None:
        oks, errors = apply(self._function, updates)
        if oks.rows.schema != self.schema:
            raise InternalError(f"{self.name}: its function returned {oks.rows.schema}, declared was {self.schema}")
        if errors is not None:
            self.send_errors(errors)
        self.send(oks)


class _Union(Operator):
    def activate(self) -> Slices | None:
        for port in self.ports:
            for updates in port.take():
                self.send(updates)
        self.advance(self.input_frontier)
        return None


class _Negate(Operator):
    def activate(self) -> Slices | None:
        port = self.ports[0]
        for updates in port.take():
            self.send(updates.negate())
        self.advance(port.frontier)
        return None


class _Project(Operator):
    def __init__(self, source: Operator, columns: list[int], schema: pa.Schema) -> None:
        super().__init__(source.dataflow, f"project-{columns}", schema, [source])
        self._columns = columns

    def activate(self) -> Slices | None:
        port = self.ports[0]
        for updates in port.take():
            self.send(updates.with_rows(select(updates.rows, self._columns, self.schema)))
        self.advance(port.frontier)
        return None


class _Constant(Operator):
    def __init__(self, dataflow: Dataflow, rows: Updates, errors: Updates | None) -> None:
        super().__init__(dataflow, "constant", rows.schema, [])
        self._rows: Updates | None = rows
        self._errors = errors

    def activate(self) -> Slices | None:
        if self._rows is not None:
            if self._errors is not None:
                self.send_errors(self._errors)
            self.send(self._rows)
            self._rows = self._errors = None
        self.advance(DONE)
        return None


def map_filter(collection: Collection, function: BatchFunction, schema: pa.Schema) -> Collection:
    """Map, filter, project and flat-map in one: `function` on every batch; its results have exactly `schema`."""
    operator = _MapFilter(collection.operator, function, schema)
    return Collection.of(operator, collection, fallible=True)


def project(collection: Collection, columns: list[int]) -> Collection:
    """The columns `columns`, in that order; nothing is copied."""
    schema = pa.schema([collection.schema.field(i) for i in columns])
    return Collection.of(_Project(collection.operator, columns, schema), collection)


def union(collections: list[Collection]) -> Collection:
    """All rows of all `collections` (at least one; equal types by position), multiplicities added."""
    first = collections[0]
    if len(collections) == 1:
        return first
    for other in collections[1:]:
        if other.schema.types != first.schema.types:
            raise ValueError(f"union of different rows: {first.schema} and {other.schema}")
    # Nullability and names are the first's unless others are wider.
    fields = [
        field.with_nullable(any(c.schema.field(i).nullable for c in collections))
        for i, field in enumerate(first.schema)
    ]
    schema = pa.schema(fields)
    parts = [with_schema(c, schema) for c in collections]
    operator = _Union(first.dataflow, "union", schema, [part.operator for part in parts])
    return Collection.of(operator, *collections)


def with_schema(collection: Collection, schema: pa.Schema) -> Collection:
    """The same rows under other names or nullability."""
    if collection.schema.equals(schema, check_metadata=True):
        return collection
    operator = _Project(collection.operator, list(range(len(schema))), schema)
    return Collection.of(operator, collection)


def negate(collection: Collection) -> Collection:
    """Every row with its multiplicity negated. Errors are not: an error does not undo another."""
    operator = _Negate(collection.dataflow, "negate", collection.schema, [collection.operator])
    return Collection.of(operator, collection)


def constant(dataflow: Dataflow, rows: pa.RecordBatch, errors: pa.RecordBatch | None = None) -> Collection:
    """`rows` from the dataflow's `as_of` on, for ever. `errors` (`ERRORS_SCHEMA`): for an expression that
    always fails."""
    failed = None if errors is None else Updates.at(errors.cast(ERRORS_SCHEMA), dataflow.as_of)
    operator = _Constant(dataflow, Updates.at(rows, dataflow.as_of), failed)
    return Collection.of(operator, fallible=errors is not None)


def select(rows: pa.RecordBatch, columns: list[int], schema: pa.Schema) -> pa.RecordBatch:
    """`columns` of `rows` under `schema`, which may differ in names and nullability only."""
    if not columns:
        return rows.select([])
    return pa.RecordBatch.from_arrays([rows.column(i) for i in columns], schema=schema)
