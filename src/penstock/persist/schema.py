"""Versions of a shard's schema: what may follow what, and how rows written with one are read with another.

A shard's schemas are numbered from 0; each part says with which one it was written. A later version differs
from an earlier one by nullable fields at the end (of the row, or of a struct at any depth) and by fields
that became nullable. So every version can read what any other one wrote: fields that were not written are
NULL, fields that are not wanted are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

import pyarrow as pa

from penstock.runtime.updates import with_row_count

SchemaId = NewType("SchemaId", int)
"""Number of a schema within its shard: 0, 1, 2, …"""

FIRST_SCHEMA = SchemaId(0)


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """A schema of a shard."""

    id: SchemaId
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class Evolved:
    """The newest schema of the shard is the wanted one, and `id` its number."""

    id: SchemaId


@dataclass(frozen=True, slots=True)
class ExpectationMismatch:
    """Another schema than the expected one is the newest: this one. Nothing happened."""

    id: SchemaId
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class Incompatible:
    """The wanted schema cannot follow the newest one. Nothing happened."""

    reason: str


def encode_schema(schema: pa.Schema) -> bytes:
    """`schema` for the state."""
    return bytes(schema.serialize())


@lru_cache(maxsize=1024)
def decode_schema(data: bytes) -> pa.Schema:
    """The schema that `encode_schema` gave."""
    return pa.ipc.read_schema(pa.py_buffer(data))


def find_schema(schemas: Sequence[bytes], wanted: pa.Schema) -> SchemaId | None:
    """The newest of `schemas` that equals `wanted`; if none does, the newest with the same names and types.

    Whether a column may be NULL is the catalog's business, so a writer that says otherwise is no stranger.
    """
    decoded = [decode_schema(one) for one in schemas]
    for same in (_identical, _same_columns):
        for id_ in reversed(range(len(decoded))):
            if same(decoded[id_], wanted):
                return SchemaId(id_)
    return None


def incompatibility(old: pa.Schema, new: pa.Schema) -> str | None:
    """Why `new` cannot be the version after `old`; None when it can."""
    return _fields_incompatibility(list(old), list(new), "")


def unreadable(stored: pa.Schema, wanted: pa.Schema) -> str | None:
    """Why rows of `stored` cannot be read as `wanted`, a selection of its columns; None when they can."""
    try:
        sources = _sources(stored.names, wanted.names)
    except KeyError as error:
        return str(error.args[0])
    for index, field in zip(sources, wanted, strict=True):
        if index is None:
            return f"there is no column {field.name}"
        if not _convertible(stored.field(index).type, field.type):
            return f"column {field.name} is {stored.field(index).type}, not {field.type}"
    return None


@dataclass(frozen=True)
class Migration:
    """How rows that were written with one schema become rows of another.

    `read`: the written columns that are needed, None for all; `apply` takes exactly these.
    """

    read: list[str] | None
    _targets: list[tuple[int | None, pa.Field]]
    _schema: pa.Schema

    def apply(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        if rows.schema.equals(self._schema, check_metadata=True):
            return rows
        if not self._targets:
            return with_row_count(self._schema, rows.num_rows)
        columns = [
            pa.nulls(rows.num_rows, field.type) if index is None else _converted(rows.column(index), field.type)
            for index, field in self._targets
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


@lru_cache(maxsize=1024)
def migration(written: pa.Schema, wanted: pa.Schema) -> Migration:
    """From any version of a shard's schema to any other, or to a selection of its columns."""
    sources = _sources(written.names, wanted.names)
    if len(set(written.names)) < len(written.names):
        return Migration(None, list(zip(sources, wanted, strict=True)), wanted)
    read = [written.names[index] for index in sources if index is not None]
    if read == written.names:
        return Migration(None, list(zip(sources, wanted, strict=True)), wanted)
    places = iter(range(len(read)))
    targets = [(None if index is None else next(places), field) for index, field in zip(sources, wanted, strict=True)]
    return Migration(read, targets, wanted)


