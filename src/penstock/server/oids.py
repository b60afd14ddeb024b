"""Type OIDs that clients decode by, as PostgreSQL (and Materialize, for types of its own) numbers them."""

from __future__ import annotations

import pyarrow as pa

BOOL, BYTEA, CHAR, NAME, INT8, INT2, INT4 = 16, 17, 18, 19, 20, 21, 23
REGPROC, TEXT, OID, JSON, FLOAT4, FLOAT8, UNKNOWN = 24, 25, 26, 114, 700, 701, 705
BPCHAR, VARCHAR, DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL = 1042, 1043, 1082, 1083, 1114, 1184, 1186
NUMERIC, REGCLASS, REGTYPE, RECORD, UUID, JSONB = 1700, 2205, 2206, 2249, 2950, 3802
UINT2, UINT4, UINT8, MZ_TIMESTAMP = 16_460, 16_462, 16_464, 16_552

ELEMENT_OF_ARRAY = {
    1000: BOOL,
    1001: BYTEA,
    1002: CHAR,
    1003: NAME,
    1005: INT2,
    1007: INT4,
    1008: REGPROC,
    1009: TEXT,
    1014: BPCHAR,
    1015: VARCHAR,
    1016: INT8,
    1021: FLOAT4,
    1022: FLOAT8,
    1028: OID,
    199: JSON,
    1115: TIMESTAMP,
    1182: DATE,
    1183: TIME,
    1185: TIMESTAMPTZ,
    1187: INTERVAL,
    1231: NUMERIC,
    2210: REGCLASS,
    2211: REGTYPE,
    2951: UUID,
    3807: JSONB,
    16_461: UINT2,
    16_463: UINT4,
    16_465: UINT8,
}

ARRAY_OF_ELEMENT = {element: array for array, element in ELEMENT_OF_ARRAY.items()}

_SIZES = {
    BOOL: 1,
    CHAR: 1,
    NAME: 64,
    INT2: 2,
    UINT2: 2,
    INT4: 4,
    UINT4: 4,
    OID: 4,
    REGPROC: 4,
    REGCLASS: 4,
    REGTYPE: 4,
    FLOAT4: 4,
    DATE: 4,
    INT8: 8,
    UINT8: 8,
    FLOAT8: 8,
    TIME: 8,
    TIMESTAMP: 8,
    TIMESTAMPTZ: 8,
    MZ_TIMESTAMP: 8,
    INTERVAL: 16,
    UUID: 16,
}


def size_of(oid: int) -> int:
    """pg_type.typlen: bytes of a fixed-width type, -1 for a variable one, -2 for a C string."""
    return -2 if oid == UNKNOWN else _SIZES.get(oid, -1)


def of_arrow(kind: pa.DataType) -> int:
    """The OID for a field of a record, of which only the Arrow type is known."""
    for matches, oid in _BY_ARROW:
        if matches(kind):
            return oid
    if pa.types.is_list(kind):
        return ARRAY_OF_ELEMENT.get(of_arrow(kind.value_type), TEXT)
    return TEXT


_BY_ARROW = [
    (pa.types.is_boolean, BOOL),
    (pa.types.is_int16, INT2),
    (pa.types.is_int32, INT4),
    (pa.types.is_int64, INT8),
    (pa.types.is_uint16, UINT2),
    (pa.types.is_uint32, UINT4),
    (pa.types.is_uint64, UINT8),
    (pa.types.is_float32, FLOAT4),
    (pa.types.is_float64, FLOAT8),
    (pa.types.is_decimal, NUMERIC),
    (pa.types.is_binary, BYTEA),
    (pa.types.is_fixed_size_binary, UUID),
    (pa.types.is_date, DATE),
    (pa.types.is_time, TIME),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is None, TIMESTAMP),
    (pa.types.is_timestamp, TIMESTAMPTZ),
    (pa.types.is_interval, INTERVAL),
    (pa.types.is_struct, RECORD),
]
