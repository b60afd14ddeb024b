"""A session without a database: DuckDB answers SELECT, the rest is scripted.

What a statement does is decided by its first words, see `FakeSession.execute`. Everything a client can provoke in the
server has a statement here: results of any type and size, endless streams, errors with every field, slow commands
that wait for a cancel, COPY both ways, notices, changed parameters, a commit that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import re
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from penstock.adapter.session_api import (
    Completed,
    CopyFormat,
    CopyIn,
    CopyOptions,
    CopyOut,
    EmptyQuery,
    Notice,
    Outcome,
    Rows,
    StatementDescription,
)
from penstock.runtime import SqlError
from penstock.server import PgServer, ServerConfig
from penstock.sql.types import TEXT, Column, RelationDesc, SqlType, type_by_oid, type_named


@dataclass(frozen=True)
class FakeStatement:
    sql: str


@dataclass
class FakeCoordinator:
    """`tables`: what COPY FROM wrote. `sessions`: the open ones, by process id. `closed`: how many have closed.
    `streams`: how many endless results have begun."""

    relations: dict[str, RelationDesc] = field(default_factory=dict)
    results: dict[str, pa.Table] = field(default_factory=dict)
    tables: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    sessions: dict[int, FakeSession] = field(default_factory=dict)
    connects: list[tuple[str, str, dict[str, str], str]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    closed: int = 0
    streams: int = 0
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def connect(self, user: str, database: str, options: dict[str, str], client_address: str) -> FakeSession:
        if database == "missing":
            raise SqlError('database "missing" does not exist', sqlstate="3D000")
        self.connects.append((user, database, options, client_address))
        session = FakeSession(self, next(self._ids), options)
        self.sessions[session.process_id] = session
        return session

    async def until(self, condition: Any, seconds: float = 10) -> None:
        """Wait until `condition()` holds, giving the loop its turns."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - the condition is about somebody else's state
                await asyncio.sleep(0.002)

    def cancel(self, process_id: int, secret: int) -> bool:
        session = self.sessions.get(process_id)
        if session is None or session.secret != secret:
            return False
        session.cancelled.set()
        return True


