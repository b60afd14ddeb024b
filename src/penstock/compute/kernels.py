"""Arrow and NumPy kernels for the expressions that are worth one.

A kernel takes the operands' values (arrays of `count`, or scalars for constants) and returns an array or a
scalar. It gives what DataFusion gives for the same expression: where Arrow differs (NaN order, non-ASCII
case mapping, decimal precision), the kernel is limited to the cases where both agree and hands the rest to
a DataFusion plan.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.compute import decimals
from penstock.compute.fragment import Fragment
from penstock.compute.ir import Call, Case, Cast, Column, InList, Literal, Scalar, children_of, with_children
from penstock.compute.plan_functions import PLAN_FUNCTIONS
from penstock.compute.values import Kernel, KernelMaker, Value
from penstock.runtime import DataError
from penstock.runtime.updates import values_equal
from penstock.sql.functions import KERNELS


def kernel_for(expr: Scalar) -> Kernel | None:
    """The kernel for an expression's root over its operands, or None when it takes a DataFusion plan."""
    match expr:
        case Case():
            return _case_kernel(expr)
        case InList():
            return _in_list_kernel(expr)
        case Cast():
            return _cast_kernel(expr)
        case Call():
            maker = _CALLS.get(expr.name)
            if maker is not None:
                return maker(expr)
            return _own_kernel(expr) if expr.name in KERNELS else None
        case _:
            return None


def _own_kernel(call: Call) -> Kernel:
    """A function of the sql room: it takes arrays of exact types."""
    own = KERNELS[call.name]

    def kernel(args: list[Value], count: int) -> Value:
        arrays = [pa.repeat(arg, count) if isinstance(arg, pa.Scalar) else arg for arg in args]
        return own.function(*(_typed(array, kind) for array, kind in zip(arrays, own.arguments, strict=True)))

    return kernel


def _checked(call: Call) -> Kernel:
    """64-bit integer arithmetic that fails where the exact result does not fit."""
    function = _CHECKED[call.name]

    def kernel(args: list[Value], _count: int) -> Value:
        try:
            return function(*args)
        except pa.ArrowInvalid:
            raise DataError("bigint out of range", sqlstate="22003") from None

    return kernel


_CHECKED = {
    "checked_add": pc.add_checked,
    "checked_subtract": pc.subtract_checked,
    "checked_multiply": pc.multiply_checked,
}


def _general(expr: Scalar) -> Kernel:
    """The root of `expr` by DataFusion, for values that its kernel does not cover. Constants stay
    constants.
    """
    fragment: list[Fragment] = []
    children = children_of(expr)
    open_children = [i for i, child in enumerate(children) if not isinstance(child, Literal)]

    def run(args: list[Value], count: int) -> Value:
        if not fragment:
            body = with_children(
                expr,
                tuple(
                    child if isinstance(child, Literal) else Column(open_children.index(i), child.type)
                    for i, child in enumerate(children)
                ),
            )
            fragment.append(Fragment(body, tuple(children[i] for i in open_children)))
        return fragment[0].run([args[i] for i in open_children], count)

    return run


# --- logic and tests of NULL


def _fixed(function: Callable[..., Value]) -> KernelMaker:
    return lambda call: lambda args, _count: function(*args)


def _fold(function: Callable[[Value, Value], Value]) -> KernelMaker:
    def kernel(args: list[Value], _count: int) -> Value:
        result = args[0]
        for arg in args[1:]:
            result = function(result, arg)
        return result

    return lambda call: kernel


def _is_true(value: Value) -> Value:
    return pc.fill_null(value, False)


def _is_false(value: Value) -> Value:
    return pc.fill_null(pc.invert(value), False)


# --- comparisons

_COMPARE = {
    "equal": pc.equal,
    "not_equal": pc.not_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
    "gt": pc.greater,
    "gte": pc.greater_equal,
}


def _ordered(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_string(kind)
        or types.is_binary(kind)
        or (types.is_temporal(kind) and not types.is_interval(kind))
    )


def _comparison(call: Call) -> Kernel | None:
    left, right = call.args
    compare = _COMPARE[call.name]
    if left.type != right.type:
        return None
    if pa.types.is_boolean(left.type) and call.name in ("equal", "not_equal"):
        return lambda args, _count: compare(*args)
    if not _ordered(left.type):
        return None
    if pa.types.is_floating(left.type):
        general = _general(call)
        return lambda args, count: general(args, count) if _any_nan(args) else compare(*args)
    return lambda args, _count: compare(*args)


