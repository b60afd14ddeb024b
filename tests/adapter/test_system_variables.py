"""ALTER SYSTEM SET persist_consensus_use_committer: what it changes, what it outlasts, what it refuses."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.adapter import Environment, EnvironmentConfig
from penstock.committer import CommitterServer, InProcessConsensus
from penstock.persist import LocalPubSub, open_consensus
from penstock.runtime import PenstockError, SqlError
from tests.adapter.test_environment import sql

NAME = "persist_consensus_use_committer"
BYPASS = f"ALTER SYSTEM SET {NAME} = off"


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


@asynccontextmanager
async def opened(directory: Path, **config: str) -> AsyncIterator[Environment]:
    """An environment; without more, its committer is in this process."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as run_dir:
        store = config.pop("consensus_url", f"sqlite:{directory}/c.db")
        environment = Environment(EnvironmentConfig(store, f"file:{directory}/blob", Path(run_dir), **config))
        try:
            await environment.open()
            yield environment
        finally:
            await environment.close()


@asynccontextmanager
async def committer(store_url: str) -> AsyncIterator[str]:
    """One that no environment is the host of; its address."""
    consensus = InProcessConsensus(open_consensus(store_url))
    server = CommitterServer(consensus, LocalPubSub())
    try:
        yield await server.listen("127.0.0.1:0")
    finally:
        await server.close(0.1)
        await consensus.close()


async def refused(environment: Environment, *texts: str) -> SqlError:
    with pytest.raises(SqlError) as error:
        await sql(environment, *texts)
    return error.value


def goes_direct(environment: Environment) -> bool:
    return not environment.coordinator.system_variables._consensus.uses_committer


def test_the_setting_is_in_force_at_once_and_at_the_next_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as environment:
            await sql(environment, "CREATE TABLE t (a int)", "CREATE MATERIALIZED VIEW v AS SELECT a FROM t")
            assert await sql(environment, f"SHOW {NAME}") == [("on",)]
            assert not goes_direct(environment)
            await sql(environment, BYPASS)
            assert goes_direct(environment)
            await sql(environment, "INSERT INTO t VALUES (1)")
            assert await sql(environment, "SELECT a FROM v") == [(1,)]
        async with opened(tmp_path) as environment:
            assert goes_direct(environment)
            assert await sql(environment, f"SHOW {NAME.upper()}") == [("off",)]
            assert (NAME, "off") in [row[:2] for row in await sql(environment, "SHOW ALL")]
            assert await sql(environment, f"SELECT current_setting('{NAME}')") == [("off",)]
            assert await sql(environment, f"SELECT setting FROM pg_settings WHERE name = '{NAME}'") == [("off",)]
            await sql(environment, "INSERT INTO t VALUES (2)", "ALTER SYSTEM RESET ALL")
            assert not goes_direct(environment)
            assert await sql(environment, f"SHOW {NAME}") == [("on",)]
            assert await sql(environment, "SELECT a FROM v ORDER BY a") == [(1,), (2,)]

    run(main())


def test_what_cannot_be_set_is_refused_by_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as environment:
            for statement, sqlstate in (
                (f"ALTER SYSTEM SET {NAME} = perhaps", "22023"),
                ("ALTER SYSTEM SET statement_timeout = '1s'", "0A000"),
                ("ALTER SYSTEM RESET statement_timeout", "0A000"),
                ("ALTER SYSTEM SET no_such_thing = 1", "42704"),
                (f"SET {NAME} = off", "55P02"),
                (f"RESET {NAME}", "55P02"),
            ):
                assert (await refused(environment, statement)).sqlstate == sqlstate, statement
            assert (await refused(environment, "BEGIN", BYPASS)).sqlstate == "25001"
            assert not goes_direct(environment)

    run(main())


def test_only_the_committers_own_store_is_reached_directly(tmp_path: Path) -> None:
    """Else the environment would be split in two: what one process writes, another would never see."""

    async def main() -> None:
        await open_consensus(f"sqlite:{tmp_path}/other.db").close()
        async with committer(f"sqlite:{tmp_path}/c.db") as address:
            for url, why in (("", "not told where"), (f"sqlite:{tmp_path}/other.db", "not the store")):
                async with opened(tmp_path, external_committer=address, consensus_url=url) as environment:
                    error = await refused(environment, BYPASS)
                    assert (error.sqlstate, goes_direct(environment)) == ("55000", False)
                    assert why in error.message
                    await sql(environment, "CREATE TABLE IF NOT EXISTS t (a int)", "INSERT INTO t VALUES (1)")
            async with opened(tmp_path, external_committer=address) as environment:
                await sql(environment, BYPASS)
            for url in ("", f"sqlite:{tmp_path}/other.db"):
                with pytest.raises(PenstockError, match=f"{NAME} is off, and the committer cannot be bypassed"):
                    async with opened(tmp_path, external_committer=address, consensus_url=url):
                        pass
            async with opened(tmp_path, external_committer=address) as environment:
                assert goes_direct(environment)

    run(main())
