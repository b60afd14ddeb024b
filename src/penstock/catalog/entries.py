"""What the catalog stores, as rows of one shard.

Each entry is a row (kind, key, value): the kind names the struct below, the key is the object's id within its kind, the
value is the struct as JSON. A field added later must have a default, so that old rows stay readable.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import pyarrow as pa

from penstock.runtime import InternalError
from penstock.sql.items import ItemKind

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),
    ]
)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Root of all kinds."""

    kind: ClassVar[str]


class Fence(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """The epoch of the coordinator that may write; the only entry with key ``epoch``."""

    kind: ClassVar[str] = "fence"
    epoch: int


class Database(Entry, frozen=True, kw_only=True, omit_defaults=True):
    kind: ClassVar[str] = "database"
    name: str
    oid: int


class Schema(Entry, frozen=True, kw_only=True, omit_defaults=True):
    kind: ClassVar[str] = "schema"
    database_id: str
    name: str
    oid: int


class Role(Entry, frozen=True, kw_only=True, omit_defaults=True):
    kind: ClassVar[str] = "role"
    name: str
    oid: int


class Cluster(Entry, frozen=True, kw_only=True, omit_defaults=True):
    kind: ClassVar[str] = "cluster"
    name: str
    size: str = "100cc"
    replication_factor: int = 1


class Replica(Entry, frozen=True, kw_only=True, omit_defaults=True):
    kind: ClassVar[str] = "replica"
    cluster_id: str
    name: str
    size: str = "100cc"


class ItemColumn(msgspec.Struct, frozen=True):
    """`type`: the SQL type as text, with its modifier."""

    name: str
    type: str
    nullable: bool


class Item(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """A table, view, materialized view or index. `on_id` and `index_key` (positions of columns): of an index only."""

    kind: ClassVar[str] = "item"
    item_kind: ItemKind
    schema_id: str
    name: str
    oid: int
    create_sql: str
    columns: tuple[ItemColumn, ...] | None = None
    defaults: tuple[str | None, ...] = ()
    shard_id: str | None = None
    cluster_id: str | None = None
    uses: tuple[str, ...] = ()
    on_id: str | None = None
    index_key: tuple[int, ...] = ()


class Setting(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """A system-wide value: of a variable (ALTER SYSTEM SET), or of the environment, such as its transactions shard."""

    kind: ClassVar[str] = "setting"
    value: str


class Comment(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """COMMENT ON; the key is the object's id, with ``.N`` for its Nth column (from 1)."""

    kind: ClassVar[str] = "comment"
    text: str


class Unfinalized(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """A shard whose object is gone and whose data has still to be deleted; the key is the shard's id."""

    kind: ClassVar[str] = "unfinalized"


class Allocator(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """The next number of the ids of some kind; the key names the kind. Never goes back: ids are not used again."""

    kind: ClassVar[str] = "allocator"
    next: int


KINDS: dict[str, type[Entry]] = {
    struct.kind: struct
    for struct in (
        Fence,
        Database,
        Schema,
        Role,
        Cluster,
        Replica,
        Item,
        Setting,
        Comment,
        Unfinalized,
        Allocator,
    )
}


def encode_value(entry: Entry) -> str:
    """The entry as JSON with a fixed order of fields: equal entries have equal text, which retraction needs."""
    return msgspec.json.encode(entry, order="deterministic").decode()


def decode_value(kind: str, key: str, value: str) -> Entry:
    """The entry of a stored row. InternalError naming the row when it is none of ours."""
    struct = KINDS.get(kind)
    if struct is None:
        raise InternalError(
            f"the catalog has an entry of unknown kind {kind!r} (key {key!r}): written by a newer version?"
        )
    try:
        return msgspec.json.decode(value, type=struct)
    except msgspec.DecodeError as error:
        raise InternalError(f"the catalog's {kind} {key!r} cannot be read: {error}") from error
