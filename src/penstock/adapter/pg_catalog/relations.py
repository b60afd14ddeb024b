"""The rows of pg_catalog and information_schema, from a snapshot.

One function per relation that ever has rows, in `_ROWS`; every other relation of `shapes` is empty for good, which
`rewrite` makes use of. Columns that are left out are NULL or zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from penstock.adapter.pg_catalog.shapes import shapes, table_of
from penstock.adapter.pg_catalog.snapshot import (
    INFORMATION_SCHEMA,
    PG_CATALOG,
    Relation,
    Snapshot,
)
from penstock.adapter.pg_catalog.type_rows import pg_type, type_name
from penstock.sql.types import Column

Row = dict[str, object]

HEAP, BTREE = 2, 403
DEFAULT_TABLESPACE = 1663
DEFAULT_COLLATION = 100
_COLLATED = {"text", "character varying", "character"}
_SUPERUSER = "mz_system"


def relation_table(name: str, snapshot: Snapshot) -> pa.Table:
    """All rows of ``schema.relation``."""
    rows = _ROWS.get(name)
    return table_of(shapes()[name], list(rows(snapshot)) if rows is not None else [])


def is_always_empty(name: str) -> bool:
    """Whether the relation never has rows, whatever the catalog holds."""
    return name not in _ROWS


def _pg_namespace(snapshot: Snapshot) -> Iterator[Row]:
    for name, oid in snapshot.namespaces.items():
        yield {"oid": oid, "nspname": name, "nspowner": snapshot.owner}


def _pg_class(snapshot: Snapshot) -> Iterator[Row]:
    for relation in snapshot.relations.values():
        yield {
            "oid": relation.oid,
            "relname": relation.name,
            "relnamespace": snapshot.namespaces[relation.schema],
            "relowner": snapshot.owner,
            "relam": {"i": BTREE, "v": 0}.get(relation.kind, HEAP),
            "relfilenode": relation.oid,
            "reltuples": -1.0,
            "relhasindex": relation.oid in snapshot.indexes,
            "relpersistence": "p",
            "relkind": relation.kind,
            "relnatts": len(_columns(relation, snapshot)),
            "relispopulated": True,
            "relreplident": "n" if relation.kind in "iv" else "d",
        }


def _columns(relation: Relation, snapshot: Snapshot) -> list[Column]:
    if relation.on is not None:
        desc = snapshot.relations[relation.on].desc
        assert desc is not None, relation
        return [desc.columns[position - 1] for position in relation.key]
    return list(relation.desc.columns) if relation.desc is not None else []


def _pg_attribute(snapshot: Snapshot) -> Iterator[Row]:
    for relation in snapshot.relations.values():
        defaults = _defaults(relation)
        for number, column in enumerate(_columns(relation, snapshot), 1):
            kind = column.type
            yield {
                "attrelid": relation.oid,
                "attname": column.name,
                "atttypid": kind.oid,
                "attstattarget": -1,
                "attlen": kind.size,
                "attnum": number,
                "attndims": int(kind.element is not None),
                "attcacheoff": -1,
                "atttypmod": kind.modifier,
                "attbyval": 0 < kind.size <= 8,
                "attalign": "i",
                "attstorage": "p" if kind.size > 0 else "x",
                "attnotnull": not column.nullable,
                "atthasdef": number in defaults,
                "attislocal": True,
                "attcollation": DEFAULT_COLLATION if (kind.element or kind).name in _COLLATED else 0,
            }


def _defaults(relation: Relation) -> dict[int, str]:
    """Column number -> SQL of its default."""
    if relation.item is None:
        return {}
    return {n: text for n, text in enumerate(relation.item.defaults, 1) if text is not None}


def _pg_attrdef(snapshot: Snapshot) -> Iterator[Row]:
    for relation in snapshot.relations.values():
        for number, text in _defaults(relation).items():
            oid = relation.oid * 2000 + number
            yield {"oid": oid, "adrelid": relation.oid, "adnum": number, "adbin": text}


def _pg_index(snapshot: Snapshot) -> Iterator[Row]:
    for relation in snapshot.relations.values():
        if relation.on is None:
            continue
        width = len(relation.key)
        yield {
            "indexrelid": relation.oid,
            "indrelid": relation.on,
            "indnatts": width,
            "indnkeyatts": width,
            "indimmediate": True,
            "indisvalid": True,
            "indisready": True,
            "indislive": True,
            "indkey": list(relation.key),
            "indcollation": [0] * width,
            "indclass": [0] * width,
            "indoption": [0] * width,
        }


def _pg_database(snapshot: Snapshot) -> Iterator[Row]:
    for database in snapshot.state.databases.values():
        yield {
            "oid": database.oid,
            "datname": database.name,
            "datdba": snapshot.owner,
            "encoding": 6,
            "datlocprovider": "c",
            "datallowconn": True,
            "datconnlimit": -1,
            "dattablespace": DEFAULT_TABLESPACE,
            "datcollate": "C",
            "datctype": "C",
        }


def _role(oid: int, name: str) -> Row:
    return {
        "oid": oid,
        "rolname": name,
        "rolsuper": name == _SUPERUSER,
        "rolinherit": True,
        "rolcreaterole": True,
        "rolcreatedb": True,
        "rolcanlogin": True,
        "rolreplication": False,
        "rolbypassrls": False,
        "rolconnlimit": -1,
    }


def _pg_authid(snapshot: Snapshot) -> Iterator[Row]:
    for oid, name in snapshot.roles.items():
        yield _role(oid, name)


def _pg_roles(snapshot: Snapshot) -> Iterator[Row]:
    for oid, name in snapshot.roles.items():
        yield _role(oid, name) | {"rolpassword": "********"}


def _pg_user(snapshot: Snapshot) -> Iterator[Row]:
    for oid, name in snapshot.roles.items():
        superuser = name == _SUPERUSER
        yield {"usename": name, "usesysid": oid, "usecreatedb": True, "usesuper": superuser, "passwd": "********"}


def _pg_settings(snapshot: Snapshot) -> Iterator[Row]:
    for name, value in sorted(snapshot.session.settings.items()):
        yield {"name": name, "setting": value, "context": "user", "vartype": "string", "source": "session"}


def _pg_am(_: Snapshot) -> Iterator[Row]:
    yield {"oid": HEAP, "amname": "heap", "amtype": "t", "amhandler": "heap_tableam_handler"}
    yield {"oid": BTREE, "amname": "btree", "amtype": "i", "amhandler": "bthandler"}


def _pg_collation(_: Snapshot) -> Iterator[Row]:
    for oid, name in ((DEFAULT_COLLATION, "default"), (950, "C"), (951, "POSIX")):
        yield {
            "oid": oid,
            "collname": name,
            "collnamespace": 11,
            "collprovider": "d" if name == "default" else "c",
            "collisdeterministic": True,
            "collencoding": -1,
        }


def _pg_tablespace(snapshot: Snapshot) -> Iterator[Row]:
    yield {"oid": DEFAULT_TABLESPACE, "spcname": "pg_default", "spcowner": snapshot.owner}


def _pg_language(snapshot: Snapshot) -> Iterator[Row]:
    yield {"oid": 12, "lanname": "internal", "lanowner": snapshot.owner}
    yield {"oid": 14, "lanname": "sql", "lanowner": snapshot.owner, "lanpltrusted": True}


def _pg_description(snapshot: Snapshot) -> Iterator[Row]:
    by_id = {str(r.item.id): r for r in snapshot.relations.values() if r.item is not None}
    for key, text in snapshot.state.comments.items():
        item_id, _, column = key.partition(".")
        if item_id in by_id:
            oid = by_id[item_id].oid
            yield {"objoid": oid, "classoid": 1259, "objsubid": int(column or 0), "description": text}


def _user_relations(snapshot: Snapshot, kinds: str) -> Iterator[Relation]:
    return (relation for relation in snapshot.relations.values() if relation.kind in kinds)


def _pg_tables(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "r"):
        yield {
            "schemaname": relation.schema,
            "tablename": relation.name,
            "tableowner": snapshot.roles.get(snapshot.owner),
            "hasindexes": relation.oid in snapshot.indexes,
            "hasrules": False,
            "hastriggers": False,
            "rowsecurity": False,
        }


def _pg_views(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "v"):
        yield {
            "schemaname": relation.schema,
            "viewname": relation.name,
            "viewowner": snapshot.roles.get(snapshot.owner),
            "definition": snapshot.view_definition(relation),
        }


def _pg_matviews(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "m"):
        yield {
            "schemaname": relation.schema,
            "matviewname": relation.name,
            "matviewowner": snapshot.roles.get(snapshot.owner),
            "hasindexes": relation.oid in snapshot.indexes,
            "ispopulated": True,
            "definition": snapshot.view_definition(relation),
        }


def _pg_indexes(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "i"):
        assert relation.on is not None, relation
        yield {
            "schemaname": relation.schema,
            "tablename": snapshot.relations[relation.on].name,
            "indexname": relation.name,
            "indexdef": snapshot.index_definition(relation.oid, 0),
        }


def _schemata(snapshot: Snapshot) -> Iterator[Row]:
    for name in snapshot.namespaces:
        yield {
            "catalog_name": snapshot.session.database,
            "schema_name": name,
            "schema_owner": snapshot.roles.get(snapshot.owner),
        }


def _tables(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "rvm"):
        kinds = {"v": "VIEW", "m": "MATERIALIZED VIEW", "r": "BASE TABLE"}
        yield {
            "table_catalog": snapshot.session.database,
            "table_schema": relation.schema,
            "table_name": relation.name,
            "table_type": kinds[relation.kind],
            "is_insertable_into": "YES" if relation.kind == "r" and relation.item is not None else "NO",
            "is_typed": "NO",
        }


def _views(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "v"):
        yield {
            "table_catalog": snapshot.session.database,
            "table_schema": relation.schema,
            "table_name": relation.name,
            "view_definition": snapshot.view_definition(relation),
            "check_option": "NONE",
            "is_updatable": "NO",
            "is_insertable_into": "NO",
        }


_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}
_FLOAT_BITS = {"real": 24, "double precision": 53}


def _information_columns(snapshot: Snapshot) -> Iterator[Row]:
    for relation in _user_relations(snapshot, "rvm"):
        defaults = _defaults(relation)
        for number, column in enumerate(_columns(relation, snapshot), 1):
            kind = column.type
            numeric = kind.name == "numeric" and kind.modifier >= 0
            bits = _INTEGER_BITS.get(kind.name) or _FLOAT_BITS.get(kind.name)
            yield {
                "table_catalog": snapshot.session.database,
                "table_schema": relation.schema,
                "table_name": relation.name,
                "column_name": column.name,
                "ordinal_position": number,
                "column_default": defaults.get(number),
                "is_nullable": "YES" if column.nullable else "NO",
                "data_type": "ARRAY" if kind.element is not None else kind.name,
                "character_maximum_length": kind.length,
                "numeric_precision": kind.precision if numeric else bits,
                "numeric_precision_radix": 10 if numeric else 2 if bits else None,
                "numeric_scale": kind.scale if numeric else 0 if kind.name in _INTEGER_BITS else None,
                "datetime_precision": 6 if kind.name.startswith("time") else None,
                "udt_catalog": snapshot.session.database,
                "udt_schema": PG_CATALOG,
                "udt_name": type_name(kind),
                "dtd_identifier": str(number),
                "is_identity": "NO",
                "is_generated": "NEVER",
                "is_updatable": "YES" if relation.kind == "r" and relation.item is not None else "NO",
            }


def _information_schema_catalog_name(snapshot: Snapshot) -> Iterator[Row]:
    yield {"catalog_name": snapshot.session.database}


def _enabled_roles(snapshot: Snapshot) -> Iterator[Row]:
    for name in snapshot.roles.values():
        yield {"role_name": name}


_ROWS: dict[str, Callable[[Snapshot], Iterator[Row]]] = {
    f"{PG_CATALOG}.{name}": rows
    for name, rows in {
        "pg_am": _pg_am,
        "pg_attrdef": _pg_attrdef,
        "pg_attribute": _pg_attribute,
        "pg_authid": _pg_authid,
        "pg_class": _pg_class,
        "pg_collation": _pg_collation,
        "pg_database": _pg_database,
        "pg_description": _pg_description,
        "pg_index": _pg_index,
        "pg_indexes": _pg_indexes,
        "pg_language": _pg_language,
        "pg_matviews": _pg_matviews,
        "pg_namespace": _pg_namespace,
        "pg_roles": _pg_roles,
        "pg_settings": _pg_settings,
        "pg_shadow": _pg_user,
        "pg_tables": _pg_tables,
        "pg_tablespace": _pg_tablespace,
        "pg_type": pg_type,
        "pg_user": _pg_user,
        "pg_views": _pg_views,
    }.items()
} | {
    f"{INFORMATION_SCHEMA}.{name}": rows
    for name, rows in {
        "columns": _information_columns,
        "enabled_roles": _enabled_roles,
        "information_schema_catalog_name": _information_schema_catalog_name,
        "schemata": _schemata,
        "tables": _tables,
        "views": _views,
    }.items()
}
