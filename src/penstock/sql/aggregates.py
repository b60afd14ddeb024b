"""Aggregate and window functions.

PostgreSQL's results are wider than DataFusion's: the sum of bigint is numeric, the average of exact numbers is an exact
quotient. Both are written with DataFusion's own sum and count, which the incremental engine maintains as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.runtime import SqlError
from penstock.sql.bound import Bound, Facts, combine
from penstock.sql.calls import unknown_function
from penstock.sql.casts import Context, arrow_name, as_numeric, cast, coerce, df_type, family, resolve_unknown
from penstock.sql.operators import numeric_quotient
from penstock.sql.types import (
    BOOL,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    INTERVAL,
    NUMERIC,
    TEXT,
    SqlType,
    array_of,
    numeric,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What surrounds the arguments of one call: DISTINCT and ORDER BY inside, FILTER and OVER after it."""

    distinct: bool = False
    order: str = ""
    filter: str = ""
    over: str = ""

    def write(self, function: str, arguments: str) -> str:
        inner = ("DISTINCT " if self.distinct else "") + arguments + (f" {self.order}" if self.order else "")
        return f"{function}({inner}){self.filter}{self.over}"


Rule = Callable[[str, list[Bound], Shape, Facts], "tuple[str, SqlType] | None"]


def is_aggregate(name: str) -> bool:
    return name in _AGGREGATES


def is_window_only(name: str) -> bool:
    return name in _WINDOW


def aggregate(
    name: str, arguments: list[Bound], star: bool, shape: Shape, facts: Facts, position: int | None
) -> tuple[str, SqlType]:
    """SQL and type of an aggregate. SqlError 42883 when it does not take these arguments."""
    if star:
        if name != "count":
            raise unknown_function(name, arguments, position)
        return shape.write("count", "*"), INT8
    for argument in arguments:
        if argument.aggregate and not shape.over:
            raise SqlError("aggregate function calls cannot be nested", sqlstate="42803", position=position)
    if shape.order and name not in _ORDERED:
        shape = Shape(shape.distinct, "", shape.filter, shape.over)
    made = _AGGREGATES[name](name, arguments, shape, facts)
    if made is None:
        raise unknown_function(name, arguments, position)
    return made


def _named(bound: Bound, facts: Facts) -> str:
    return facts.distinct_name(bound, arrow_name(bound.type)).sql


