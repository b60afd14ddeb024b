"""PostgreSQL as consensus store: the conformance suite at both isolation levels, and everything that goes wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg import sql

from penstock.persist import CasResult, SchemaMissing, SeqNo, StoreRefused, StoreUnusable, Versioned, open_consensus
from penstock.persist.location import open_consensus_for_reading
from penstock.persist.postgres import PostgresConsensus
from penstock.runtime import Determinate, Indeterminate
from tests.persist import consensus_suite as suite
from tests.persist.proxy import Proxy, proxying
from tests.persist.race import race_processes

LEVELS = ["read_committed", "serializable"]
_numbers = itertools.count()


@pytest.fixture
def url(postgres_url: str) -> str:
    """A location that no other test uses."""
    return f"{postgres_url}&table=test_{next(_numbers)}"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresConsensus]:
    store = PostgresConsensus(url)
    try:
        yield store
    finally:
        await store.close()


def with_store(url: str, work: Callable[[PostgresConsensus], Awaitable[object]]) -> None:
    async def main() -> None:
        async with opened(url) as store:
            await work(store)

    asyncio.run(main())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "case",
    [*suite.CASES, suite.takes_batches],
)
def test_consensus(url: str, level: str, case: Callable[[PostgresConsensus], Awaitable[object]]) -> None:
    with_store(f"{url}&isolation={level}", case)


def test_clients_of_both_levels_share_a_table(url: str) -> None:
    async def main() -> None:
        async with (
            opened(f"{url}&isolation=read_committed") as first,
            opened(f"{url}&isolation=serializable") as second,
            opened(f"{url}_other") as elsewhere,
        ):
            await suite.agrees_between_handles(first, second, elsewhere)
            wins: list[int] = []

            async def client(store: PostgresConsensus) -> None:
                for seqno in range(6, 26):
                    if await suite.compare_and_set(store, "shared", seqno, b"") is CasResult.COMMITTED:
                        wins.append(seqno)
                    with pytest.raises(Determinate):
                        await store.truncate("shared", SeqNo(seqno + 1000))
                    head = await store.head("shared")
                    assert head is not None
                    with suppress(Determinate):  # a serialization failure: nothing happened
                        await store.truncate("shared", head.seqno)

            await asyncio.gather(*(client(store) for store in (first, second) * 3))
            assert wins == list(range(6, 26))
            assert (await first.head("shared")) == (25, b"")

    asyncio.run(main())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("many", [False, True])
def test_a_paused_writer_does_not_write_a_version_that_a_truncation_is_removing(
    url: str, level: str, many: bool
) -> None:
    """What it expects and what it would write are both there when it begins, and both gone when it goes on."""

    async def main() -> None:
        async with opened(f"{url}&isolation={level}&application_name=paused") as store:
            for seqno in range(6):
                await store.compare_and_set("k", Versioned(SeqNo(seqno), b""))
            stale = Versioned(SeqNo(3), b"stale")
            async with await psycopg.AsyncConnection.connect(url.partition("&table")[0]) as truncator:
                await truncator.execute(
                    sql.SQL("DELETE FROM {} WHERE sequence_number BETWEEN 0 AND 4").format(
                        sql.Identifier(table_of(url))
                    )
                )
                writing = asyncio.ensure_future(
                    store.compare_and_set_many([("k", stale)]) if many else store.compare_and_set("k", stale)
                )
                await waits_for_a_lock(url, "paused")
                await truncator.commit()
            if level == "serializable":
                with pytest.raises(Determinate, match="40001"):
                    await writing
            else:
                assert await writing == ([CasResult.MISMATCH] if many else CasResult.MISMATCH)
            assert await store.scan("k", SeqNo(0)) == [(5, b"")]

    asyncio.run(main())


def test_connections_are_bounded_and_replaced_when_old(url: str) -> None:
    async def backends(name: str) -> set[int]:
        question = b"SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        async with await psycopg.AsyncConnection.connect(url.partition("&table")[0]) as connection:
            return {pid for (pid,) in await (await connection.execute(question, (name,))).fetchall()}

    async def main() -> None:
        async with opened(f"{url}&pool_max=3&application_name=bounded") as store:
            await asyncio.gather(*(store.head("k") for _ in range(50)))
            assert len(await backends("bounded")) == 3
        async with opened(f"{url}&pool_max=1&pool_lifetime=1ms&application_name=short") as store:
            seen: set[int] = set()
            for _ in range(4):
                await store.head("k")
                seen |= await backends("short")
            assert len(seen) > 1

    asyncio.run(main())


def test_processes_race_for_versions(url: str) -> None:
    race_processes(url)


def test_batches_of_the_same_keys_in_different_orders_do_not_deadlock(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            keys = [f"k{number}" for number in range(20)]
            committed = 0

            async def client(number: int) -> None:
                nonlocal committed
                mine = keys[number:] + keys[:number]
                if number % 2:
                    mine.reverse()
                for seqno in range(15):
                    results = await store.compare_and_set_many([(k, Versioned(SeqNo(seqno), b"")) for k in mine])
                    committed += results.count(CasResult.COMMITTED)
                    assert committed <= 15 * len(keys)

            await asyncio.gather(*(client(number) for number in range(8)))
            assert committed == 15 * len(keys), "a deadlock would have been raised"

    asyncio.run(main())


def test_schema_is_created_by_many_at_once(url: str) -> None:
    async def main() -> None:
        stores = [PostgresConsensus(url) for _ in range(8)]
        await asyncio.gather(*(store.ensure_schema() for store in stores))
        results = await asyncio.gather(*(store.compare_and_set("k", Versioned(SeqNo(0), b"")) for store in stores))
        assert results.count(CasResult.COMMITTED) == 1
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_a_dropped_table_is_told_apart_and_made_anew_only_on_demand(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            assert await store.compare_and_set("k", Versioned(SeqNo(0), b"")) is CasResult.COMMITTED
            await execute(url, "DROP TABLE {table}")
            for operation in (
                store.head("k"),
                store.compare_and_set("k", Versioned(SeqNo(1), b"")),
                store.compare_and_set("new", Versioned(SeqNo(0), b"")),
                store.compare_and_set_many([("k", Versioned(SeqNo(1), b""))]),
                store.scan("k", SeqNo(0)),
                store.truncate("k", SeqNo(0)),
                store.list_keys(),
            ):
                with pytest.raises(SchemaMissing, match="42P01"):
                    await operation
            await store.ensure_schema()
            assert await store.head("k") is None
            await suite.conforms(store)

    asyncio.run(main())


def test_exhausted_pool_is_indeterminate_and_says_so(url: str) -> None:
    async def main() -> None:
        async with opened(f"{url}&pool_max=1&pool_wait=50ms") as store:
            await store.ensure_schema()
            async with store._pool.connection():
                with pytest.raises(Indeterminate, match="none of 1 connections became free"):
                    await store.head("k")
            assert await store.head("k") is None

    asyncio.run(main())


def test_killed_connections_are_indeterminate_and_replaced(url: str) -> None:
    async def main() -> None:
        async with opened(f"{url}&application_name=victim") as store:
            await asyncio.gather(*(store.head("k") for _ in range(8)))
            terminate = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'victim'"
            await execute(url, terminate)
            with pytest.raises(Indeterminate, match="terminating connection") as caught:
                await store.compare_and_set("k", Versioned(SeqNo(0), b""))
            assert isinstance(caught.value.__cause__, psycopg.Error)
            assert await store.compare_and_set("k", Versioned(SeqNo(0), b"")) is CasResult.COMMITTED, (
                "one failure takes all idle connections with it"
            )

    asyncio.run(main())


def test_frozen_server_is_indeterminate_in_time_and_does_not_hold_who_leaves(url: str) -> None:
    async def main() -> None:
        async with proxied(url, "&answer_timeout=300ms") as (store, proxy):
            assert await store.compare_and_set("k", Versioned(SeqNo(0), b"")) is CasResult.COMMITTED
            proxy.freeze()
            with pytest.raises(Indeterminate):
                await asyncio.wait_for(store.compare_and_set("k", Versioned(SeqNo(1), b"")), 5)
            proxy.thaw()
            head = await store.head("k")
            assert head is not None
            assert head.seqno in (0, 1)
            proxy.freeze()
            leaving = asyncio.ensure_future(store.head("k"))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(leaving, 0.2)
            proxy.thaw()
            assert await store.head("k") == head

    asyncio.run(main())


def test_cut_and_refused_connections_are_indeterminate(url: str) -> None:
    async def main() -> None:
        async with proxied(url) as (store, proxy):
            assert await store.compare_and_set("k", Versioned(SeqNo(0), b"")) is CasResult.COMMITTED
            proxy.cut()
            with pytest.raises(Indeterminate):
                await store.compare_and_set("k", Versioned(SeqNo(1), b""))
            proxy.refusing = True
            with pytest.raises(Indeterminate, match="connection"):
                await store.head("k")
            proxy.refusing = False
            assert await store.head("k") == (0, b"")

    asyncio.run(main())


def test_not_up_yet_is_indeterminate_and_at_once() -> None:
    async def main() -> None:
        async with opened("postgres://nobody:hunter2@127.0.0.1:1/db") as store:
            with pytest.raises(Indeterminate, match="Connection refused") as caught:
                await asyncio.wait_for(store.head("k"), 5)
            assert "nobody:***@127.0.0.1:1/db" in str(caught.value)
            assert "hunter2" not in everything_said(caught.value)

    asyncio.run(main())


def test_refused_credentials_are_told_apart(url: str) -> None:
    async def main() -> None:
        async with opened(url.replace("postgres:@", "nobody:hunter2@")) as store:
            with pytest.raises(StoreRefused, match='role "nobody" does not exist') as caught:
                await store.head("k")
            assert isinstance(caught.value, Determinate)
            assert "hunter2" not in everything_said(caught.value)

    asyncio.run(main())


def test_missing_rights_and_read_only_servers_say_what_to_do(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            await store.ensure_schema()
            await execute(url, "CREATE ROLE reader_of_{table} LOGIN")
            await execute(url, "GRANT SELECT ON {table} TO reader_of_{table}")
        async with opened(url.replace("postgres:@", f"reader_of_{table_of(url)}@")) as store:
            assert await store.head("k") is None
            with pytest.raises(StoreUnusable, match=r"42501.*grant the rights"):
                await store.compare_and_set("k", Versioned(SeqNo(0), b""))
        read_only = "&target_session_attrs=any&options=-c%20default_transaction_read_only%3Don"
        async with opened(url + read_only) as store:
            with pytest.raises(StoreUnusable, match=r"25006.*primary"):
                await store.compare_and_set("k", Versioned(SeqNo(0), b""))

    asyncio.run(main())


def test_a_reader_creates_nothing_and_cannot_write(url: str) -> None:
    async def main() -> None:
        reader = open_consensus_for_reading(url)
        with pytest.raises(SchemaMissing):
            await reader.head("k")
        async with opened(url) as store:
            await store.compare_and_set("k", Versioned(SeqNo(0), b"x"))
        assert await reader.head("k") == (0, b"x")
        with pytest.raises(StoreUnusable, match="25006"):
            await reader.compare_and_set("k", Versioned(SeqNo(1), b""))
        await reader.close()

    asyncio.run(main())


def test_commits_wait_for_the_disk_whatever_the_server_is_set_to(url: str) -> None:
    async def main() -> None:
        async with opened(f"{url}&options=-c%20synchronous_commit%3Doff") as store, store._pool.connection() as found:
            row = await (await found.execute("SHOW synchronous_commit")).fetchone()
            assert row == ("on",)

    asyncio.run(main())


def test_statements_go_by_the_key_whatever_the_size(url: str) -> None:
    """A plan made while the table was empty must not scan all of it for ever after."""

    async def main() -> None:
        async with opened(url) as store:
            await store.ensure_schema()
            async with store._pool.connection() as connection:
                cases: list[tuple[sql.Composed, tuple[object, ...]]] = [
                    (store._sql.head, ("k",)),
                    (store._sql.append, ("k", 0, "k", 1, b"")),
                    (store._sql.append_many, (["k"], [1], [b""])),
                    (store._sql.truncate, ("k", 1, "k", 1)),
                    (store._sql.scan, ("k", 0, 10)),
                ]
                for statement, values in cases:
                    cursor = await connection.execute(sql.SQL("EXPLAIN ") + statement, values)
                    plan = await cursor.fetchall()
                    text = "\n".join(str(line) for (line,) in plan)
                    assert "Seq Scan" not in text, text
                    assert "Index" in text, text

    asyncio.run(main())


def test_keys_that_no_table_can_hold_are_refused(url: str) -> None:
    async def refused(store: PostgresConsensus) -> None:
        with pytest.raises(Determinate, match="NUL"):
            await store.compare_and_set("a\0b", Versioned(SeqNo(0), b""))
        with pytest.raises(Determinate, match="NUL"):
            await store.head("a\0b")

    with_store(url, refused)


def test_closed_store_refuses(url: str) -> None:
    async def main() -> None:
        store = PostgresConsensus(url)
        running = asyncio.ensure_future(store.compare_and_set("k", Versioned(SeqNo(0), b"")))
        await store.head("k")
        await store.close()
        assert await running is CasResult.COMMITTED, "what was under way is finished"
        await store.close()
        with pytest.raises(Determinate, match="closed"):
            await store.head("k")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("isolation=chaos", "isolation must be one of"),
        ("pool_max=0", "pool_max must be a whole number from 1"),
        ("pool_wait=5", "pool_wait must be a positive duration with a unit"),
        ("answer_timeout=0s", "positive duration"),
        ("table=a;b", "plain lower-case name"),
        ("isolashun=serializable", "not a PostgreSQL URL"),
        ("pool_max=1&pool_max=2", "twice"),
    ],
)
def test_settings_that_can_never_work_are_refused(setting: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        open_consensus(f"postgres://me:hunter2@host/db?{setting}")
    assert "hunter2" not in everything_said(caught.value)


def test_a_port_that_is_no_number_does_not_show_the_password() -> None:
    with pytest.raises(ValueError) as caught:
        open_consensus("postgres://me:hun#ter2@host/db")
    assert "ter2" not in everything_said(caught.value)


@asynccontextmanager
async def proxied(url: str, settings: str = "") -> AsyncIterator[tuple[PostgresConsensus, Proxy]]:
    """A store that reaches the server of `url` through a network that can fail."""
    directory = parse_qs(urlsplit(url).query)["host"][0]

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.5432")

    async with proxying(dial) as proxy:
        table = f"table={table_of(url)}"
        through = f"postgres://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable&{table}{settings}"
        async with opened(through) as store:
            yield store, proxy


async def execute(url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(url.partition("&table")[0], autocommit=True) as connection:
        await connection.execute(statement.format(table=table_of(url)).encode())


async def waits_for_a_lock(url: str, application: str) -> None:
    question = b"SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(url.partition("&table")[0], autocommit=True) as connection:
        for _ in range(1000):
            if await (await connection.execute(question, (application,))).fetchone():
                return
            await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


def table_of(url: str) -> str:
    return url.partition("&table=")[2].partition("&")[0]


def everything_said(error: BaseException | None) -> str:
    said = ""
    while error is not None:
        said += repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return said
