"""What the planner asks of a catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from penstock.runtime import GlobalId
from penstock.sql.types import RelationDesc


class ItemKind(StrEnum):
    TABLE = "table"
    SOURCE = "source"
    VIEW = "view"
    MATERIALIZED_VIEW = "materialized-view"
    INDEX = "index"
    SYSTEM = "system"
    """A relation of mz_catalog, mz_internal, pg_catalog or information_schema that is a collection."""


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """An object with a name in a schema.

    `name`: database (empty for system schemas), schema, item. `desc`: its columns, None for an index. `create_sql`: the
    statement that makes it, names fully qualified; for a view the planner reads the query from it. `uses`: what it
    depends on. `shard_id`: where its rows are, None for views and indexes. `oid`: its number in pg_class.
    """

    id: GlobalId
    kind: ItemKind
    name: tuple[str, str, str]
    desc: RelationDesc | None
    create_sql: str = ""
    shard_id: str | None = None
    cluster_id: str | None = None
    uses: tuple[GlobalId, ...] = ()
    oid: int = 0
    defaults: tuple[str | None, ...] = field(default=())
    """Per column of a table: the SQL of its default, None for NULL; empty when no column has one."""

    @property
    def is_relation(self) -> bool:
        return self.desc is not None


class CatalogView(Protocol):
    """A catalog as one session sees it. Must not change while a statement is planned."""

    @property
    def database(self) -> str: ...

    @property
    def search_path(self) -> Sequence[str]: ...

    def resolve(self, parts: tuple[str, ...]) -> CatalogItem:
        """The item that a possibly qualified name means. SqlError 42P01, 3F000 or 3D000 when there is none."""
        ...
