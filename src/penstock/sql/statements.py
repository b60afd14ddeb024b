"""One frozen dataclass per kind of statement: what the parser understood, nothing decided yet.

Every statement keeps the text it was written as. Positions are 1-based character offsets into the whole string that
the client sent, which is what PostgreSQL's clients expect in an error. Queries and scalar expressions are sqlglot
trees; whoever plans them must not modify them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple

from sqlglot import exp

from penstock.sql.types import SqlType


@dataclass(frozen=True, slots=True)
class Name:
    """A possibly qualified name, case already folded. `position` of its first character."""

    parts: tuple[str, ...]
    position: int = 1

    def __str__(self) -> str:
        return ".".join(quote_ident(part) for part in self.parts)

    @property
    def last(self) -> str:
        return self.parts[-1]


def quote_ident(name: str) -> str:
    """`name` as SQL text, in quotes only where it must be."""
    plain = name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()
    if plain and name == name.lower() and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


_RESERVED_WORDS = (
    "all and any array as asc between both by case cast check column constraint create cross current_date"
    " current_time current_timestamp current_user default desc distinct do else end except false fetch for foreign"
    " from full grant group having in inner intersect into is join lateral leading left like limit natural not null"
    " offset on only or order outer primary references right select session_user similar some subscribe table then"
    " to trailing true union unique user using values when where window with"
)
_RESERVED = frozenset(_RESERVED_WORDS.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """`sql`: its own text, without the semicolon. `position`: where that begins in the client's string."""

    sql: str
    position: int


@dataclass(frozen=True, slots=True)
class AsOf:
    """``AS OF [AT LEAST] expression``."""

    expression: exp.Expression
    at_least: bool


# Queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Statement):
    """SELECT, VALUES, TABLE or WITH, with its ``AS OF``."""

    tree: exp.Expression
    as_of: AsOf | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe(Statement):
    """SUBSCRIBE to an object (`name`) or a query (`query`): exactly one of them is set."""

    name: Name | None
    query: Query | None
    snapshot: bool = True
    progress: bool = False
    as_of: AsOf | None = None
    up_to: exp.Expression | None = None


class ExplainStage(Enum):
    OPTIMIZED = "optimized plan"
    PHYSICAL = "physical plan"
    TIMESTAMP = "timestamp"


class ExplainFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain(Statement):
    """EXPLAIN of a query, or of the view, materialized view or index called `name`, or of a CREATE of one."""

    stage: ExplainStage
    format: ExplainFormat = ExplainFormat.TEXT
    query: Query | CreateMaterializedView | CreateIndex | CreateView | None
    object_type: ObjectType | None = None
    name: Name | None = None


# Data


class CellKind(Enum):
    NUMBER = "number"
    STRING = "string"
    NULL = "null"
    BOOLEAN = "boolean"
    DEFAULT = "default"
    PARAMETER = "parameter"


class Cell(NamedTuple):
    """A literal in a VALUES list. `text`: digits with sign, a string's content, ``true``, a parameter's number."""

    kind: CellKind
    text: str
    position: int


Rows = tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert(Statement):
    """INSERT: exactly one of `rows` (VALUES of literals only) and `source` is set, or neither: DEFAULT VALUES."""

    table: Name
    columns: tuple[Name, ...] | None
    rows: Rows | None = None
    source: exp.Expression | None = None
    returning: tuple[exp.Expression, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """``column = expression``; an expression of None stands for DEFAULT."""

    column: Name
    expression: exp.Expression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Statement):
    table: Name
    alias: str | None
    assignments: tuple[Assignment, ...]
    where: exp.Expression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Statement):
    table: Name
    alias: str | None
    using: tuple[exp.Expression, ...]
    where: exp.Expression | None


