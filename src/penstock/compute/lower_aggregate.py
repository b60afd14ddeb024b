"""Aggregates of a Substrait plan.

What `Reduce` cannot say is written with other nodes: FILTER makes the argument NULL where it does not hold,
grouping sets are a union of reductions, ``first_value(... ORDER BY ...)`` over all columns (what DISTINCT
ON becomes) is a top 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penstock.compute.ir import (
    Aggregate,
    Case,
    Distinct,
    Literal,
    Reduce,
    Rel,
    Scalar,
    SortKey,
    TopK,
    Union,
    When,
    columns_of,
    make_literal,
)
from penstock.compute.normalize import project, take_columns, with_columns
from penstock.runtime import SqlError

if TYPE_CHECKING:
    from penstock.compute.lower import _Lowering

IGNORES_NULLS = frozenset(
    {
        "sum",
        "count",
        "avg",
        "min",
        "max",
        "bool_and",
        "bool_or",
        "stddev",
        "stddev_pop",
        "stddev_samp",
        "var",
        "var_pop",
        "var_samp",
        "string_agg",
    }
)
"""Aggregates for which a NULL argument is as good as no row."""

ORDERED = frozenset({"string_agg", "array_agg", "first_value", "last_value", "nth_value"})
RECOMPUTED = frozenset(
    {
        "string_agg",
        "array_agg",
        "median",
        "approx_distinct",
        "percentile_cont",
        "bit_and",
        "bit_or",
        "bit_xor",
        "corr",
        "covar_pop",
        "covar_samp",
        "regr_slope",
        "regr_intercept",
    }
)
"""Aggregates whose touched groups are computed again by DataFusion."""

MAINTAINED = (IGNORES_NULLS | RECOMPUTED) - {"approx_distinct"}
_ALIASES = {"mean": "avg", "stddev_samp": "stddev", "var_samp": "var", "var_sample": "var", "var_population": "var_pop"}
_DISTINCT_MATTERS_NOT = frozenset({"min", "max", "bool_and", "bool_or", "bit_and", "bit_or"})
_INVOCATION_DISTINCT = 2


def lower(lowering: _Lowering, message: Any) -> Rel:
    """The IR of an AggregateRel: its grouping expressions, a grouping id if it has several sets, its
    measures.
    """
    rel = lowering.rel(message.input)
    grouping = tuple(lowering.scalars.scalar(expr, rel.types) for expr in message.grouping_expressions)
    sets = [tuple(grouping[i] for i in group.expression_references) for group in message.groupings]
    measures = [_Measure(lowering, rel, measure) for measure in message.measures]
    if len(sets) > 1:
        return _grouping_sets(rel, grouping, sets, measures)
    key = sets[0] if sets else ()
    if measures and all(measure.function == "first_value" for measure in measures):
        return _first_rows(lowering, rel, key, message.measures)
    return _reduce(rel, key, measures)


class _Measure:
    """One aggregate of a plan, its arguments still expressions."""

    def __init__(self, lowering: _Lowering, rel: Rel, message: Any) -> None:
        function = message.measure
        name = lowering.scalars.function_name(function.function_reference)
        self.function = _ALIASES.get(name, name)
        arguments = [lowering.scalars.scalar(argument.value, rel.types) for argument in function.arguments]
        condition = lowering.scalars.scalar(message.filter, rel.types) if message.HasField("filter") else None
        distinct = function.invocation == _INVOCATION_DISTINCT
        self.distinct = distinct and self.function not in _DISTINCT_MATTERS_NOT
        self.sorts = list(function.sorts) if self.function in ORDERED else []
        self.order_exprs = tuple(lowering.scalars.scalar(sort.expr, rel.types) for sort in self.sorts)
        if self.function == "first_value":
            self.args: tuple[Scalar, ...] = tuple(arguments)
            return
        if self.function not in MAINTAINED:
            raise SqlError(
                f"aggregate {self.function}() cannot be maintained",
                sqlstate="0A000",
                hint="Use count, sum, avg, min, max, bool_and, bool_or, stddev, variance, string_agg or array_agg.",
            )
        if self.function == "count" and len(arguments) > 1:
            raise SqlError("count() of several columns cannot be maintained", sqlstate="0A000")
        split = 1 if self.function in ("string_agg", "percentile_cont") else len(arguments)
        if not all(isinstance(argument, Literal) for argument in arguments[split:]):
            raise SqlError(f"the parameters of {self.function}() must be constants", sqlstate="0A000")
        self.parameters = tuple(arg for arg in arguments[split:] if isinstance(arg, Literal))
        arguments = arguments[:split]
        if self.function == "count" and isinstance(arguments[0], Literal) and not distinct:
            # count(1) counts rows; count(NULL) none
            arguments = [] if arguments[0].value is not None else arguments
        if condition is not None:
            arguments = self._filtered(arguments, condition)
        self.args = tuple(arguments)
        self.type = aggregate_type(self.function, tuple(argument.type for argument in arguments))

    def _filtered(self, arguments: list[Scalar], condition: Scalar) -> list[Scalar]:
        if self.function not in IGNORES_NULLS:
            raise SqlError(f"FILTER on {self.function}() cannot be maintained", sqlstate="0A000")
        argument = arguments[0] if arguments else make_literal(1, pa.int64())
        return [Case((When(condition, argument),), None, argument.type), *arguments[1:]]


def _reduce(rel: Rel, key: tuple[Scalar, ...], measures: list[_Measure]) -> Rel:
    needed = [*key, *(arg for measure in measures for arg in (*measure.args, *measure.order_exprs))]
    columns: dict[Scalar, int] = {}
    for expr in needed:
        columns.setdefault(expr, len(columns))
    # the key comes first and keeps its repetitions; everything else once
    source = project(rel, tuple(columns)) if columns else rel
    key_columns = tuple(columns[expr] for expr in key)
    if not measures:
        return take_columns(Distinct(take_columns(source, tuple(dict.fromkeys(key_columns)))), _positions(key_columns))
    aggregates = []
    for measure in measures:
        order = []
        for expr, sort in zip(measure.order_exprs, measure.sorts, strict=True):
            descending, nulls_first = _direction(sort)
            order.append(SortKey(columns[expr], descending, nulls_first))
        aggregates.append(
            Aggregate(
                measure.function,
                tuple(columns[arg] for arg in measure.args),
                measure.type,
                measure.distinct,
                tuple(order),
                measure.parameters,
            )
        )
    return Reduce(source, key_columns, tuple(aggregates))


def _positions(columns: tuple[int, ...]) -> tuple[int, ...]:
    distinct = list(dict.fromkeys(columns))
    return tuple(distinct.index(column) for column in columns)


def _direction(sort: Any) -> tuple[bool, bool]:
    from penstock.compute.lower import _DIRECTIONS

    if sort.direction not in _DIRECTIONS:
        raise SqlError("this order cannot be maintained", sqlstate="0A000")
    return _DIRECTIONS[sort.direction]


def _first_rows(lowering: _Lowering, rel: Rel, key: tuple[Scalar, ...], measures: Any) -> Rel:
    """All aggregates are first_value with one order: the first row of each group."""
    orders = {tuple(sort.SerializeToString() for sort in measure.measure.sorts) for measure in measures}
    if len(orders) != 1 or any(measure.HasField("filter") for measure in measures):
        raise SqlError("first_value() with several orders or a FILTER cannot be maintained", sqlstate="0A000")
    values = tuple(lowering.scalars.scalar(measure.measure.arguments[0].value, rel.types) for measure in measures)
    sorted_rel, order = lowering.sort_keys(measures[0].measure.sorts, rel)
    wide, columns = with_columns(sorted_rel, (*key, *values))
    top = TopK(wide, columns[: len(key)], order, 1)
    return take_columns(top, columns)


def _grouping_sets(
    rel: Rel, grouping: tuple[Scalar, ...], sets: list[tuple[Scalar, ...]], measures: list[_Measure]
) -> Rel:
    """One reduction per set; grouping columns outside the set are NULL, and the id has a bit for each of
    them.
    """
    distinct = tuple(dict.fromkeys(grouping))
    id_type = _grouping_id_type(len(distinct))
    parts = []
    for chosen in sets:
        reduced = _reduce(rel, chosen, measures)
        columns = columns_of(reduced)
        where = {expr: columns[i] for i, expr in enumerate(chosen)}
        keys = tuple(where.get(expr, Literal(None, expr.type)) for expr in distinct)
        bits = sum(1 << (len(distinct) - 1 - i) for i, expr in enumerate(distinct) if expr not in where)
        parts.append(project(reduced, (*keys, make_literal(bits, id_type), *columns[len(chosen) :])))
    return Union(tuple(parts))


def _grouping_id_type(count: int) -> pa.DataType:
    for limit, kind in ((8, pa.uint8()), (16, pa.uint16()), (32, pa.uint32()), (64, pa.uint64())):
        if count <= limit:
            return kind
    raise SqlError("more than 64 grouping expressions cannot be maintained", sqlstate="0A000")


def aggregate_type(function: str, types: tuple[pa.DataType, ...]) -> pa.DataType:
    """What DataFusion's aggregate returns for arguments of `types` (its analyzer has put casts around
    them).
    """
    argument = types[0] if types else pa.null()
    match function:
        case "count":
            return pa.int64()
        case "sum":
            return _sum_type(argument)
        case "avg":
            if pa.types.is_decimal(argument):
                return pa.decimal128(min(38, argument.precision + 4), min(38, argument.scale + 4))
            return argument if pa.types.is_duration(argument) else pa.float64()
        case "min" | "max" | "bit_and" | "bit_or" | "bit_xor":
            return argument
        case "median" | "percentile_cont":
            return argument
        case "bool_and" | "bool_or":
            return pa.bool_()
        case "string_agg":
            return pa.string()
        case "array_agg":
            return pa.list_(argument)
        case _:
            return pa.float64()


def _sum_type(argument: pa.DataType) -> pa.DataType:
    if pa.types.is_decimal(argument):
        return pa.decimal128(min(38, argument.precision + 10), argument.scale)
    if pa.types.is_unsigned_integer(argument):
        return pa.uint64()
    if pa.types.is_integer(argument):
        return pa.int64()
    return argument if pa.types.is_duration(argument) else pa.float64()
