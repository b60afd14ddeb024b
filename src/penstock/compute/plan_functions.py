"""Functions that only plans use: bounds of temporal filters, checks, and what averages and variances are made of."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.compute import decimals
from penstock.compute.ir import Call, Literal
from penstock.compute.lower_temporal import BOUND
from penstock.compute.values import Kernel, KernelMaker, Value
from penstock.runtime import DataError

LATEST = "latest"
SOONEST = "soonest"
"""Of several time bounds; NULL when one is."""
AT_MOST_ONE = "at_most_one"
"""A count that must not exceed one."""
DECIMAL_AVERAGE = "decimal_average"
"""(sum, count) -> decimal, cut off towards zero as DataFusion does."""
VARIANCE = "variance"
"""(sum, sum of squares, count, of a sample, square root) -> float64."""

_BOUND_MAX = 2**63 - 1


def _temporal_bound(call: Call) -> Kernel | None:
    value, up, add = call.args
    assert isinstance(up, Literal)
    assert isinstance(add, Literal)
    round_up, plus = bool(up.value), int(add.value or 0)
    kind = value.type

    def kernel(args: list[Value], count: int) -> Value:
        array = pa.repeat(args[0], count) if isinstance(args[0], pa.Scalar) else args[0]
        mask = array.is_null().to_numpy(zero_copy_only=False)
        milliseconds = _milliseconds(array.filter(pa.array(~mask)), kind, round_up=round_up)
        bounds = np.zeros(count, np.uint64)
        bounds[~mask] = [min(max(number + plus, 0), _BOUND_MAX) for number in milliseconds]
        return pa.array(bounds, pa.uint64(), mask=mask)

    def integral(args: list[Value], count: int) -> Value:
        array = pa.repeat(args[0], count) if isinstance(args[0], pa.Scalar) else args[0]
        mask = array.is_null().to_numpy(zero_copy_only=False)
        numbers = _whole_milliseconds(array, kind, round_up=round_up)
        numbers = np.minimum(numbers, _BOUND_MAX - plus) + plus
        return pa.array(np.maximum(numbers, 0).astype(np.uint64), pa.uint64(), mask=mask)

    return kernel if pa.types.is_decimal(kind) or pa.types.is_uint64(kind) else integral


def _whole_milliseconds(array: pa.Array, kind: pa.DataType, *, round_up: bool) -> Any:
    """int64 milliseconds of dates, timestamps and signed integers, rounded; 0 where NULL."""
    if pa.types.is_date(kind):
        array, kind = array.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if not pa.types.is_timestamp(kind):
        return array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    numbers = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if kind.unit == "s":
        return np.clip(numbers, -(2**52), 2**52) * 1000
    divisor = {"ms": 1, "us": 1_000, "ns": 1_000_000}[kind.unit]
    return -(-numbers // divisor) if round_up else numbers // divisor


def _milliseconds(array: pa.Array, kind: pa.DataType, *, round_up: bool) -> list[int]:
    """Exact milliseconds of decimals: rare, and wider than any machine word, so value by value."""
    if not pa.types.is_decimal(kind):
        return [int(number) for number in array.to_pylist()]
    return [-int(-n // 1) if round_up else int(n // 1) for n in array.to_pylist()]


def _at_most_one(args: list[Value], _count: int) -> Value:
    if bool(pc.any(pc.greater(args[0], pa.scalar(1, pa.int64()))).as_py()):
        raise DataError("more than one record produced in subquery", sqlstate="21000")
    return args[0]


def _decimal_average(call: Call) -> Kernel | None:
    up = call.type.scale - call.args[0].type.scale

    def kernel(args: list[Value], count: int) -> Value:
        totals, counts = args
        mask = pc.or_(totals.is_null(), pc.equal(counts, 0))
        integers = decimals.unscaled(totals)
        divisors = np.maximum(counts.fill_null(1).to_numpy(zero_copy_only=False), 1)
        if isinstance(integers, np.ndarray) and decimals.largest(integers) * 10**up <= 2**63 - 1:
            scaled = integers * 10**up
            quotients = np.sign(scaled) * (np.abs(scaled) // divisors)
            made = decimals.from_unscaled(quotients, call.type, [])
            return pc.if_else(mask, pa.scalar(None, call.type), made)
        # wider than any machine word: one Python integer per group, and there are few such groups
        values = []
        for total, divisor in zip(totals.to_pylist(), divisors.tolist(), strict=True):
            number = 0 if total is None else int(total.scaleb(call.type.scale))
            value = abs(number) // divisor * (1 if number >= 0 else -1)
            values.append(Decimal(value).scaleb(-call.type.scale, _WIDE))
        return pc.if_else(mask, pa.scalar(None, call.type), pa.array(values, call.type))

    return kernel


_WIDE = Context(prec=60)


def _variance(call: Call) -> Kernel | None:
    sample, root = (bool(arg.value) for arg in call.args[3:] if isinstance(arg, Literal))

    def kernel(args: list[Value], _count: int) -> Value:
        total, squares, number = (arg.fill_null(0).to_numpy(zero_copy_only=False) for arg in args[:3])
        divisor = number - 1 if sample else number
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            # exact where the products are, as for integers; the second form only where they are too large
            spread = (number * squares - total * total) / (number * divisor)
            large = ~np.isfinite(spread)
            spread[large] = ((squares - total * (total / number)) / divisor)[large]
            spread = np.maximum(spread, 0.0)
        values = np.sqrt(spread) if root else spread
        return pa.array(values, pa.float64(), mask=divisor < 1)

    return kernel


PLAN_FUNCTIONS: dict[str, KernelMaker] = {
    BOUND: _temporal_bound,
    LATEST: lambda _call: lambda args, _count: pc.max_element_wise(*args, skip_nulls=False),
    SOONEST: lambda _call: lambda args, _count: pc.min_element_wise(*args, skip_nulls=False),
    AT_MOST_ONE: lambda _call: _at_most_one,
    DECIMAL_AVERAGE: _decimal_average,
    VARIANCE: _variance,
}
"""By name: the kernel for a call."""
