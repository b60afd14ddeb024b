"""store_reset_under_the_committer, inside a coordinator: the consensus store lost its tables, and stays without them.

A silent new schema would turn the loss of everything into an empty database. Statements are told of it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from penstock.adapter import Environment, EnvironmentConfig
from penstock.committer import InProcessConsensus, RpcConsensus
from penstock.persist import open_consensus
from penstock.runtime import Determinate, PenstockError
from tests.adapter.test_environment import sql
from tests.servers import drop_table, table_name


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    with table_name(postgres_url, "reset_inside_a_coordinator") as name:
        yield name


def test_statements_are_told_of_the_loss_at_once_and_work_again_once_the_table_is_back(
    postgres_url: str, table: str, tmp_path: Path
) -> None:
    """In the coordinator and in the replica; neither tries for minutes what only somebody else can mend."""

    def rename(before: str, after: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE {before} RENAME TO {after}")

    async def main() -> None:
        (tmp_path / "run").mkdir()
        config = EnvironmentConfig(f"{postgres_url}&table={table}", f"file:{tmp_path}/blob", tmp_path / "run")
        environment = Environment(config)
        try:
            await environment.open()
            await sql(environment, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)")
            rename(table, "set_aside")
            for statement in ("INSERT INTO t VALUES (2)", "SELECT a FROM t"):  # the replica has not read it yet
                with pytest.raises(PenstockError) as error:
                    async with asyncio.timeout(10):
                        await sql(environment, statement)
                assert "42P01" in f"{error.value} {getattr(error.value, 'detail', '')}"
            rename("set_aside", table)
            await sql(environment, "INSERT INTO t VALUES (3)")
            assert await sql(environment, "SELECT a FROM t ORDER BY a") == [(1,), (3,)]
        finally:
            await environment.close()

    asyncio.run(main())


def test_a_coordinators_committer_reports_the_loss(postgres_url: str, table: str, tmp_path: Path) -> None:
    async def main() -> None:
        url = f"{postgres_url}&table={table}"
        (tmp_path / "run").mkdir()
        environment = Environment(EnvironmentConfig(url, f"file:{tmp_path}/blob", tmp_path / "run"))
        await environment.open()
        drop_table(postgres_url, table)
        client = RpcConsensus(f"unix:{tmp_path}/run/committer.sock")
        with pytest.raises(Determinate, match="42P01"):
            await client.head("s0")
        await client.close()
        store = InProcessConsensus(open_consensus(url))
        with psycopg.connect(postgres_url) as connection:
            row = connection.execute("SELECT to_regclass(%s)", [table]).fetchone()
            assert row == (None,), "nobody has created the table again"
        await store.close()
        async with asyncio.timeout(30):
            await environment.close()

    asyncio.run(main())
