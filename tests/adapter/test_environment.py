"""Bootstrap with real stores and replicas: takeovers, interrupted DDL, objects that cannot be started."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.adapter import Environment, EnvironmentConfig
from penstock.adapter.session_api import Parameters, Rows
from penstock.catalog import CatalogTransaction, Item
from penstock.persist import ShardId
from penstock.runtime import SqlError, Timestamp


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as run_dir:
        environment = Environment(
            EnvironmentConfig(f"sqlite:{directory / 'consensus.sqlite'}", f"file:{directory / 'blob'}", Path(run_dir))
        )
        try:
            await environment.open()
            yield environment
        finally:
            await environment.close()


async def sql(environment: Environment, *texts: str) -> list[tuple[object, ...]]:
    """Run statements in a session of their own; the rows of the last."""
    session = await environment.coordinator.connect("materialize", "materialize", {}, "test")
    rows: list[tuple[object, ...]] = []
    try:
        for text in texts:
            for statement in await session.parse(text):
                outcome = await session.execute(statement, Parameters())
                if isinstance(outcome, Rows):
                    batches = [batch async for batch in outcome.batches]
                    rows = [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
            await session.sync()
        return rows
    finally:
        await session.close()


def test_a_coordinator_that_is_replaced_fails_before_it_writes_and_stops(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as old:
            await sql(old, "CREATE TABLE t (v integer)", "INSERT INTO t VALUES (1)")
            async with opened(tmp_path) as new:
                with pytest.raises(SqlError) as caught:
                    await sql(old, "INSERT INTO t VALUES (2)")
                assert caught.value.sqlstate == "57P02"
                await old.failed()
                assert "taken over" in (old.failure or "")
                await sql(new, "INSERT INTO t VALUES (3)")
                assert await sql(new, "SELECT v FROM t ORDER BY v") == [(1,), (3,)]

    run(main())


def test_ddl_that_was_cut_off_after_its_commit_is_finished_by_the_next_start(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    async def main() -> None:
        async with opened(tmp_path) as cut:
            await sql(cut, "CREATE TABLE base (v integer)", "INSERT INTO base VALUES (4), (5)")

            async def die(*_: object) -> Timestamp:
                raise Killed

            cut.coordinator.committer.register = die  # type: ignore[method-assign,assignment]
            with pytest.raises(Killed):
                await sql(cut, "CREATE TABLE half (v integer)")
            cut.coordinator.compute.create_dataflow = die  # type: ignore[method-assign,assignment]
            with pytest.raises(Killed):
                await sql(cut, "CREATE MATERIALIZED VIEW m AS SELECT sum(v) AS s FROM base")
            cut.coordinator.committer.forget = die  # type: ignore[method-assign,assignment]
            await sql(cut, "CREATE SCHEMA gone")
            dropped = cut.coordinator.catalog.state
            assert [item.name[2] for item in dropped.items.values()] == ["base", "half", "m"]
        async with opened(tmp_path) as after:
            await sql(after, "INSERT INTO half VALUES (1)")
            assert await sql(after, "SELECT v FROM half") == [(1,)]
            assert await sql(after, "SELECT s::integer FROM m") == [(9,)]

    run(main())


def test_the_data_of_a_drop_that_was_cut_off_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as cut:
            await sql(cut, "CREATE TABLE t (v integer)", "INSERT INTO t VALUES (1)")
            (item,) = cut.coordinator.catalog.state.items.values()
            transaction = cut.coordinator.catalog.begin()
            transaction.drop_item(item.id, cascade=False)
            await cut.coordinator.catalog.commit(transaction)  # and no further
        async with opened(tmp_path) as after:
            assert ShardId(item.shard_id or "") in after.coordinator.catalog.state.unfinalized_shards
            with pytest.raises(SqlError, match="unknown catalog item"):
                await sql(after, "SELECT * FROM t")
            await sql(after, "CREATE TABLE t (w text)", "INSERT INTO t VALUES ('new')")
            assert await sql(after, "SELECT w FROM t") == [("new",)]

    run(main())


def test_a_view_that_cannot_be_planned_any_more_is_reported_and_the_rest_starts(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as before:
            await sql(
                before,
                "CREATE TABLE t (v integer)",
                "INSERT INTO t VALUES (1)",
                "CREATE MATERIALIZED VIEW good AS SELECT v FROM t",
                "CREATE MATERIALIZED VIEW bad AS SELECT v + 1 AS w FROM t",
                "SELECT * FROM bad",
            )
            catalog = before.coordinator.catalog
            bad = next(item for item in catalog.state.items.values() if item.name[2] == "bad")
            transaction = catalog.begin()
            _replace_sql(transaction, bad.id, bad.create_sql.replace("v + 1", "no_such_function(v)"))
            await catalog.commit(transaction)
        async with opened(tmp_path) as after:
            assert await sql(after, "SELECT v FROM good") == [(1,)]
            ((status, error),) = await sql(
                after, "SELECT status, error FROM mz_internal.mz_object_statuses WHERE name = 'bad'"
            )
            assert status == "stalled"
            assert "no_such_function" in str(error)
            await sql(after, "DROP MATERIALIZED VIEW bad")
            await sql(after, "CREATE MATERIALIZED VIEW bad AS SELECT v + 1 AS w FROM t")
            assert await sql(after, "SELECT w FROM bad") == [(2,)]

    run(main())


def _replace_sql(transaction: CatalogTransaction, id_: str, create_sql: str) -> None:
    """What an older version's catalog might hold: a definition that this version no longer understands."""
    entry = transaction.state.entry(Item, id_)
    transaction._put(id_, msgspec.structs.replace(entry, create_sql=create_sql))
