"""asyncpg: binary parameters and results, prepared statements, batches, cancellation by timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import asyncpg
import pytest

from tools.serving import Server


def with_connection(server: Server, body: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=server.port, user="materialize", database="materialize"
        )
        try:
            async with asyncio.timeout(60):
                await body(connection)
        finally:
            await connection.close()

    asyncio.run(main())


def test_rows_and_parameters(server: Server, name: str) -> None:
    async def body(db: asyncpg.Connection) -> None:
        await db.execute(f"CREATE TABLE {name} (id integer, v text, n numeric(10,2))")
        await db.executemany(f"INSERT INTO {name} VALUES ($1, $2, $3)", [(i, f"v{i}", Decimal(i)) for i in range(100)])
        found = await db.fetch(f"SELECT id, v, n FROM {name} WHERE id < $1 ORDER BY id", 2)
        assert [tuple(row) for row in found] == [(0, "v0", Decimal("0.00")), (1, "v1", Decimal("1.00"))]
        assert await db.fetchval(f"SELECT count(*) FROM {name}") == 100
        assert await db.execute(f"DELETE FROM {name} WHERE id >= $1", 50) == "DELETE 50"

    with_connection(server, body)


def test_a_transaction_rolls_back(server: Server, name: str) -> None:
    async def body(db: asyncpg.Connection) -> None:
        await db.execute(f"CREATE TABLE {name} (id integer)")
        transaction = db.transaction()
        await transaction.start()
        await db.execute(f"INSERT INTO {name} VALUES (1)")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await db.fetch("SELECT 1 / $1::integer", 0)
        await transaction.rollback()
        assert await db.fetchval(f"SELECT count(*) FROM {name}") == 0

    with_connection(server, body)


def test_a_timeout_cancels_and_the_connection_goes_on(server: Server) -> None:
    async def body(db: asyncpg.Connection) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await db.fetch("SELECT mz_now() AS OF 99999999999999", timeout=0.3)
        assert await db.fetchval("SELECT 1") == 1

    with_connection(server, body)
