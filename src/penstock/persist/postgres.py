"""Consensus in one table of PostgreSQL (or CockroachDB): for environments of several machines.

A version is a row ``(shard, sequence_number, data)``. All clients of a table use the same statements, which are
right at READ COMMITTED and at SERIALIZABLE alike, so that clients of both levels may share it:

* An append locks the expected row (FOR KEY SHARE) and inserts its successor. The locked row cannot be truncated
  meanwhile; versions are contiguous and the head is never removed, so "x is the head" means "x is there and
  x + 1 is not", and the primary key lets one inserter of x + 1 win.
* The first version comes with a *sentinel* at -1 that is never removed: a second beginning fails on the primary
  key even when version 0 has been truncated.
* A truncation removes a prefix if some version at or above its bound is there, which then always stays so.

Each call is one round trip of one statement in autocommit. Changing a statement changes a protocol: clients of
the last release run next to those of this one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8

from penstock.persist.postgres_pool import Connection, ConnectionPool, PoolLimits
from penstock.persist.store import (
    SCAN_ALL,
    CasResult,
    SchemaMissing,
    SeqNo,
    StoreFailure,
    StoreFull,
    StoreRefused,
    StoreUnusable,
    Versioned,
    check_batch,
    check_version,
    truncated_beyond_head,
)
from penstock.persist.url import StoreUrl
from penstock.runtime import Clock, Determinate, ExternalError, Indeterminate, SystemClock, TaskOwner

T = TypeVar("T")

DEFAULT_TABLE = "penstock_consensus"
_SETTINGS = "isolation, table, pool_max, pool_wait, pool_lifetime, connect_timeout, answer_timeout, tcp_user_timeout"
_ISOLATIONS = {"read_committed": "read committed", "serializable": "serializable"}
_SENTINEL = Int8(-1)
_CREATE_ATTEMPTS = 20
_CREATE_LOCK = 0x70656E73746F636B >> 1  # "penstock": one number for all clients
_CREATE_RACES = {"23505", "42P07", "40001", "40P01", "XX000"}
"""What concurrent creators of one table get: duplicates in the system catalogs, tuples updated under them."""

_REFUSALS = re.compile(
    r"password authentication failed|authentication failed for|no pg_hba.conf entry|pg_hba.conf rejects"
    r"|role \".*\" does not exist|is not permitted to log in|no password supplied|requires? a valid client certificate"
)
"""libpq keeps the SQLSTATE of a refused connection (class 28) to itself; only its text arrives."""


class PostgresConsensus:
    """A `BatchingConsensus` at a ``postgres://`` URL. Connects on first use and then, unless told not to, creates its
    table, once.

    Raises `ValueError` for a URL that can never work. Operations raise `StoreRefused` when the server turns the
    credentials down and `SchemaMissing` when the table was dropped since; what surely did not happen is
    `Determinate`, everything else, also that the server is not up yet, `Indeterminate`. Their text holds
    SQLSTATE and the server's message, never the password. A cancelled call goes on by itself, for at most the
    answer timeout, and is done or not done.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, read_only: bool = False, create: bool = True) -> None:
        """`create`: whether a missing table is created on first use. `read_only`: creates nothing, the server refuses
        writes, and a standby will do (its head may be old).
        """
        settings = StoreUrl(url)
        self._where = settings.shown
        isolation = settings.choice("isolation", tuple(_ISOLATIONS))
        table = settings.text("table") or DEFAULT_TABLE
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", table):
            raise ValueError(f"{self._where}: table must be a plain lower-case name")
        defaults = PoolLimits()
        self._limits = PoolLimits(
            connections=settings.count("pool_max", defaults.connections, low=1, high=1000),
            wait_s=settings.duration_s("pool_wait", defaults.wait_s),
            connect_s=settings.duration_s("connect_timeout", defaults.connect_s),
            answer_s=settings.duration_s("answer_timeout", defaults.answer_s),
            lifetime_s=settings.duration_s("pool_lifetime", defaults.lifetime_s),
        )
        tcp_user_timeout_ms = round(settings.duration_s("tcp_user_timeout", 30.0) * 1000)
        self._isolation = isolation
        self._clock = clock or SystemClock()
        self._sql = _Statements(table)
        self._table = table
        self._cockroach = False
        self._schema_lock = asyncio.Lock()
        self._schema_seen = read_only or not create
        self._read_only = read_only
        self._closed = False
        self._tasks = TaskOwner("postgres-consensus")
        conninfo = _conninfo(settings, tcp_user_timeout_ms, "any" if read_only else "read-write")
        self._pool = ConnectionPool(conninfo, self._limits, self._prepare, self._clock)

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        _check_key(key)
        rows = await self._rows(self._sql.head, (key,), f"read the head of {key}")
        return _version(rows[0]) if rows else None

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        _check_key(key)
        bounds = (key, Int8(max(from_, 0)), Int8(limit))
        return [_version(row) for row in await self._rows(self._sql.scan, bounds, f"scan {key}")]

    async def list_keys(self) -> list[str]:
        return [str(key) for (key,) in await self._rows(self._sql.list_keys, (), "list the keys")]

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        check_version(key, new)
        _check_key(key)
        what = f"write version {new.seqno} of {key}"
        if new.seqno == 0:
            return await self._begin(key, new, what)
        values = (key, Int8(new.seqno - 1), key, Int8(new.seqno), new.data)
        return _result(await self._count(self._sql.append, values, what))

    async def compare_and_set_many(self, changes: Sequence[tuple[str, Versioned]]) -> list[CasResult | StoreFailure]:
        check_batch(changes)
        results: dict[str, CasResult | StoreFailure] = {}
        appends: dict[str, Versioned] = {}
        beginnings: dict[str, Versioned] = {}
        for key, new in changes:
            try:
                check_version(key, new)
                _check_key(key)
            except Determinate as error:
                results[key] = error
                continue
            (beginnings if new.seqno == 0 else appends)[key] = new
        if appends:
            results |= await self._append_many(appends)
        outcomes = await asyncio.gather(
            *(self._begin(key, new, f"write version 0 of {key}") for key, new in beginnings.items()),
            return_exceptions=True,
        )
        for key, outcome in zip(beginnings, outcomes, strict=True):
            if not isinstance(outcome, CasResult | ExternalError):
                raise outcome
            results[key] = outcome
        return [results[key] for key, _ in changes]

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        _check_key(key)
        bounds = (key, Int8(seqno), key, Int8(seqno))
        removed = await self._count(self._sql.truncate, bounds, f"truncate {key} to {seqno}")
        if removed == 0:
            # A second statement is as good as one: a key never loses all its versions, and its head only grows.
            head = await self.head(key)
            if head is None or head.seqno < seqno:
                raise truncated_beyond_head(key, seqno, None if head is None else head.seqno)
        return removed

    async def ensure_schema(self) -> None:
        """Create the table where it is missing; safe for any number of processes at once. Keeps what is there."""
        await self._run(self._create, f"create the table {self._table}")
        self._schema_seen = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._pool.close()
        await self._tasks.close()

    async def _begin(self, key: str, new: Versioned, what: str) -> CasResult:
        """The first version and the sentinel, both or none. No ON CONFLICT: it would spare only the sentinel."""
        values = (key, _SENTINEL, key, Int8(0), new.data)
        try:
            return _result(await self._count(self._sql.begin, values, what) // 2)
        except Determinate as error:
            if isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                return CasResult.MISMATCH
            raise

    async def _append_many(self, appends: dict[str, Versioned]) -> dict[str, CasResult | StoreFailure]:
        """One statement. Rows are locked and inserted in the order of their keys: batches cannot deadlock."""
        keys = sorted(appends)
        seqnos = [Int8(appends[key].seqno) for key in keys]
        rows = await self._rows(
            self._sql.append_many,
            (keys, seqnos, [appends[key].data for key in keys]),
            f"write {len(keys)} versions",
        )
        committed = {key for (key,) in rows}
        return {key: _result(key in committed) for key in keys}

    # Running a statement: in a task of its own, so that a caller that goes away disturbs no connection.

    async def _rows(self, statement: sql.Composed, values: Sequence[object], what: str) -> list[tuple[Any, ...]]:
        async def fetch(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = await connection.execute(statement, values, binary=True)
            return cast("list[tuple[Any, ...]]", await cursor.fetchall())

        return await self._on_the_table(fetch, what)

    async def _count(self, statement: sql.Composed, values: Sequence[object], what: str) -> int:
        async def count(connection: Connection) -> int:
            return (await connection.execute(statement, values)).rowcount

        return await self._on_the_table(count, what)

    async def _on_the_table(self, work: Callable[[Connection], Awaitable[T]], what: str) -> T:
        if not self._schema_seen:
            async with self._schema_lock:
                if not self._schema_seen:
                    await self.ensure_schema()
        return await self._run(work, what)

    async def _run(self, work: Callable[[Connection], Awaitable[T]], what: str) -> T:
        if self._closed:
            raise Determinate(f"the consensus store {self._where} is closed")
        outcome = await asyncio.shield(self._tasks.spawn(self._outcome(work, what), what))
        if isinstance(outcome, _Failed):
            raise outcome.error from outcome.cause
        return cast(T, outcome)

    async def _outcome(self, work: Callable[[Connection], Awaitable[T]], what: str) -> T | _Failed:
        try:
            async with self._pool.connection() as connection:
                return await work(connection)
        except (psycopg.Error, OSError) as error:
            return _Failed(_classify(error, f"cannot {what} in {self._where}"), error)

    async def _prepare(self, connection: Connection) -> None:
        """Make a new connection ours: its isolation level, commits that wait for the disk, plans that use the key."""
        cursor = await connection.execute("SELECT version(), current_setting('synchronous_commit')")
        row = await cursor.fetchone()
        assert row is not None
        self._cockroach = "CockroachDB" in str(row[0])
        isolation = _ISOLATIONS[self._isolation or ("serializable" if self._cockroach else "read_committed")]
        settings = {
            "default_transaction_isolation": isolation,
            "statement_timeout": str(round(self._limits.answer_s * 900)),  # ms: before the connection is severed
        }
        if self._read_only:
            settings["default_transaction_read_only"] = "on"
        if not self._cockroach:
            # While the table is small or its statistics are old, a scan of all of it looks cheap, and the plan stays.
            settings |= {"enable_seqscan": "off", "enable_bitmapscan": "off", "plan_cache_mode": "force_generic_plan"}
            if row[1] == "off":
                settings["synchronous_commit"] = "on"  # an acknowledged commit must survive a crash of the server
        calls = sql.SQL(", ").join(
            sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
            for name, value in settings.items()
        )
        await connection.execute(sql.SQL("SELECT ") + calls, prepare=False)

    async def _create(self, connection: Connection) -> None:
        for attempt in range(1, _CREATE_ATTEMPTS + 1):
            if await self._exists(connection):
                return
            try:
                await self._create_once(connection)
                return
            except psycopg.Error as error:
                if error.sqlstate not in _CREATE_RACES or attempt == _CREATE_ATTEMPTS:
                    raise
                await self._clock.sleep(0.01 * attempt)

    async def _exists(self, connection: Connection) -> bool:
        cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (self._table,), prepare=False)
        return await cursor.fetchone() == (True,)

    async def _create_once(self, connection: Connection) -> None:
        if not self._cockroach:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (Int8(_CREATE_LOCK),), prepare=False)
                await connection.execute(self._sql.create, prepare=False)
            return
        await connection.execute(self._sql.create_in_cockroach, prepare=False)
        try:
            await connection.execute(self._sql.configure_cockroach, prepare=False)
        except psycopg.errors.InsufficientPrivilege:
            return  # a setting for speed: the administrator can set it


