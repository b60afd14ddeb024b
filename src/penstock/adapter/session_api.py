"""What the server may ask of a session, and what it gets back.

These protocols are the seam between wires and SQL: the server (pgwire, HTTP, Flight) knows nothing of
planning, the adapter nothing of sockets, and tests put a scripted session behind a real server, or drive a
real session without one. Everything that crosses is Arrow or a plain value.

Contract, with the reason for each clause:

* One command at a time: the server awaits each call, and drains or closes a result's iterator, before it
  makes the next call. So a session needs no locks against its own client. Two exceptions may overlap with a
  running command: `Coordinator.cancel`, and cancellation of the awaiting asyncio task, which is how a lost
  client looks.
* A portal that was suspended by a row limit is an open iterator: other commands of the same session may run
  between two of its batches. The server closes it (`aclose`) before the `sync` that ends its transaction.
* `sync` ends an implicit transaction: it commits when nothing failed since it began and rolls back otherwise.
  Inside an explicit block (`BEGIN`) it does nothing. When the commit fails it raises, and has rolled back.
* `fail` is called once for every error a client was told about, also for those that the session raised
  itself and for those it never saw (a parameter that does not decode). It aborts the open transaction block
  and never raises.
* Errors meant for the client are `penstock.runtime.SqlError`; any other exception is shown as XX000 with its
  message and logged as a bug.

Parameters of `Session.execute` are plain Python values by type: bool, int (all integers, oid,
mz_timestamp), float, `decimal.Decimal` (may be NaN), str (text, varchar, char, jsonb as its text), bytes,
`datetime.date`, `time`, `datetime` (aware, UTC, for timestamptz; naive for timestamp), `pa.MonthDayNano`
for interval, `uuid.UUID`, and lists of these (nested for more dimensions, None for NULL) for arrays. They come with
the types that the client declared for them (`Parameters`): a statement is carried out by the plan that it was
described by.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from penstock.sql.types import RelationDesc, SqlType

TransactionStatus = Literal["I", "T", "E"]
"""Idle, in a transaction block (`BEGIN`), in a failed one. An implicit transaction counts as idle."""


class Statement(Protocol):
    """One parsed statement. `sql` is its own text, without the separator."""

    @property
    def sql(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Notice:
    """A message beside the result. `severity`: WARNING, NOTICE, DEBUG, INFO or LOG."""

    message: str
    severity: str = "NOTICE"
    sqlstate: str = "00000"
    detail: str | None = None
    hint: str | None = None


class Parameters(tuple[object | None, ...]):
    """The values of $1, $2, ... and `types`, the OIDs that the client declared (0 or missing: left open)."""

    types: tuple[int, ...]

    def __new__(cls, values: Iterable[object | None] = (), types: Iterable[int] = ()) -> Parameters:
        made = super().__new__(cls, values)
        made.types = tuple(types)
        return made


@dataclass(frozen=True, slots=True)
class StatementDescription:
    """`columns` is None for a statement that returns no rows."""

    parameters: Sequence[SqlType]
    columns: RelationDesc | None


class CopyFormat(enum.Enum):
    TEXT = "text"
    CSV = "csv"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Options of COPY; None means the format's default. Single characters except `null`.

    Defaults: delimiter tab (text) or comma (csv); null ``\\N`` (text) or the empty unquoted string (csv);
    quote ``"`` and escape equal to quote (csv only). `header`: csv and text; `match`: the names must be the
    columns'.
    """

    delimiter: str | None = None
    null: str | None = None
    quote: str | None = None
    escape: str | None = None
    header: Literal[False, True, "match"] = False


class CopySink(Protocol):
    """Takes the rows of COPY FROM. Exactly one of `finish` and `abort` ends it."""

    async def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; waits while the sink is full (back-pressure reaches the client's socket)."""
        ...

    async def finish(self) -> int:
        """All rows were written: make them part of the transaction. Returns how many there were."""
        ...

    async def abort(self) -> None:
        """Forget the rows. Also after a failed `write` or `finish`; never raises for what is already gone."""
        ...


@dataclass(frozen=True, slots=True)
class Completed:
    """Done, no rows. `tag`: "CREATE TABLE", "INSERT 0 5", "BEGIN"."""

    tag: str


@dataclass(frozen=True, slots=True)
class EmptyQuery:
    """The statement's text had no statement in it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A result set. `batches` may be endless and is pulled only as fast as the client reads.

    Its end, an error, or `aclose` on it releases whatever the query holds. `tag(rows)` is the command tag.
    """

    desc: RelationDesc
    batches: AsyncGenerator[pa.RecordBatch, None]
    tag: Callable[[int], str] = field(default=lambda rows: f"SELECT {rows}")


@dataclass(frozen=True, slots=True)
class CopyOut:
    """COPY ... TO STDOUT. Batches as in `Rows`; each is sent on as soon as it is there."""

    desc: RelationDesc
    format: CopyFormat
    options: CopyOptions
    batches: AsyncGenerator[pa.RecordBatch, None]


@dataclass(frozen=True, slots=True)
class CopyIn:
    """COPY `table` FROM STDIN. `desc`: the columns that the client will send, in its order."""

    desc: RelationDesc
    format: CopyFormat
    options: CopyOptions
    sink: CopySink
    table: str


Outcome = Completed | EmptyQuery | Rows | CopyOut | CopyIn


class Session(Protocol):
    """One client's connection to the database.

    `parameters`: what a client is told in ParameterStatus, by its true name ("TimeZone", "client_encoding");
    compared after each command, changes are reported. `notices`: the server takes and clears them after each
    command.
    """

    @property
    def process_id(self) -> int: ...
    @property
    def secret(self) -> int: ...
    @property
    def parameters(self) -> dict[str, str]: ...
    @property
    def notices(self) -> list[Notice]: ...
    @property
    def transaction_status(self) -> TransactionStatus: ...

    async def parse(self, text: str) -> Sequence[Statement]:
        """Split and parse; an empty text gives no statement. SqlError 42601 with a position."""
        ...

    async def describe(self, statement: Any, parameter_types: Sequence[int]) -> StatementDescription:
        """Types of parameters and result. `parameter_types`: the client's OIDs, 0 or missing where open."""
        ...

    async def execute(self, statement: Any, parameters: Parameters) -> Outcome:
        """Start a statement. `parameters`: one value per parameter that `describe` named, of its type."""
        ...

    async def sync(self) -> None: ...

    def fail(self) -> None: ...

    async def close(self) -> None:
        """The client is gone: abort the open transaction, release everything. Called exactly once."""
        ...


class Coordinator(Protocol):
    """Where sessions come from."""

    async def connect(self, user: str, database: str, options: dict[str, str], client_address: str) -> Session:
        """Open a session for an authenticated user. SqlError (28000, 3D000, 53300) refuses it.

        `options`: the startup packet's other settings (application_name, options, ...): session variables.
        """
        ...

    def cancel(self, process_id: int, secret: int) -> bool:
        """Make what that session runs now raise SqlError 57014. False when no session matches."""
        ...
