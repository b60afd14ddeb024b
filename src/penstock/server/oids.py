"""Type OIDs by the names that encoders use; what the numbers mean is written down in `penstock.sql.types`."""

from __future__ import annotations

import pyarrow as pa

from penstock.runtime import SqlError
from penstock.sql import types

BOOL, BYTEA, CHAR, NAME = types.BOOL.oid, types.BYTEA.oid, types.CHAR1.oid, types.NAME.oid
INT2, INT4, INT8 = types.INT2.oid, types.INT4.oid, types.INT8.oid
UINT2, UINT4, UINT8 = types.UINT2.oid, types.UINT4.oid, types.UINT8.oid
FLOAT4, FLOAT8, NUMERIC = types.FLOAT4.oid, types.FLOAT8.oid, types.NUMERIC.oid
TEXT, VARCHAR, BPCHAR, UNKNOWN = types.TEXT.oid, types.VARCHAR.oid, types.BPCHAR.oid, types.UNKNOWN.oid
DATE, TIME, INTERVAL = types.DATE.oid, types.TIME.oid, types.INTERVAL.oid
TIMESTAMP, TIMESTAMPTZ, MZ_TIMESTAMP = types.TIMESTAMP.oid, types.TIMESTAMPTZ.oid, types.MZ_TIMESTAMP.oid
OID, REGCLASS, REGTYPE, REGPROC = types.OID.oid, types.REGCLASS.oid, types.REGTYPE.oid, types.REGPROC.oid
UUID, JSONB = types.UUID.oid, types.JSONB.oid
JSON = 114
"""Never a column's type, but what some clients declare parameters as."""

ELEMENT_OF_ARRAY = {kind.oid: kind.element.oid for kind in types.all_types() if kind.element is not None} | {199: JSON}
ELEMENT_OF_VECTOR = {22: INT2, 30: OID}


def of_arrow(kind: pa.DataType) -> int:
    """The OID for a field of a record, of which only the Arrow type is known; text where there is none."""
    try:
        return types.default_type(kind).oid
    except SqlError:
        return TEXT