class _Failed:
    def __init__(self, error: ExternalError, cause: BaseException) -> None:
        self.error, self.cause = error, cause


class _Statements:
    """Every statement, on `table`."""

    def __init__(self, table: str) -> None:
        def of(text: str) -> sql.Composed:
            return sql.SQL(text).format(t=sql.Identifier(table))

        self.head = of(
            "SELECT sequence_number, data FROM {t} WHERE shard = %s AND sequence_number >= 0 "
            "ORDER BY sequence_number DESC LIMIT 1"
        )
        self.scan = of(
            "SELECT sequence_number, data FROM {t} WHERE shard = %s AND sequence_number >= %s "
            "ORDER BY sequence_number LIMIT %s"
        )
        self.list_keys = of("SELECT shard FROM {t} WHERE sequence_number = -1 ORDER BY shard")
        self.begin = of("INSERT INTO {t} (shard, sequence_number, data) VALUES (%s, %s, ''), (%s, %s, %s)")
        self.append = of(
            "WITH expected AS MATERIALIZED "
            "(SELECT 1 FROM {t} WHERE shard = %s AND sequence_number = %s FOR KEY SHARE) "
            "INSERT INTO {t} (shard, sequence_number, data) SELECT %s::text, %s::bigint, %b::bytea FROM expected "
            "ON CONFLICT DO NOTHING"
        )
        self.append_many = of(
            "WITH wanted AS MATERIALIZED "
            "(SELECT * FROM unnest(%b::text[], %b::bigint[], %b::bytea[]) AS w (shard, sequence_number, data)), "
            "expected AS MATERIALIZED (SELECT c.shard FROM {t} AS c JOIN wanted AS w "
            "ON c.shard = w.shard AND c.sequence_number = w.sequence_number - 1 ORDER BY c.shard FOR KEY SHARE OF c) "
            "INSERT INTO {t} (shard, sequence_number, data) SELECT w.shard, w.sequence_number, w.data "
            "FROM wanted AS w JOIN expected AS e ON e.shard = w.shard ORDER BY w.shard "
            "ON CONFLICT DO NOTHING RETURNING shard"
        )
        self.truncate = of(
            "DELETE FROM {t} WHERE shard = %s AND sequence_number >= 0 AND sequence_number < %s "
            "AND EXISTS (SELECT 1 FROM {t} WHERE shard = %s AND sequence_number >= %s)"
        )
        columns = "sequence_number bigint NOT NULL, data bytea NOT NULL, PRIMARY KEY (shard, sequence_number)"
        # Every version is deleted some day: vacuum early, or reads walk over the dead.
        self.create = of(
            'CREATE TABLE IF NOT EXISTS {t} (shard text COLLATE "C" NOT NULL, ' + columns + ") "
            "WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.5)"
        )
        # Statistics jobs are waste here, and the default of a day lets deleted rows pile up.
        self.create_in_cockroach = of(
            "CREATE TABLE IF NOT EXISTS {t} (shard text NOT NULL, " + columns + ") "
            "WITH (sql_stats_automatic_collection_enabled = false)"
        )
        self.configure_cockroach = of("ALTER TABLE {t} CONFIGURE ZONE USING gc.ttlseconds = 600")


