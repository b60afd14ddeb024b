"""A change to the catalog: collected first, then made durable whole or not at all.

Rules that keep the catalog sound are checked here, with the errors that people see: names are unique, what is
dropped has no dependents, what is created goes into a schema that exists.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from penstock.catalog.entries import (
    Allocator,
    Cluster,
    Comment,
    Database,
    Entry,
    Item,
    ItemColumn,
    Replica,
    Role,
    Schema,
    Setting,
    Unfinalized,
)
from penstock.catalog.references import rename_references
from penstock.catalog.state import CatalogState, Key
from penstock.runtime import GlobalId, SqlError
from penstock.sql.items import ItemKind
from penstock.sql.statements import quote_ident
from penstock.sql.types import RelationDesc

FIRST_OID = 20_000
SYSTEM_SCHEMAS = ("mz_catalog", "mz_internal", "mz_introspection", "pg_catalog", "information_schema")


class CatalogTransaction:
    """Changes on top of `base`. `state` shows them; nothing else does until `Catalog.commit`."""

    def __init__(self, base: CatalogState) -> None:
        self.base = base
        self.state = base

    @property
    def changed_keys(self) -> list[Key]:
        """Keys whose entry differs from the base's."""
        before, after = self.base.entries, self.state.entries
        return [key for key in {**before, **after} if before.get(key) != after.get(key)]

    # Databases, schemas, roles, settings

    def create_database(self, name: str) -> str:
        """Returns the id. The new database has a schema ``public``. SqlError 42P04 when the name is taken."""
        if self.state.database_id(name) is not None:
            raise SqlError(f'database "{name}" already exists', sqlstate="42P04")
        database_id = self._new_id(Database)
        self._put(database_id, Database(name=name, oid=self._new_oid()))
        self.create_schema(name, "public")
        return database_id

    def create_schema(self, database: str, name: str) -> str:
        """Returns the id. SqlError 42P06 when the name is taken, 3D000 when there is no such database."""
        database_id = self._database(database)
        if name in SYSTEM_SCHEMAS or name.startswith("pg_"):
            raise SqlError(f'unacceptable schema name "{name}"', sqlstate="42939", detail="The name is reserved.")
        if self.state.schema_id(database, name) is not None:
            raise SqlError(f'schema "{name}" already exists', sqlstate="42P06")
        schema_id = self._new_id(Schema)
        self._put(schema_id, Schema(database_id=database_id, name=name, oid=self._new_oid()))
        return schema_id

    def drop_database(self, name: str, *, cascade: bool) -> list[GlobalId]:
        """Drop it with its schemas; returns the items that went with it, users before what they use."""
        database_id = self._database(name)
        dropped = []
        for schema_id, schema in list(self.state.schemas.items()):
            if schema.database_id == database_id:
                dropped += self._empty_schema(schema_id, f"database {quote_ident(name)}", cascade=cascade)
                self._remove(Schema, schema_id)
        self._remove(Database, database_id)
        return dropped

    def drop_schema(self, database: str, name: str, *, cascade: bool) -> list[GlobalId]:
        """Drop it; returns the items that went with it, users before what they use. SqlError 3F000, 2BP01."""
        schema_id = self._schema(database, name)
        dropped = self._empty_schema(schema_id, f"schema {quote_ident(name)}", cascade=cascade)
        self._remove(Schema, schema_id)
        return dropped

    def create_role(self, name: str) -> str:
        if self.state.role_id(name) is not None:
            raise SqlError(f'role "{name}" already exists', sqlstate="42710")
        role_id = self._new_id(Role)
        self._put(role_id, Role(name=name, oid=self._new_oid()))
        return role_id

    def drop_role(self, name: str) -> None:
        role_id = self.state.role_id(name)
        if role_id is None:
            raise SqlError(f'role "{name}" does not exist', sqlstate="42704")
        self._remove(Role, role_id)

    def set_setting(self, name: str, value: str | None) -> None:
        """Store a setting; None removes it."""
        if value is not None:
            self._put(name, Setting(value=value))
        elif name in self.state.settings:
            self._remove(Setting, name)

    def set_comment(self, object_id: str, column: int | None, text: str | None) -> None:
        """COMMENT ON an object or its column (from 1); None removes it."""
        key = object_id if column is None else f"{object_id}.{column}"
        if text is not None:
            self._put(key, Comment(text=text))
        elif key in self.state.comments:
            self._remove(Comment, key)

    # Clusters

    def create_cluster(self, name: str, size: str, replication_factor: int) -> str:
        """Returns the id; replicas r1, r2, … come with it. SqlError 42710 when the name is taken."""
        if self.state.cluster_id(name) is not None:
            raise SqlError(f'cluster "{name}" already exists', sqlstate="42710")
        cluster_id = self._new_id(Cluster)
        self._put(cluster_id, Cluster(name=name, size=size, replication_factor=0))
        self.alter_cluster(name, size=size, replication_factor=replication_factor)
        return cluster_id

    def alter_cluster(self, name: str, *, size: str | None = None, replication_factor: int | None = None) -> None:
        """Change size or number of replicas: replicas are added at the end or dropped from it."""
        cluster_id = self._cluster(name)
        cluster = self.state.clusters[cluster_id]
        size = size or cluster.size
        factor = cluster.replication_factor if replication_factor is None else replication_factor
        replicas = list(self.state.replicas_of(cluster_id).items())
        for replica_id, _ in replicas[factor:]:
            self._remove(Replica, replica_id)
        for replica_id, replica in replicas[:factor]:
            self._put(replica_id, msgspec.structs.replace(replica, size=size))
        for number in range(len(replicas), factor):
            self._put(self._new_id(Replica), Replica(cluster_id=cluster_id, name=f"r{number + 1}", size=size))
        self._put(cluster_id, msgspec.structs.replace(cluster, size=size, replication_factor=factor))

    def drop_cluster(self, name: str, *, cascade: bool) -> list[GlobalId]:
        """Drop it and its replicas; with `cascade` also what runs on it, which is returned. SqlError 2BP01."""
        cluster_id = self._cluster(name)
        running = [item.id for item in self.state.items.values() if item.cluster_id == cluster_id]
        if running and not cascade:
            raise self._has_dependents(f"cluster {quote_ident(name)}", running)
        dropped = self._drop_with_dependents(running)
        for replica_id in self.state.replicas_of(cluster_id):
            self._remove(Replica, replica_id)
        self._remove(Cluster, cluster_id)
        return dropped

    # Items

    def create_item(
        self,
        kind: ItemKind,
        name: tuple[str, str, str],
        create_sql: str,
        *,
        desc: RelationDesc | None = None,
        defaults: tuple[str | None, ...] = (),
        shard_id: str | None = None,
        cluster_id: str | None = None,
        uses: Iterable[GlobalId] = (),
        on_id: GlobalId | None = None,
        index_key: tuple[int, ...] = (),
    ) -> GlobalId:
        """Add a table, view, materialized view or index; returns its id.

        SqlError 42P07 when the name is taken in its schema, 3F000 or 3D000 when the schema or database is not there.
        """
        database, schema, item = name
        schema_id = self._schema(database, schema)
        taken = self.state.items_by_name.get(name)
        if taken is not None:
            what = "relation" if taken.is_relation else "index"
            raise SqlError(f'{what} "{item}" already exists', sqlstate="42P07")
        columns = None
        if desc is not None:
            columns = tuple(ItemColumn(c.name, str(c.type), c.nullable) for c in desc.columns)
        item_id = GlobalId(self._new_id(Item))
        self._put(
            item_id,
            Item(
                item_kind=kind,
                schema_id=schema_id,
                name=item,
                oid=self._new_oid(),
                create_sql=create_sql,
                columns=columns,
                defaults=defaults,
                shard_id=shard_id,
                cluster_id=cluster_id,
                uses=tuple(dict.fromkeys(uses)),
                on_id=on_id,
                index_key=index_key,
            ),
        )
        return item_id

    def drop_item(self, item_id: GlobalId, *, cascade: bool) -> list[GlobalId]:
        """Drop it and, with `cascade`, its dependents; indexes always go with their relation.

        Returns what went, users before what they use. SqlError 2BP01 with a list of the dependents.
        """
        dependents = self.state.transitive_dependents(item_id)
        hard = [user for user in dependents if self.state.items[user].kind is not ItemKind.INDEX]
        if hard and not cascade:
            raise self._has_dependents(self._described(item_id), hard)
        return self._drop_with_dependents([item_id])

    def rename_item(self, item_id: GlobalId, new_name: str) -> None:
        """Rename within its schema; the stored SQL of the item and of its dependents follows. SqlError 42P07."""
        old = self.state.items[item_id].name
        new = (*old[:2], new_name)
        if new in self.state.items_by_name:
            raise SqlError(f'relation "{new_name}" already exists', sqlstate="42P07")
        for touched in (item_id, *self.state.transitive_dependents(item_id)):
            entry = self.state.entry(Item, touched)
            create_sql = rename_references(entry.create_sql, old, new)
            name = new_name if touched == item_id else entry.name
            self._put(touched, msgspec.structs.replace(entry, name=name, create_sql=create_sql))

    def finalized(self, shard_id: str) -> None:
        """A dropped item's shard is gone for good."""
        self._remove(Unfinalized, shard_id)

    # Parts

    def _empty_schema(self, schema_id: str, what: str, *, cascade: bool) -> list[GlobalId]:
        inside = [item for item in self.state.items if self.state.entry(Item, item).schema_id == schema_id]
        if inside and not cascade:
            raise self._has_dependents(what, inside)
        return self._drop_with_dependents(inside)

    def _drop_with_dependents(self, items: Iterable[GlobalId]) -> list[GlobalId]:
        doomed: set[GlobalId] = set()
        for item in items:
            doomed |= {item, *self.state.transitive_dependents(item)}
        ordered = [item for item in reversed(self.state.items) if item in doomed]
        for item in ordered:
            shard_id = self.state.items[item].shard_id
            for key in [key for key in self.state.comments if key.split(".")[0] == item]:
                self._remove(Comment, key)
            self._remove(Item, item)
            if shard_id is not None:
                self._put(shard_id, Unfinalized())
        return ordered

    def _has_dependents(self, what: str, dependents: list[GlobalId]) -> SqlError:
        shown = [f"{self._described(user)} depends on {what}" for user in dependents[:10]]
        if len(dependents) > len(shown):
            shown.append(f"and {len(dependents) - len(shown)} more")
        return SqlError(
            f"cannot drop {what} because other objects depend on it",
            sqlstate="2BP01",
            detail="\n".join(shown),
            hint="Use DROP ... CASCADE to drop the dependent objects too.",
        )

    def _described(self, item_id: GlobalId) -> str:
        item = self.state.items[item_id]
        return f"{item.kind.value.replace('-', ' ')} {quote_ident(item.name[2])}"

    def _database(self, name: str) -> str:
        found = self.state.database_id(name)
        if found is None:
            raise SqlError(f'database "{name}" does not exist', sqlstate="3D000")
        return found

    def _schema(self, database: str, name: str) -> str:
        self._database(database)
        found = self.state.schema_id(database, name)
        if found is None:
            raise SqlError(f'schema "{name}" does not exist', sqlstate="3F000")
        return found

    def _cluster(self, name: str) -> str:
        found = self.state.cluster_id(name)
        if found is None:
            raise SqlError(f'unknown cluster "{name}"', sqlstate="42704", hint="SHOW CLUSTERS lists the clusters.")
        return found

    def _new_id(self, kind: type[Entry]) -> str:
        return f"u{self._allocate(kind.kind)}"

    def _new_oid(self) -> int:
        return self._allocate("oid", first=FIRST_OID)

    def _allocate(self, what: str, first: int = 1) -> int:
        allocator = self.state.entries.get(("allocator", what))
        number = allocator.next if isinstance(allocator, Allocator) else first
        self._put(what, Allocator(next=number + 1))
        return number

    def _put(self, key: str, entry: Entry) -> None:
        self.state = CatalogState({**self.state.entries, (entry.kind, key): entry}, self.base.version)

    def _remove(self, kind: type[Entry], key: str) -> None:
        entries = dict(self.state.entries)
        del entries[kind.kind, key]
        self.state = CatalogState(entries, self.base.version)
