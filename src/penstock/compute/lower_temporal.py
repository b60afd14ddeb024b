"""Filters on ``mz_now()``: comparisons with it become bounds on the time during which a row is valid.

``mz_now()`` stands alone (perhaps in casts that the planner added) on one side of a comparison. With `e`
the other side, in milliseconds, and time counted in whole milliseconds: ``now <= e`` ends before floor(e) +
1, ``now < e`` before ceil(e), ``now >= e`` begins at ceil(e), ``now > e`` at floor(e) + 1, and ``now = e``
is ``now <= e and now >= e``.
"""

from __future__ import annotations

import pyarrow as pa

from penstock.compute.ir import (
    Call,
    Cast,
    Literal,
    Rel,
    Scalar,
    TemporalFilter,
    children_of,
    conjunction,
    conjuncts,
    make_literal,
)
from penstock.compute.normalize import filter_rows
from penstock.runtime import SqlError

MZ_NOW = "mz_now"
BOUND = "temporal_bound"
"""``temporal_bound(e, up, add)``: e in milliseconds as uint64, rounded up or down, plus `add`, kept in [0,
2**63 - 1].
"""

_MIRRORED = {"lt": "gt", "gt": "lt", "lte": "gte", "gte": "lte", "equal": "equal"}


def split_temporal(terms: list[Scalar]) -> tuple[list[Scalar], list[Scalar], list[Scalar]]:
    """(terms without mz_now(), lower bounds inclusive, upper bounds exclusive). Raises `SqlError` 0A000 for
    other uses.
    """
    plain: list[Scalar] = []
    lower: list[Scalar] = []
    upper: list[Scalar] = []
    for term in terms:
        if not uses_now(term):
            plain.append(term)
            continue
        name, bound = _comparison(term)
        if name in ("lte", "equal"):
            upper.append(_bound(bound, up=False, add=1))
        if name == "lt":
            upper.append(_bound(bound, up=True, add=0))
        if name in ("gte", "equal"):
            lower.append(_bound(bound, up=True, add=0))
        if name == "gt":
            lower.append(_bound(bound, up=False, add=1))
    return plain, lower, upper


def valid_while(rel: Rel, lower: list[Scalar], upper: list[Scalar]) -> Rel:
    """`rel` while ``mz_now()`` lies within all bounds."""
    return TemporalFilter(rel, tuple(lower), tuple(upper)) if lower or upper else rel


def filter_with_time(rel: Rel, predicate: Scalar) -> Rel:
    """`rel` with only the rows for which `predicate`, which may compare with ``mz_now()``, is true."""
    plain, lower, upper = split_temporal(conjuncts(predicate))
    return valid_while(filter_rows(rel, conjunction(plain)), lower, upper)


def uses_now(scalar: Scalar) -> bool:
    """Whether an expression reads the current time."""
    if isinstance(scalar, Call) and scalar.name == MZ_NOW:
        return True
    return any(uses_now(child) for child in children_of(scalar))


def refuse_now(scalar: Scalar) -> None:
    """Raise `SqlError` 0A000 when an expression outside a filter reads the current time."""
    if uses_now(scalar):
        raise _refusal()


def _comparison(term: Scalar) -> tuple[str, Scalar]:
    """(how mz_now() compares, with what)."""
    if isinstance(term, Call) and term.name in _MIRRORED and len(term.args) == 2:
        left, right = term.args
        if _is_now(left) and not uses_now(right):
            return term.name, right
        if _is_now(right) and not uses_now(left):
            return _MIRRORED[term.name], left
    raise _refusal()


def _is_now(scalar: Scalar) -> bool:
    while isinstance(scalar, Cast):
        scalar = scalar.arg
    while isinstance(scalar, Call) and scalar.name.startswith("ps_cast") and len(scalar.args) == 1:
        scalar = scalar.args[0]
    return isinstance(scalar, Call) and scalar.name == MZ_NOW


def _bound(scalar: Scalar, *, up: bool, add: int) -> Scalar:
    kind = scalar.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    ):
        raise SqlError(
            f"mz_now() cannot be compared with a value of type {kind}",
            sqlstate="42883",
            hint="Compare it with a timestamp or with milliseconds since the epoch.",
        )
    return Call(BOUND, (scalar, Literal(up, pa.bool_()), make_literal(add, pa.int64())), pa.uint64())


def _refusal() -> SqlError:
    return SqlError(
        "mz_now() can only be compared with <, <=, =, >=, > at the top level of WHERE or HAVING of a maintained view",
        sqlstate="0A000",
        hint="Write conditions joined by AND, each with mz_now() alone on one side.",
    )
