"""Functions over the catalog that queries call per row, as user-defined functions of DataFusion.

Plain Python over small columns: a catalog has thousands of objects, not millions. Each takes the snapshot and one row's
arguments; numbers come as int, texts as str, NULL arguments make a NULL result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datafusion import ScalarUDF, SessionContext, udf

from penstock.adapter.pg_catalog.snapshot import Snapshot
from penstock.runtime import SqlError
from penstock.sql.statements import quote_ident

_ARROW = {"int": pa.int64(), "text": pa.string(), "bool": pa.bool_()}


@dataclass(frozen=True, slots=True)
class Function:
    """`arguments`: "int" or "text" each, of which the first `required` must be given; the rest default to 0 or ''."""

    call: Callable[..., object]
    arguments: tuple[str, ...]
    returns: str = "text"
    required: int = 1
    nulls: bool = False
    """Whether it is called with NULLs."""


def _viewdef(snapshot: Snapshot, oid_or_name: str, _pretty: str) -> str | None:
    return snapshot.view_definition(snapshot.find_relation(oid_or_name))


def _description(snapshot: Snapshot, oid: int, catalog: str) -> str | None:
    return snapshot.comment(oid) if catalog in ("", "pg_class") else None


def _user(snapshot: Snapshot, oid: int) -> str:
    return snapshot.roles.get(oid, f"unknown (OID={oid})")


def _to_regclass(snapshot: Snapshot, text: str) -> int | None:
    relation = snapshot.find_relation(text)
    return None if relation is None else relation.oid


def _to_regtype(snapshot: Snapshot, text: str) -> int | None:
    try:
        return snapshot.regtype(text)
    except SqlError:
        return None  # by definition of to_regtype


def _namespace(snapshot: Snapshot, oid: int) -> str:
    return next((name for name, number in snapshot.namespaces.items() if number == oid), str(oid))


def _quote_literal(_: Snapshot, text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


FUNCTIONS: dict[str, Function] = {
    "format_type": Function(Snapshot.format_type, ("int", "int"), nulls=True),
    "pg_get_indexdef": Function(lambda s, oid, column, _: s.index_definition(oid, column), ("int", "int", "text")),
    "pg_get_viewdef": Function(_viewdef, ("text", "text")),
    "pg_get_userbyid": Function(_user, ("int",)),
    "pg_table_is_visible": Function(Snapshot.is_visible, ("int",), "bool"),
    "obj_description": Function(_description, ("int", "text")),
    "col_description": Function(Snapshot.comment, ("int", "int"), required=2),
    "pg_encoding_to_char": Function(lambda _, code: "UTF8" if code == 6 else "", ("int",)),
    "pg_char_to_encoding": Function(lambda _, name: 6 if name.upper() in ("UTF8", "UNICODE") else -1, ("text",), "int"),
    "current_setting": Function(lambda s, name, _: s.session.settings.get(name), ("text", "text")),
    "pg_regclass_name": Function(Snapshot.regclass_name, ("int",)),
    "pg_regtype_name": Function(lambda s, oid: s.format_type(oid, None), ("int",)),
    "pg_regnamespace_name": Function(_namespace, ("int",)),
    "to_regclass": Function(_to_regclass, ("text",), "int"),
    "to_regtype": Function(_to_regtype, ("text",), "int"),
    "pg_json_string": Function(lambda _, text: json.dumps(text, ensure_ascii=False), ("text",)),
    "quote_ident": Function(lambda _, text: quote_ident(text), ("text",)),
    "quote_literal": Function(_quote_literal, ("text",)),
}


def register(context: SessionContext, snapshot: Snapshot, used: set[str]) -> None:
    """Make the functions named in `used` known to a session."""
    for name in used & FUNCTIONS.keys():
        context.register_udf(_bound(name, FUNCTIONS[name], snapshot))


def _bound(name: str, function: Function, snapshot: Snapshot) -> ScalarUDF:
    result = _ARROW[function.returns]

    def evaluate(*columns: pa.Array) -> pa.Array:
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return pa.array([_one(row) for row in rows], result)

    def _one(row: tuple[Any, ...]) -> object:
        if not function.nulls and any(value is None for value in row):
            return None
        return function.call(snapshot, *row)

    return udf(evaluate, [_ARROW[kind] for kind in function.arguments], result, "stable", name)