class CopyFormat(StrEnum):
    TEXT = "text"
    CSV = "csv"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Options with their defaults already filled in for the format."""

    format: CopyFormat = CopyFormat.TEXT
    delimiter: str = "\t"
    null: str = "\\N"
    header: bool = False
    quote: str = '"'
    escape: str = '"'


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFrom(Statement):
    """COPY table FROM STDIN."""

    table: Name
    columns: tuple[Name, ...] | None
    options: CopyOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTo(Statement):
    """COPY ... TO STDOUT; of a table, as the query that reads it, of a query, or of a SUBSCRIBE."""

    source: Query | Subscribe
    options: CopyOptions


# Objects


class ObjectType(StrEnum):
    """What a name in a DDL statement denotes; the value is how messages and SQL write it, in lower case."""

    DATABASE = "database"
    SCHEMA = "schema"
    TABLE = "table"
    VIEW = "view"
    MATERIALIZED_VIEW = "materialized view"
    INDEX = "index"
    SOURCE = "source"
    CLUSTER = "cluster"
    CLUSTER_REPLICA = "cluster replica"
    ROLE = "role"
    COLUMN = "column"


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    name: Name
    type: SqlType
    nullable: bool = True
    default: exp.Expression | None = None
    default_sql: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTable(Statement):
    name: Name
    columns: tuple[ColumnDefinition, ...]
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateView(Statement):
    name: Name
    columns: tuple[Name, ...] | None
    query: Query
    or_replace: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateMaterializedView(Statement):
    name: Name
    columns: tuple[Name, ...] | None
    query: Query
    cluster: Name | None = None
    or_replace: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateIndex(Statement):
    """`key` None: a default index, over all columns."""

    name: Name | None
    on: Name
    key: tuple[exp.Expression, ...] | None
    cluster: Name | None = None
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCluster(Statement):
    name: Name
    size: str | None = None
    replication_factor: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateClusterReplica(Statement):
    cluster: Name
    name: Name
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSchema(Statement):
    name: Name
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateDatabase(Statement):
    name: Name
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRole(Statement):
    name: Name
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Statement):
    object_type: ObjectType
    names: tuple[Name, ...]
    if_exists: bool = False
    cascade: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename(Statement):
    """ALTER type name RENAME TO new_name."""

    object_type: ObjectType
    name: Name
    new_name: str
    if_exists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterCluster(Statement):
    """ALTER CLUSTER name SET (SIZE, REPLICATION FACTOR); None leaves an option as it is."""

    name: Name
    size: str | None = None
    replication_factor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment(Statement):
    """COMMENT ON; for a column, `name` ends with the column. `text` None removes the comment."""

    object_type: ObjectType
    name: Name
    text: str | None


# Session


class ShowKind(StrEnum):
    DATABASES = "databases"
    SCHEMAS = "schemas"
    TABLES = "tables"
    VIEWS = "views"
    MATERIALIZED_VIEWS = "materialized views"
    INDEXES = "indexes"
    SOURCES = "sources"
    SINKS = "sinks"
    CLUSTERS = "clusters"
    CLUSTER_REPLICAS = "cluster replicas"
    OBJECTS = "objects"
    COLUMNS = "columns"
    ROLES = "roles"
    CONNECTIONS = "connections"
    SECRETS = "secrets"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowObjects(Statement):
    """SHOW kind. `within`: FROM or IN schema (for INDEXES and COLUMNS: the object named after ON or FROM)."""

    kind: ShowKind
    within: Name | None = None
    cluster: Name | None = None
    like: str | None = None
    where: exp.Expression | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowCreate(Statement):
    object_type: ObjectType
    name: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowVariable(Statement):
    """SHOW variable; `name` None: SHOW ALL."""

    name: str | None


class VariableScope(Enum):
    SESSION = "session"
    LOCAL = "local"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVariable(Statement):
    """SET name = value. `values`: the texts of a list of one or more; None: DEFAULT, which is a RESET."""

    scope: VariableScope
    name: str
    values: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetVariable(Statement):
    """RESET name; `name` None: RESET ALL."""

    scope: VariableScope
    name: str | None


@dataclass(frozen=True, slots=True)
class TransactionModes:
    isolation: str | None = None
    read_only: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTransaction(Statement):
    """SET TRANSACTION, or with `session` SET SESSION CHARACTERISTICS AS TRANSACTION."""

    modes: TransactionModes
    session: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(Statement):
    modes: TransactionModes


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Statement):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback(Statement):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Statement):
    name: str
    types: tuple[SqlType, ...]
    statement: Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Execute(Statement):
    name: str
    arguments: tuple[exp.Expression, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deallocate(Statement):
    """`name` None: DEALLOCATE ALL."""

    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declare(Statement):
    name: str
    statement: Query | Subscribe


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Statement):
    """`count` None: ALL. `timeout`: the text given WITH (timeout = ...), None when absent."""

    name: str
    count: int | None
    timeout: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseCursor(Statement):
    """`name` None: CLOSE ALL."""

    name: str | None


class DiscardTarget(StrEnum):
    ALL = "all"
    PLANS = "plans"
    SEQUENCES = "sequences"
    TEMP = "temp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard(Statement):
    target: DiscardTarget