def _count(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1:
        return None
    argument = arguments[0]
    if argument.row:
        fields = ", ".join(resolve_unknown(field, facts).sql for field in argument.row)
        return shape.write("count", f"struct({fields})"), INT8
    return shape.write("count", _named(resolve_unknown(argument, facts), facts)), INT8


def _sum(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1:
        return None
    argument = arguments[0]
    kind = argument.type
    if kind == FLOAT4:
        return f"CAST({shape.write('sum', _named(argument, facts))} AS REAL)", FLOAT4
    if kind == FLOAT8:
        return shape.write("sum", _named(argument, facts)), FLOAT8
    if kind in (INT2, INT4):
        return shape.write("sum", _named(cast(argument, INT8), facts)), INT8
    if family(kind) in ("int", "uint"):
        wide = numeric(38, 0)
        return shape.write("sum", _named(cast(argument, wide), facts)), wide
    if kind.name == NUMERIC.name:
        wide = NUMERIC if kind.modifier < 0 else numeric(38, kind.scale)
        return shape.write("sum", _named(cast(argument, wide), facts)), wide
    return None


def _avg(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1:
        return None
    argument = arguments[0]
    if family(argument.type) == "float":
        return shape.write("avg", _named(cast(argument, FLOAT8), facts)), FLOAT8
    if family(argument.type) not in ("int", "uint", "numeric"):
        return None
    exact = as_numeric(argument.type)
    wide = NUMERIC if exact.modifier < 0 else numeric(38, exact.scale)
    widened = _named(cast(argument, wide), facts)
    total, count = shape.write("sum", widened), shape.write("count", widened)
    # count is zero only where the sum is NULL, and NULL divided by zero is NULL
    quotient = numeric_quotient(Bound(total, wide), Bound(count, INT8))
    return quotient, NUMERIC


def _same(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1:
        return None
    argument = resolve_unknown(arguments[0], facts)
    if (
        argument.type.element is not None
        or argument.type in (BOOL, INTERVAL)
        or argument.type.name in ("jsonb", "uuid")
    ):
        return None
    return shape.write(name, _named(argument, facts)), argument.type


def _bools(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1:
        return None
    condition = coerce(arguments[0], BOOL, facts)
    return shape.write("bool_or" if name == "bool_or" else "bool_and", _named(condition, facts)), BOOL


def _bits(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1 or family(arguments[0].type) not in ("int", "uint"):
        return None
    return shape.write(name, _named(cast(arguments[0], arguments[0].type), facts)), arguments[0].type


def _spread(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    """stddev and variance: double precision for floats, numeric for exact numbers."""
    if len(arguments) != 1 or family(arguments[0].type) not in ("int", "uint", "numeric", "float"):
        return None
    sql = shape.write(_SPREADS[name], _named(cast(arguments[0], FLOAT8), facts))
    if family(arguments[0].type) == "float":
        return sql, FLOAT8
    return f"CAST({sql} AS {df_type(NUMERIC)})", NUMERIC


_SPREADS = {
    "stddev": "stddev", "stddev_samp": "stddev", "stddev_pop": "stddev_pop", "variance": "var_samp",
    "var_samp": "var_samp", "var_pop": "var_pop",
}  # fmt: skip


def _pairs(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 2:
        return None
    made = [coerce(argument, FLOAT8, facts) for argument in arguments]
    return shape.write(name, ", ".join(_named(argument, facts) for argument in made)), FLOAT8


def _string_agg(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 2:
        return None
    value, separator = (coerce(argument, TEXT, facts) for argument in arguments)
    return f"CAST({shape.write('string_agg', f'{_named(value, facts)}, {separator.sql}')} AS VARCHAR)", TEXT


def _array_agg(name: str, arguments: list[Bound], shape: Shape, facts: Facts) -> tuple[str, SqlType] | None:
    if len(arguments) != 1:
        return None
    value = resolve_unknown(arguments[0], facts)
    return shape.write("array_agg", _named(value, facts)), array_of(value.type)


_AGGREGATES: dict[str, Rule] = {
    "count": _count,
    "sum": _sum,
    "avg": _avg,
    "min": _same,
    "max": _same,
    "bool_and": _bools,
    "bool_or": _bools,
    "every": _bools,
    "bit_and": _bits,
    "bit_or": _bits,
    "bit_xor": _bits,
    **dict.fromkeys(_SPREADS, _spread),
    **dict.fromkeys(("corr", "covar_pop", "covar_samp", "regr_slope", "regr_intercept", "regr_r2"), _pairs),
    "string_agg": _string_agg,
    "array_agg": _array_agg,
}
_ORDERED = ("string_agg", "array_agg")


def ordered_set(name: str, fraction: Bound, order: Bound, order_sql: str, facts: Facts) -> tuple[str, SqlType]:
    """percentile_cont(f) WITHIN GROUP (ORDER BY x). 42883 for others."""
    if name != "percentile_cont":
        raise SqlError(f"aggregate {name} WITHIN GROUP is not supported", sqlstate="0A000", position=fraction.position)
    share = coerce(fraction, FLOAT8, facts)
    return f"percentile_cont({share.sql}) WITHIN GROUP (ORDER BY {order_sql})", FLOAT8


# Window functions

_WINDOW = {
    "row_number", "rank", "dense_rank", "percent_rank", "cume_dist", "ntile", "lag", "lead", "first_value",
    "last_value", "nth_value",
}  # fmt: skip


def window_only(name: str, arguments: list[Bound], over: str, facts: Facts, position: int | None) -> Bound:
    """A function that exists only with OVER."""
    if name in ("row_number", "rank", "dense_rank"):
        if arguments:
            raise unknown_function(name, arguments, position)
        return Bound(f"CAST({name}(){over} AS BIGINT)", INT8, nullable=False)
    if name in ("percent_rank", "cume_dist"):
        return Bound(f"{name}(){over}", FLOAT8, nullable=False)
    if name == "ntile":
        made = [coerce(argument, INT8, facts) for argument in arguments]
        return combine(f"CAST(ntile({made[0].sql}){over} AS INT)", INT4, made)
    if not arguments:
        raise unknown_function(name, arguments, position)
    value = resolve_unknown(arguments[0], facts)
    rest = []
    if len(arguments) > 1:  # the offset must be a bare constant for DataFusion
        rest.append(arguments[1].sql)
    if len(arguments) > 2:
        rest.append(coerce(arguments[2], value.type, facts, Context.ASSIGNMENT).sql)
    sql = f"{name}({', '.join([value.sql, *rest])}){over}"
    return combine(sql, value.type, [value, *arguments[1:]], nullable=True)
