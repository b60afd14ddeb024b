"""The relational IR: what a view computes, in few node kinds that each have a delta rule.

A `Rel` denotes a collection: rows with multiplicities, at every time. Columns are positional; scalar
expressions refer to the columns of their node's input by number. Nodes are immutable values: equal plans
are equal objects with equal hashes, and that is how the renderer finds common subplans. `encode`/`decode`
turn a plan into bytes and back.

Invariants of a well-formed plan (`from_substrait` makes them, the renderer relies on them):

* every `Column.index` is below the number of columns of the input;
* join keys, grouping keys, aggregate arguments and sort keys are plain columns (expressions are computed by
  a `Project` below), so that arrangements can be keyed by them;
* the types of both sides of a join key are equal;
* all inputs of a `Union` have equal column types.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa

from penstock.compute.datatypes import type_from_text, type_to_text

# --- scalar expressions


class _Scalar(msgspec.Struct, frozen=True, tag_field="s", tag=True):
    """Root of scalar expressions. All have a `type`."""


class Column(_Scalar, frozen=True, tag="column"):
    """The input's column number `index`."""

    index: int
    type: pa.DataType


class Literal(_Scalar, frozen=True, tag="literal"):
    """A constant. `value` is None for NULL, else the storage value as documented in `make_literal`."""

    value: bool | int | str | None
    type: pa.DataType


class Call(_Scalar, frozen=True, tag="call"):
    """A function of its arguments, by the name DataFusion's SQL (or Substrait) gives it."""

    name: str
    args: tuple[Scalar, ...]
    type: pa.DataType


class Cast(_Scalar, frozen=True, tag="cast"):
    """Conversion to `type`. A value that does not fit is an error, or NULL when `lenient`."""

    arg: Scalar
    type: pa.DataType
    lenient: bool = False


class When(msgspec.Struct, frozen=True):
    """One branch of a `Case`."""

    condition: Scalar
    result: Scalar


class Case(_Scalar, frozen=True, tag="case"):
    """The result of the first branch whose condition is true, evaluated for those rows only; else
    `otherwise` or NULL.
    """

    whens: tuple[When, ...]
    otherwise: Scalar | None
    type: pa.DataType


class InList(_Scalar, frozen=True, tag="in"):
    """`arg` equals one of `options`; NULL when it does not and some option or `arg` is NULL."""

    arg: Scalar
    options: tuple[Scalar, ...]

    @property
    def type(self) -> pa.DataType:
        return pa.bool_()


Scalar: TypeAlias = Column | Literal | Call | Cast | Case | InList


# --- relations


class Field(msgspec.Struct, frozen=True):
    """A column of a `Get` or a `Constant`."""

    name: str
    type: pa.DataType
    nullable: bool = True


class SortKey(msgspec.Struct, frozen=True):
    column: int
    descending: bool = False
    nulls_first: bool = False


class Aggregate(msgspec.Struct, frozen=True):
    """One aggregate over columns `args` of the input. ``count`` without arguments counts rows.

    `function` is DataFusion's name. `order` sorts the rows of a group for the functions that depend on it.
    `parameters`: constant arguments (a delimiter, a percentile).
    """

    function: str
    args: tuple[int, ...]
    type: pa.DataType
    distinct: bool = False
    order: tuple[SortKey, ...] = ()
    parameters: tuple[Literal, ...] = ()


class JoinKind(Enum):
    INNER = "inner"
    LEFT = "left"
    FULL = "full"
    SEMI = "semi"
    ANTI = "anti"
    NULL_AWARE_ANTI = "null-aware anti"
    MARK = "mark"


class _Rel(msgspec.Struct, frozen=True, tag_field="r", tag=True, dict=True):
    """Root of relations."""

    @cached_property
    def types(self) -> tuple[pa.DataType, ...]:
        """The column types."""
        return _types(self)  # type: ignore[arg-type]

    @property
    def arity(self) -> int:
        return len(self.types)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the collection. Inner nodes name their columns c0, c1, ... and allow NULL
        everywhere.
        """
        return _schema(self)  # type: ignore[arg-type]


class Get(_Rel, frozen=True, dict=True, tag="get"):
    """A collection from outside or another object of the dataflow. Delta: that collection's own."""

    id: str
    fields: tuple[Field, ...]


