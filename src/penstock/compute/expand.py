"""From the IR that says what a view is to the IR that the operators can run.

Composite nodes become simpler ones, so that the renderer knows only what an operator does by itself:

* ``avg``, ``stddev``, ``var``: sums and counts, and an expression over them;
* a reduction without a key: over its input and one row of NULLs, which all aggregates ignore, so that there
  always is a group;
* `SingleRow`: the rows, a row of NULLs while there are none, and an error while there are several;
* mark joins: the semi and the anti join, marked; ``NOT IN``: two anti joins;
* semi and anti joins with a residual: equality of those left columns that decide about a match;
* joins whose keys mix = and IS NOT DISTINCT FROM: NULLs in the former are filtered out before.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from penstock.compute.ir import (
    FALSE,
    TRUE,
    Aggregate,
    Call,
    Cast,
    Column,
    Constant,
    Distinct,
    Filter,
    Join,
    JoinKind,
    Literal,
    Project,
    Reduce,
    Rel,
    Scalar,
    SingleRow,
    Union,
    columns_of,
    columns_used,
    inputs_of,
    make_constant,
    make_literal,
    substitute,
    with_inputs,
)
from penstock.compute.lower_aggregate import RECOMPUTED
from penstock.compute.normalize import filter_rows, project, take_columns
from penstock.compute.plan_functions import AT_MOST_ONE, DECIMAL_AVERAGE, VARIANCE

_VARIANCES = {"stddev": (True, True), "stddev_pop": (False, True), "var": (True, False), "var_pop": (False, False)}
"""Function -> (of a sample, square root of it)."""


def expand(rel: Rel) -> Rel:
    """The same collection by nodes that have an operator. Equal subplans stay equal."""
    memo: dict[Rel, Rel] = {}

    def visit(node: Rel) -> Rel:
        if node not in memo:
            inner = with_inputs(node, tuple(visit(child) for child in inputs_of(node)))
            expanded = _expand_node(inner)
            memo[node] = inner if expanded == inner else visit(expanded)
            memo[memo[node]] = memo[node]
        return memo[node]

    return visit(rel)


def _expand_node(rel: Rel) -> Rel:
    match rel:
        case Reduce():
            return _expand_reduce(rel)
        case SingleRow():
            return _expand_single(rel)
        case Join():
            return _expand_join(rel)
        # inputs that changed may have become linear nodes: keep the normal form
        case Project():
            return project(rel.input, rel.exprs, rel.names) if isinstance(rel.input, Project) else rel
        case Filter():
            return filter_rows(rel.input, rel.predicate) if isinstance(rel.input, Project | Filter) else rel
        case _:
            return rel


# --- reductions


def _expand_reduce(rel: Reduce) -> Rel:
    if any(aggregate.function == "avg" or aggregate.function in _VARIANCES for aggregate in rel.aggregates):
        return _split_averages(rel)
    recomputed = any(aggregate.function in RECOMPUTED for aggregate in rel.aggregates)
    if not rel.key and not recomputed and not _has_default_row(rel.input):
        return _with_default_row(rel)
    return rel


def _split_averages(rel: Reduce) -> Rel:
    source = rel.input
    columns: list[Scalar] = list(columns_of(source))
    inner: list[Aggregate] = []

    def aggregate(made: Aggregate) -> int:
        if made not in inner:
            inner.append(made)
        return len(rel.key) + inner.index(made)

    def column(expr: Scalar) -> int:
        if expr not in columns:
            columns.append(expr)
        return columns.index(expr)

    outputs: list[Callable[[tuple[pa.DataType, ...]], Scalar]] = []
    for original in rel.aggregates:
        outputs.append(_output(original, source, aggregate, column))
    reduced = Reduce(project(source, tuple(columns)), rel.key, tuple(inner))
    types = reduced.types
    keys = tuple(Column(i, types[i]) for i in range(len(rel.key)))
    return project(reduced, (*keys, *(output(types) for output in outputs)))


def _output(
    original: Aggregate, source: Rel, aggregate: Callable[[Aggregate], int], column: Callable[[Scalar], int]
) -> Callable[[tuple[pa.DataType, ...]], Scalar]:
    """How an aggregate is computed from those that `aggregate` adds; called with the types of the
    reduction.
    """
    if original.function == "avg":
        kind = source.types[original.args[0]]
        total = pa.decimal128(38, kind.scale) if pa.types.is_decimal(kind) else pa.float64()
        argument = original.args
        if not pa.types.is_decimal(kind) and not pa.types.is_float64(kind):
            argument = (column(Cast(Column(original.args[0], kind), pa.float64())),)
        sum_at = aggregate(Aggregate("sum", argument, total, original.distinct))
        count_at = aggregate(Aggregate("count", argument, pa.int64(), original.distinct))
        if pa.types.is_decimal(kind):
            return lambda types: Call(
                DECIMAL_AVERAGE, (Column(sum_at, types[sum_at]), Column(count_at, pa.int64())), original.type
            )
        return lambda types: Call(
            "divide", (Column(sum_at, types[sum_at]), Cast(Column(count_at, pa.int64()), pa.float64())), pa.float64()
        )
    if original.function in _VARIANCES:
        sample, root = _VARIANCES[original.function]
        value: Scalar = Column(original.args[0], source.types[original.args[0]])
        if value.type != pa.float64():
            value = Cast(value, pa.float64())
        square = column(Call("multiply", (value, value), pa.float64()))
        single = column(value)
        sum_at = aggregate(Aggregate("sum", (single,), pa.float64(), original.distinct))
        squares_at = aggregate(Aggregate("sum", (square,), pa.float64(), original.distinct))
        count_at = aggregate(Aggregate("count", (single,), pa.int64(), original.distinct))
        flags = (Literal(sample, pa.bool_()), Literal(root, pa.bool_()))
        operands = (Column(sum_at, pa.float64()), Column(squares_at, pa.float64()), Column(count_at, pa.int64()))
        return lambda _types: Call(VARIANCE, (*operands, *flags), pa.float64())
    position = aggregate(original)
    return lambda types: Column(position, types[position])


_DEFAULT_NAME = "default_row"


def _has_default_row(source: Rel) -> bool:
    return isinstance(source, Union) and any(
        isinstance(part, Constant) and part.fields[-1].name == _DEFAULT_NAME for part in source.inputs
    )


def _with_default_row(rel: Reduce) -> Rel:
    """The input gets a column that is 1 for real rows and NULL for the row that stands for "no rows"."""
    width = rel.input.arity
    marked = project(rel.input, (*columns_of(rel.input), make_literal(1, pa.int8())))
    fields = [*(pa.field(f"c{i}", kind) for i, kind in enumerate(rel.input.types)), pa.field(_DEFAULT_NAME, pa.int8())]
    nothing = pa.record_batch([pa.nulls(1, field.type) for field in fields], schema=pa.schema(fields))
    aggregates = tuple(
        Aggregate("count", (width,), aggregate.type)
        if aggregate.function == "count" and not aggregate.args
        else aggregate
        for aggregate in rel.aggregates
    )
    return Reduce(Union((marked, make_constant(nothing))), (), aggregates)


def _expand_single(rel: SingleRow) -> Rel:
    rows = rel.input
    counted = Reduce(project(rows, (TRUE,)), (), (Aggregate("count", (), pa.int64()),))
    count = Column(0, pa.int64())
    # one row when there is none, an error when there are several, nothing when there is one
    missing = Filter(
        counted, Call("equal", (Call(AT_MOST_ONE, (count,), pa.int64()), make_literal(0, pa.int64())), pa.bool_())
    )
    return Union((rows, project(missing, tuple(Literal(None, kind) for kind in rows.types))))


# --- joins


def _expand_join(rel: Join) -> Rel:
    match rel.kind:
        case JoinKind.MARK:
            return _mark(rel)
        case JoinKind.NULL_AWARE_ANTI:
            return _not_in(rel)
    if len(set(rel.null_equal)) > 1:
        return _mixed_keys(rel)
    if rel.kind is JoinKind.INNER and rel.residual is not None:
        return filter_rows(_replace(rel, residual=None), rel.residual)
    if rel.kind in (JoinKind.SEMI, JoinKind.ANTI) and rel.residual is not None:
        return _residual_match(rel)
    return rel


def _replace(rel: Join, **changes: object) -> Join:
    fields = {name: getattr(rel, name) for name in Join.__struct_fields__}
    return Join(**(fields | changes))


def _mark(rel: Join) -> Rel:
    columns = columns_of(rel.left)
    return Union(
        (
            project(_replace(rel, kind=JoinKind.SEMI), (*columns, TRUE)),
            project(_replace(rel, kind=JoinKind.ANTI), (*columns, FALSE)),
        )
    )


def _not_in(rel: Join) -> Rel:
    """``NOT IN``: the first key is compared by IN, further ones correlate the subquery.

    With G the right rows that agree in the further keys, a left row stays when G is empty, or when its key
    is not NULL and G has neither an equal key nor a NULL one.
    """
    left_null, right_null = _any_null(rel.left, rel.left_key[:1]), _any_null(rel.right, rel.right_key[:1])
    group = (rel.left_key[1:], rel.right_key[1:], rel.null_equal[1:])
    absent = _replace(rel, left=filter_rows(rel.left, Call("not", (left_null,), pa.bool_())), kind=JoinKind.ANTI)
    definite = Join(absent, filter_rows(rel.right, right_null), JoinKind.ANTI, *group, rel.residual)
    vacuous = Join(filter_rows(rel.left, left_null), rel.right, JoinKind.ANTI, *group, rel.residual)
    return Union((definite, vacuous))


def _residual_match(rel: Join) -> Rel:
    """A left row matches or not by its key and the columns in the residual alone: join on those."""
    assert rel.residual is not None
    width = rel.left.arity
    deciding = tuple(sorted({*rel.left_key, *(i for i in columns_used(rel.residual) if i < width)}))
    right_used = tuple(sorted({*rel.right_key, *(i - width for i in columns_used(rel.residual) if i >= width)}))
    left = take_columns(rel.left, deciding)
    right = take_columns(rel.right, right_used)
    types = left.types + right.types
    moved = {old: Column(new, types[new]) for new, old in enumerate(deciding)}
    moved |= {
        width + old: Column(len(deciding) + new, types[len(deciding) + new]) for new, old in enumerate(right_used)
    }
    pairs = Join(
        left,
        right,
        JoinKind.INNER,
        tuple(deciding.index(i) for i in rel.left_key),
        tuple(right_used.index(i) for i in rel.right_key),
        rel.null_equal,
    )
    passing = take_columns(filter_rows(pairs, substitute(rel.residual, moved)), tuple(range(len(deciding))))
    if not deciding:
        passing = project(passing, (TRUE,))
    key = tuple(range(len(deciding)))
    return Join(rel.left, Distinct(passing), rel.kind, deciding, key, (True,) * len(deciding))


def _mixed_keys(rel: Join) -> Rel:
    strict = [i for i, null_equal in enumerate(rel.null_equal) if not null_equal]
    left_null = _any_null(rel.left, tuple(rel.left_key[i] for i in strict))
    right_null = _any_null(rel.right, tuple(rel.right_key[i] for i in strict))
    everywhere = (True,) * len(rel.null_equal)
    left = filter_rows(rel.left, Call("not", (left_null,), pa.bool_()))
    right = filter_rows(rel.right, Call("not", (right_null,), pa.bool_()))
    matched = _replace(rel, left=left, right=right, null_equal=everywhere)
    if rel.kind in (JoinKind.INNER, JoinKind.SEMI):
        return matched
    alone_left = filter_rows(rel.left, left_null)
    if rel.kind is JoinKind.ANTI:
        return Union((matched, alone_left))
    right_nulls = tuple(Literal(None, kind) for kind in rel.right.types)
    left_nulls = tuple(Literal(None, kind) for kind in rel.left.types)
    parts: list[Rel] = [matched, project(alone_left, (*columns_of(alone_left), *right_nulls))]
    if rel.kind is JoinKind.FULL:
        alone_right = filter_rows(rel.right, right_null)
        parts.append(project(alone_right, (*left_nulls, *columns_of(alone_right))))
    return Union(tuple(parts))


def _any_null(rel: Rel, columns: tuple[int, ...]) -> Scalar:
    tests: list[Scalar] = [Call("is_null", (Column(i, rel.types[i]),), pa.bool_()) for i in columns]
    combined = tests[0] if tests else FALSE
    for test in tests[1:]:
        combined = Call("or", (combined, test), pa.bool_())
    return combined
