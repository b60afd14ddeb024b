"""SQL types: PostgreSQL's names, oids and modifiers, and the one Arrow type that carries each.

Every room that turns bytes into columns or columns into bytes asks here, so that a type is written down once. Where
several SQL types share an Arrow type (uuid and jsonb are strings, oid and uint4 are 32-bit integers), the field's
metadata ``penstock.type`` names the SQL type; a schema can therefore go through Arrow and come back.

Numeric values are decimals of 38 digits. ``numeric(p, s)`` keeps its scale; ``numeric`` alone is carried with 16
digits after the point, because a column of decimals has one scale, and is printed without trailing zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from penstock.runtime import SqlError

TYPE_KEY = b"penstock.type"
NUMERIC_PRECISION = 38
NUMERIC_SCALE = 16
"""Digits after the point of a numeric without declared scale."""


@dataclass(frozen=True, slots=True)
class SqlType:
    """`name`: as PostgreSQL's ``format_type`` writes it, without modifier. `modifier`: its typmod, -1 for none."""

    name: str
    oid: int
    modifier: int = -1
    element: SqlType | None = None

    def __str__(self) -> str:
        if self.element is not None:
            return f"{self.element}[]"
        if self.modifier < 0:
            return "bpchar" if self.name == "character" else self.name
        if self.name == "numeric":
            return f"numeric({self.precision},{self.scale})"
        return f"{self.name}({self.modifier - 4})"

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of a column of this type."""
        return _arrow(self)

    @property
    def precision(self) -> int:
        """Digits of a numeric."""
        return NUMERIC_PRECISION if self.modifier < 0 else (self.modifier - 4) >> 16

    @property
    def scale(self) -> int:
        """Digits after the point of a numeric, as it is carried."""
        return NUMERIC_SCALE if self.modifier < 0 else (self.modifier - 4) & 0xFFFF

    @property
    def length(self) -> int | None:
        """Longest value of a varchar(n) or char(n), in characters; None for no limit."""
        return None if self.modifier < 0 or self.name not in _SIZED_TEXT else self.modifier - 4

    @property
    def size(self) -> int:
        """PostgreSQL's typlen: bytes of a value, -1 when it varies."""
        return _SIZES.get(self.name, -1)

    @staticmethod
    def from_arrow(field: pa.Field) -> SqlType:
        """The SQL type of an Arrow field. SqlError 0A000 when there is none."""
        declared = (field.metadata or {}).get(TYPE_KEY)
        if declared is not None:
            return type_named(declared.decode())
        return default_type(field.type)


BOOL = SqlType("boolean", 16)
BYTEA = SqlType("bytea", 17)
CHAR1 = SqlType('"char"', 18)
NAME = SqlType("name", 19)
INT8 = SqlType("bigint", 20)
INT2 = SqlType("smallint", 21)
INT4 = SqlType("integer", 23)
REGPROC = SqlType("regproc", 24)
TEXT = SqlType("text", 25)
OID = SqlType("oid", 26)
FLOAT4 = SqlType("real", 700)
FLOAT8 = SqlType("double precision", 701)
UNKNOWN = SqlType("unknown", 705)
BPCHAR = SqlType("character", 1042)
VARCHAR = SqlType("character varying", 1043)
DATE = SqlType("date", 1082)
TIME = SqlType("time without time zone", 1083)
TIMESTAMP = SqlType("timestamp without time zone", 1114)
TIMESTAMPTZ = SqlType("timestamp with time zone", 1184)
INTERVAL = SqlType("interval", 1186)
NUMERIC = SqlType("numeric", 1700)
REGCLASS = SqlType("regclass", 2205)
REGTYPE = SqlType("regtype", 2206)
RECORD = SqlType("record", 2249)
UUID = SqlType("uuid", 2950)
JSONB = SqlType("jsonb", 3802)
UINT2 = SqlType("uint2", 16460)
UINT4 = SqlType("uint4", 16462)
UINT8 = SqlType("uint8", 16464)
MZ_TIMESTAMP = SqlType("mz_timestamp", 16552)

