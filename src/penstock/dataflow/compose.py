"""Operators that are made of others: reductions of mixed aggregates, distinct, semi, anti and outer joins.

    semi(L, R)   = L join distinct(R's keys)
    anti(L, R)   = L - semi(L, R)
    left(L, R)   = inner(L, R) + anti(L, R) with NULLs
    full(L, R)   = inner(L, R) + anti(L, R) with NULLs + NULLs with anti(R, L)

With a residual condition a left row matches when any of its pairs passes: semi(L, R) = L join distinct(L's
rows of the pairs that pass), joined on all columns with NULL equal to NULL.

NULL keys join with nothing, so they survive an anti join, as NOT EXISTS asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.dataflow.aggregates import Accumulation, Aggregate, Function, output_field
from penstock.dataflow.graph import Collection
from penstock.dataflow.join import join
from penstock.dataflow.linear import (
    BatchFunction,
    BatchResult,
    map_filter,
    negate,
    project,
    union,
    with_schema,
)
from penstock.dataflow.order import SortKey, check_orderable
from penstock.dataflow.reduce import Reduce
from penstock.dataflow.top_k import TopK


def distinct(collection: Collection) -> Collection:
    """Every row of `collection` once. A row with a negative multiplicity is an error."""
    operator = Reduce(collection.operator, range(len(collection.schema)), [], "distinct")
    return Collection.of(operator, collection, fallible=True)


def reduce(collection: Collection, key: list[int], aggregates: list[Aggregate]) -> Collection:
    """One row per group that has rows: the key columns, then the aggregates. NULL keys are one group.

    An empty `key` makes one group of all rows; over no rows there is none (a query without GROUP BY wants
    one: union with a constant and its retraction). Groups with a negative row count and sums out of range are
    errors.

    Raises `ValueError` for an aggregate that its column's type does not have.
    """
    schema = collection.schema
    fields = [output_field(aggregate, schema) for aggregate in aggregates]
    simple = [i for i, a in enumerate(aggregates) if a.function.additive and not a.distinct]
    distinct_columns: dict[int, list[int]] = {}
    ordered: list[int] = []
    for i, aggregate in enumerate(aggregates):
        if not aggregate.function.additive:
            ordered.append(i)  # DISTINCT changes no minimum
        elif aggregate.distinct:
            if aggregate.column is None:
                raise ValueError("DISTINCT needs a column")
            distinct_columns.setdefault(aggregate.column, []).append(i)
    parts: list[tuple[Collection, list[int]]] = []
    if simple or not aggregates:
        parts.append((_additive(collection, key, [aggregates[i] for i in simple]), simple))
    for column, members in distinct_columns.items():
        values = distinct(project(collection, [*key, column]))
        inner = [_moved(aggregates[i], len(key)) for i in members]
        parts.append((_additive(values, list(range(len(key))), inner), members))
    for i in ordered:
        parts.append((_extreme(collection, key, aggregates[i]), [i]))
    whole, members = parts[0]
    width = len(key)
    for part, more in parts[1:]:
        # every part has exactly one row per group that has rows, so the join collates them
        columns = [
            *range(width + len(members)),
            *range(2 * width + len(members), 2 * width + len(members) + len(more)),
        ]
        whole = join(whole, part, list(range(width)), list(range(width)), null_equals_null=True, columns=columns)
        members = [*members, *more]
    places = [*range(width), *(width + members.index(i) for i in range(len(aggregates)))]
    if places != list(range(len(places))):
        whole = project(whole, places)
    return with_schema(whole, pa.schema([*(schema.field(i) for i in key), *fields]))


def _additive(collection: Collection, key: list[int], aggregates: list[Aggregate]) -> Collection:
    accumulations = [Accumulation(aggregate, collection.schema) for aggregate in aggregates]
    operator = Reduce(collection.operator, key, accumulations, "reduce")
    return Collection.of(operator, collection, fallible=True)


def _moved(aggregate: Aggregate, column: int) -> Aggregate:
    return Aggregate(aggregate.function, column, output=aggregate.output, name=aggregate.name)


def _extreme(collection: Collection, key: list[int], aggregate: Aggregate) -> Collection:
    """Key and minimum or maximum: the first value in order, NULL only where there is no other."""
    assert aggregate.column is not None
    order = [SortKey(len(key), descending=aggregate.function is Function.MAX, nulls_first=False)]
    values = project(collection, [*key, aggregate.column])
    check_orderable(values.schema, order)
    name = aggregate.function.value
    operator = TopK(values.operator, range(len(key)), order, 1, 0, name)
    return Collection.of(operator, values, fallible=True)


def semi_join(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    *,
    null_equals_null: bool = False,
    residual: BatchFunction | None = None,
) -> Collection:
    """The rows of `left`, with their multiplicities, that have a match in `right`.

    `residual`: a filter of pairs (left's columns, then right's); it may drop rows but not change or repeat
    them.
    """
    everything = list(range(len(left.schema)))
    if residual is None:
        keys = distinct(project(right, right_key))
        return join(
            left,
            keys,
            left_key,
            list(range(len(right_key))),
            null_equals_null=null_equals_null,
            columns=everything,
        )
    pair_schema = pa.schema([*left.schema, *right.schema])
    pairs = join(
        left,
        right,
        left_key,
        right_key,
        null_equals_null=null_equals_null,
        residual=residual,
        schema=pair_schema,
    )
    matching = distinct(project(pairs, everything))
    return join(left, matching, everything, everything, null_equals_null=True, columns=everything)


def anti_join(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    *,
    null_equals_null: bool = False,
    residual: BatchFunction | None = None,
) -> Collection:
    """The rows of `left`, with their multiplicities, that have no match in `right`. `residual` as in
    `semi_join`."""
    matching = semi_join(left, right, left_key, right_key, null_equals_null=null_equals_null, residual=residual)
    return union([left, negate(matching)])


def left_join(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    *,
    null_equals_null: bool = False,
    residual: BatchFunction | None = None,
) -> Collection:
    """All columns of both; a row of `left` without a match comes once with NULLs for `right`. `residual`: the
    rest of ON."""
    return _outer(left, right, left_key, right_key, null_equals_null, residual, keep_left=True, keep_right=False)


def right_join(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    *,
    null_equals_null: bool = False,
    residual: BatchFunction | None = None,
) -> Collection:
    """All columns of both; a row of `right` without a match comes once with NULLs for `left`."""
    return _outer(left, right, left_key, right_key, null_equals_null, residual, keep_left=False, keep_right=True)


def full_join(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    *,
    null_equals_null: bool = False,
    residual: BatchFunction | None = None,
) -> Collection:
    """All columns of both; rows of either side without a match come once with NULLs for the other."""
    return _outer(left, right, left_key, right_key, null_equals_null, residual, keep_left=True, keep_right=True)


def cross_join(left: Collection, right: Collection) -> Collection:
    """All pairs."""
    return join(left, right, [], [])


def _outer(
    left: Collection,
    right: Collection,
    left_key: list[int],
    right_key: list[int],
    null_equals_null: bool,
    residual: BatchFunction | None,
    *,
    keep_left: bool,
    keep_right: bool,
) -> Collection:
    pair_schema = pa.schema([*left.schema, *right.schema])
    inner = join(
        left,
        right,
        left_key,
        right_key,
        null_equals_null=null_equals_null,
        residual=residual,
        schema=pair_schema,
    )
    parts = [inner]
    width = len(left.schema)
    for keep, side, other, side_key, other_key, first in (
        (keep_left, left, right, left_key, right_key, 0),
        (keep_right, right, left, right_key, left_key, width),
    ):
        if not keep:
            continue
        if residual is None:
            matching = semi_join(side, other, side_key, other_key, null_equals_null=null_equals_null)
        else:
            everything = list(range(len(side.schema)))
            matched = distinct(project(inner, list(range(first, first + len(everything)))))
            matching = join(side, matched, everything, everything, null_equals_null=True, columns=everything)
        alone = union([side, negate(matching)])
        parts.append(_padded(alone, pair_schema, first))
    return union(parts)


def _padded(collection: Collection, schema: pa.Schema, first: int) -> Collection:
    """The rows of `collection` as columns `first` and on of `schema`, the others NULL."""
    width = len(collection.schema)
    fields = [field if first <= i < first + width else field.with_nullable(True) for i, field in enumerate(schema)]
    target = pa.schema(fields)

    def pad(rows: pa.RecordBatch) -> BatchResult:
        columns = [
            rows.column(i - first) if first <= i < first + width else pa.nulls(rows.num_rows, field.type)
            for i, field in enumerate(target)
        ]
        return BatchResult(pa.RecordBatch.from_arrays(columns, schema=target))

    padded = map_filter(collection, pad, target)
    return Collection(padded.operator, collection.errors)


def rename(collection: Collection, names: Sequence[str]) -> Collection:
    """The same rows under other column names."""
    fields = [field.with_name(name) for field, name in zip(collection.schema, names, strict=True)]
    return with_schema(collection, pa.schema(fields))