def _any_nan(args: list[Value]) -> bool:
    """DataFusion orders NaN above all and equal to itself; Arrow compares it with nothing."""
    return any(bool(pc.any(pc.is_nan(arg)).as_py()) if isinstance(arg, pa.Array) else _nan(arg) for arg in args)


def _nan(value: pa.Scalar) -> bool:
    return bool(value.is_valid) and value.as_py() != value.as_py()


def _distinctness(call: Call) -> Kernel | None:
    if call.args[0].type != call.args[1].type:
        return None
    negated = call.name == "is_distinct_from"

    def kernel(args: list[Value], count: int) -> Value:
        left, right = (pa.repeat(arg, count) if isinstance(arg, pa.Scalar) else arg for arg in args)
        equal = values_equal(left, right)
        return pa.array(~equal if negated else equal)

    return kernel


def _in_list_kernel(expr: InList) -> Kernel | None:
    if not all(isinstance(option, Literal) and option.type == expr.arg.type for option in expr.options):
        return None
    if not _ordered(expr.arg.type):
        return None
    has_null = any(option.value is None for option in expr.options if isinstance(option, Literal))

    def kernel(args: list[Value], count: int) -> Value:
        value, options = args[0], [option.as_py() for option in args[1:] if option.is_valid]
        if isinstance(value, pa.Scalar):
            value = pa.repeat(value, count)
        found = pc.is_in(value, value_set=pa.array(options, value.type))
        unknown = pc.is_null(value) if not has_null else pc.invert(found)
        return pc.if_else(unknown, pa.scalar(None, pa.bool_()), found)

    return kernel


# --- arithmetic

_WRAPPING = {"add": pc.add, "subtract": pc.subtract, "multiply": pc.multiply}


def _arithmetic(call: Call) -> Kernel | None:
    if len(call.args) != 2:
        return None
    left, right = (arg.type for arg in call.args)
    if all(pa.types.is_decimal128(kind) for kind in (left, right, call.type)):
        general = _general(call)

        def decimal(args: list[Value], count: int) -> Value:
            if any(isinstance(arg, pa.Scalar) and not arg.is_valid for arg in args):
                return pa.scalar(None, call.type)
            if all(isinstance(arg, pa.Scalar) for arg in args):
                args = [pa.repeat(args[0], count), args[1]]
            result = decimals.arithmetic(call.name, args[0], args[1], call.type)
            return general(args, count) if result is None else result

        return decimal
    if left == right == call.type and (pa.types.is_integer(left) or pa.types.is_floating(left)):
        function = _WRAPPING[call.name]
        return lambda args, _count: function(*args)
    return None


def _division(call: Call) -> Kernel | None:
    left, right = (arg.type for arg in call.args)
    if not left == right == call.type:
        return None
    if pa.types.is_floating(left):
        return (lambda args, _count: pc.divide(*args)) if call.name == "divide" else None
    if not pa.types.is_integer(left):
        return None
    if call.name == "divide":
        return lambda args, _count: pc.divide_checked(*args)
    return _remainder


def _remainder(args: list[Value], count: int) -> Value:
    left, right = (pa.repeat(arg, count) if isinstance(arg, pa.Scalar) else arg for arg in args)
    valid = pc.and_(left.is_valid(), right.is_valid())
    if bool(pc.any(pc.and_(valid, pc.equal(right, pa.scalar(0, right.type)))).as_py()):
        raise pa.ArrowInvalid("divide by zero")
    mask = ~valid.to_numpy(zero_copy_only=False)
    ours, theirs = (side.fill_null(1).to_numpy(zero_copy_only=False) for side in (left, right))
    theirs = np.where(mask, 1, theirs).astype(ours.dtype)
    return pa.array(np.fmod(ours, theirs), left.type, mask=mask)


def _negation(call: Call) -> Kernel | None:
    kind = call.args[0].type
    if kind != call.type:
        return None
    if pa.types.is_signed_integer(kind):
        return lambda args, _count: pc.negate_checked(args[0])
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return lambda args, _count: pc.negate(args[0])
    return None


def _absolute(call: Call) -> Kernel | None:
    kind = call.args[0].type
    if kind != call.type or not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return None
    function = pc.abs_checked if pa.types.is_integer(kind) else pc.abs
    return lambda args, _count: function(args[0])


# --- casts


