"""From a dataflow description to operators.

Plans are expanded to nodes that have an operator, and every distinct node is rendered once: common subplans
share their operators, and all joins that need a collection by the same key share its arrangement. A linear
stretch (filter, then expressions) is one operator, and where it stands on a join it runs inside the join,
before the pairs are copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from penstock import dataflow as flow
from penstock.compute.description import DataflowDescription, IndexExport, IndexImport, ShardImport
from penstock.compute.expand import expand
from penstock.compute.index_import import feed_from_index
from penstock.compute.ir import (
    Aggregate,
    Call,
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
    TemporalFilter,
    TopK,
    Union,
    Window,
    batch_from_ipc,
    columns_of,
    columns_used,
    inputs_of,
    substitute,
)
from penstock.compute.lower_aggregate import RECOMPUTED
from penstock.compute.normalize import project
from penstock.compute.plan_functions import LATEST, SOONEST
from penstock.compute.recompute import recompute_aggregates, recompute_windows
from penstock.compute.scalar import compile_scalars
from penstock.dataflow import Collection, Dataflow, IndexTrace, InputHandle, Worker
from penstock.runtime import Frontier, GlobalId, InternalError, SqlError, Updates

OnData = Callable[[Updates, Updates, Frontier], None]
"""``on_data(oks, errs, frontier)``: consolidated, on the worker thread, per move of the frontier."""


@dataclass
class RenderedDataflow:
    """A running dataflow. `inputs`: one handle per shard import; `indexes`: one trace per index export."""

    dataflow: Dataflow
    inputs: dict[GlobalId, InputHandle] = field(default_factory=dict)
    indexes: dict[GlobalId, IndexTrace] = field(default_factory=dict)
    collections: dict[GlobalId, Collection] = field(default_factory=dict)


def render(
    description: DataflowDescription,
    worker: Worker,
    *,
    indexes: Mapping[GlobalId, IndexTrace],
    sinks: Mapping[GlobalId, OnData],
) -> RenderedDataflow:
    """Build the graph of `description` and install it. On the worker thread (or before it starts).

    `indexes`: the traces of the index imports, by index id. `sinks`: for each view or subscribe export what
    to call. Raises `SqlError` 0A000 for what has no operator, `NotReadable` when an imported index has
    compacted past the as-of; nothing is installed then.
    """
    made = Dataflow(description.id, description.as_of, description.until)
    rendered = RenderedDataflow(made)
    feeds: list[Callable[[], None]] = []
    for name, source in description.imports.items():
        handle, collection = made.input(name, source.schema)
        rendered.collections[name] = collection
        if isinstance(source, ShardImport):
            rendered.inputs[name] = handle
        elif isinstance(source, IndexImport):
            feeds.append(feed_from_index(indexes[source.index], handle, description.as_of))
    plans = [(name, expand(rel)) for name, rel in description.objects]
    renderer = _Renderer(made, rendered.collections, [rel for _, rel in plans])
    for (name, plan), (_, rel) in zip(plans, description.objects, strict=True):
        rendered.collections[name] = flow.with_schema(renderer.collection(plan), rel.schema)
    for export in description.exports:
        collection = rendered.collections[export.on]
        if isinstance(export, IndexExport):
            rendered.indexes[export.id] = flow.index(collection, list(export.key))
        else:
            collection.inspect(sinks[export.id])
    for feed in feeds:
        feed()
    worker.install(made)
    return rendered


class _Renderer:
    """Renders the plans of one dataflow. `collections`: what `Get`s find, by id."""

    def __init__(self, dataflow: Dataflow, collections: dict[GlobalId, Collection], plans: list[Rel]) -> None:
        self._dataflow = dataflow
        self._collections = collections
        self._done: dict[Rel, Collection] = {}
        self._uses: Counter[Rel] = Counter(plans)
        seen: set[Rel] = set()
        stack = list(plans)
        while stack:
            rel = stack.pop()
            if rel in seen:
                continue
            seen.add(rel)
            self._uses.update(inputs_of(rel))
            stack.extend(inputs_of(rel))

    def collection(self, rel: Rel) -> Collection:
        """The collection of `rel`, with its column types in its order; names and nullability are the
        operators'.
        """
        if rel not in self._done:
            try:
                self._done[rel] = self._render(rel)
            except ValueError as error:  # the operators' way to say that a type does not have what is asked of it
                raise SqlError(f"this view cannot be maintained: {error}", sqlstate="0A000") from error
        return self._done[rel]

    def _render(self, rel: Rel) -> Collection:
        match rel:
            case Get():
                if GlobalId(rel.id) not in self._collections:
                    raise InternalError(f"{self._dataflow.name} reads {rel.id}, which it neither imports nor computes")
                return self._collections[GlobalId(rel.id)]
            case Constant():
                return flow.constant(self._dataflow, batch_from_ipc(rel.rows))
            case Project() | Filter():
                return self._linear(rel)
            case TemporalFilter():
                return self._temporal(rel)
            case Join():
                return self._join(rel)
            case Reduce():
                return self._reduce(rel)
            case Distinct():
                return flow.distinct(self.collection(rel.input))
            case TopK():
                order = [flow.SortKey(key.column, key.descending, key.nulls_first) for key in rel.order]
                return flow.top_k(self.collection(rel.input), list(rel.group), order, rel.limit, rel.offset)
            case Window():
                return recompute_windows(self.collection(rel.input), rel)
            case Union():
                return flow.union([self.collection(part) for part in rel.inputs])
            case Negate():
                return flow.negate(self.collection(rel.input))
        raise InternalError(f"{type(rel).__name__} was not expanded")

    # --- linear stretches

    def _linear(self, rel: Project | Filter) -> Collection:
        exprs: tuple[Scalar, ...] = rel.exprs if isinstance(rel, Project) else columns_of(rel.input)
        source: Rel = rel.input if isinstance(rel, Project) else rel
        predicate = None
        if isinstance(source, Filter) and (source is rel or self._uses[source] == 1):
            predicate, source = source.predicate, source.input
        if isinstance(source, Join) and source.kind is JoinKind.INNER and self._uses[source] == 1:
            return self._inner_join(source, predicate, exprs)
        collection = self.collection(source)
        if predicate is None and exprs and all(isinstance(expr, Column) for expr in exprs):
            return flow.project(collection, [expr.index for expr in exprs if isinstance(expr, Column)])
        schema = _schema(exprs)
        return flow.map_filter(collection, compile_scalars(predicate, exprs, schema), schema)

    def _temporal(self, rel: TemporalFilter) -> Collection:
        width = rel.input.arity
        bounds = [_combined(name, terms) for name, terms in ((LATEST, rel.lower), (SOONEST, rel.upper)) if terms]
        wide = self._linear_over(rel.input, (*columns_of(rel.input), *bounds))
        lower = width if rel.lower else None
        upper = width + len(bounds) - 1 if rel.upper else None
        return flow.temporal_filter(wide, lower, upper, columns=list(range(width)))

    def _linear_over(self, rel: Rel, exprs: tuple[Scalar, ...]) -> Collection:
        """`exprs` over `rel`, fused with it where it is linear and nobody else uses it."""
        if isinstance(rel, Project) and self._uses[rel] > 1:
            schema = _schema(exprs)
            return flow.map_filter(self.collection(rel), compile_scalars(None, exprs, schema), schema)
        return self.collection(project(rel, exprs))

    # --- joins

    def _join(self, rel: Join) -> Collection:
        if rel.kind is JoinKind.INNER:
            return self._inner_join(rel, None, columns_of(rel))
        left, right = self.collection(rel.left), self.collection(rel.right)
        left_key, right_key = list(rel.left_key), list(rel.right_key)
        null_equal = bool(rel.null_equal) and rel.null_equal[0]
        match rel.kind:
            case JoinKind.SEMI:
                return flow.semi_join(left, right, left_key, right_key, null_equals_null=null_equal)
            case JoinKind.ANTI:
                return flow.anti_join(left, right, left_key, right_key, null_equals_null=null_equal)
            case JoinKind.LEFT | JoinKind.FULL:
                residual = None
                if rel.residual is not None:
                    pairs = pa.schema([*left.schema, *right.schema])
                    residual = compile_scalars(rel.residual, _all_columns(pairs), pairs)
                outer = flow.left_join if rel.kind is JoinKind.LEFT else flow.full_join
                return outer(left, right, left_key, right_key, null_equals_null=null_equal, residual=residual)
        raise InternalError(f"join kind {rel.kind} was not expanded")

    def _inner_join(self, rel: Join, predicate: Scalar | None, exprs: tuple[Scalar, ...]) -> Collection:
        """The join, a filter of its pairs and expressions over them, in one operator."""
        left, right = self.collection(rel.left), self.collection(rel.right)
        left_key, right_key = list(rel.left_key), list(rel.right_key)
        null_equal = bool(rel.null_equal) and rel.null_equal[0]
        terms = [*exprs] if predicate is None else [predicate, *exprs]
        used = sorted(set().union(*(columns_used(term) for term in terms)))
        plain = [expr.index for expr in exprs if isinstance(expr, Column)]
        if predicate is None and len(plain) == len(exprs) > 0 and len(set(plain)) == len(plain):
            return flow.join(left, right, left_key, right_key, null_equals_null=null_equal, columns=plain)
        types = rel.types
        moved = {old: Column(new, types[old]) for new, old in enumerate(used)}
        schema = _schema(exprs)
        function = compile_scalars(
            None if predicate is None else substitute(predicate, moved),
            [substitute(expr, moved) for expr in exprs],
            schema,
        )
        return flow.join(
            left,
            right,
            left_key,
            right_key,
            null_equals_null=null_equal,
            columns=used,
            residual=function,
            schema=schema,
        )

    # --- reductions

    def _reduce(self, rel: Reduce) -> Collection:
        source = self.collection(rel.input)
        recomputed = [aggregate.function in RECOMPUTED for aggregate in rel.aggregates]
        if any(recomputed):
            return recompute_aggregates(source, rel)
        return flow.reduce(source, list(rel.key), [_aggregate(aggregate) for aggregate in rel.aggregates])


def _aggregate(aggregate: Aggregate) -> flow.Aggregate:
    try:
        function = flow.Function(aggregate.function)
    except ValueError:
        raise SqlError(f"aggregate {aggregate.function}() cannot be maintained", sqlstate="0A000") from None
    column = aggregate.args[0] if aggregate.args else None
    output = aggregate.type if function is flow.Function.SUM else None
    return flow.Aggregate(function, column, distinct=aggregate.distinct, output=output)


def _combined(name: str, terms: tuple[Scalar, ...]) -> Scalar:

    return terms[0] if len(terms) == 1 else Call(name, terms, pa.uint64())


def _schema(exprs: tuple[Scalar, ...]) -> pa.Schema:
    return pa.schema([(f"c{i}", expr.type) for i, expr in enumerate(exprs)])


def _all_columns(schema: pa.Schema) -> list[Scalar]:
    return [Column(i, kind) for i, kind in enumerate(schema.types)]