class Constant(_Rel, frozen=True, dict=True, tag="constant"):
    """Fixed rows (`rows`: one Arrow IPC stream; duplicates count). Delta: the rows once, at the dataflow's
    as_of.
    """

    fields: tuple[Field, ...]
    rows: bytes


class Filter(_Rel, frozen=True, dict=True, tag="filter"):
    """Rows for which `predicate` is true. Linear: dOut = filter(dIn)."""

    input: Rel
    predicate: Scalar


class Project(_Rel, frozen=True, dict=True, tag="project"):
    """One column per expression. Linear: dOut = project(dIn). `names` are given to the output where not
    empty.
    """

    input: Rel
    exprs: tuple[Scalar, ...]
    names: tuple[str, ...] = ()


class TemporalFilter(_Rel, frozen=True, dict=True, tag="temporal"):
    """Rows while ``max(lower) <= now < min(upper)``; bounds are uint64 milliseconds, expressions over the
    input.

    Delta: a row that arrives at t appears at max(t, lower) and disappears at upper. A NULL bound never holds.
    """

    input: Rel
    lower: tuple[Scalar, ...]
    upper: tuple[Scalar, ...]


class Join(_Rel, frozen=True, dict=True, tag="join"):
    """Pairs of rows with equal keys for which `residual` (over left's columns, then right's) is true.

    `null_equal[i]`: whether NULL matches NULL in key i. Columns: left's, then right's; for semi and anti
    joins left's only; for mark left's and a boolean "has a match". No keys: all pairs. Delta (inner): dL R
    + L dR + dL dR, at the later of both times. Outer, semi, anti and mark joins add the rows whose number
    of matches moves from or to zero. NULL_AWARE_ANTI is ``NOT IN``: nothing once the right side holds a
    NULL key, and rows with a NULL key only while the right side is empty.
    """

    left: Rel
    right: Rel
    kind: JoinKind
    left_key: tuple[int, ...]
    right_key: tuple[int, ...]
    null_equal: tuple[bool, ...]
    residual: Scalar | None = None


class Reduce(_Rel, frozen=True, dict=True, tag="reduce"):
    """One row per distinct key: the key's columns, then the aggregates. NULLs group together.

    Without a key there is exactly one row, also over no input.
    Delta: per touched key, the old row once negatively and the new one once.
    """

    input: Rel
    key: tuple[int, ...]
    aggregates: tuple[Aggregate, ...]


class Distinct(_Rel, frozen=True, dict=True, tag="distinct"):
    """Each row once. Delta: rows whose count moves from or to zero."""

    input: Rel


class TopK(_Rel, frozen=True, dict=True, tag="topk"):
    """Per group, the rows numbered ``offset+1 .. offset+limit`` in `order` (ties by the whole row). No
    group: of all rows.

    Delta: the rows that cross a boundary. `limit` None: all after `offset`.
    """

    input: Rel
    group: tuple[int, ...]
    order: tuple[SortKey, ...]
    limit: int | None
    offset: int = 0


class WindowFunction(msgspec.Struct, frozen=True):
    """One window function. `sql` has ``{0}``, ``{1}``... where columns `args` go and ends before OVER's
    closing part.

    `frame`: the frame clause, or an empty text.
    """

    sql: str
    args: tuple[int, ...]
    partition: tuple[int, ...]
    order: tuple[SortKey, ...]
    frame: str
    type: pa.DataType


class Window(_Rel, frozen=True, dict=True, tag="window"):
    """All input columns, then one column per window function; all share `partition`.

    Delta: the touched partitions are computed again. Ties in an order are broken by the whole row.
    """

    input: Rel
    partition: tuple[int, ...]
    functions: tuple[WindowFunction, ...]


class Union(_Rel, frozen=True, dict=True, tag="union"):
    """All rows of all inputs (UNION ALL). Linear."""

    inputs: tuple[Rel, ...]


class Negate(_Rel, frozen=True, dict=True, tag="negate"):
    """Every multiplicity with the opposite sign. Linear."""

    input: Rel


class SingleRow(_Rel, frozen=True, dict=True, tag="single"):
    """The value of a scalar subquery: its one row; NULLs when it has none; error 21000 while it has more
    than one.
    """

    input: Rel


Rel: TypeAlias = (
    Get
    | Constant
    | Filter
    | Project
    | TemporalFilter
    | Join
    | Reduce
    | Distinct
    | TopK
    | Window
    | Union
    | Negate
    | SingleRow
)


