"""What pg_catalog shows, taken from the catalog at one moment for one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from penstock.adapter.pg_catalog.shapes import shapes
from penstock.catalog import CatalogState
from penstock.runtime import SqlError
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.statements import quote_ident
from penstock.sql.types import RelationDesc, SqlType, all_types, type_named

PG_CATALOG, INFORMATION_SCHEMA = "pg_catalog", "information_schema"
SYSTEM_NAMESPACES = {
    PG_CATALOG: 11,
    INFORMATION_SCHEMA: 13_000,
    "mz_catalog": 16_001,
    "mz_internal": 16_002,
    "mz_introspection": 16_003,
}
_FIRST_SYSTEM_OID = 17_000
_RELKINDS = {
    ItemKind.TABLE: "r",
    ItemKind.SOURCE: "r",
    ItemKind.VIEW: "v",
    ItemKind.MATERIALIZED_VIEW: "m",
    ItemKind.INDEX: "i",
    ItemKind.SYSTEM: "v",
}


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """Who asks. `settings`: variables by name, as SHOW prints them; `version`: the text of version()."""

    database: str = "materialize"
    user: str = "materialize"
    search_path: Sequence[str] = ("public",)
    process_id: int = 0
    version: str = "PostgreSQL 15.0 on Penstock"
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Relation:
    """A row of pg_class. `on`: the relation of an index, with the positions of its `key` columns from 1."""

    oid: int
    schema: str
    name: str
    kind: str
    desc: RelationDesc | None
    item: CatalogItem | None = None
    on: int | None = None
    key: tuple[int, ...] = ()


class Snapshot:
    """One catalog version as one session sees it: the objects of its database, and what all databases share.

    `system`: the columns of system relations beside pg_catalog and information_schema, by ``schema.name``.
    """

    def __init__(
        self, state: CatalogState, session: SessionInfo, system: Mapping[str, RelationDesc] | None = None
    ) -> None:
        self.state = state
        self.session = session
        self._system = system or {}

    @cached_property
    def namespaces(self) -> dict[str, int]:
        """Schema name -> OID, of the session's database and the system."""
        database = self.state.database_id(self.session.database)
        own = {s.name: s.oid for s in self.state.schemas.values() if s.database_id == database}
        return SYSTEM_NAMESPACES | own

    @cached_property
    def relations(self) -> dict[int, Relation]:
        """By OID."""
        found = []
        for name, shape in shapes().items():
            schema, _, relation = name.partition(".")
            found.append(Relation(shape.oid, schema, relation, shape.kind, shape.desc))
        for number, name in enumerate(sorted(self._system)):
            schema, _, relation = name.partition(".")
            if schema in (PG_CATALOG, INFORMATION_SCHEMA):
                continue
            found.append(Relation(_FIRST_SYSTEM_OID + number, schema, relation, "v", self._system[name]))
        for item in self.state.items.values():
            if item.name[0] == self.session.database:
                found.append(self._relation(item))
        return {relation.oid: relation for relation in found}

    def _relation(self, item: CatalogItem) -> Relation:
        on: int | None = None
        key: tuple[int, ...] = ()
        if item.kind is ItemKind.INDEX:
            target = self.state.items[self.state.index_target(item.id)]
            on, key = target.oid, tuple(position + 1 for position in self.state.index_key(item.id))
        return Relation(item.oid, item.name[1], item.name[2], _RELKINDS[item.kind], item.desc, item, on, key)

    @cached_property
    def relations_by_name(self) -> dict[tuple[str, str], Relation]:
        return {(relation.schema, relation.name): relation for relation in self.relations.values()}

    @cached_property
    def indexes(self) -> dict[int, list[Relation]]:
        """The indexes of a relation, by its OID."""
        found: dict[int, list[Relation]] = {}
        for relation in self.relations.values():
            if relation.on is not None:
                found.setdefault(relation.on, []).append(relation)
        return found

    @cached_property
    def path(self) -> list[str]:
        """The schemas that are searched, implicit ones first, only those that exist."""
        implicit = [name for name in ("mz_catalog", PG_CATALOG) if name not in self.session.search_path]
        return [name for name in [*implicit, *self.session.search_path] if name in self.namespaces]

    @cached_property
    def current_schema(self) -> str | None:
        return next((name for name in self.session.search_path if name in self.namespaces), None)

    @cached_property
    def roles(self) -> dict[int, str]:
        return {role.oid: role.name for role in self.state.roles.values()}

    @cached_property
    def owner(self) -> int:
        """The role that owns everything, since objects have no owners of their own: the oldest one."""
        return min(self.roles, default=10)

    @cached_property
    def types(self) -> dict[int, SqlType]:
        return {kind.oid: kind for kind in all_types()}

    def is_visible(self, oid: int) -> bool | None:
        """What pg_table_is_visible says: whether a relation can be named without its schema; None if unknown.

        The system relations of mz_catalog can be, but are said to be not: psql lists what is visible and would
        bury the user's own relations under them.
        """
        relation = self.relations.get(oid)
        if relation is None:
            return None
        if relation.schema.startswith("mz_"):
            return False
        for schema in self.path:
            first = self.relations_by_name.get((schema, relation.name))
            if first is not None:
                return first.oid == oid
        return False

    def regclass(self, text: str) -> int:
        """The OID that ``'text'::regclass`` means. SqlError 42P01 when there is none."""
        found = self.find_relation(text)
        if found is None:
            raise SqlError(f'relation "{text}" does not exist', sqlstate="42P01")
        return found.oid

    def find_relation(self, text: str) -> Relation | None:
        """By a possibly quoted and qualified name, or an OID in digits."""
        if text.isdigit():
            return self.relations.get(int(text))
        parts = split_name(text)
        if len(parts) > 2:
            parts = parts[1:] if parts[0] == self.session.database else []
        if len(parts) == 2:
            return self.relations_by_name.get((parts[0], parts[1]))
        candidates = (self.relations_by_name.get((schema, parts[0])) for schema in self.path) if parts else iter(())
        return next((relation for relation in candidates if relation is not None), None)

    def regclass_name(self, oid: int) -> str:
        """How a regclass prints: qualified only where it must be, the number for an unknown OID."""
        relation = self.relations.get(oid)
        if relation is None:
            return "-" if oid == 0 else str(oid)
        if self.is_visible(oid):
            return quote_ident(relation.name)
        return f"{quote_ident(relation.schema)}.{quote_ident(relation.name)}"

    def format_type(self, oid: int | None, modifier: int | None) -> str | None:
        """``format_type(oid, typmod)``."""
        if oid is None:
            return None
        kind = self.types.get(oid)
        if kind is None:
            return "-" if oid == 0 else EXTRA_TYPE_NAMES.get(oid, "???")
        if modifier is not None and modifier >= 0:
            kind = SqlType(kind.name, kind.oid, modifier, kind.element)
        return str(kind)

    def regtype(self, text: str) -> int:
        """The OID that ``'text'::regtype`` means. SqlError 42704 when there is none."""
        if text.isdigit():
            return int(text)
        extra = {name: oid for oid, name in EXTRA_TYPE_NAMES.items()}
        return extra[text] if text in extra else type_named(text).oid

    def index_definition(self, oid: int, column: int) -> str | None:
        """``pg_get_indexdef``: the whole statement, or for `column` > 0 that column's name."""
        index = self.relations.get(oid)
        if index is None or index.on is None:
            return None
        target = self.relations[index.on]
        assert target.desc is not None, target
        names = [quote_ident(target.desc.columns[position - 1].name) for position in index.key]
        if column > 0:
            return names[column - 1] if column <= len(names) else ""
        table = f"{quote_ident(target.schema)}.{quote_ident(target.name)}"
        return f"CREATE INDEX {quote_ident(index.name)} ON {table} USING btree ({', '.join(names)})"

    def view_definition(self, relation: Relation | None) -> str | None:
        """The query of a view, with a semicolon; None for what has none."""
        if relation is None or relation.item is None or relation.kind not in "vm":
            return None
        return view_query(relation.item.create_sql) + ";"

    def comment(self, oid: int, column: int = 0) -> str | None:
        relation = self.relations.get(oid)
        if relation is None or relation.item is None:
            return None
        key = f"{relation.item.id}.{column}" if column else str(relation.item.id)
        return self.state.comments.get(key)


EXTRA_TYPE_NAMES = {
    22: "int2vector",
    30: "oidvector",
    114: "json",
    2249: "record",
    2275: "cstring",
    2276: '"any"',
    2277: "anyarray",
    2278: "void",
    2283: "anyelement",
    4089: "regnamespace",
    4096: "regrole",
}
"""Types that columns of ours never have, by OID, which clients look up."""


def split_name(text: str) -> list[str]:
    """The parts of a dotted name, quotes taken off, unquoted parts in lower case."""
    parts, part, quoted, was_quoted = [], "", False, False
    for character in text + ".":
        if character == '"':
            quoted, was_quoted = not quoted, True
        elif character == "." and not quoted:
            parts.append(part if was_quoted else part.strip().lower())
            part, was_quoted = "", False
        else:
            part += character
    return parts


def view_query(create_sql: str) -> str:
    """The query behind AS in a CREATE VIEW statement."""
    upper = create_sql.upper()
    at = upper.find(" AS ")
    return create_sql[at + len(" AS ") :].strip().rstrip(";") if at >= 0 else create_sql
