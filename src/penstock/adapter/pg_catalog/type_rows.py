"""The rows of pg_type: the types that columns can have, their arrays, and the pseudo-types that clients look up."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.adapter.pg_catalog.snapshot import EXTRA_TYPE_NAMES, SYSTEM_NAMESPACES, Snapshot
from penstock.sql.types import SqlType

_NAMES = {
    "boolean": "bool",
    '"char"': "char",
    "bigint": "int8",
    "smallint": "int2",
    "integer": "int4",
    "real": "float4",
    "double precision": "float8",
    "character": "bpchar",
    "character varying": "varchar",
    "time without time zone": "time",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
}
_CATEGORIES = {
    "B": {"boolean"},
    "N": {"smallint", "integer", "bigint", "real", "double precision", "numeric", "oid", "regclass", "regtype"}
    | {"regproc", "uint2", "uint4", "uint8"},
    "S": {"text", "character", "character varying", "name"},
    "D": {"date", "time without time zone", "timestamp without time zone", "timestamp with time zone"},
    "T": {"interval"},
    "X": {"unknown"},
    "Z": {'"char"'},
}
_PREFERRED = {"boolean", "double precision", "oid", "text", "timestamp with time zone", "interval"}
_PSEUDO = {"record", "cstring", '"any"', "anyarray", "void", "anyelement"}


def type_name(kind: SqlType) -> str:
    """pg_type.typname: ``int4``, and ``_int4`` for its array."""
    if kind.element is not None:
        return "_" + type_name(kind.element)
    return _NAMES.get(kind.name, kind.name)


def pg_type(snapshot: Snapshot) -> Iterator[dict[str, object]]:
    arrays = {kind.element.oid: kind.oid for kind in snapshot.types.values() if kind.element is not None}
    for kind in snapshot.types.values():
        name = type_name(kind)
        own = (kind.element or kind).name.startswith(("uint", "mz_"))
        stem = "array_" if kind.element is not None else name if name not in ("numeric", "date", "uuid") else name + "_"
        yield {
            "oid": kind.oid,
            "typname": name,
            "typnamespace": SYSTEM_NAMESPACES["mz_catalog" if own else "pg_catalog"],
            "typowner": snapshot.owner,
            "typlen": -2 if kind.name == "unknown" else kind.size,
            "typbyval": 0 < kind.size <= 8,
            "typtype": "p" if kind.name == "unknown" else "b",
            "typcategory": "A" if kind.element is not None else _category(kind.name),
            "typispreferred": kind.name in _PREFERRED,
            "typisdefined": True,
            "typdelim": ",",
            "typelem": kind.element.oid if kind.element is not None else 18 if kind.name == "name" else 0,
            "typarray": arrays.get(kind.oid, 0),
            "typinput": stem + "in",
            "typoutput": stem + "out",
            "typreceive": stem + "recv",
            "typsend": stem + "send",
            "typalign": "i",
            "typstorage": "p" if kind.size > 0 else "x",
            "typtypmod": -1,
            "typcollation": 100 if (kind.element or kind).name in _CATEGORIES["S"] else 0,
        }
    for oid, name in EXTRA_TYPE_NAMES.items():
        yield {
            "oid": oid,
            "typname": name.strip('"'),
            "typnamespace": SYSTEM_NAMESPACES["pg_catalog"],
            "typowner": snapshot.owner,
            "typlen": -2 if name == "cstring" else 4 if name.startswith("reg") else -1,
            "typtype": "p" if name in _PSEUDO else "b",
            "typcategory": "P" if name in _PSEUDO else "A" if name.endswith("vector") else "U",
            "typisdefined": True,
            "typdelim": ",",
            "typelem": {"int2vector": 21, "oidvector": 26}.get(name, 0),
            "typinput": f"{name}_in",
            "typoutput": f"{name}_out",
            "typreceive": f"{name}_recv",
            "typsend": f"{name}_send",
            "typtypmod": -1,
        }


def _category(name: str) -> str:
    return next((letter for letter, names in _CATEGORIES.items() if name in names), "U")
