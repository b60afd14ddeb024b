"""Every SQL type goes through Arrow, its oid and its spelling and comes back."""

from __future__ import annotations

import pyarrow as pa
import pytest

from penstock.runtime import SqlError
from penstock.sql import Column, RelationDesc, SqlType, numeric, type_by_oid, type_named
from penstock.sql.types import INT4, JSONB, NUMERIC, TEXT, UNKNOWN, UUID, all_types


@pytest.mark.parametrize("kind", [k for k in all_types() if k != UNKNOWN], ids=str)
def test_round_trips(kind: SqlType) -> None:
    field = Column("c", kind, nullable=False).field
    assert SqlType.from_arrow(field) == kind
    assert not field.nullable
    assert type_by_oid(kind.oid) == kind
    assert type_named(str(kind)) == kind


@pytest.mark.parametrize(
    ("text", "written", "arrow"),
    [
        ("int", "integer", pa.int32()),
        ("NUMERIC(10, 2)", "numeric(10,2)", pa.decimal128(10, 2)),
        ("numeric", "numeric", pa.decimal128(38, 16)),
        ("decimal(5)", "numeric(5,0)", pa.decimal128(5, 0)),
        ("varchar(3)", "character varying(3)", pa.string()),
        ("char", "character(1)", pa.string()),
        ("float(24)", "real", pa.float32()),
        ("double  precision", "double precision", pa.float64()),
        ("timestamptz", "timestamp with time zone", pa.timestamp("us", "UTC")),
        ("timestamp(6) without time zone", "timestamp without time zone", pa.timestamp("us")),
        ("int4[]", "integer[]", pa.list_(pa.int32())),
        ("uint8", "uint8", pa.uint64()),
        ("jsonb", "jsonb", pa.string()),
    ],
)
def test_spellings(text: str, written: str, arrow: pa.DataType) -> None:
    kind = type_named(text)
    assert str(kind) == written
    assert kind.arrow == arrow


@pytest.mark.parametrize(
    ("text", "sqlstate"),
    [
        ("foo", "42704"),
        ("numeric(39,1)", "22023"),
        ("numeric(3,4)", "22023"),
        ("timestamp(3)", "0A000"),
        ("int(3)", "0A000"),
        ("varchar(0)", "22023"),
    ],
)
def test_impossible_spellings(text: str, sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        type_named(text)
    assert caught.value.sqlstate == sqlstate


def test_descriptions_keep_what_arrow_cannot_say() -> None:
    desc = RelationDesc.of(("a", INT4), Column("b", UUID, False), ("c", JSONB), ("d", NUMERIC), ("e", TEXT))
    assert RelationDesc.from_arrow(desc.arrow) == desc
    assert desc.arrow.field("a").metadata is None
    assert desc.arrow.field("b").metadata == {b"penstock.type": b"uuid"}
    assert desc.index_of("c") == 2
    assert desc.index_of("z") is None


def test_numeric_modifier() -> None:
    kind = numeric(10, 2)
    assert (kind.precision, kind.scale, kind.modifier) == (10, 2, ((10 << 16) | 2) + 4)
    assert (NUMERIC.precision, NUMERIC.scale, NUMERIC.modifier) == (38, 16, -1)


def test_dimensions_are_not_part_of_an_array_type() -> None:
    assert type_named("text[][3]") == type_named("text[]")
