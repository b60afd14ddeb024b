"""Filters that readers pass down, so that parts without a row for them are not fetched.

A filter has SQL's three-valued logic and a fourth outcome, an error. It is judged twice, by the same rules: on the
statistics of a part, where each comparison has a set of possible outcomes, and on rows, where the set has one
element unless the filter says itself that it does not know. A part is discarded if no row of it can pass and
none can fail: an error must not be filtered away.

What cannot be compared exactly (a literal of another type, a column without statistics) is never guessed: every
outcome is possible, and the part is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.persist.statistics import Bound, Bounds, ColumnStatistics, is_ordered, plain

Mask = Any
"""bool, or bool[n] for n rows: both combine with ``&`` and ``|``."""


class Operator(Enum):
    EQ = "="
    NE = "<>"
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="


@dataclass(frozen=True)
class Compare:
    """``column operator value``. `value`: of the column's Python or Arrow type; None is NULL."""

    column: str
    operator: Operator
    value: Any


@dataclass(frozen=True)
class IsNull:
    column: str


@dataclass(frozen=True)
class And:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    part: Filter


@dataclass(frozen=True)
class Opaque:
    """A condition that persist cannot judge. `may_fail`: evaluating it may be an error."""

    may_fail: bool = True


Filter = Compare | IsNull | And | Or | Not | Opaque


def columns_of(filter_: Filter) -> frozenset[str]:
    """The columns that `filter_` looks at."""
    match filter_:
        case Compare(column) | IsNull(column):
            return frozenset([column])
        case And(parts) | Or(parts):
            return frozenset().union(*map(columns_of, parts))
        case Not(part):
            return columns_of(part)
        case Opaque():
            return frozenset()


class KnownColumn(NamedTuple):
    """What is known of a column of a part with `rows` rows."""

    type: pa.DataType
    rows: int
    statistics: ColumnStatistics | None


def may_match(filter_: Filter, known: Callable[[str], KnownColumn]) -> bool:
    """Whether a row may pass `filter_`, or may make it fail, by what is `known` of the columns."""
    possible = _judge(filter_, _OfStatistics(known))
    return bool(possible.true or possible.error)