_PLAIN = (
    BOOL, BYTEA, CHAR1, NAME, INT8, INT2, INT4, REGPROC, TEXT, OID, FLOAT4, FLOAT8, UNKNOWN, BPCHAR, VARCHAR, DATE,
    TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, NUMERIC, REGCLASS, REGTYPE, UUID, JSONB, UINT2, UINT4, UINT8, MZ_TIMESTAMP,
)  # fmt: skip
_ARRAY_OIDS = {
    "boolean": 1000, "bytea": 1001, '"char"': 1002, "name": 1003, "smallint": 1005, "integer": 1007, "text": 1009,
    "bigint": 1016, "real": 1021, "double precision": 1022, "oid": 1028, "character": 1014, "character varying": 1015,
    "date": 1182, "time without time zone": 1183, "timestamp without time zone": 1115,
    "timestamp with time zone": 1185, "interval": 1187, "numeric": 1231, "uuid": 2951, "jsonb": 3807,
    "regclass": 2210, "regtype": 2211, "regproc": 1008, "uint2": 16461, "uint4": 16463, "uint8": 16465,
    "mz_timestamp": 16553,
}  # fmt: skip
_SIZES = {
    "boolean": 1, '"char"': 1, "name": 64, "smallint": 2, "integer": 4, "bigint": 8, "real": 4, "double precision": 8,
    "date": 4, "time without time zone": 8, "timestamp without time zone": 8, "timestamp with time zone": 8,
    "interval": 16, "uuid": 16, "oid": 4, "regclass": 4, "regtype": 4, "regproc": 4, "uint2": 2, "uint4": 4,
    "uint8": 8, "mz_timestamp": 8,
}  # fmt: skip
_ALIASES = {
    "bool": BOOL, "int": INT4, "int4": INT4, "int2": INT2, "int8": INT8, "float4": FLOAT4, "float8": FLOAT8,
    "float": FLOAT8, "double": FLOAT8, "decimal": NUMERIC, "dec": NUMERIC, "string": TEXT, "varchar": VARCHAR,
    "char varying": VARCHAR, "bpchar": BPCHAR, "bytes": BYTEA, "time": TIME, "timestamp": TIMESTAMP,
    "timestamptz": TIMESTAMPTZ, "json": JSONB,
}  # fmt: skip
_SIZED_TEXT = {"character", "character varying"}
_BY_NAME = {kind.name: kind for kind in _PLAIN} | {name: kind for name, kind in _ALIASES.items() if name != "json"}
_BY_OID = {kind.oid: kind for kind in _PLAIN}

