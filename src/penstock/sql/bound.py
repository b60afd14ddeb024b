"""What binding makes of a tree: SQL that DataFusion reads, with the type PostgreSQL would give it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum

from sqlglot import exp

from penstock.runtime import GlobalId, SqlError
from penstock.sql.types import TEXT, UNKNOWN, SqlType


class Literal(Enum):
    """What kind of bare literal an expression is; the type of a string or NULL depends on its surroundings."""

    NUMBER = "number"
    STRING = "string"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class Bound:
    """A scalar expression.

    `sql`: can stand as an operand anywhere. `literal`, `value`: set for a bare literal; an integer one is written raw
    in `sql` and has no type for DataFusion yet (`casts.typed` gives it one). `parameter`: its number while its type is
    unknown. `loose`: columns outside any aggregate, with positions, for the GROUP BY rule. `row`: the fields of a row
    constructor.
    """

    sql: str
    type: SqlType
    nullable: bool = True
    literal: Literal | None = None
    value: str = ""
    parameter: int | None = None
    position: int | None = None
    loose: tuple[tuple[str, int | None], ...] = ()
    aggregate: bool = False
    window: bool = False
    volatile: bool = False
    set_returning: bool = False
    row: tuple[Bound, ...] = ()

    @property
    def untyped(self) -> bool:
        """A string literal, NULL or parameter that takes its type from its surroundings."""
        return self.type == UNKNOWN

    def derive(self, sql: str, kind: SqlType, *others: Bound, nullable: bool | None = None) -> Bound:
        """A new expression made of this one and `others`: what they contain, it contains."""
        parts = (self, *others)
        return Bound(
            sql,
            kind,
            nullable=any(part.nullable for part in parts) if nullable is None else nullable,
            position=self.position,
            loose=tuple(item for part in parts for item in part.loose),
            aggregate=any(part.aggregate for part in parts),
            window=any(part.window for part in parts),
            volatile=any(part.volatile for part in parts),
            set_returning=any(part.set_returning for part in parts),
        )


def combine(sql: str, kind: SqlType, parts: list[Bound], *, nullable: bool | None = None) -> Bound:
    """An expression made of `parts`, of which there may be none."""
    if not parts:
        return Bound(sql, kind, nullable=bool(nullable))
    return parts[0].derive(sql, kind, *parts[1:], nullable=nullable)


@dataclass(frozen=True, slots=True)
class OutColumn:
    """A column of a bound query. `name`: for people; `ident`: as it is called in the SQL, unique there.

    `open`: it is a bare string or NULL, whose type a surrounding UNION or INSERT decides; text until then.
    """

    name: str
    ident: str
    type: SqlType
    nullable: bool = True
    open: bool = False


@dataclass(frozen=True, slots=True)
class BoundQuery:
    sql: str
    columns: tuple[OutColumn, ...]

    @property
    def parenthesised(self) -> str:
        return f"({self.sql})"


@dataclass(slots=True)
class Session:
    """What a statement's meaning depends on besides catalog and text; fixed once per statement.

    `now_us`: microseconds since the epoch, what ``now()`` answers. None of these may be used in a view.
    """

    now_us: int = 0
    user: str = "materialize"
    session_user: str = "materialize"
    database: str = "materialize"
    schema: str | None = "public"
    version: str = "PostgreSQL 14.0 (Penstock)"
    mz_version: str = "v0.1.0 (Penstock)"
    process_id: int = 0
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Facts:
    """What binding finds out about the whole statement."""

    session: Session
    for_view: bool = False
    inputs: dict[str, GlobalId] = field(default_factory=dict)
    uses: set[GlobalId] = field(default_factory=set)
    parameters: dict[int, SqlType] = field(default_factory=dict)
    temporal: bool = False
    volatile: bool = False
    session_dependent: bool = False
    recursive: bool = False
    aliases: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def fresh(self, name: str) -> str:
        """A relation name used nowhere else in the statement."""
        count = self.aliases.get(name, 0)
        self.aliases[name] = count + 1
        return name if count == 0 else self.fresh(f"{name}_{count + 1}")

    def distinct_name(self, bound: Bound, arrow_type: str) -> Bound:
        """`bound` written so that DataFusion's name for it differs from those of others.

        DataFusion names the columns of an aggregation by their expressions but leaves casts out of the names, so that
        ``sum(x::int)`` and ``sum(x::bigint)`` would be one column. A cast written as a function is not left out.
        """
        sql = bound.sql
        while self.names.setdefault(_CAST.sub("", sql), sql) != sql:
            sql = f"arrow_cast({sql}, {string(arrow_type)})"
        return bound if sql == bound.sql else replace(bound, sql=sql)

    def parameter_type(self, bound: Bound, kind: SqlType) -> Bound:
        """Give the parameter `bound` the type that its surroundings ask for."""
        assert bound.parameter is not None
        known = self.parameters.setdefault(bound.parameter, kind)
        if known == UNKNOWN:
            known = self.parameters[bound.parameter] = kind if kind != UNKNOWN else TEXT
        return replace(bound, type=known, parameter=None)

    def depends_on_session(self, what: str, position: int | None) -> None:
        """Note a use of something that differs between sessions or moments; 0A000 in a view."""
        if self.for_view:
            raise SqlError(
                f"cannot materialize call to {what}",
                sqlstate="0A000",
                hint="Use mz_now() in a temporal filter." if what in _CLOCKS else None,
                position=position,
            )
        self.session_dependent = True


_CAST = re.compile(r"\bCAST\(| AS [A-Z]+(?:\(\d+(?:, \d+)?\))?(?: UNSIGNED)?(?:\[\])?\)")
_CLOCKS = ("now", "current_timestamp", "current_date", "current_time", "localtimestamp", "localtime")


def position_of(node: exp.Expression) -> int | None:
    """Where the first token of `node` that sqlglot located stands, 1-based."""
    starts = [part.meta["start"] for part in node.walk() if "start" in part.meta]
    return min(starts) + 1 if starts else None


def ident(name: str) -> str:
    """`name` as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def string(text: str) -> str:
    """`text` as a string literal."""
    return "'" + text.replace("'", "''") + "'"


def folded(identifier: exp.Expression) -> str:
    """The name an identifier means: as written in quotes, else in lower case."""
    name: str = identifier.name
    return name if identifier.args.get("quoted") else name.lower()
