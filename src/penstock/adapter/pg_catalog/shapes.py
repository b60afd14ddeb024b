"""The column shapes of every relation in pg_catalog and information_schema.

Taken once from PostgreSQL 15 and shipped as data, so that a client that asks for a column that we never fill still
finds it, with the right type. Types that only PostgreSQL itself needs (node trees, access lists, transaction ids) are
shown as text, text[] and bigint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pyarrow as pa

from penstock.sql.types import OID, Column, RelationDesc, SqlType, type_named

VECTORS = {"int2vector": SqlType("int2vector", 22), "oidvector": SqlType("oidvector", 30)}
"""Arrays that print as ``1 2``: lists while a query runs, texts in its result."""
ENGINE_OID = pa.int64()
"""OIDs are 64-bit while a query runs: mixing unsigned columns with literals would need casts everywhere."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One relation. `name`: ``schema.relation``; `kind`: its pg_class.relkind."""

    name: str
    oid: int
    kind: str
    desc: RelationDesc

    @property
    def engine_schema(self) -> pa.Schema:
        """The Arrow schema in which queries see it. Column types survive in the fields' metadata."""
        return _engine_schema(self)


@cache
def shapes() -> dict[str, Shape]:
    """By ``schema.relation``."""
    text = resources.files(__package__).joinpath("shapes.json").read_text()
    return {
        name: Shape(name, entry["oid"], entry["kind"], _desc(entry["columns"]))
        for name, entry in json.loads(text).items()
    }


@cache
def schema_of_relation() -> dict[str, str]:
    """Relation name -> its schema, for names without one: pg_catalog only, as in PostgreSQL's search path."""
    return {name.split(".")[1]: "pg_catalog" for name in shapes() if name.startswith("pg_catalog.")}


def engine_type(kind: SqlType) -> pa.DataType:
    """The Arrow type that carries `kind` while a query runs."""
    if kind.name in VECTORS:
        return pa.list_(pa.int16() if kind.name == "int2vector" else ENGINE_OID)
    if kind.element is not None:
        return pa.list_(engine_type(kind.element))
    return ENGINE_OID if kind == OID else kind.arrow


def _desc(columns: str) -> RelationDesc:
    return RelationDesc(tuple(_column(text) for text in columns.split(", ")))


def _column(text: str) -> Column:
    name, _, kind = text.partition(" ")
    text = kind.removesuffix(" not null")
    return Column(name, VECTORS.get(text) or type_named(text), text == kind)


@cache
def _engine_schema(shape: Shape) -> pa.Schema:
    fields = []
    for column in shape.desc.columns:
        metadata = {b"penstock.type": str(column.type).encode()}
        fields.append(pa.field(column.name, engine_type(column.type), True, metadata))
    if shape.kind == "r":
        fields.append(pa.field("tableoid", ENGINE_OID, True, {b"penstock.type": b"oid"}))
    return pa.schema(fields)


def table_of(shape: Shape, rows: Sequence[dict[str, object]]) -> pa.Table:
    """`rows` as a table; what a row leaves out is NULL, or the type's zero where the column cannot be NULL."""
    blank = {column.name: None if column.nullable else _zero(column.type) for column in shape.desc.columns}
    for row in rows:
        unknown = row.keys() - blank.keys()
        assert not unknown, f"{shape.name} has no columns {sorted(unknown)}"
    blank["tableoid"] = shape.oid
    schema = shape.engine_schema
    return pa.Table.from_pylist([blank | row for row in rows], schema=schema)


def _zero(kind: SqlType) -> object:
    if kind.element is not None or kind.name in VECTORS:
        return []
    arrow = engine_type(kind)
    if pa.types.is_boolean(arrow):
        return False
    return "" if pa.types.is_string(arrow) else 0