_ARROW: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "bytea": pa.binary(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "uint2": pa.uint16(),
    "uint4": pa.uint32(),
    "uint8": pa.uint64(),
    "mz_timestamp": pa.uint64(),
    "oid": pa.uint32(),
    "regclass": pa.uint32(),
    "regtype": pa.uint32(),
    "regproc": pa.uint32(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
    "interval": pa.month_day_nano_interval(),
}


def numeric(precision: int, scale: int) -> SqlType:
    """``numeric(precision, scale)``, 1 <= precision <= 38, 0 <= scale <= precision. SqlError 22023 otherwise."""
    if not 1 <= precision <= NUMERIC_PRECISION:
        raise SqlError(f"NUMERIC precision {precision} must be between 1 and {NUMERIC_PRECISION}", sqlstate="22023")
    if not 0 <= scale <= precision:
        raise SqlError(f"NUMERIC scale {scale} must be between 0 and precision {precision}", sqlstate="22023")
    return SqlType("numeric", NUMERIC.oid, ((precision << 16) | scale) + 4)


@cache
def array_of(element: SqlType) -> SqlType:
    """The array type over `element`. SqlError 0A000 for arrays of arrays."""
    if element.element is not None or element.name not in _ARRAY_OIDS:
        raise SqlError(f"arrays of {element} are not supported", sqlstate="0A000")
    return SqlType(f"{element.name}[]", _ARRAY_OIDS[element.name], -1, element)


def type_by_oid(oid: int, modifier: int = -1) -> SqlType:
    """The type a client means by `oid`. SqlError 42704 when there is none."""
    if oid in _BY_OID:
        kind = _BY_OID[oid]
        return kind if modifier < 0 else SqlType(kind.name, oid, modifier)
    for name, array_oid in _ARRAY_OIDS.items():
        if array_oid == oid:
            return array_of(_BY_NAME[name])
    raise SqlError(f"type with oid {oid} does not exist", sqlstate="42704")


def all_types() -> Iterable[SqlType]:
    """Every scalar type and its array type, for the system catalog."""
    for kind in _PLAIN:
        yield kind
        if kind.name in _ARRAY_OIDS:
            yield array_of(kind)


_SPELLING = re.compile(
    r'^(?P<name>"char"|[a-z_][a-z0-9_. ]*?)\s*(?:\((?P<args>[\d,\s]+)\))?'
    r"(?P<suffix> with(?:out)? time zone)?(?P<array>(?:\[\d*\])*)$"
)


def type_named(text: str) -> SqlType:
    """The type that `text` spells, e.g. ``int``, ``numeric(10, 2)``, ``varchar(3)``, ``text[]``.

    SqlError 42704 for an unknown name, 22023 for impossible modifiers, 0A000 for modifiers we do not have.
    """
    match = _SPELLING.match(" ".join(text.lower().split()))
    if match is None:
        raise SqlError(f'type "{text}" does not exist', sqlstate="42704")
    name = match["name"].removeprefix("pg_catalog.") + (match["suffix"] or "")
    arguments = [int(part) for part in match["args"].split(",")] if match["args"] else []
    kind = _with_modifier(name, arguments)
    return array_of(kind) if match["array"] else kind


def _with_modifier(name: str, arguments: list[int]) -> SqlType:
    if name in ("char", "character") and not arguments:
        arguments = [1]
    kind = BPCHAR if name == "char" else _BY_NAME.get(name)
    if name == "float" and arguments:
        kind, arguments = (FLOAT4 if arguments[0] <= 24 else FLOAT8), []
    if kind is None:
        hint = "Use jsonb instead." if name == "json" else None
        raise SqlError(f'type "{name}" does not exist', sqlstate="42704", hint=hint)
    if not arguments:
        return kind
    if kind.name == "numeric" and len(arguments) <= 2:
        return numeric(arguments[0], arguments[1] if len(arguments) == 2 else 0)
    if kind.name in _SIZED_TEXT and len(arguments) == 1:
        if not 1 <= arguments[0] <= 10_485_760:
            raise SqlError(f"length for type {kind.name} must be between 1 and 10485760", sqlstate="22023")
        return SqlType(kind.name, kind.oid, arguments[0] + 4)
    if kind.name.startswith("time") and arguments == [6]:
        return kind
    given = ", ".join(map(str, arguments))
    raise SqlError(
        f"type modifier ({given}) of {kind.name} is not supported",
        sqlstate="0A000",
        hint=f"Write {kind.name} without a modifier." if kind.name.startswith("time") else None,
    )


def default_type(kind: pa.DataType) -> SqlType:
    """The SQL type of a plain Arrow type, as library calls return them. SqlError 0A000 when there is none."""
    if pa.types.is_decimal(kind):
        return numeric(min(kind.precision, NUMERIC_PRECISION), max(kind.scale, 0))
    if pa.types.is_timestamp(kind):
        return TIMESTAMP if kind.tz is None else TIMESTAMPTZ
    if pa.types.is_dictionary(kind):
        return default_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return array_of(SqlType.from_arrow(kind.value_field))
    for test, answer in _DEFAULTS:
        if test(kind):
            return answer
    raise SqlError(f"values of Arrow type {kind} have no SQL type", sqlstate="0A000")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return "binary" in str(kind)


_DEFAULTS = (
    (_is_text, TEXT),
    (_is_bytes, BYTEA),
    (pa.types.is_boolean, BOOL),
    (pa.types.is_int64, INT8),
    (pa.types.is_int32, INT4),
    (pa.types.is_int16, INT2),
    (pa.types.is_int8, INT2),
    (pa.types.is_float64, FLOAT8),
    (pa.types.is_float32, FLOAT4),
    (pa.types.is_uint64, UINT8),
    (pa.types.is_uint32, UINT4),
    (pa.types.is_uint16, UINT2),
    (pa.types.is_uint8, UINT2),
    (pa.types.is_date, DATE),
    (pa.types.is_time, TIME),
    (pa.types.is_interval, INTERVAL),
    (pa.types.is_duration, INTERVAL),
    (pa.types.is_null, UNKNOWN),
)


@cache
def _arrow(kind: SqlType) -> pa.DataType:
    if kind.element is not None:
        return pa.list_(kind.element.arrow)
    if kind.name == "numeric":
        return pa.decimal128(kind.precision, kind.scale)
    return _ARROW.get(kind.name, pa.string())


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a relation."""

    name: str
    type: SqlType
    nullable: bool = True

    @property
    def field(self) -> pa.Field:
        return _field(self)


@cache
def _field(column: Column) -> pa.Field:
    """An Arrow field; metadata only where the Arrow type alone would be read as another SQL type."""
    kind = column.type
    plain = kind.element is None and default_type(kind.arrow) == kind
    metadata = None if plain or kind.element is not None else {TYPE_KEY: str(kind).encode()}
    if kind.element is not None and default_type(kind.element.arrow) != kind.element:
        metadata = {TYPE_KEY: str(kind).encode()}
    return pa.field(column.name, kind.arrow, column.nullable, metadata)


@dataclass(frozen=True, slots=True)
class RelationDesc:
    """The columns of a relation or of a result. Names need not be distinct in a result."""

    columns: tuple[Column, ...]

    @property
    def arrow(self) -> pa.Schema:
        """The Arrow schema in which every room exchanges this relation's rows."""
        return _schema(self)

    @staticmethod
    def from_arrow(schema: pa.Schema) -> RelationDesc:
        """The description of an Arrow schema. SqlError 0A000 for a column without SQL type."""
        return RelationDesc(tuple(Column(field.name, SqlType.from_arrow(field), field.nullable) for field in schema))

    @staticmethod
    def of(*columns: tuple[str, SqlType] | Column) -> RelationDesc:
        """From pairs of name and type (nullable) or whole columns."""
        return RelationDesc(tuple(c if isinstance(c, Column) else Column(*c) for c in columns))

    def index_of(self, name: str) -> int | None:
        """Position of the first column called `name`, None when there is none."""
        return next((i for i, column in enumerate(self.columns) if column.name == name), None)


@cache
def _schema(desc: RelationDesc) -> pa.Schema:
    return pa.schema([column.field for column in desc.columns])