def _cast_kernel(cast: Cast) -> Kernel | None:
    source, target = cast.arg.type, cast.type
    types = pa.types
    if cast.lenient:
        return None
    if types.is_null(source):
        return lambda _args, _count: pa.scalar(None, target)
    plain = (
        (types.is_integer(source) and (types.is_integer(target) or types.is_float64(target)))
        or (types.is_float32(source) and types.is_float64(target))
        or (types.is_boolean(source) and types.is_integer(target))
        or (types.is_integer(source) and types.is_string(target))
        or (types.is_date32(source) and types.is_timestamp(target) and target.tz is None)
    )
    if plain:
        safe = not (types.is_integer(source) and types.is_float64(target))
        return lambda args, _count: args[0].cast(target, safe=safe)
    convert: Callable[[pa.Array], pa.Array | None] | None = None
    if types.is_decimal128(source) and types.is_float64(target):
        convert = decimals.to_float
    elif types.is_decimal128(source) and types.is_decimal128(target) and target.scale >= source.scale:
        convert = lambda value: decimals.rescale(value, target)  # noqa: E731
    elif types.is_integer(source) and types.is_decimal128(target):
        convert = lambda value: decimals.from_integers(value, target)  # noqa: E731
    elif types.is_decimal128(source) and source.scale == 0 and types.is_integer(target) and not types.is_uint64(target):
        convert = lambda value: decimals.to_integers(value, target)  # noqa: E731
    if convert is None:
        return None
    chosen, general = convert, _general(cast)

    def kernel(args: list[Value], count: int) -> Value:
        value = pa.repeat(args[0], count) if isinstance(args[0], pa.Scalar) else args[0]
        result = chosen(value)
        return general([value], count) if result is None else result

    return kernel


# --- CASE and friends


def _case_kernel(case: Case) -> Kernel | None:
    branches = len(case.whens)

    def kernel(args: list[Value], count: int) -> Value:
        result: Value = pa.scalar(None, case.type) if case.otherwise is None else _typed(args[-1], case.type)
        for i in reversed(range(branches)):
            condition = pc.fill_null(args[2 * i], False)
            result = pc.if_else(condition, _typed(args[2 * i + 1], case.type), result)
        return result

    return kernel


def _typed(value: Value, kind: pa.DataType) -> Value:
    return value if value.type == kind else value.cast(kind)


def _coalesce(call: Call) -> Kernel | None:
    if any(arg.type != call.type for arg in call.args):
        return None
    return lambda args, _count: pc.coalesce(*args)


def _nullif(call: Call) -> Kernel | None:
    compared = _comparison(Call("equal", call.args, pa.bool_()))
    if compared is None or call.type != call.args[0].type:
        return None

    def kernel(args: list[Value], count: int) -> Value:
        same = pc.fill_null(compared(args, count), False)
        return pc.if_else(same, pa.scalar(None, call.type), args[0])

    return kernel


# --- text


def _ascii(value: Value) -> bool:
    """Whether all text is ASCII, where every library agrees on case and on what a character is."""
    if isinstance(value, pa.Scalar):
        return not value.is_valid or value.as_py().isascii()
    data = value.buffers()[2]
    if data is None or len(value) == 0:
        return True
    offsets = np.frombuffer(value.buffers()[1], np.int32)[value.offset : value.offset + len(value) + 1]
    return not bool((np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] & 0x80).any())


def _ascii_only(function: Callable[[Value], Value]) -> KernelMaker:
    def make(call: Call) -> Kernel | None:
        if len(call.args) != 1 or not pa.types.is_string(call.args[0].type):
            return None
        general = _general(call)

        def kernel(args: list[Value], count: int) -> Value:
            return _typed(function(args[0]), call.type) if _ascii(args[0]) else general(args, count)

        return kernel

    return make


def _like(call: Call) -> Kernel | None:
    if len(call.args) != 2 or not isinstance(call.args[1], Literal) or not pa.types.is_string(call.args[0].type):
        return None
    pattern = call.args[1].value
    if not isinstance(pattern, str) or "\\" in pattern or (call.name == "ilike" and not pattern.isascii()):
        return None
    if call.name == "like":
        return lambda args, _count: pc.match_like(args[0], pattern)
    general = _general(call)

    def ilike(args: list[Value], count: int) -> Value:
        if _ascii(args[0]):
            return pc.match_like(args[0], pattern, ignore_case=True)
        return general(args, count)

    return ilike


