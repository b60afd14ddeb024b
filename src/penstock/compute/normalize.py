"""Constructors that keep plans in normal form.

Normal form: no `Project` directly on a `Project`, no `Filter` on a `Filter`, and a `Filter` below its
`Project` rather than above it. A linear stretch of a plan is then always ``Project(Filter(x))``, which the
renderer turns into one operator, and rows that a filter drops never reach (and never fail in) the
expressions above it.
"""

from __future__ import annotations

from penstock.compute.ir import (
    Call,
    Column,
    Filter,
    Literal,
    Project,
    Rel,
    Scalar,
    TemporalFilter,
    TopK,
    Window,
    columns_of,
    columns_used,
    conjunction,
    conjuncts,
    size_of,
    substitute,
)

_FUSED_SIZE_MAX = 5_000
"""Expression nodes. Fusing copies shared operands; evaluation shares them again, but the plan's text must
stay bounded.
"""


def project(rel: Rel, exprs: tuple[Scalar, ...], names: tuple[str, ...] = ()) -> Rel:
    """`rel` with one column per expression."""
    if isinstance(rel, Project):
        fused = tuple(substitute(expr, rel.exprs) for expr in exprs)
        if sum(size_of(expr) for expr in fused) <= _FUSED_SIZE_MAX:
            return project(rel.input, fused, names)
    if not names and exprs == columns_of(rel):
        return rel
    return Project(rel, exprs, names)


def take_columns(rel: Rel, columns: tuple[int, ...]) -> Rel:
    """`rel` with only the given columns, in that order."""
    return project(rel, tuple(Column(i, rel.types[i]) for i in columns))


def filter_rows(rel: Rel, predicate: Scalar | None) -> Rel:
    """`rel` with only the rows for which `predicate` is true."""
    if predicate is None or predicate == Literal(True, predicate.type):
        return rel
    if isinstance(rel, Filter):
        return filter_rows(rel.input, conjunction(conjuncts(rel.predicate) + conjuncts(predicate)))
    if isinstance(rel, Project):
        pushed = substitute(predicate, rel.exprs)
        if size_of(pushed) <= _FUSED_SIZE_MAX:
            return Project(filter_rows(rel.input, pushed), rel.exprs, rel.names)
    if isinstance(rel, TemporalFilter):
        return TemporalFilter(filter_rows(rel.input, predicate), rel.lower, rel.upper)
    if isinstance(rel, Window):
        return _filter_window(rel, predicate)
    return Filter(rel, predicate)


def with_columns(rel: Rel, exprs: tuple[Scalar, ...]) -> tuple[Rel, tuple[int, ...]]:
    """`rel` such that each expression is one of its columns, and which ones. Columns are appended only
    where needed.
    """
    wanted: list[Scalar] = list(columns_of(rel))
    positions = []
    for expr in exprs:
        if isinstance(expr, Column):
            positions.append(expr.index)
            continue
        if expr not in wanted[rel.arity :]:
            wanted.append(expr)
        positions.append(wanted.index(expr, rel.arity))
    return project(rel, tuple(wanted)), tuple(positions)


def _filter_window(window: Window, predicate: Scalar) -> Rel:
    """A filter on window results.

    Terms over the partition's columns alone drop whole partitions and go below. ``row_number() <= k`` keeps
    the first k rows of each partition: a `TopK` below the window makes the work follow k instead of the
    partition's size.
    """
    base = window.input.arity
    below: list[Scalar] = []
    above: list[Scalar] = []
    for term in conjuncts(predicate):
        used = columns_used(term)
        (below if used and used <= set(window.partition) else above).append(term)
    source = filter_rows(window.input, conjunction(below))
    limits = [_row_number_limit(term, base) for term in above]
    if len(window.functions) == 1 and window.functions[0].sql == "row_number()":
        function = window.functions[0]
        bounds = [limit for limit in limits if limit is not None]
        if bounds:
            source = TopK(source, function.partition, function.order, max(min(bounds), 0))
            above = [term for term, limit in zip(above, limits, strict=True) if limit is None]
    filtered: Rel = Window(source, window.partition, window.functions)
    remaining = conjunction(above)
    return filtered if remaining is None else Filter(filtered, remaining)


def _row_number_limit(term: Scalar, column: int) -> int | None:
    """k when `term` says that `column`, counted from 1, is at most k (and nothing else); else None."""
    if not isinstance(term, Call) or len(term.args) != 2:
        return None
    left, right = term.args
    name = term.name
    if isinstance(left, Literal):
        left, right, name = right, left, _MIRRORED.get(name, "")
    if not isinstance(left, Column) or left.index != column or not isinstance(right, Literal):
        return None
    if not isinstance(right.value, int):
        return None
    match name:
        case "lte":
            return right.value
        case "lt":
            return right.value - 1
        case "equal" if right.value == 1:
            return 1
    return None


_MIRRORED = {"lt": "gt", "gt": "lt", "lte": "gte", "gte": "lte", "equal": "equal"}