# --- schemas


def _types(rel: Rel) -> tuple[pa.DataType, ...]:
    match rel:
        case Get() | Constant():
            return tuple(field.type for field in rel.fields)
        case Project():
            return tuple(expr.type for expr in rel.exprs)
        case Join():
            left = rel.left.types
            if rel.kind in (JoinKind.SEMI, JoinKind.ANTI, JoinKind.NULL_AWARE_ANTI):
                return left
            if rel.kind is JoinKind.MARK:
                return (*left, pa.bool_())
            return left + rel.right.types
        case Reduce():
            inner = rel.input.types
            return (*(inner[i] for i in rel.key), *(aggregate.type for aggregate in rel.aggregates))
        case Window():
            return (*rel.input.types, *(function.type for function in rel.functions))
        case Union():
            return rel.inputs[0].types
        case _:
            return rel.input.types


def _schema(rel: Rel) -> pa.Schema:
    if isinstance(rel, Get | Constant):
        return pa.schema([pa.field(f.name, f.type, nullable=f.nullable) for f in rel.fields])
    names = rel.names if isinstance(rel, Project) and rel.names else tuple(f"c{i}" for i in range(rel.arity))
    return pa.schema([pa.field(name, kind) for name, kind in zip(names, rel.types, strict=True)])


def fields_of(schema: pa.Schema) -> tuple[Field, ...]:
    """The columns of an Arrow schema as IR fields (metadata is dropped)."""
    return tuple(Field(field.name, field.type, field.nullable) for field in schema)


def columns_of(rel: Rel) -> tuple[Column, ...]:
    """References to all columns of `rel`."""
    return tuple(Column(i, kind) for i, kind in enumerate(rel.types))


def inputs_of(rel: Rel) -> tuple[Rel, ...]:
    """The direct inputs of a node, in order."""
    match rel:
        case Get() | Constant():
            return ()
        case Join():
            return (rel.left, rel.right)
        case Union():
            return rel.inputs
        case _:
            return (rel.input,)


def with_inputs(rel: Rel, inputs: tuple[Rel, ...]) -> Rel:
    """The same node over other inputs."""
    match rel:
        case Get() | Constant():
            return rel
        case Join():
            return msgspec.structs.replace(rel, left=inputs[0], right=inputs[1])
        case Union():
            return msgspec.structs.replace(rel, inputs=inputs)
        case _:
            return msgspec.structs.replace(rel, input=inputs[0])


def gets_of(rel: Rel) -> set[str]:
    """Ids of all collections that `rel` reads."""
    if isinstance(rel, Get):
        return {rel.id}
    return set().union(*(gets_of(child) for child in inputs_of(rel)))


# --- scalar construction and traversal


def make_literal(value: Any, kind: pa.DataType) -> Literal:
    """A literal of Python (or Arrow scalar) `value` as `kind`.

    Stored as: None; bool; int for integers, dates, times, timestamps and durations (their Arrow storage);
    text for strings, decimals and floats (``repr``); base 64 for binary and, of the IPC stream of one
    value, for all other types.
    """
    scalar = value if isinstance(value, pa.Scalar) else pa.scalar(value, kind)
    if scalar.type != kind:
        scalar = scalar.cast(kind)
    if not scalar.is_valid:
        return Literal(None, kind)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or _is_text(kind):
        return Literal(scalar.as_py(), kind)
    if _is_bytes(kind):
        return Literal(base64.b64encode(scalar.as_py()).decode("ascii"), kind)
    if pa.types.is_floating(kind):
        return Literal(repr(scalar.as_py()), kind)
    if pa.types.is_decimal(kind):
        return Literal(str(scalar.as_py()), kind)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return Literal(scalar.cast(_storage(kind)).as_py(), kind)
    batch = pa.record_batch([pa.array([scalar.as_py()], kind)], ["v"])
    return Literal(base64.b64encode(batch_to_ipc(batch)).decode("ascii"), kind)


@lru_cache(maxsize=8192)
def literal_scalar(literal: Literal) -> pa.Scalar:
    """The Arrow scalar of a literal."""
    value, kind = literal.value, literal.type
    if value is None:
        return pa.scalar(None, kind)
    if pa.types.is_floating(kind):
        return pa.scalar(float(value), kind)
    if pa.types.is_decimal(kind):
        return pa.scalar(str(value), pa.string()).cast(kind)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or _is_text(kind):
        return pa.scalar(value, kind)
    if isinstance(value, int):
        return pa.scalar(value, _storage(kind)).cast(kind)
    raw = base64.b64decode(value)
    return pa.scalar(raw, kind) if _is_bytes(kind) else batch_from_ipc(raw).column(0)[0]