def _conninfo(settings: StoreUrl, tcp_user_timeout_ms: int, servers: str) -> str:
    try:
        # A standby would answer with an old head, so that only the primary ("read-write") will do for a writer.
        defaults: dict[str, Any] = {"application_name": "penstock consensus", "target_session_attrs": servers}
        given = conninfo_to_dict(settings.rest())
        return make_conninfo(**{**defaults, **given, "tcp_user_timeout": tcp_user_timeout_ms})
    except psycopg.Error as error:
        # Its text quotes the URL, so that it is told without it and without the error as a cause.
        kind = type(error).__name__
        raise ValueError(
            f"{settings.shown} is not a PostgreSQL URL that can work ({kind}); "
            f"it is postgres://USER:PASSWORD@HOST/DATABASE with libpq's settings and {_SETTINGS}"
        ) from None


def _check_key(key: str) -> None:
    if "\0" in key:
        raise Determinate(f"{key!r} cannot be a key: it holds a NUL")


def _version(row: tuple[Any, ...]) -> Versioned:
    return Versioned(SeqNo(row[0]), bytes(row[1]))


def _result(inserted: int) -> CasResult:
    return CasResult.COMMITTED if inserted else CasResult.MISMATCH


def _classify(error: Exception, what: str) -> ExternalError:
    """What `error` says about whether the statement, a transaction of its own, happened."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        text = str(error).strip()
        refused = isinstance(error, psycopg.OperationalError) and _REFUSALS.search(text)
        return (StoreRefused if refused else Indeterminate)(f"{what}: {text or type(error).__name__}")
    assert isinstance(error, psycopg.Error)
    said = f"{what}: SQLSTATE {state}: {_whole_message(error)}"
    match state:
        case "40001" | "40P01" | "23505":
            return Determinate(said)
        case "42P01":
            return SchemaMissing(said)
        case "53100":
            return StoreFull(f"{said}; make room on the server's disk and try again")
        case "25006":
            return StoreUnusable(f"{said}; the URL must lead to the primary server")
        case "42501":
            return StoreUnusable(f"{said}; grant the rights and try again")
        case _ if state.startswith("28"):
            return StoreRefused(said)
        case _:
            return Indeterminate(said)


def _whole_message(error: psycopg.Error) -> str:
    parts = (error.diag.message_primary or str(error), error.diag.message_detail, error.diag.message_hint)
    return "; ".join(part for part in parts if part)
