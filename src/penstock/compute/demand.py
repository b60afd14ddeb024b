"""Column demand: nothing carries a column that no one above reads.

Arrangements hold what flows through their input, so that a column dropped below a join or a reduction is
dropped from memory and from every later lookup. A collection of which only the row count matters keeps one
constant column.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.compute.ir import (
    TRUE,
    Column,
    Constant,
    Distinct,
    Filter,
    Get,
    Join,
    JoinKind,
    Negate,
    Project,
    Reduce,
    Rel,
    Scalar,
    SingleRow,
    SortKey,
    TemporalFilter,
    TopK,
    Union,
    Window,
    columns_used,
    substitute,
)
from penstock.compute.normalize import filter_rows, project, take_columns

Mapping = dict[int, int]
"""Old column -> column of the thinner relation."""


def prune(rel: Rel) -> Rel:
    """The same collection, with the same columns, of which the inner nodes carry only what is needed."""
    names = rel.names if isinstance(rel, Project) else ()
    pruned = _exact(*_thin(rel, frozenset(range(rel.arity))), frozenset(range(rel.arity)))
    if names and not (isinstance(pruned, Project) and pruned.names == names):
        exprs = tuple(Column(i, kind) for i, kind in enumerate(pruned.types))
        return project(pruned, exprs, names)
    return pruned


def _thin(rel: Rel, need: frozenset[int]) -> tuple[Rel, Mapping]:
    """`rel` with at least the columns `need`, and where they are. What comes back is never without columns."""
    match rel:
        case Get() | Constant():
            return _keep(rel, need)
        case Project():
            kept = sorted(need)
            child, mapping = _thin(rel.input, _used(rel.exprs[i] for i in kept))
            exprs = tuple(_moved(rel.exprs[i], mapping, child) for i in kept) or (TRUE,)
            return project(child, exprs), _positions(kept)
        case Filter():
            child, mapping = _thin(rel.input, need | columns_used(rel.predicate))
            return filter_rows(child, _moved(rel.predicate, mapping, child)), mapping
        case TemporalFilter():
            child, mapping = _thin(rel.input, need | _used((*rel.lower, *rel.upper)))
            lower = tuple(_moved(bound, mapping, child) for bound in rel.lower)
            return TemporalFilter(child, lower, tuple(_moved(b, mapping, child) for b in rel.upper)), mapping
        case Join():
            return _thin_join(rel, need)
        case Reduce():
            return _thin_reduce(rel, need)
        case Distinct():
            everything = frozenset(range(rel.arity))
            return Distinct(_exact(*_thin(rel.input, everything), everything)), _positions(sorted(everything))
        case TopK():
            child, mapping = _thin_exact(rel.input, need | {*rel.group, *(key.column for key in rel.order)})
            group = tuple(mapping[i] for i in rel.group)
            return TopK(child, group, _moved_order(rel.order, mapping), rel.limit, rel.offset), mapping
        case Window():
            return _thin_window(rel, need)
        case Union():
            some = need or frozenset({0})
            parts = tuple(_exact(*_thin(part, some), some) for part in rel.inputs)
            return Union(parts), _positions(sorted(some))
        case Negate():
            child, mapping = _thin(rel.input, need)
            return Negate(child), mapping
        case SingleRow():
            child, mapping = _thin_exact(rel.input, need or frozenset({0}))
            return SingleRow(child), mapping


def _thin_join(rel: Join, need: frozenset[int]) -> tuple[Rel, Mapping]:
    width = rel.left.arity
    # column `width` of a mark join's output is the mark, of its residual right's first column
    used = need - {width} if rel.kind is JoinKind.MARK else need
    if rel.residual is not None:
        used |= columns_used(rel.residual)
    left_need = frozenset(i for i in used if i < width)
    right_need = frozenset(i - width for i in used if i >= width)
    left, left_map = _thin_exact(rel.left, left_need | set(rel.left_key))
    right, right_map = _thin_exact(rel.right, right_need | set(rel.right_key))
    mapping = dict(left_map) | {width + i: left.arity + j for i, j in right_map.items()}
    residual = rel.residual
    if residual is not None:
        types = left.types + right.types
        residual = substitute(residual, {old: Column(new, types[new]) for old, new in mapping.items()})
    left_key = tuple(left_map[i] for i in rel.left_key)
    right_key = tuple(right_map[i] for i in rel.right_key)
    joined = Join(left, right, rel.kind, left_key, right_key, rel.null_equal, residual)
    if rel.kind is JoinKind.MARK:
        return joined, {**left_map, width: left.arity}
    if rel.kind in (JoinKind.SEMI, JoinKind.ANTI, JoinKind.NULL_AWARE_ANTI):
        return joined, left_map
    return joined, mapping


def _thin_reduce(rel: Reduce, need: frozenset[int]) -> tuple[Rel, Mapping]:
    width = len(rel.key)
    kept = [i for i in range(len(rel.aggregates)) if width + i in need]
    if not kept and not rel.key:
        kept = [0]
    aggregates = [rel.aggregates[i] for i in kept]
    used = {*rel.key}
    for aggregate in aggregates:
        used |= {*aggregate.args, *(key.column for key in aggregate.order)}
    child, mapping = _thin_exact(rel.input, frozenset(used))
    key = tuple(mapping[i] for i in rel.key)
    positions = {i: i for i in range(width)} | {width + old: width + new for new, old in enumerate(kept)}
    if not aggregates:
        distinct = tuple(dict.fromkeys(key))
        return Distinct(take_columns(child, distinct)), {i: distinct.index(column) for i, column in enumerate(key)}
    moved = tuple(
        type(aggregate)(
            aggregate.function,
            tuple(mapping[i] for i in aggregate.args),
            aggregate.type,
            aggregate.distinct,
            _moved_order(aggregate.order, mapping),
            aggregate.parameters,
        )
        for aggregate in aggregates
    )
    return Reduce(child, key, moved), positions


def _thin_window(rel: Window, need: frozenset[int]) -> tuple[Rel, Mapping]:
    width = rel.input.arity
    kept = [i for i in range(len(rel.functions)) if width + i in need]
    used = {i for i in need if i < width}
    for i in kept:
        function = rel.functions[i]
        used |= {*function.args, *function.partition, *(key.column for key in function.order)}
    child, mapping = _thin_exact(rel.input, frozenset(used))
    if not kept:
        return child, mapping
    functions = tuple(
        type(function)(
            function.sql,
            tuple(mapping[i] for i in function.args),
            tuple(mapping[i] for i in function.partition),
            _moved_order(function.order, mapping),
            function.frame,
            function.type,
        )
        for function in (rel.functions[i] for i in kept)
    )
    window = Window(child, tuple(mapping[i] for i in rel.partition), functions)
    return window, mapping | {width + old: child.arity + new for new, old in enumerate(kept)}


def _thin_exact(rel: Rel, need: frozenset[int]) -> tuple[Rel, Mapping]:
    """Like `_thin`, but with no column beside the needed ones."""
    return _exact(*_thin(rel, need), need), _positions(sorted(need))


def _keep(rel: Rel, need: frozenset[int]) -> tuple[Rel, Mapping]:
    kept = sorted(need)
    if not kept:
        return project(rel, (TRUE,)), {}
    return take_columns(rel, tuple(kept)), _positions(kept)


def _exact(rel: Rel, mapping: Mapping, need: frozenset[int]) -> Rel:
    """`rel` with exactly the columns `need`, ascending; a constant column when there are none."""
    if not need:
        return rel if rel.arity == 1 and not mapping else project(rel, (TRUE,))
    return take_columns(rel, tuple(mapping[i] for i in sorted(need)))


def _positions(kept: list[int]) -> Mapping:
    return {old: new for new, old in enumerate(kept)}


def _used(exprs: Iterable[Scalar]) -> frozenset[int]:
    return frozenset().union(*(columns_used(expr) for expr in exprs))


def _moved(expr: Scalar, mapping: Mapping, child: Rel) -> Scalar:
    return substitute(expr, {old: Column(new, child.types[new]) for old, new in mapping.items()})


def _moved_order(order: tuple[SortKey, ...], mapping: Mapping) -> tuple[SortKey, ...]:
    return tuple(SortKey(mapping[key.column], key.descending, key.nulls_first) for key in order)