TRUE = Literal(True, pa.bool_())
FALSE = Literal(False, pa.bool_())


def conjunction(terms: list[Scalar]) -> Scalar | None:
    """All `terms` and-ed in their order; None for no terms."""
    result: Scalar | None = None
    for term in terms:
        result = term if result is None else Call("and", (result, term), pa.bool_())
    return result


def conjuncts(predicate: Scalar | None) -> list[Scalar]:
    """The terms of a conjunction, in order."""
    if predicate is None or predicate == TRUE:
        return []
    if isinstance(predicate, Call) and predicate.name == "and":
        return [term for arg in predicate.args for term in conjuncts(arg)]
    return [predicate]


def children_of(scalar: Scalar) -> tuple[Scalar, ...]:
    """The direct operands of an expression."""
    match scalar:
        case Column() | Literal():
            return ()
        case Call():
            return scalar.args
        case Cast():
            return (scalar.arg,)
        case InList():
            return (scalar.arg, *scalar.options)
        case Case():
            branches = tuple(part for when in scalar.whens for part in (when.condition, when.result))
            return branches if scalar.otherwise is None else (*branches, scalar.otherwise)


def with_children(scalar: Scalar, children: tuple[Scalar, ...]) -> Scalar:
    """The same expression over other operands (as many, in the order of `children_of`)."""
    match scalar:
        case Column() | Literal():
            return scalar
        case Call():
            return Call(scalar.name, children, scalar.type)
        case Cast():
            return Cast(children[0], scalar.type, scalar.lenient)
        case InList():
            return InList(children[0], children[1:])
        case Case():
            count = len(scalar.whens)
            whens = tuple(When(children[2 * i], children[2 * i + 1]) for i in range(count))
            return Case(whens, children[2 * count] if scalar.otherwise is not None else None, scalar.type)


def columns_used(scalar: Scalar) -> set[int]:
    """The input columns an expression reads."""
    if isinstance(scalar, Column):
        return {scalar.index}
    return set().union(*(columns_used(child) for child in children_of(scalar)))


def substitute(scalar: Scalar, columns: Sequence[Scalar] | Mapping[int, Scalar]) -> Scalar:
    """`scalar` with every column i replaced by ``columns[i]``."""
    if isinstance(scalar, Column):
        return columns[scalar.index]
    children = children_of(scalar)
    if not children:
        return scalar
    return with_children(scalar, tuple(substitute(child, columns) for child in children))


def size_of(scalar: Scalar) -> int:
    """Number of nodes of an expression."""
    return 1 + sum(size_of(child) for child in children_of(scalar))


# --- bytes


def batch_to_ipc(batch: pa.RecordBatch) -> bytes:
    """One batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def batch_from_ipc(data: bytes) -> pa.RecordBatch:
    """The batch that `batch_to_ipc` wrote."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_next_batch()


def make_constant(rows: pa.RecordBatch) -> Constant:
    """A `Constant` of the rows of a batch."""
    return Constant(fields_of(rows.schema), batch_to_ipc(rows))


def encode_hook(value: Any) -> Any:
    """For msgspec encoders: Arrow types as text."""
    if isinstance(value, pa.DataType):
        return type_to_text(value)
    raise TypeError(f"{type(value).__name__} has no place in a plan")


def decode_hook(kind: type, value: Any) -> Any:
    """For msgspec decoders: Arrow types from text."""
    if issubclass(kind, pa.DataType):
        return type_from_text(value)
    raise TypeError(f"{kind.__name__} has no place in a plan")


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_hook)
_decoder: msgspec.msgpack.Decoder[Rel] = msgspec.msgpack.Decoder(Rel, dec_hook=decode_hook)


def encode(rel: Rel) -> bytes:
    """A plan as bytes (MessagePack)."""
    return _encoder.encode(rel)


def decode(data: bytes) -> Rel:
    """The plan that `encode` wrote. Raises `msgspec.ValidationError` on anything else."""
    return _decoder.decode(data)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _storage(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if kind.bit_width == 32 else pa.int64()
