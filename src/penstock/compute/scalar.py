"""Scalar expressions on Arrow batches.

A list of expressions is compiled once into a *program*: nodes in order of evaluation, equal subexpressions
once, each with a function on whole columns. Simple nodes are Arrow kernels (`kernels`), the rest DataFusion
plans over the batch (`fragment`).

A program runs in one of two ways that agree on every row:

* *fast*: every node on all rows. Whatever raises, raises for the batch.
* *careful*, after something raised: AND, OR, CASE and IN evaluate an operand only for the rows that need
  it, and a node that raises is split in halves until the failing rows stand alone. Those rows become
  errors, all others results.

A row's error is the first in order of evaluation (filter first, then expressions from left to right), a
function of the row alone: a retraction of the row retracts the same error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.compute.failures import explain_failure
from penstock.compute.fragment import Fragment, fragment_of
from penstock.compute.ir import Call, Case, Column, Literal, Scalar, children_of, literal_scalar
from penstock.compute.kernels import kernel_for
from penstock.compute.values import Kernel, Value
from penstock.dataflow import ERRORS_SCHEMA, BatchFunction, BatchResult
from penstock.runtime.updates import take_rows, with_row_count

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


def compile_scalars(predicate: Scalar | None, exprs: Sequence[Scalar], schema: pa.Schema) -> BatchFunction:
    """The function that keeps the rows of a batch for which `predicate` is true and computes `exprs` of them.

    `schema`: of the results; a value that does not have its column's type is cast. The function is for one
    thread.
    """
    return _MapFilter(None if predicate is None else Program([predicate]), Program(exprs), schema)


class _MapFilter:
    def __init__(self, predicate: Program | None, exprs: Program, schema: pa.Schema) -> None:
        self._predicate = predicate
        self._exprs = exprs
        self._schema = schema

    def __call__(self, rows: pa.RecordBatch) -> BatchResult:
        try:
            return self._fast(rows)
        except Exception:
            # Deliberately broad: any failure of a library on a batch is looked into row by row, and what
            # fails for a single row becomes an error in the data.
            return self._careful(rows)

    def _fast(self, rows: pa.RecordBatch) -> BatchResult:
        selection: Indices | None = None
        columns, count = rows.columns, rows.num_rows
        if self._predicate is not None:
            selection = _true_rows(self._predicate.run(columns, count)[0], count)
            if len(selection) == count:
                selection = None
            else:
                columns, count = self._exprs.take(columns, selection), len(selection)
        return BatchResult(self._batch(self._exprs.run(columns, count), count), selection)

    def _careful(self, rows: pa.RecordBatch) -> BatchResult:
        errors: dict[int, tuple[str, str]] = {}
        columns: list[pa.Array] = rows.columns
        selection = np.arange(rows.num_rows, dtype=np.int64)
        if self._predicate is not None:
            (kept,), alive = self._predicate.run_carefully(columns, selection, errors)
            selection = selection[alive][_true_rows(kept, int(alive.sum()))]
            columns = take_rows(rows, selection).columns if rows.num_columns else columns
        arrays, alive = self._exprs.run_carefully(columns, selection, errors)
        selection = selection[alive]
        failed = np.array(sorted(errors), dtype=np.int64)
        texts = [errors[int(i)] for i in failed]
        error_rows = pa.RecordBatch.from_arrays(
            [pa.array([text[i] for text in texts], pa.string()) for i in (0, 1)], schema=ERRORS_SCHEMA
        )
        return BatchResult(self._batch(arrays, len(selection)), selection, error_rows, failed)

    def _batch(self, arrays: list[pa.Array], count: int) -> pa.RecordBatch:
        if not arrays:
            return with_row_count(self._schema, count)
        return pa.RecordBatch.from_arrays(
            [
                array if array.type == field.type else array.cast(field.type)
                for array, field in zip(arrays, self._schema, strict=True)
            ],
            schema=self._schema,
        )


@dataclass(slots=True, eq=False)
class _Node:
    """One step of a program. `function` makes the value from those of `args` (positions of earlier nodes)."""

    expr: Scalar
    args: tuple[int, ...]
    function: Kernel
    column: int = -1
    fragment: Fragment | None = None


class Program:
    """Compiled expressions. `exprs` may share subexpressions; each is evaluated once per batch."""

    def __init__(self, exprs: Sequence[Scalar]) -> None:
        self._nodes: list[_Node] = []
        self._positions: dict[Scalar, int] = {}
        self._results = [self._add(expr) for expr in exprs]
        self._types = [expr.type for expr in exprs]
        self._columns = sorted({node.column for node in self._nodes if node.column >= 0})

    def take(self, columns: Sequence[pa.Array], selection: Indices) -> list[pa.Array]:
        """`columns` restricted to the rows `selection`; those the program does not read are left as they
        are.
        """
        indices = pa.array(selection)
        taken = list(columns)
        for i in self._columns:
            taken[i] = columns[i].take(indices)
        return taken

    def run(self, columns: Sequence[pa.Array], count: int) -> list[pa.Array]:
        """One array of `count` values per expression. Raises what a library raises for any of the rows."""
        values: list[Value] = []
        for node in self._nodes:
            if node.column >= 0:
                values.append(columns[node.column])
            else:
                values.append(node.function([values[i] for i in node.args], count))
        return [as_array(values[i], count, kind) for i, kind in zip(self._results, self._types, strict=True)]

    def run_carefully(
        self, columns: Sequence[pa.Array], rows: Indices, errors: dict[int, tuple[str, str]]
    ) -> tuple[list[pa.Array], Mask]:
        """(one array per expression for the rows without an error, which of the rows those are).

        `rows`: the numbers under which failing rows are entered in `errors`.
        """
        careful = _Careful(self._nodes, columns, rows, errors)
        everything = np.arange(len(rows), dtype=np.int64)
        outcomes = [careful.evaluate(position, everything) for position in self._results]
        alive = np.ones(len(rows), dtype=bool)
        for _, failed in outcomes:
            alive &= ~failed
        indices = pa.array(np.flatnonzero(alive))
        return [array.take(indices) for array, _ in outcomes], alive

    def _add(self, expr: Scalar) -> int:
        if expr in self._positions:
            return self._positions[expr]
        node = self._make(expr)
        self._nodes.append(node)
        self._positions[expr] = len(self._nodes) - 1
        return len(self._nodes) - 1

    def _make(self, expr: Scalar) -> _Node:
        if isinstance(expr, Column):
            return _Node(expr, (), _no_function, column=expr.index)
        if isinstance(expr, Literal):
            value = literal_scalar(expr)
            return _Node(expr, (), lambda _args, _count: value)
        kernel = kernel_for(expr)
        if kernel is not None:
            return _Node(expr, tuple(self._add(child) for child in children_of(expr)), kernel)
        fragment, operands = fragment_of(expr, lambda inner: kernel_for(inner) is None)
        return _Node(expr, tuple(self._add(operand) for operand in operands), fragment.run, fragment=fragment)


class _Careful:
    """One careful run. `evaluate` gives (values, failed) for a subset of the rows, both as long as the
    subset.
    """

    def __init__(
        self,
        nodes: list[_Node],
        columns: Sequence[pa.Array],
        rows: Indices,
        errors: dict[int, tuple[str, str]],
    ) -> None:
        self._nodes = nodes
        self._columns = columns
        self._rows = rows
        self._errors = errors

    def evaluate(self, position: int, at: Indices) -> tuple[pa.Array, Mask]:
        node = self._nodes[position]
        expr = node.expr
        if node.column >= 0:
            return self._columns[node.column].take(pa.array(at)), np.zeros(len(at), dtype=bool)
        if isinstance(expr, Literal):
            return as_array(literal_scalar(expr), len(at), expr.type), np.zeros(len(at), dtype=bool)
        if isinstance(expr, Call) and expr.name in ("and", "or"):
            return self._lazy_logic(node, at, expr.name == "or")
        if isinstance(expr, Case):
            return self._lazy_case(expr, node, at)
        return self._strict(node, at)

    def _strict(self, node: _Node, at: Indices) -> tuple[pa.Array, Mask]:
        """All operands, then the function on the rows where none failed."""
        failed = np.zeros(len(at), dtype=bool)
        operands: list[pa.Array] = []
        for arg in node.args:
            if isinstance(self._nodes[arg].expr, Literal):
                operands.append(literal_scalar(self._nodes[arg].expr))
                continue
            array, bad = self.evaluate(arg, at)
            operands.append(array)
            failed |= bad
        good = np.flatnonzero(~failed)
        if len(good) < len(at):
            indices = pa.array(good)
            operands = [o if isinstance(o, pa.Scalar) else o.take(indices) for o in operands]
        parts: list[pa.Array] = []
        self._split(node, operands, at[good], good, failed, parts)
        return _scatter(parts, failed, node.expr.type), failed

    def _split(
        self,
        node: _Node,
        operands: list[Value],
        at: Indices,
        local: Indices,
        failed: Mask,
        parts: list[pa.Array],
    ) -> None:
        """Append the results of `node` for the rows `at`, in order; rows that fail are marked and left out."""
        count = len(at)
        if count == 0:
            return
        try:
            parts.append(as_array(node.function(operands, count), count, node.expr.type))
            return
        except Exception as error:
            if count == 1:
                known = explain_failure(error)
                self._errors.setdefault(int(self._rows[at[0]]), (known.sqlstate, known.message))
                failed[local[0]] = True
                return
        half = count // 2
        for start, stop in ((0, half), (half, count)):
            cut = [o if isinstance(o, pa.Scalar) else o.slice(start, stop - start) for o in operands]
            self._split(node, cut, at[start:stop], local[start:stop], failed, parts)

    def _lazy_logic(self, node: _Node, at: Indices, is_or: bool) -> tuple[pa.Array, Mask]:
        """AND and OR: an operand only for the rows that the ones before it have not decided."""
        result, failed = self.evaluate(node.args[0], at)
        for arg in node.args[1:]:
            decided = _true(result) if is_or else _false(result)
            open_rows = np.flatnonzero(~decided & ~failed)
            array, bad = self.evaluate(arg, at[open_rows])
            other = _spread(array, open_rows, len(at), pa.scalar(is_or, pa.bool_()))
            result = pc.or_kleene(result, other) if is_or else pc.and_kleene(result, other)
            failed[open_rows[bad]] = True
        return result, failed

    def _lazy_case(self, case: Case, node: _Node, at: Indices) -> tuple[pa.Array, Mask]:
        failed = np.zeros(len(at), dtype=bool)
        open_rows = np.arange(len(at), dtype=np.int64)
        parts: list[pa.Array] = []
        places: list[Indices] = []

        def branch(position: int, chosen: Indices) -> None:
            array, bad = self.evaluate(position, at[chosen])
            failed[chosen[bad]] = True
            parts.append(array.take(pa.array(np.flatnonzero(~bad))).cast(case.type))
            places.append(chosen[~bad])

        for i in range(len(case.whens)):
            condition, bad = self.evaluate(node.args[2 * i], at[open_rows])
            failed[open_rows[bad]] = True
            holds = _true(condition) & ~bad
            branch(node.args[2 * i + 1], open_rows[holds])
            open_rows = open_rows[~holds & ~bad]
        if case.otherwise is not None:
            branch(node.args[-1], open_rows)
        values = pa.concat_arrays(parts)
        where = np.full(len(at), -1, np.int64)
        where[np.concatenate(places)] = np.arange(len(values))
        return values.take(pa.array(where, mask=where < 0)), failed


def as_array(value: Value, count: int, kind: pa.DataType) -> pa.Array:
    """`value` as an array of `count` values of `kind`."""
    if isinstance(value, pa.Scalar):
        return pa.nulls(count, kind) if not value.is_valid else pa.repeat(value, count).cast(kind)
    if isinstance(value, pa.ChunkedArray):
        value = value.combine_chunks()
    return value if value.type == kind else value.cast(kind)


def _true_rows(mask: pa.Array, count: int) -> Indices:
    """The rows for which a boolean array is true."""
    return np.flatnonzero(_true(mask))


def _true(mask: pa.Array) -> Mask:
    filled = mask.fill_null(False) if mask.null_count else mask
    return filled.to_numpy(zero_copy_only=False)


def _false(mask: pa.Array) -> Mask:
    filled = mask.fill_null(True) if mask.null_count else mask
    return ~filled.to_numpy(zero_copy_only=False)


def _scatter(parts: list[pa.Array], failed: Mask, kind: pa.DataType) -> pa.Array:
    """The concatenation of `parts` with NULLs put in where `failed`."""
    values = pa.concat_arrays(parts) if parts else pa.array([], kind)
    if not failed.any():
        return values
    where = np.cumsum(~failed) - 1
    return values.take(pa.array(where, mask=failed)) if len(values) else pa.nulls(len(failed), kind)


def _spread(values: pa.Array, at: Indices, count: int, default: pa.Scalar) -> pa.Array:
    """An array of `count` values: `values` at the rows `at`, `default` elsewhere."""
    if len(at) == count:
        return values
    where = np.full(count, len(values), np.int64)
    where[at] = np.arange(len(values))
    return pa.concat_arrays([values, pa.repeat(default, 1)]).take(pa.array(where))


def _no_function(_args: list[Value], _count: int) -> Value:
    raise AssertionError("a column has no function")
