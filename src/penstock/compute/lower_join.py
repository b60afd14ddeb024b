"""Joins of a Substrait plan: keys out of the condition, right-handed kinds turned round, NOT IN told from NOT
EXISTS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from substrait.algebra_pb2 import JoinRel

from penstock.compute.ir import (
    Call,
    Join,
    JoinKind,
    Rel,
    Scalar,
    children_of,
    columns_used,
    conjunction,
    conjuncts,
    substitute,
)
from penstock.compute.ir import Column as ColumnRef
from penstock.compute.lower_temporal import split_temporal, valid_while
from penstock.compute.normalize import filter_rows, take_columns, with_columns
from penstock.runtime import SqlError
from penstock.sql.null_aware import NULL_AWARE

if TYPE_CHECKING:
    from penstock.compute.lower import _Lowering

_KINDS = {
    JoinRel.JOIN_TYPE_INNER: (JoinKind.INNER, False),
    JoinRel.JOIN_TYPE_OUTER: (JoinKind.FULL, False),
    JoinRel.JOIN_TYPE_LEFT: (JoinKind.LEFT, False),
    JoinRel.JOIN_TYPE_RIGHT: (JoinKind.LEFT, True),
    JoinRel.JOIN_TYPE_LEFT_SEMI: (JoinKind.SEMI, False),
    JoinRel.JOIN_TYPE_RIGHT_SEMI: (JoinKind.SEMI, True),
    JoinRel.JOIN_TYPE_LEFT_ANTI: (JoinKind.ANTI, False),
    JoinRel.JOIN_TYPE_RIGHT_ANTI: (JoinKind.ANTI, True),
    JoinRel.JOIN_TYPE_LEFT_MARK: (JoinKind.MARK, False),
    JoinRel.JOIN_TYPE_RIGHT_MARK: (JoinKind.MARK, True),
}
"""Substrait join type -> (kind, whether its sides change places)."""


def lower(lowering: _Lowering, message: Any) -> Rel:
    """The IR of a JoinRel, with the columns Substrait gives it."""
    if message.type not in _KINDS:
        name = JoinRel.JoinType.Name(message.type)
        raise SqlError(f"join type {name} cannot be maintained", sqlstate="0A000")
    kind, swapped = _KINDS[message.type]
    left, right = lowering.rel(message.left), lowering.rel(message.right)
    types = left.types + right.types
    terms: list[Scalar] = []
    for condition in ("expression", "post_join_filter"):
        if message.HasField(condition):
            terms += conjuncts(lowering.scalars.scalar(getattr(message, condition), types))
    if swapped:
        width_left, width_right = left.arity, right.arity
        left, right = right, left
        turned = {i: ColumnRef(i + width_right, types[i]) for i in range(width_left)}
        turned |= {i: ColumnRef(i - width_left, types[i]) for i in range(width_left, len(types))}
        terms = [substitute(term, turned) for term in terms]
    if message.common.hint.alias == NULL_AWARE and kind is JoinKind.ANTI:
        kind = JoinKind.NULL_AWARE_ANTI
    lower_bounds: list[Scalar] = []
    upper_bounds: list[Scalar] = []
    if kind is JoinKind.INNER:
        terms, lower_bounds, upper_bounds = split_temporal(terms)
    joined = valid_while(make_join(left, right, kind, terms), lower_bounds, upper_bounds)
    if swapped and joined.arity == len(types):
        return take_columns(joined, (*range(left.arity, len(types)), *range(left.arity)))
    return joined


def make_join(left: Rel, right: Rel, kind: JoinKind, terms: list[Scalar]) -> Rel:
    """A join on the conjunction of `terms` over both sides' columns.

    Equalities between an expression of each side become keys; the rest of the condition the residual.
    """
    width = left.arity
    keys: list[tuple[Scalar, Scalar, bool]] = []
    rest: list[Scalar] = []
    for term in terms:
        key = _key(term, width)
        if key is None:
            rest.append(term)
        else:
            keys.append(key)
    if kind is JoinKind.INNER:
        rest, left, right = _push_one_sided(rest, left, right)
    left_types, right_types = left.types, right.types
    wide_left, left_key = with_columns(left, tuple(key[0] for key in keys))
    wide_right, right_key = with_columns(right, tuple(key[1] for key in keys))
    moved = wide_left.arity - width  # key expressions were appended to the left side
    residual = conjunction(rest)
    if residual is not None and moved:
        mapping: dict[int, Scalar] = {i: ColumnRef(i, kind_) for i, kind_ in enumerate(left_types)}
        mapping |= {width + i: ColumnRef(width + moved + i, kind_) for i, kind_ in enumerate(right_types)}
        residual = substitute(residual, mapping)
    null_equal = tuple(key[2] for key in keys)
    if kind is JoinKind.INNER and residual is not None and keys:
        joined: Rel = filter_rows(Join(wide_left, wide_right, kind, left_key, right_key, null_equal), residual)
    else:
        joined = Join(wide_left, wide_right, kind, left_key, right_key, null_equal, residual)
    if kind in (JoinKind.SEMI, JoinKind.ANTI, JoinKind.NULL_AWARE_ANTI):
        return take_columns(joined, tuple(range(width)))
    if kind is JoinKind.MARK:
        return take_columns(joined, (*range(width), wide_left.arity))
    outputs = (*range(width), *range(wide_left.arity, wide_left.arity + len(right_types)))
    return take_columns(joined, outputs)


def _key(term: Scalar, width: int) -> tuple[Scalar, Scalar, bool] | None:
    """(left expression, right expression over right's columns, NULLs match) of an equality between the
    sides.
    """
    if not isinstance(term, Call) or term.name not in ("equal", "is_not_distinct_from"):
        return None
    first, second = term.args
    sides = [columns_used(first), columns_used(second)]
    if not sides[0] or not sides[1]:
        return None
    if min(sides[0]) >= width and max(sides[1]) < width:
        first, second, sides = second, first, sides[::-1]
    if max(sides[0]) >= width or min(sides[1]) < width or first.type != second.type:
        return None
    shifted: dict[int, Scalar] = {}
    for child in _columns(second):
        shifted[child.index] = ColumnRef(child.index - width, child.type)
    return first, substitute(second, shifted), term.name == "is_not_distinct_from"


def _columns(scalar: Scalar) -> list[ColumnRef]:
    if isinstance(scalar, ColumnRef):
        return [scalar]
    return [column for child in children_of(scalar) for column in _columns(child)]


def _push_one_sided(terms: list[Scalar], left: Rel, right: Rel) -> tuple[list[Scalar], Rel, Rel]:
    """Terms of an inner join's condition that read one side only filter that side."""
    width = left.arity
    rest = []
    for term in terms:
        used = columns_used(term)
        if used and max(used) < width:
            left = filter_rows(left, term)
        elif used and min(used) >= width:
            right = filter_rows(
                right, substitute(term, {c.index: ColumnRef(c.index - width, c.type) for c in _columns(term)})
            )
        else:
            rest.append(term)
    return rest, left, right