def matching(filter_: Filter, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Which of `rows` may pass `filter_`, or make it fail: those that whoever filters has to look at."""
    possible = _judge(filter_, _OfRows(rows))
    return np.broadcast_to(np.asarray(possible.true | possible.error, dtype=bool), rows.num_rows)


class _Possible(NamedTuple):
    """Which outcomes are possible."""

    true: Mask
    false: Mask
    null: Mask
    error: Mask


_ANYTHING = _Possible(True, True, True, True)
_NULL = _Possible(False, False, True, False)
_TRUE = _Possible(True, False, False, False)
_FALSE = _Possible(False, True, False, False)


def _judge(filter_: Filter, leaves: _OfStatistics | _OfRows) -> _Possible:
    match filter_:
        case Compare(column, operator, value):
            return leaves.compare(column, operator, value)
        case IsNull(column):
            return leaves.is_null(column)
        case Not(part):
            possible = _judge(part, leaves)
            return possible._replace(true=possible.false, false=possible.true)
        case And(parts):
            return reduce(_and, [_judge(part, leaves) for part in parts]) if parts else _TRUE
        case Or(parts):
            negated: Filter = And(tuple(Not(part) for part in parts))
            return _judge(Not(negated), leaves)
        case Opaque(may_fail):
            return _ANYTHING._replace(error=may_fail)


def _and(one: _Possible, other: _Possible) -> _Possible:
    return _Possible(
        true=one.true & other.true,
        false=one.false | other.false,
        null=(one.null & (other.null | other.true)) | (one.true & other.null),
        error=one.error | other.error,
    )


class _OfStatistics:
    """What a comparison may come to in a part, by the part's statistics."""

    def __init__(self, known: Callable[[str], KnownColumn]) -> None:
        self._known = known

    def compare(self, column: str, operator: Operator, value: Any) -> _Possible:
        known = self._known(column)
        literal = _literal(value, known.type)
        if literal is _NO_LITERAL:
            return _ANYTHING
        if literal is None:
            return _NULL
        nulls, values, bounds = self._counts(known)
        if not values:
            return _NULL
        if bounds is None:
            return _Possible(True, True, nulls, False)
        true, false = _by_bounds(operator, _plain_literal(literal), bounds)
        return _Possible(true, false, nulls, False)

    def is_null(self, column: str) -> _Possible:
        nulls, values, _ = self._counts(self._known(column))
        return _Possible(nulls, values, False, False)

    def _counts(self, known: KnownColumn) -> tuple[bool, bool, Bounds | None]:
        """(whether there may be NULLs, whether there may be other values, what is known of these)."""
        if known.statistics is None:
            return True, True, None
        nulls = known.statistics.nulls
        return nulls > 0, nulls < known.rows, known.statistics.bounds


def _by_bounds(operator: Operator, value: Bound, bounds: Bounds) -> tuple[bool, bool]:
    """(may be true, may be false) for some value within `bounds`.

    Engines disagree on NaN and on whether -0.0 is 0.0; where these are involved both are possible.
    """
    lower, upper = bounds
    if (
        _is_nan(value)
        or _is_nan(lower)
        or _is_nan(upper)
        or (isinstance(value, float) and value == 0.0 and 0.0 in bounds)
    ):
        return True, True
    below = lower is None or lower < value  # type: ignore[operator]
    above = upper is None or upper > value  # type: ignore[operator]
    equal = (below or lower == value) and (above or upper == value)
    match operator:
        case Operator.EQ:
            return equal, below or above
        case Operator.NE:
            return below or above, equal
        case Operator.LT:
            return below, above or equal
        case Operator.LE:
            return below or equal, above
        case Operator.GT:
            return above, below or equal
        case Operator.GE:
            return above or equal, below


class _OfRows:
    """What a comparison comes to in each row."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows

    def compare(self, column: str, operator: Operator, value: Any) -> _Possible:
        values = self._rows.column(self._rows.schema.get_field_index(column))
        literal = _literal(value, values.type)
        if literal is _NO_LITERAL:
            return _ANYTHING
        if literal is None:
            return _NULL
        true = (
            _floats_true(operator, values, literal) if isinstance(literal, float) else _true(operator, values, literal)
        )
        if not values.null_count:
            return _Possible(true, ~true, False, False)
        null = _flags(values.is_null())
        return _Possible(true & ~null, ~true & ~null, null, False)

    def is_null(self, column: str) -> _Possible:
        null = _flags(self._rows.column(self._rows.schema.get_field_index(column)).is_null())
        return _Possible(null, ~null, False, False)


_KERNELS: dict[Operator, Callable[[pa.Array, pa.Scalar], pa.Array]] = {
    Operator.EQ: pc.equal,
    Operator.NE: pc.not_equal,
    Operator.LT: pc.less,
    Operator.LE: pc.less_equal,
    Operator.GT: pc.greater,
    Operator.GE: pc.greater_equal,
}


def _true(operator: Operator, values: pa.Array, literal: pa.Scalar) -> npt.NDArray[np.bool_]:
    """Where ``values operator literal`` is true, for values of any type but floats."""
    return _flags(_KERNELS[operator](values, literal))


def _floats_true(operator: Operator, values: pa.Array, literal: float) -> npt.NDArray[np.bool_]:
    """Likewise for floats, NaN being the greatest and equal to itself; anything for NULL."""
    numbers = values.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
    nan = np.isnan(numbers)
    if math.isnan(literal):
        below, above = ~nan, np.zeros(len(numbers), dtype=bool)
    else:
        below, above = numbers < literal, (numbers > literal) | nan
    match operator:
        case Operator.EQ:
            return ~(below | above)
        case Operator.NE:
            return below | above
        case Operator.LT:
            return below
        case Operator.LE:
            return ~above
        case Operator.GT:
            return above
        case Operator.GE:
            return ~below


def _flags(flags: pa.Array) -> npt.NDArray[np.bool_]:
    known = flags.fill_null(False) if flags.null_count else flags
    return np.asarray(known.to_numpy(zero_copy_only=False), dtype=bool)


_NO_LITERAL = object()


def _literal(value: Any, kind: pa.DataType) -> Any:
    """`value` for comparisons with a column of `kind`: a scalar of that very type, a float, None for NULL.

    `_NO_LITERAL`: it is not exactly a value of that type, or there is no order.
    """
    if isinstance(value, pa.Scalar):
        if value.type == kind and value.is_valid and not pa.types.is_floating(kind) and is_ordered(kind):
            return value
        value = value.as_py()
    if value is None:
        return None
    if not is_ordered(kind):
        return _NO_LITERAL
    if pa.types.is_floating(kind):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _NO_LITERAL
        number = float(value) if abs(value) < 2**53 or isinstance(value, float) else None
        return _NO_LITERAL if number is None else number
    try:
        scalar = pa.scalar(value, kind)
        exact = scalar.as_py() == value and isinstance(value, bool) == pa.types.is_boolean(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _NO_LITERAL
    return scalar if exact else _NO_LITERAL


def _is_nan(bound: Bound | None) -> bool:
    return isinstance(bound, float) and math.isnan(bound)


def _plain_literal(literal: Any) -> Bound:
    return literal if isinstance(literal, float) else plain(literal)