def selected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The schema of `columns`, in that order; `schema` itself for None. Raises `KeyError` for an unknown name."""
    if columns is None:
        return schema
    indices = [schema.get_field_index(name) for name in columns]
    if -1 in indices:
        raise KeyError(f"there is no single column {columns[indices.index(-1)]!r} among {schema.names}")
    return pa.schema([schema.field(index) for index in indices])


def column_sources(written: pa.Schema, wanted: pa.Schema) -> list[int | None]:
    """For each column of `wanted` the position where it was written, None where it was not."""
    return _sources(written.names, wanted.names)


def describe(schema: pa.Schema) -> str:
    """`schema` for people."""
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _identical(one: pa.Schema, other: pa.Schema) -> bool:
    return bool(one.equals(other))


def _same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    return one.names == other.names and one.types == other.types


def _sources(written: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """For each wanted name the position where it was written, None where it was not.

    Names may repeat; then only versions of one schema, which begin alike, can be told apart.
    """
    common = min(len(written), len(wanted))
    if list(written[:common]) == list(wanted[:common]):
        return [*range(common), *[None] * (len(wanted) - common)]
    places = {name: index for index, name in enumerate(written)}
    if len(places) < len(written):
        raise KeyError("its column names repeat, so that they cannot be selected one by one")
    return [places.get(name) for name in wanted]


def _fields_incompatibility(old: list[pa.Field], new: list[pa.Field], inside: str) -> str | None:
    for index, before in enumerate(old):
        name = inside + before.name
        if index >= len(new) or new[index].name != before.name:
            return f"{name} is missing at its place: fields cannot be dropped, renamed or reordered"
        if before.nullable and not new[index].nullable:
            return f"{name} may be NULL and cannot become required"
        problem = _type_incompatibility(before.type, new[index].type, name)
        if problem is not None:
            return problem
    for field in new[len(old) :]:
        if not field.nullable:
            return f"{inside}{field.name} is new and must be nullable: what is stored has no value for it"
    return None


def _type_incompatibility(old: pa.DataType, new: pa.DataType, name: str) -> str | None:
    if old == new:
        return None
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        return _fields_incompatibility(_fields(old), _fields(new), f"{name}.")
    if _is_list(old) and old.id == new.id:
        if old.value_field.nullable and not new.value_field.nullable:
            return f"the elements of {name} may be NULL and cannot become required"
        return _type_incompatibility(old.value_type, new.value_type, f"{name}[]")
    return f"{name} is {old} and cannot become {new}"


def _convertible(written: pa.DataType, wanted: pa.DataType) -> bool:
    if written == wanted:
        return True
    if pa.types.is_struct(written) and pa.types.is_struct(wanted):
        places = {field.name: field.type for field in _fields(written)}
        return all(
            field.name not in places or _convertible(places[field.name], field.type) for field in _fields(wanted)
        )
    return _is_list(written) and written.id == wanted.id and _convertible(written.value_type, wanted.value_type)


def _converted(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    written = column.type
    if written == wanted:
        return column
    if pa.types.is_struct(written):
        sources = _sources([field.name for field in _fields(written)], [field.name for field in _fields(wanted)])
        children = [
            pa.nulls(len(column), field.type) if index is None else _converted(column.field(index), field.type)
            for index, field in zip(sources, _fields(wanted), strict=True)
        ]
        return pa.StructArray.from_arrays(children, fields=_fields(wanted), mask=column.is_null())
    kind = pa.LargeListArray if pa.types.is_large_list(written) else pa.ListArray
    offsets = pa.array(column.offsets.to_numpy())  # a copy: Arrow takes no sliced offsets together with a mask
    values = _converted(column.values, wanted.value_type)
    return kind.from_arrays(offsets, values, type=wanted, mask=column.is_null())


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _fields(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]