class FakeSession:
    def __init__(self, coordinator: FakeCoordinator, process_id: int, options: dict[str, str]) -> None:
        self.process_id = process_id
        self.secret = 0xABCD0000 + process_id
        self.parameters = {
            "server_version": "15.0",
            "server_encoding": "UTF8",
            "client_encoding": "UTF8",
            "DateStyle": "ISO, MDY",
            "TimeZone": "UTC",
            "integer_datetimes": "on",
            "standard_conforming_strings": "on",
            "application_name": options.get("application_name", ""),
        }
        self.notices: list[Notice] = []
        self.transaction_status: Any = "I"
        self.cancelled = asyncio.Event()
        self.coordinator = coordinator
        self._implicit_failed = False
        self._fail_commit = False
        self._stop_stream = asyncio.Event()

    async def parse(self, text: str) -> Sequence[FakeStatement]:
        if "syntax error" in text:
            raise SqlError("syntax error", sqlstate="42601", position=text.index("syntax error") + 1)
        parts = [part.strip() for part in text.split(";")]
        return [FakeStatement(part) for part in parts if part]

    async def describe(self, statement: FakeStatement, parameter_types: Sequence[int]) -> StatementDescription:
        found = {int(n): kind for n, kind in re.findall(r"\$(\d+)::([a-z0-9_]+(?:\[\])?)", statement.sql)}
        count = max([0, *map(int, re.findall(r"\$(\d+)", statement.sql))])
        types = []
        for index in range(1, count + 1):
            given = parameter_types[index - 1] if index <= len(parameter_types) else 0
            types.append(type_by_oid(given) if given else type_named(found[index]) if index in found else TEXT)
        words = statement.sql.lower().split()
        if words[0] in ("select", "values", "stream", "result", "fetch", "sleep", "broken"):
            return StatementDescription(types, self._desc(statement.sql, types))
        return StatementDescription(types, None)

    def _desc(self, sql: str, types: Sequence[SqlType]) -> RelationDesc:
        if sql.lower().split()[0] in ("select", "values"):
            return RelationDesc.from_arrow(self._query(sql, [None] * len(types)).schema)
        if sql.startswith("result "):
            return self._named(sql.split()[1])[0]
        return RelationDesc.of(Column("n", type_named("bigint")))

    def _named(self, name: str) -> tuple[RelationDesc, pa.Table]:
        table = self.coordinator.results[name]
        return self.coordinator.relations.get(name) or RelationDesc.from_arrow(table.schema), table

    def _query(self, sql: str, parameters: Sequence[object]) -> pa.Table:
        connection = duckdb.connect()
        try:
            connection.execute("set timezone = 'UTC'")
            return connection.sql(sql, params=list(parameters)).to_arrow_table()
        except duckdb.Error as error:
            raise SqlError(str(error).split("\n")[0], sqlstate="42000") from None

    async def execute(self, statement: FakeStatement, parameters: Sequence[object | None]) -> Outcome:
        sql = statement.sql
        words = sql.lower().split()
        if self.transaction_status == "E" and words[0] not in ("rollback", "commit"):
            raise SqlError("current transaction is aborted", sqlstate="25P02")
        handler = getattr(self, f"_do_{words[0]}", None)
        if handler is None:
            raise SqlError(f'relation "{words[-1]}" does not exist', sqlstate="42P01", position=1)
        return await handler(sql, words, parameters)

    async def _do_select(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        table = self._query(sql, [_plain(value) for value in parameters])
        return Rows(RelationDesc.from_arrow(table.schema), _batches(table.to_batches(max_chunksize=20_000)))

    _do_values = _do_select

    async def _do_result(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        desc, table = self._named(words[1])
        return Rows(desc, _batches(table.to_batches()))

    async def _do_begin(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        self.transaction_status = "T"
        return Completed("BEGIN")

    async def _do_commit(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        tag = "ROLLBACK" if self.transaction_status == "E" else "COMMIT"
        self.transaction_status = "I"
        return Completed(tag)

    async def _do_rollback(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        self.transaction_status = "I"
        return Completed("ROLLBACK")

    async def _do_insert(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        self._fail_commit = "unlucky" in sql
        self.coordinator.events.append(sql)
        return Completed("INSERT 0 1")

    async def _do_nothing(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        return EmptyQuery()

    async def _do_set(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        self.parameters["application_name"] = words[-1]
        return Completed("SET")

    async def _do_notice(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        self.notices.append(Notice("take heed", "WARNING", "01000", hint="do not worry"))
        return Completed("NOTICE")

    async def _do_fail(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        raise SqlError("no luck", sqlstate="22012", detail="the detail", hint="the hint", position=3)

    async def _do_bug(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        raise KeyError("a bug")

    async def _do_sleep(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        self.coordinator.events.append("sleeping")
        await self._until_cancelled()
        raise AssertionError("unreachable")

    async def _until_cancelled(self) -> None:
        self.cancelled.clear()
        await self.cancelled.wait()
        raise SqlError("canceling statement due to user request", sqlstate="57014")

    async def _do_broken(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        async def batches() -> AsyncIterator[pa.RecordBatch]:
            yield pa.record_batch({"n": pa.array([1, 2], pa.int64())})
            raise SqlError("division by zero", sqlstate="22012")

        return Rows(RelationDesc.of(Column("n", type_named("bigint"))), batches())

    async def _do_stream(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        """Endless: one row at once, then one per tick until cancelled."""
        return Rows(RelationDesc.of(Column("n", type_named("bigint"))), self._stream())

    async def _stream(self) -> AsyncIterator[pa.RecordBatch]:
        self.cancelled.clear()
        self.coordinator.streams += 1
        try:
            for n in itertools.count():
                yield pa.record_batch({"n": pa.array([n], pa.int64())})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.cancelled.wait(), 0.01)
                if self.cancelled.is_set():
                    raise SqlError("canceling statement due to user request", sqlstate="57014")
        finally:
            self.coordinator.events.append("stream closed")

    async def _do_copy(self, sql: str, words: list[str], parameters: Sequence[object]) -> Outcome:
        form = CopyFormat(next((w for w in ("csv", "binary") if w in words), "text"))
        options = CopyOptions(
            header="match" if "match" in words else "header" in words,
            delimiter="|" if "bar" in words else None,
            null="nil" if "nil" in words else None,
            escape="\\" if "backslash" in words else None,
        )
        name = words[1]
        if "from" in words:
            desc = self.coordinator.relations[name]
            return CopyIn(desc, form, options, FakeSink(self.coordinator, name), name)
        if name == "stream":
            desc = RelationDesc.of(Column("n", type_named("bigint")))
            return CopyOut(desc, form, options, self._stream())
        desc, table = self._named(name)
        return CopyOut(desc, form, options, _batches(table.to_batches()))

    async def sync(self) -> None:
        if self.transaction_status == "I" and self._fail_commit:
            self._fail_commit = False
            raise SqlError("could not commit", sqlstate="40001")

    def fail(self) -> None:
        self._fail_commit = False
        if self.transaction_status == "T":
            self.transaction_status = "E"

    async def close(self) -> None:
        del self.coordinator.sessions[self.process_id]
        self.coordinator.closed += 1


class FakeSink:
    """Keeps the rows of one COPY; waits for `gate` before each write."""

    gate: asyncio.Event | None = None

    def __init__(self, coordinator: FakeCoordinator, name: str) -> None:
        self._coordinator = coordinator
        self._name = name
        self._batches: list[pa.RecordBatch] = []

    async def write(self, batch: pa.RecordBatch) -> None:
        desc = self._coordinator.relations[self._name]
        assert batch.schema.equals(desc.arrow, check_metadata=True), (batch.schema, desc.arrow)
        self._batches.append(batch)
        self._coordinator.events.append("write")

    async def finish(self) -> int:
        self._coordinator.tables.setdefault(self._name, []).extend(self._batches)
        return sum(batch.num_rows for batch in self._batches)

    async def abort(self) -> None:
        self._coordinator.events.append("abort")


async def _batches(batches: Sequence[pa.RecordBatch]) -> AsyncIterator[pa.RecordBatch]:
    for batch in batches:
        yield batch


def _plain(value: object) -> object:
    """A parameter as DuckDB takes it."""
    if isinstance(value, pa.MonthDayNano):
        return datetime.timedelta(days=value.days + 30 * value.months, microseconds=value.nanoseconds // 1000)
    if isinstance(value, uuid.UUID):
        return str(value)
    return value


class Serving:
    """A server on a loop in a thread of its own, for clients that block."""

    def __init__(self, coordinator: FakeCoordinator, **config: Any) -> None:
        self.coordinator = coordinator
        self.port = 0
        self.server: PgServer
        self.loop: asyncio.AbstractEventLoop
        self._config = ServerConfig(port=0, **config)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = PgServer(self.coordinator, self._config)
        await self.server.start()
        self.port = self.server.port
        self._started.set()
        await self._stop.wait()
        await self.server.close()

    def __enter__(self) -> Serving:
        self._thread.start()
        assert self._started.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=materialize dbname=materialize sslmode=disable"

    def wait_until(self, condition: Any, seconds: float = 10) -> None:
        """Wait for a condition to hold, looking every few milliseconds."""
        done = threading.Event()
        for _ in range(int(seconds / 0.005)):
            if condition():
                return
            done.wait(0.005)
        raise AssertionError("the condition never came true")


@contextlib.asynccontextmanager
async def serving(coordinator: FakeCoordinator, **config: Any) -> AsyncIterator[PgServer]:
    """A server on the running loop."""
    server = PgServer(coordinator, ServerConfig(port=0, **config))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def big_table(rows: int) -> pa.Table:
    """Columns of several types with NULLs, the same at every call."""
    n = np.arange(rows)
    return pa.table(
        {
            "i": pa.array(n, pa.int64(), mask=n % 7 == 3),
            "f": pa.array(n / 7, pa.float64()),
            "s": pa.array([f"row {k}\t'é'" if k % 5 else None for k in range(rows)], pa.string()),
            "t": pa.array(n * 1_000_003, pa.int64()).cast(pa.timestamp("us")),
        }
    )
