"""Window functions of a Substrait plan.

A function whose answer depends on how equal rows are ordered (``row_number``, ``lag``, a ROWS frame) gets
the whole row as last sort keys, so that all replicas agree. Peers-based functions (``rank``, RANGE frames)
must keep equal rows equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from substrait.algebra_pb2 import Expression

from penstock.compute import lower_aggregate
from penstock.compute.ir import Column, Literal, Rel, SortKey, Window, WindowFunction
from penstock.compute.normalize import with_columns
from penstock.compute.scalar_sql import render_literal
from penstock.runtime import SqlError

if TYPE_CHECKING:
    from penstock.compute.lower import _Lowering

_RANKS = {
    "row_number": pa.uint64(),
    "rank": pa.uint64(),
    "dense_rank": pa.uint64(),
    "ntile": pa.uint64(),
    "percent_rank": pa.float64(),
    "cume_dist": pa.float64(),
}
_OF_ARGUMENT = frozenset({"lag", "lead", "first_value", "last_value", "nth_value"})
_BY_ROW = frozenset({"row_number", "ntile", "lag", "lead"})
"""Functions without a frame that number or pick single rows."""

_FRAMELESS = _BY_ROW | {"rank", "dense_rank", "percent_rank", "cume_dist"}


def attach(lowering: _Lowering, rel: Rel, function: Any) -> tuple[Rel, Column]:
    """`rel` with one more column (perhaps after some helping ones): the answer of the window function."""
    name = lowering.scalars.function_name(function.function_reference)
    if function.invocation == 2:
        raise SqlError(f"{name}(DISTINCT ...) OVER cannot be maintained", sqlstate="0A000")
    arguments = [lowering.scalars.scalar(argument.value, rel.types) for argument in function.arguments]
    partition_exprs = tuple(lowering.scalars.scalar(expr, rel.types) for expr in function.partitions)
    rel, order = lowering.sort_keys(function.sorts, rel)
    columns = tuple(argument for argument in arguments if not isinstance(argument, Literal))
    rel, positions = with_columns(rel, (*columns, *partition_exprs))
    args, partition = positions[: len(columns)], positions[len(columns) :]
    frame = "" if name in _FRAMELESS else _frame(function, bool(order))
    if name in _BY_ROW or frame.startswith("ROWS"):
        order = _total(order, rel.arity)
    window = WindowFunction(
        _call_text(name, arguments),
        args,
        partition,
        order,
        frame,
        _type(name, [argument.type for argument in arguments]),
    )
    if isinstance(rel, Window) and rel.partition == partition:
        inner = rel.input.arity
        if all(i < inner for i in (*args, *(key.column for key in order))):
            return Window(rel.input, partition, (*rel.functions, window)), Column(rel.arity, window.type)
    return Window(rel, partition, (window,)), Column(rel.arity, window.type)


def _total(order: tuple[SortKey, ...], arity: int) -> tuple[SortKey, ...]:
    named = {key.column for key in order}
    return (*order, *(SortKey(i) for i in range(arity) if i not in named))


def _call_text(name: str, arguments: list[Any]) -> str:
    parts, column = [], 0
    for argument in arguments:
        if isinstance(argument, Literal):
            parts.append(render_literal(argument).replace("{", "{{").replace("}", "}}"))
        else:
            parts.append("{" + str(column) + "}")
            column += 1
    return f"{name}({', '.join(parts)})"


def _type(name: str, types: list[pa.DataType]) -> pa.DataType:
    if name in _RANKS:
        return _RANKS[name]
    if name in _OF_ARGUMENT:
        return types[0]
    if name in lower_aggregate.MAINTAINED:
        return lower_aggregate.aggregate_type(name, tuple(types))
    raise SqlError(f"window function {name}() cannot be maintained", sqlstate="0A000")


def _frame(function: Any, ordered: bool) -> str:
    window = Expression.WindowFunction
    if function.bounds_type == window.BOUNDS_TYPE_ROWS:
        unit = "ROWS"
    elif function.bounds_type == window.BOUNDS_TYPE_RANGE:
        unit = "RANGE"
    else:
        raise SqlError("this kind of window frame cannot be maintained", sqlstate="0A000")
    if unit == "RANGE" and not ordered:
        return ""  # without an order all rows of the partition are peers
    lower, upper = _end(function.lower_bound, "PRECEDING"), _end(function.upper_bound, "FOLLOWING")
    return f"{unit} BETWEEN {lower} AND {upper}"


def _end(bound: Any, unbounded: str) -> str:
    kind = bound.WhichOneof("kind")
    match kind:
        case "unbounded":
            return f"UNBOUNDED {unbounded}"
        case "current_row":
            return "CURRENT ROW"
        case "preceding":
            return f"{bound.preceding.offset} PRECEDING"
        case "following":
            return f"{bound.following.offset} FOLLOWING"
    raise SqlError("this kind of window frame cannot be maintained", sqlstate="0A000")
