"""From a Substrait plan to the relational IR.

The plan is DataFusion's optimized logical plan: decorrelated, predicates pushed down, joins ordered. What
is left to do is to read it, to recognise the shapes that are maintained better than node by node (top k,
DISTINCT ON, the filters on ``mz_now()``), to give every aggregate and join plain columns to work on, and to
refuse what cannot be maintained.

Substrait cannot say that an anti join is null-aware (``NOT IN``): who serialises the plan marks it, see
`penstock.sql.null_aware`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from google.protobuf.message import DecodeError
from substrait import algebra_pb2, plan_pb2

from penstock.compute import demand, lower_aggregate, lower_join, lower_window
from penstock.compute.ir import (
    Cast,
    Column,
    Filter,
    Get,
    Join,
    JoinKind,
    Literal,
    Project,
    Reduce,
    Rel,
    Scalar,
    SingleRow,
    SortKey,
    TopK,
    Union,
    columns_of,
    columns_used,
    conjunction,
    conjuncts,
    fields_of,
    inputs_of,
    literal_scalar,
    make_constant,
)
from penstock.compute.lower_scalar import ScalarLowering
from penstock.compute.lower_temporal import filter_with_time, refuse_now, split_temporal, valid_while
from penstock.compute.normalize import filter_rows, project, take_columns, with_columns
from penstock.compute.substrait_values import SubstraitValues
from penstock.runtime import SqlError

_DIRECTIONS = {1: (False, True), 2: (False, False), 3: (True, True), 4: (True, False)}
"""SortField.direction -> (descending, nulls first)."""


def from_substrait(plan: bytes, inputs: Mapping[str, tuple[str, pa.Schema]]) -> Rel:
    """The IR of a serialised Substrait plan.

    `inputs`: for each table name in the plan, the id of its collection and that collection's schema. The
    result's columns have the plan's output names. An ORDER BY that decides nothing is dropped. Raises
    `SqlError` 0A000 naming what cannot be maintained, `SqlError` XX000 for bytes that are not a plan.
    """
    message = plan_pb2.Plan()
    try:
        message.ParseFromString(plan)
    except DecodeError as error:
        raise SqlError("the serialised plan cannot be read") from error
    roots = [relation.root for relation in message.relations if relation.WhichOneof("rel_type") == "root"]
    if len(roots) != 1:
        raise SqlError(f"the serialised plan has {len(roots)} results where one is expected")
    rel = _Lowering(message, inputs).rel(roots[0].input)
    _refuse_now_outside_filters(rel)
    names = tuple(roots[0].names)
    if len(names) != rel.arity:
        raise SqlError(f"the plan names {len(names)} of its {rel.arity} columns")
    return demand.prune(project(rel, columns_of(rel), names))


class _Attached:
    """Collects the subqueries and window functions of some expressions and puts them onto their input as
    columns.
    """

    def __init__(self, lowering: _Lowering, rel: Rel) -> None:
        self._lowering = lowering
        self.rel = rel
        self._subqueries: dict[Rel, Column] = {}

    def subquery(self, relation: Any) -> Column:
        single = _single_row(self._lowering.rel(relation))
        if single not in self._subqueries:
            self._subqueries[single] = Column(self.rel.arity, single.types[0])
            self.rel = Join(self.rel, single, JoinKind.INNER, (), (), ())
        return self._subqueries[single]

    def window(self, function: Any) -> Column:
        self.rel, column = lower_window.attach(self._lowering, self.rel, function)
        return column


class _Lowering:
    """One translation. `rel` gives the IR of a Substrait relation with exactly that relation's output
    columns.
    """

    def __init__(self, plan: Any, inputs: Mapping[str, tuple[str, pa.Schema]]) -> None:
        functions, types = {}, {}
        for extension in plan.extensions:
            if extension.WhichOneof("mapping_type") == "extension_function":
                functions[extension.extension_function.function_anchor] = extension.extension_function.name
            elif extension.WhichOneof("mapping_type") == "extension_type":
                types[extension.extension_type.type_anchor] = extension.extension_type.name
        self.values = SubstraitValues(types)
        self.scalars = ScalarLowering(functions, self.values)
        self._inputs = inputs

    def rel(self, message: Any) -> Rel:
        kind = message.WhichOneof("rel_type")
        inner = getattr(message, kind)
        match kind:
            case "read":
                rel = self._read(inner)
            case "filter":
                rel = self._filter(inner)
            case "project":
                return self._project(inner, self.rel(inner.input))
            case "join":
                rel = lower_join.lower(self, inner)
            case "cross":
                rel = Join(self.rel(inner.left), self.rel(inner.right), JoinKind.INNER, (), (), ())
            case "aggregate":
                rel = lower_aggregate.lower(self, inner)
            case "sort":
                rel = self.rel(inner.input)  # a collection has no order; only a FetchRel above gives it a meaning
            case "fetch":
                rel = self._fetch(message, None, 0)
            case "set":
                rel = self._set(inner)
            case _:
                raise SqlError(f"plan node {kind} cannot be maintained", sqlstate="0A000")
        return _emit(inner, rel)

    # --- leaves

    def _read(self, read: Any) -> Rel:
        if read.WhichOneof("read_type") == "virtual_table":
            rel = self._virtual_table(read)
        elif read.WhichOneof("read_type") == "named_table":
            name = read.named_table.names[-1]
            if name not in self._inputs:
                raise SqlError(f"the plan reads {name}, which is not among its inputs")
            collection, schema = self._inputs[name]
            rel = Get(collection, fields_of(schema))
        else:
            raise SqlError(
                f"reading {read.WhichOneof('read_type')} in a maintained view is not supported", sqlstate="0A000"
            )
        for condition in ("filter", "best_effort_filter"):
            if read.HasField(condition):
                rel = filter_with_time(rel, self.scalars.scalar(getattr(read, condition), rel.types))
        if read.HasField("projection"):
            rel = take_columns(rel, tuple(item.field for item in read.projection.select.struct_items))
        return rel

    def _virtual_table(self, read: Any) -> Rel:
        types = tuple(self.values.type(member) for member in read.base_schema.struct.types)
        names = list(read.base_schema.names)
        rows = [tuple(self.scalars.scalar(field, ()) for field in row.fields) for row in read.virtual_table.expressions]
        if not types:
            return project(make_constant(pa.record_batch([pa.array([True] * len(rows))], ["unit"])), ())
        if all(isinstance(value, Literal) for row in rows for value in row):
            columns = [
                pa.array([literal_scalar(row[i]).cast(kind).as_py() for row in rows], kind)
                for i, kind in enumerate(types)
            ]
            return make_constant(pa.record_batch(columns, schema=pa.schema(list(zip(names, types, strict=True)))))
        unit = make_constant(pa.record_batch([pa.array([True])], ["unit"]))
        parts = tuple(
            project(unit, tuple(_as_type(value, kind) for value, kind in zip(row, types, strict=True))) for row in rows
        )
        return parts[0] if len(parts) == 1 else Union(parts)

    # --- linear nodes

    def _filter(self, message: Any) -> Rel:
        rel = self.rel(message.input)
        attached = _Attached(self, rel)
        predicate = self.scalars.scalar(message.condition, rel.types, attached)
        plain, lower, upper = split_temporal(conjuncts(predicate))
        on_input = [term for term in plain if all(i < rel.arity for i in columns_used(term))]
        on_attached = [term for term in plain if term not in on_input]
        result = filter_rows(rel, conjunction(on_input))
        if attached.rel is not rel:
            result = filter_rows(_rebase(attached.rel, rel, result), conjunction(on_attached))
        return take_columns(valid_while(result, lower, upper), tuple(range(rel.arity)))

    def _project(self, message: Any, rel: Rel) -> Rel:
        attached = _Attached(self, rel)
        exprs = tuple(self.scalars.scalar(expr, rel.types, attached) for expr in message.expressions)
        return _emit(message, project(attached.rel, (*columns_of(rel), *exprs)))

    def _set(self, message: Any) -> Rel:
        if message.op != algebra_pb2.SetRel.SET_OP_UNION_ALL:
            operation = algebra_pb2.SetRel.SetOp.Name(message.op)
            raise SqlError(f"set operation {operation} cannot be maintained", sqlstate="0A000")
        parts = [self.rel(part) for part in message.inputs]
        types = _common_types(parts)
        aligned = [
            project(part, tuple(_as_type(column, kind) for column, kind in zip(columns_of(part), types, strict=True)))
            for part in parts
        ]
        return aligned[0] if len(aligned) == 1 else Union(tuple(aligned))

    # --- order and limit

    def sort_keys(self, sorts: Any, rel: Rel) -> tuple[Rel, tuple[SortKey, ...]]:
        """`rel` with a column per sort expression, and the keys that name them."""
        exprs = tuple(self.scalars.scalar(sort.expr, rel.types) for sort in sorts)
        extended, columns = with_columns(rel, exprs)
        keys = []
        for column, sort in zip(columns, sorts, strict=True):
            if sort.direction not in _DIRECTIONS:
                raise SqlError("this order cannot be maintained", sqlstate="0A000")
            descending, nulls_first = _DIRECTIONS[sort.direction]
            keys.append(SortKey(column, descending, nulls_first))
        return extended, tuple(keys)

    def _fetch(self, message: Any, limit: int | None, offset: int) -> Rel:
        """`message`, of whose rows only ``offset .. offset + limit`` count (None: no end)."""
        kind = message.WhichOneof("rel_type")
        inner = getattr(message, kind)
        if kind == "fetch":
            ours_offset, ours_limit = self._bound(inner, "offset_expr") or 0, self._bound(inner, "count_expr")
            left = None if ours_limit is None else max(ours_limit - offset, 0)
            both = [bound for bound in (left, limit) if bound is not None]
            return _emit(inner, self._fetch(inner.input, min(both, default=None), ours_offset + offset))
        if limit is None and offset == 0:
            return self.rel(message)
        if kind == "project" and not _has_window(inner):
            return self._project(inner, self._fetch(inner.input, limit, offset))
        if kind == "sort":
            rel = self.rel(inner.input)
            extended, order = self.sort_keys(inner.sorts, rel)
            top = TopK(extended, (), order, limit, offset)
            return _emit(inner, take_columns(top, tuple(range(rel.arity))))
        return TopK(self.rel(message), (), (), limit, offset)

    def _bound(self, fetch: Any, name: str) -> int | None:
        if not fetch.HasField(name):
            return None
        bound = self.scalars.scalar(getattr(fetch, name), ())
        if not isinstance(bound, Literal) or not isinstance(bound.value, int | None):
            raise SqlError("LIMIT and OFFSET of a maintained view must be constants", sqlstate="0A000")
        return bound.value


def _refuse_now_outside_filters(rel: Rel) -> None:
    """Raise `SqlError` 0A000 when mz_now() is left anywhere but in the bounds of temporal filters."""
    match rel:
        case Project():
            scalars: tuple[Scalar, ...] = rel.exprs
        case Filter():
            scalars = (rel.predicate,)
        case Join() if rel.residual is not None:
            scalars = (rel.residual,)
        case _:
            scalars = ()
    for scalar in scalars:
        refuse_now(scalar)
    for child in inputs_of(rel):
        _refuse_now_outside_filters(child)


def _single_row(rel: Rel) -> Rel:
    """`rel` as a scalar subquery. An aggregate without a key has one row by itself."""
    inner = rel
    while isinstance(inner, Project):
        inner = inner.input
    return rel if isinstance(inner, Reduce) and not inner.key else SingleRow(rel)


def _rebase(rel: Rel, old: Rel, new: Rel) -> Rel:
    """The chain of attachments `rel` on top of `new` instead of `old` (same columns)."""
    if rel is old:
        return new
    assert isinstance(rel, Join), f"attachments of a filter are joins, not {type(rel).__name__}"
    return Join(_rebase(rel.left, old, new), rel.right, rel.kind, (), (), ())


def _has_window(message: Any) -> bool:
    return any(expr.WhichOneof("rex_type") == "window_function" for expr in message.expressions)


def _emit(message: Any, rel: Rel) -> Rel:
    if message.HasField("common") and message.common.WhichOneof("emit_kind") == "emit":
        return take_columns(rel, tuple(message.common.emit.output_mapping))
    return rel


def _as_type(scalar: Scalar, kind: pa.DataType) -> Scalar:
    return scalar if scalar.type == kind else Cast(scalar, kind)


def _common_types(parts: list[Rel]) -> tuple[pa.DataType, ...]:
    """Per column, the first type of any part that is not NULL's."""
    return tuple(
        next((kind for kind in kinds if not pa.types.is_null(kind)), kinds[0])
        for kinds in zip(*(part.types for part in parts), strict=True)
    )