def _substring(call: Call) -> Kernel | None:
    bounds = [arg.value for arg in call.args[1:] if isinstance(arg, Literal)]
    if len(bounds) != len(call.args) - 1 or not all(isinstance(bound, int) for bound in bounds):
        return None
    if not pa.types.is_string(call.args[0].type):
        return None
    start = int(bounds[0] or 0)
    length = int(bounds[1] or 0) if len(bounds) > 1 else None
    if start < 1 or (length is not None and length < 0):
        return None
    stop = None if length is None else start - 1 + length
    return lambda args, _count: pc.utf8_slice_codeunits(args[0], start - 1, stop)


def _concatenation(call: Call) -> Kernel | None:
    if any(not pa.types.is_string(arg.type) for arg in call.args):
        return None
    nulls = "skip" if call.name == "concat" else "emit_null"
    empty = pa.scalar("", pa.string())
    return lambda args, _count: pc.binary_join_element_wise(*args, empty, null_handling=nulls)


def _affix(call: Call) -> Kernel | None:
    pattern = call.args[1]
    if not isinstance(pattern, Literal) or not isinstance(pattern.value, str):
        return None
    function = pc.starts_with if call.name == "starts_with" else pc.ends_with
    return lambda args, _count: function(args[0], pattern.value)


# --- dates

_PARTS: dict[str, Callable[[Value], Value]] = {
    "year": pc.year,
    "quarter": pc.quarter,
    "month": pc.month,
    "day": pc.day,
    "hour": pc.hour,
    "minute": pc.minute,
    "doy": pc.day_of_year,
    "dow": lambda value: pc.day_of_week(value, week_start=7),
}
_TRUNCATED = frozenset({"second", "minute", "hour", "day", "week", "month", "year"})


def _date_part(call: Call) -> Kernel | None:
    part, kind = call.args[0], call.args[1].type
    if not isinstance(part, Literal) or not isinstance(part.value, str) or part.value.lower() not in _PARTS:
        return None
    if not (pa.types.is_timestamp(kind) or (pa.types.is_date32(kind) and part.value.lower() not in ("hour", "minute"))):
        return None
    if pa.types.is_timestamp(kind) and kind.tz not in (None, "UTC"):
        return None
    function = _PARTS[part.value.lower()]
    return lambda args, _count: function(args[1]).cast(call.type)


def _date_trunc(call: Call) -> Kernel | None:
    part, kind = call.args[0], call.args[1].type
    if not isinstance(part, Literal) or not isinstance(part.value, str) or part.value.lower() not in _TRUNCATED:
        return None
    if not pa.types.is_timestamp(kind) or kind.tz not in (None, "UTC") or call.type != kind:
        return None
    unit = part.value.lower()
    return lambda args, _count: pc.floor_temporal(args[1], unit=unit).cast(kind)


# --- the table

_CALLS: dict[str, KernelMaker] = {
    "and": _fold(pc.and_kleene),
    "or": _fold(pc.or_kleene),
    "not": _fixed(pc.invert),
    "is_null": _fixed(pc.is_null),
    "is_not_null": _fixed(pc.is_valid),
    "is_true": _fixed(_is_true),
    "is_not_true": _fixed(lambda value: pc.invert(_is_true(value))),
    "is_false": _fixed(_is_false),
    "is_not_false": _fixed(lambda value: pc.invert(_is_false(value))),
    "is_unknown": _fixed(pc.is_null),
    "is_not_unknown": _fixed(pc.is_valid),
    **dict.fromkeys(_COMPARE, _comparison),
    "is_distinct_from": _distinctness,
    "is_not_distinct_from": _distinctness,
    "add": _arithmetic,
    "subtract": _arithmetic,
    "multiply": _arithmetic,
    "divide": _division,
    "modulus": _division,
    "modulo": _division,
    "negate": _negation,
    "abs": _absolute,
    "coalesce": _coalesce,
    "nullif": _nullif,
    "like": _like,
    "ilike": _like,
    "upper": _ascii_only(pc.ascii_upper),
    "lower": _ascii_only(pc.ascii_lower),
    "character_length": _ascii_only(pc.utf8_length),
    "btrim": _ascii_only(lambda value: pc.ascii_trim(value, " ")),
    "ltrim": _ascii_only(lambda value: pc.ascii_ltrim(value, " ")),
    "rtrim": _ascii_only(lambda value: pc.ascii_rtrim(value, " ")),
    "substring": _substring,
    "substr": _substring,
    "str_concat": _concatenation,
    "concat": _concatenation,
    "starts_with": _affix,
    "ends_with": _affix,
    "date_part": _date_part,
    "date_trunc": _date_trunc,
    **dict.fromkeys(_CHECKED, _checked),
    **PLAN_FUNCTIONS,
}
