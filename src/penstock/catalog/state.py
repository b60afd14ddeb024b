"""The catalog's contents at one version, and the lookups over them.

A `CatalogState` never changes: whoever plans with one sees one consistent catalog for as long as it likes. A
transaction works on a copy (`CatalogTransaction`) and the handle (`Catalog`) puts the copy in place once it is durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TypeVar, cast

from penstock.catalog.entries import (
    Cluster,
    Comment,
    Database,
    Entry,
    Fence,
    Item,
    Replica,
    Role,
    Schema,
    Setting,
    Unfinalized,
)
from penstock.runtime import GlobalId
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.types import Column, RelationDesc, type_named

E = TypeVar("E", bound=Entry)
Key = tuple[str, str]


class CatalogState:
    """Entries by (kind, key), with indexes built when first asked for. `version` grows with every change."""

    def __init__(self, entries: Mapping[Key, Entry], version: int) -> None:
        self.entries = entries
        self.version = version

    @property
    def epoch(self) -> int:
        fence = self.entries.get(("fence", "epoch"))
        return cast(Fence, fence).epoch if fence else 0

    @cached_property
    def databases(self) -> dict[str, Database]:
        return dict(self._of(Database))

    @cached_property
    def schemas(self) -> dict[str, Schema]:
        return dict(self._of(Schema))

    @cached_property
    def roles(self) -> dict[str, Role]:
        return dict(self._of(Role))

    @cached_property
    def clusters(self) -> dict[str, Cluster]:
        return dict(self._of(Cluster))

    @cached_property
    def replicas(self) -> dict[str, Replica]:
        return dict(self._of(Replica))

    @cached_property
    def settings(self) -> dict[str, str]:
        return {key: setting.value for key, setting in self._of(Setting)}

    @cached_property
    def comments(self) -> dict[str, str]:
        return {key: comment.text for key, comment in self._of(Comment)}

    @cached_property
    def unfinalized_shards(self) -> list[str]:
        return [key for key, _ in self._of(Unfinalized)]

    @cached_property
    def items(self) -> dict[GlobalId, CatalogItem]:
        """All items by id, oldest first: what an item uses comes before it."""
        by_age = sorted(self._of(Item), key=lambda pair: int(pair[0][1:]))
        return {GlobalId(key): self._item(GlobalId(key), item) for key, item in by_age}

    @cached_property
    def items_by_name(self) -> dict[tuple[str, str, str], CatalogItem]:
        """By (database, schema, name). Relations and indexes share one namespace, as in PostgreSQL."""
        return {item.name: item for item in self.items.values()}

    @cached_property
    def dependents(self) -> dict[GlobalId, list[GlobalId]]:
        """Who uses an item directly."""
        found: dict[GlobalId, list[GlobalId]] = {}
        for item in self.items.values():
            for used in item.uses:
                found.setdefault(used, []).append(item.id)
        return found

    @cached_property
    def indexes_on(self) -> dict[GlobalId, list[CatalogItem]]:
        """The indexes of a relation, oldest first."""
        found: dict[GlobalId, list[CatalogItem]] = {}
        for item in self.items.values():
            if item.kind is ItemKind.INDEX:
                found.setdefault(self.index_target(item.id), []).append(item)
        return found

    def index_target(self, index: GlobalId) -> GlobalId:
        """The relation that an index is on."""
        on_id = self.entry(Item, index).on_id
        assert on_id is not None, f"{index} is not an index"
        return GlobalId(on_id)

    def index_key(self, index: GlobalId) -> tuple[int, ...]:
        """Positions of the indexed columns, from 0."""
        return self.entry(Item, index).index_key

    def transitive_dependents(self, of: GlobalId) -> list[GlobalId]:
        """Everything that uses `of`, directly or through others; users come after what they use."""
        found: set[GlobalId] = set()
        waiting = [of]
        while waiting:
            for user in self.dependents.get(waiting.pop(), ()):
                if user not in found:
                    found.add(user)
                    waiting.append(user)
        return [item for item in self.items if item in found]

    def entry(self, kind: type[E], key: str) -> E:
        """The entry of `kind` with `key`. KeyError when there is none."""
        return cast(E, self.entries[kind.kind, key])

    def database_id(self, name: str) -> str | None:
        return next((key for key, database in self.databases.items() if database.name == name), None)

    def schema_id(self, database: str, name: str) -> str | None:
        database_id = self.database_id(database)
        return next((k for k, s in self.schemas.items() if s.name == name and s.database_id == database_id), None)

    def cluster_id(self, name: str) -> str | None:
        return next((key for key, cluster in self.clusters.items() if cluster.name == name), None)

    def replicas_of(self, cluster_id: str) -> dict[str, Replica]:
        return {key: replica for key, replica in self.replicas.items() if replica.cluster_id == cluster_id}

    def role_id(self, name: str) -> str | None:
        return next((key for key, role in self.roles.items() if role.name == name), None)

    def full_name(self, item: Item) -> tuple[str, str, str]:
        schema = self.schemas[item.schema_id]
        return self.databases[schema.database_id].name, schema.name, item.name

    def _item(self, item_id: GlobalId, item: Item) -> CatalogItem:
        desc = None
        if item.columns is not None:
            desc = RelationDesc(tuple(Column(c.name, type_named(c.type), c.nullable) for c in item.columns))
        return CatalogItem(
            id=item_id,
            kind=item.item_kind,
            name=self.full_name(item),
            desc=desc,
            create_sql=item.create_sql,
            shard_id=item.shard_id,
            cluster_id=item.cluster_id,
            uses=tuple(GlobalId(used) for used in item.uses),
            oid=item.oid,
            defaults=item.defaults,
        )

    def _of(self, kind: type[E]) -> Iterator[tuple[str, E]]:
        return ((key, cast(E, entry)) for (name, key), entry in self.entries.items() if name == kind.kind)
