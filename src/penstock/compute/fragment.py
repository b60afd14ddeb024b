"""Expressions that no Arrow kernel covers, as a DataFusion plan over the current batch.

The plan is made once and executed for every batch: its only table is a dataset that hands out whatever
batch is current. Planning costs milliseconds, executing a prepared plan a few tenths of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.dataset as ds
from datafusion import ExecutionPlan

from penstock.compute.ir import Case, Column, Literal, Scalar, children_of, with_children
from penstock.compute.scalar_sql import render
from penstock.sql.functions import new_context


class _Scanner:
    """As much of a scanner as DataFusion uses. Planning asks for the schema, execution for the batches."""

    def __init__(self, owner: CurrentBatch, columns: list[str] | None) -> None:
        self._owner = owner
        self._columns = columns
        schema = owner.physical_schema
        self.projected_schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        batch = self._owner.batch
        assert batch is not None, "a fragment is scanned only while it runs"
        return iter([batch if self._columns is None else batch.select(self._columns)])


class CurrentBatch(ds.InMemoryDataset):
    """A dataset of one fragment, itself: the batch that `batch` holds when it is scanned."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(pa.Table.from_batches([], schema=schema))
        self.batch: pa.RecordBatch | None = None
        self.physical_schema = schema

    def get_fragments(self, filter: ds.Expression | None = None) -> Iterator[CurrentBatch]:
        return iter([self])

    def scanner(self, _schema: object = None, columns: list[str] | None = None, **_: object) -> _Scanner:
        return _Scanner(self, columns)


class Fragment:
    """One expression over operands ``c0 .. cn``. For one thread."""

    def __init__(self, expr: Scalar, operands: tuple[Scalar, ...]) -> None:
        self._type = expr.type
        self._context = new_context()
        self._schema = pa.schema([(f"c{i}", operand.type) for i, operand in enumerate(operands)])
        self._sql = render(expr, lambda column: f"c{column.index}")
        self._plan: ExecutionPlan | None = None
        self._current = CurrentBatch(self._schema)
        self._context.register_dataset("batch", self._current)

    def run(self, operands: list[pa.Array | pa.Scalar], count: int) -> pa.Array | pa.Scalar:
        """The expression's values for `count` rows. Raises what DataFusion raises for any of them."""
        if not operands:
            return self._constant()
        if count == 0:
            return pa.array([], self._type)
        columns = [
            (pa.repeat(operand, count) if isinstance(operand, pa.Scalar) else operand).cast(field.type)
            for operand, field in zip(operands, self._schema, strict=True)
        ]
        if self._plan is None:
            # On the first batch and not before: what fails while planning (constants are folded) fails for
            # rows.
            self._plan = self._context.sql(f"SELECT {self._sql} AS r FROM batch").execution_plan()
        self._current.batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        try:
            stream = self._context.execute(self._plan, 0)
            arrays = [batch.to_pyarrow().column(0) for batch in stream]
        finally:
            self._current.batch = None
        result = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
        if len(result) != count:
            raise AssertionError(f"{self._sql}: {len(result)} values for {count} rows")
        return result if result.type == self._type else result.cast(self._type)

    def _constant(self) -> pa.Scalar:
        batches = self._context.sql(f"SELECT {self._sql} AS r").collect()
        return batches[0].column(0).cast(self._type)[0]


def fragment_of(expr: Scalar, foreign: Callable[[Scalar], bool]) -> tuple[Fragment, tuple[Scalar, ...]]:
    """A fragment for `expr` and the operands it takes.

    Operands that are `foreign` too (no kernel covers them) and constants become part of the fragment; the
    others are computed outside. CASE stays outside: its branches must not be evaluated for rows they are
    not meant for.
    """
    operands: list[Scalar] = []

    def inside(part: Scalar) -> Scalar:
        if isinstance(part, Literal):
            return part
        if not isinstance(part, Column | Case) and foreign(part):
            return with_children(part, tuple(inside(child) for child in children_of(part)))
        if part not in operands:
            operands.append(part)
        return Column(operands.index(part), part.type)

    body = with_children(expr, tuple(inside(child) for child in children_of(expr)))
    return Fragment(body, tuple(operands)), tuple(operands)
