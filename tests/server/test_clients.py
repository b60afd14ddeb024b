"""Real clients against the server: psycopg 3 and asyncpg, text and binary, COPY, cancel, transactions."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import threading
import uuid
from collections.abc import Iterator

import asyncpg
import psycopg
import pyarrow as pa
import pytest
from psycopg import errors

from penstock.sql.types import Column, RelationDesc, array_of, type_named
from tests.server.fake_session import FakeCoordinator, Serving, big_table, serving


@pytest.fixture
def live() -> Iterator[Serving]:
    with Serving(FakeCoordinator()) as running:
        yield running


UTC = datetime.UTC
VALUES: dict[str, list[object]] = {
    "boolean": [True, False, None],
    "smallint": [-32768, 32767, None],
    "integer": [-(2**31), 2**31 - 1, None],
    "bigint": [-(2**63), 2**63 - 1, None],
    "real": [1.5, -0.0, None],
    "double precision": [0.1, 1e300, float("inf"), None],
    "numeric": [decimal.Decimal("12.5"), decimal.Decimal("-0.0001"), decimal.Decimal("123456789012345678"), None],
    "numeric(38,0)": [decimal.Decimal(10**37), decimal.Decimal(-(10**37) + 1), decimal.Decimal(0), None],
    "numeric(10,3)": [decimal.Decimal("1.500"), decimal.Decimal("-10000.001"), decimal.Decimal("0.000"), None],
    "text": ["", "hé\tllo\n'\"\\", None],
    "character varying": ["x", None],
    "bytea": [b"", b"\x00\xff\\", None],
    "date": [datetime.date(1, 1, 1), datetime.date(2024, 2, 29), datetime.date(9999, 12, 31), None],
    "time": [datetime.time(0, 0), datetime.time(23, 59, 59, 999999), None],
    "timestamp": [datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.datetime(1, 1, 1), None],
    "timestamptz": [datetime.datetime(2024, 2, 29, 1, 2, 3, 400000, UTC), None],
    "uuid": [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), None],
    "oid": [0, 2**32 - 1, None],
    "integer[]": [[1, None, 3], [], None],
    "text[]": [["a b", "", None, "NULL", 'q"\\{},'], None],
    "numeric[]": [[decimal.Decimal("1.5"), None], None],
    "uuid[]": [[uuid.UUID(int=5), None], None],
    "timestamptz[]": [[datetime.datetime(2024, 1, 1, tzinfo=UTC)], None],
}


def _arrow_values(kind: str, values: list[object]) -> list[object]:
    if kind == "uuid":
        return [None if v is None else str(v) for v in values]
    if kind == "uuid[]":
        return [None if v is None else [None if x is None else str(x) for x in v] for v in values]  # type: ignore[attr-defined]
    return values


def _result(kind: str, repeat: int) -> tuple[RelationDesc, pa.Table]:
    sql_type = type_named(kind)
    desc = RelationDesc.of(Column("v", sql_type))
    values = _arrow_values(kind, VALUES[kind]) * repeat
    return desc, pa.Table.from_arrays([pa.array(values, sql_type.arrow)], schema=desc.arrow)


def _same(got: list[object], expected: list[object]) -> bool:
    return all(a == b and str(a) == str(b) and type(a) is type(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("repeat", [1, 100], ids=["loop", "vectorized"])
@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_type_arrive_in_both_formats(live: Serving, kind: str, repeat: int) -> None:
    desc, table = _result(kind, repeat)
    live.coordinator.relations["r"], live.coordinator.results["r"] = desc, table
    expected = VALUES[kind] * repeat
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            got = [row[0] for row in cursor.execute("result r").fetchall()]
            if kind == "numeric" and binary:
                assert [None if g is None else g.normalize() for g in got] == [
                    None if e is None else e.normalize()
                    for e in expected  # type: ignore[attr-defined]
                ]
            else:
                assert _same(got, expected), (binary, got[:5])

    async def with_asyncpg() -> None:
        connection = await asyncpg.connect(host="127.0.0.1", port=live.port, user="u", database="d", ssl=False)
        got = [row[0] for row in await connection.fetch("result r")]
        assert got == expected, got[:5]
        await connection.close()

    if not kind.endswith("[]"):  # asyncpg looks array types up in pg_catalog, which this session has not
        asyncio.run(with_asyncpg())


def test_intervals_and_json_arrive(live: Serving) -> None:
    interval = RelationDesc.of(Column("v", type_named("interval")))
    spans = [pa.MonthDayNano([0, 3, 4_000_000_000]), None, pa.MonthDayNano([0, 0, -1000])]
    live.coordinator.relations["i"] = interval
    live.coordinator.results["i"] = pa.Table.from_arrays(
        [pa.array(spans, pa.month_day_nano_interval())], schema=interval.arrow
    )
    json = RelationDesc.of(Column("v", type_named("jsonb")))
    live.coordinator.relations["j"] = json
    live.coordinator.results["j"] = pa.Table.from_arrays([pa.array(['{"a": [1]}', None])], schema=json.arrow)
    delta = datetime.timedelta
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            got = [row[0] for row in cursor.execute("result i").fetchall()]
            assert got == [delta(days=3, seconds=4), None, delta(microseconds=-1)]
            assert [row[0] for row in cursor.execute("result j").fetchall()] == [{"a": [1]}, None]


def test_types_of_materialize_arrive_in_both_formats(live: Serving) -> None:
    desc = RelationDesc.of(*(Column(name, type_named(name)) for name in ("uint2", "uint4", "uint8", "mz_timestamp")))
    live.coordinator.relations["u"] = desc
    live.coordinator.results["u"] = pa.Table.from_arrays(
        [pa.array([2**16 - 1], pa.uint16()), pa.array([2**32 - 1], pa.uint32())]
        + [pa.array([2**64 - 1], pa.uint64())] * 2,
        schema=desc.arrow,
    )
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        texts = connection.execute("result u").fetchone()
        assert texts == ("65535", "4294967295", "18446744073709551615", "18446744073709551615")
        raw = connection.cursor(binary=True).execute("result u").fetchone()
        assert raw == (b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"18446744073709551615")
        assert [d.type_code for d in connection.execute("result u").description or []] == [16460, 16462, 16464, 16552]


PARAMETERS: dict[str, list[object]] = {
    "boolean": [True, None],
    "integer": [-5, 2**31 - 1],
    "bigint": [2**63 - 1, None],
    "double precision": [0.1, float("nan")],
    "numeric": [decimal.Decimal("12345678901234.5678"), decimal.Decimal(0), decimal.Decimal("-0.001")],
    "text": ["", "hé\tllo", None],
    "bytea": [b"\x00\xff", b""],
    "date": [datetime.date(2024, 2, 29)],
    "time": [datetime.time(1, 2, 3, 4)],
    "timestamp": [datetime.datetime(2024, 2, 29, 1, 2, 3, 4)],
    "timestamptz": [datetime.datetime(2024, 2, 29, 1, 2, 3, 4, UTC)],
    "uuid": [uuid.UUID(int=7)],
    "interval": [datetime.timedelta(days=2, seconds=3)],
    "integer[]": [[1, 2], []],
    "text[]": [["a", 'b"c', ""]],
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_of_every_type_go_there_and_back(live: Serving, kind: str) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        for value in PARAMETERS[kind]:
            for placeholder in ("%t", "%b"):
                target = {"numeric": "numeric(38,4)", "double precision": "double"}.get(kind, kind)  # in DuckDB's words
                sql = f"select {placeholder}::{target} as v"
                if value is None and placeholder == "%b":
                    continue
                (got,) = connection.execute(sql, [value], binary=placeholder == "%b").fetchone()  # type: ignore[misc]
                got = uuid.UUID(got) if kind == "uuid" and isinstance(got, str) else got
                assert str(got) == str(value) or got == value, (placeholder, got)


def test_asyncpg_encodes_parameters_by_what_describe_says(live: Serving) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(host="127.0.0.1", port=live.port, user="u", database="d", ssl=False)
        statement = await connection.prepare("select $1::int4 + $2::int8 as n, $3::text as s, $4::bool as b")
        assert [p.name for p in statement.get_parameters()] == ["int4", "int8", "text", "bool"]
        assert tuple(await statement.fetchrow(1, 2, "x", None)) == (3, "x", None)
        assert await connection.fetchval("select $1::timestamptz", datetime.datetime(2024, 1, 1, tzinfo=UTC))
        with pytest.raises(asyncpg.exceptions.UndefinedTableError):
            await connection.execute("frobnicate nowhere")
        assert await connection.fetchval("select 1") == 1
        await connection.close()

    asyncio.run(main())


def test_simple_query_runs_statements_until_the_first_error(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        cursor = connection.execute(b"select 1; select 2; set x to one")
        assert cursor.fetchall() == [(1,)]
        assert cursor.nextset()
        assert cursor.fetchall() == [(2,)]
        assert cursor.nextset()
        assert cursor.statusmessage == "SET"
        assert connection.info.parameter_status("application_name") == "one"
        with pytest.raises(errors.DivisionByZero):
            connection.execute(b"insert a; fail; insert b")
        assert live.coordinator.events == ["insert a"]
        assert connection.execute("").statusmessage is None
        assert connection.execute("nothing").statusmessage is None


def test_error_carries_all_its_fields(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        with pytest.raises(errors.DivisionByZero) as caught:
            connection.execute("fail")
        diag = caught.value.diag
        assert (diag.severity, diag.severity_nonlocalized, diag.sqlstate) == ("ERROR", "ERROR", "22012")
        assert (diag.message_primary, diag.message_detail, diag.message_hint) == ("no luck", "the detail", "the hint")
        assert diag.statement_position == "3"
        with pytest.raises(errors.SyntaxError) as syntax:
            connection.execute("a syntax error")
        assert syntax.value.diag.statement_position == "3"
        with pytest.raises(errors.InternalError_, match="KeyError"):
            connection.execute("bug")
        with pytest.raises(errors.DivisionByZero):
            connection.execute("broken").fetchall()
        assert connection.execute("select 1").fetchone() == (1,)


def test_notices_arrive(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        seen: list[tuple[str | None, ...]] = []
        connection.add_notice_handler(
            lambda d: seen.append((d.severity, d.sqlstate, d.message_primary, d.message_hint))
        )
        connection.execute("notice")
        connection.execute(b"notice")
        assert seen == [("WARNING", "01000", "take heed", "do not worry")] * 2


def test_transaction_status_follows_the_session(live: Serving) -> None:
    status = psycopg.pq.TransactionStatus
    with psycopg.connect(live.dsn) as connection:
        assert connection.info.transaction_status == status.IDLE
        connection.execute("select 1")
        assert connection.info.transaction_status == status.INTRANS
        with pytest.raises(errors.DivisionByZero):
            connection.execute("fail")
        assert connection.info.transaction_status == status.INERROR
        with pytest.raises(errors.InFailedSqlTransaction):
            connection.execute("select 1")
        connection.rollback()
        assert connection.info.transaction_status == status.IDLE


def test_a_failed_commit_is_said_instead_of_done(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        for text in ("insert unlucky", b"insert unlucky"):
            with pytest.raises(errors.SerializationFailure):
                connection.execute(text)
        pgconn = connection.pgconn
        results = []
        pgconn.send_query_params(b"insert unlucky", [])
        while pgconn.is_busy():
            pgconn.consume_input()
        while (result := pgconn.get_result()) is not None:
            results.append(result.status)
        assert results == [psycopg.pq.ExecStatus.FATAL_ERROR]
        assert connection.execute("insert fine").statusmessage == "INSERT 0 1"


def test_pipeline_mode(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("select %s::int8 as n", [k]) for k in range(50)]
            pipeline.sync()
            assert [c.fetchone() for c in cursors] == [(k,) for k in range(50)]
        with pytest.raises(errors.DivisionByZero), connection.pipeline():  # noqa: PT012 - raised at the end of it
            connection.execute("select 1")
            connection.execute("fail")
            connection.execute("insert never")
        assert "insert never" not in live.coordinator.events


def test_a_cursor_with_fetch_size_suspends_its_portal(live: Serving) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(host="127.0.0.1", port=live.port, user="u", database="d", ssl=False)
        async with connection.transaction():
            cursor = await connection.cursor("select * from range(50000) t(n)")
            assert [r[0] for r in await cursor.fetch(3)] == [0, 1, 2]
            assert await connection.fetchval("select 5") == 5
            assert [r[0] for r in await cursor.fetch(30_000)] == list(range(3, 30_003))
            assert len(await cursor.fetch(100_000)) == 50_000 - 30_003
            assert await cursor.fetch(1) == []
        async with connection.transaction():
            seen = [row[0] async for row in connection.cursor("select * from range(1000) t(n)", prefetch=10)]
            assert seen == list(range(1000))
        async with connection.transaction():
            stream = await connection.cursor("stream")
            assert [r[0] for r in await stream.fetch(2)] == [0, 1]
        assert live.coordinator.events == ["stream closed"]  # with its transaction, not with the connection
        await connection.close()

    asyncio.run(main())


def test_large_results_equal_in_both_formats(live: Serving) -> None:
    table = big_table(100_000)
    live.coordinator.results["big"] = table
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        expected = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        for binary in (False, True):
            assert connection.cursor(binary=binary).execute("result big").fetchall() == expected


@pytest.mark.parametrize("sql", ["sleep", "stream"])
def test_cancel_request_reaches_the_session(live: Serving, sql: str) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:

        def wait_and_cancel() -> None:
            live.wait_until(lambda: "sleeping" in live.coordinator.events or live.coordinator.streams)
            connection.cancel_safe(timeout=5)

        timer = threading.Thread(target=wait_and_cancel)
        timer.start()
        with pytest.raises(errors.QueryCanceled):
            connection.execute(sql).fetchall()
        timer.join()
        assert connection.execute("select 1").fetchone() == (1,)


def test_an_endless_stream_is_flushed_as_it_comes() -> None:
    async def main() -> None:
        coordinator = FakeCoordinator()
        async with serving(coordinator) as server:
            connection = await psycopg.AsyncConnection.connect(
                f"host=127.0.0.1 port={server.port} user=u dbname=d sslmode=disable", autocommit=True
            )
            seen = []
            async with connection.cursor() as cursor:
                async for row in cursor.stream("stream"):
                    seen.append(row[0])
                    if len(seen) == 5:
                        await connection.cancel_safe()
                        break
            assert seen == [0, 1, 2, 3, 4]
            await connection.close()
            await coordinator.until(lambda: not coordinator.sessions)
            assert "stream closed" in coordinator.events

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_unknown_database_is_refused(live: Serving) -> None:
    with pytest.raises(psycopg.OperationalError, match='database "missing" does not exist'):
        psycopg.connect(f"host=127.0.0.1 port={live.port} user=u dbname=missing sslmode=disable")


def test_startup_options_reach_the_coordinator(live: Serving) -> None:
    dsn = f"{live.dsn} application_name=tester options='-c cluster=big'"
    with psycopg.connect(dsn) as connection:
        assert connection.info.backend_pid == 1
    ((user, database, options, address),) = live.coordinator.connects
    assert (user, database) == ("materialize", "materialize")
    assert options["application_name"] == "tester"
    assert options["options"] == "-c cluster=big"
    assert address.startswith("127.0.0.1:")


def test_two_dimensional_arrays(live: Serving) -> None:
    kind = array_of(type_named("integer"))
    desc = RelationDesc.of(Column("v", kind))
    nested = pa.array([[[1, 2], [3, None]], []], pa.list_(pa.list_(pa.int32())))
    live.coordinator.relations["n"] = desc
    live.coordinator.results["n"] = pa.table({"v": nested})
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            assert cursor.execute("result n").fetchall() == [([[1, 2], [3, None]],), ([],)]
