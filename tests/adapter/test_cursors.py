"""Cursors: finite results are fetched exactly, streaming ones by what is there and when; closing ends the query."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pyarrow as pa
import pytest

from penstock.adapter.cursors import BUFFERED_BATCHES, Cursor
from penstock.runtime import SqlError
from penstock.sql import RelationDesc, type_named

DESC = RelationDesc.of(("v", type_named("bigint")))


def run(coro: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coro, 20))


def batch(*values: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, pa.int64())], schema=DESC.arrow)


def values(batches: list[pa.RecordBatch]) -> list[int]:
    return [value for part in batches for value in part.column(0).to_pylist()]


def test_a_finite_result_is_fetched_to_the_row_through_any_batches() -> None:
    async def main() -> None:
        async def rows() -> AsyncGenerator[pa.RecordBatch, None]:
            for start in range(0, 90, 3):
                yield batch(start, start + 1, start + 2)
                yield batch()

        cursor = Cursor("c", "", DESC, rows(), streaming=False)
        assert values(await cursor.fetch(4, None)) == [0, 1, 2, 3]
        assert values(await cursor.fetch(0, None)) == []
        assert values(await cursor.fetch(3 * BUFFERED_BATCHES + 7, None)) == list(range(4, 3 * BUFFERED_BATCHES + 11))
        assert values(await cursor.fetch(None, None)) == list(range(3 * BUFFERED_BATCHES + 11, 90))
        assert values(await cursor.fetch(5, None)) == []
        await cursor.close()

    run(main())


def test_a_streaming_result_waits_for_the_first_row_or_for_the_timeout() -> None:
    async def main() -> None:
        arrivals: asyncio.Queue[pa.RecordBatch] = asyncio.Queue()

        async def rows() -> AsyncGenerator[pa.RecordBatch, None]:
            while True:
                yield await arrivals.get()

        cursor = Cursor("c", "", DESC, rows(), streaming=True)
        assert await cursor.fetch(None, 0) == []
        assert await cursor.fetch(2, 0.02) == []
        waiting = asyncio.ensure_future(cursor.fetch(None, None))
        await asyncio.sleep(0)
        arrivals.put_nowait(batch(1, 2))
        assert values(await waiting) == [1, 2]
        several = asyncio.ensure_future(cursor.fetch(3, 10))
        for value in (3, 4, 5, 6):
            arrivals.put_nowait(batch(value))
        assert values(await several) == [3, 4, 5]
        assert values(await cursor.fetch(None, None)) == [6]
        await cursor.close()

    run(main())


def test_an_error_comes_after_the_rows_before_it_and_stays() -> None:
    async def main() -> None:
        async def rows() -> AsyncGenerator[pa.RecordBatch, None]:
            yield batch(1)
            raise SqlError("dropped", sqlstate="42P01")

        for streaming in (True, False):
            cursor = Cursor("c", "", DESC, rows(), streaming=streaming)
            assert values(await cursor.fetch(None, None)) == [1]
            for _ in range(2):
                with pytest.raises(SqlError, match="dropped"):
                    await cursor.fetch(None, None)
            await cursor.close()

    run(main())


def test_closing_closes_the_query_and_a_cancelled_fetch_takes_nothing() -> None:
    async def main() -> None:
        closed: list[bool] = []
        gate = asyncio.Event()

        async def rows() -> AsyncGenerator[pa.RecordBatch, None]:
            try:
                await gate.wait()
                yield batch(1)
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        cursor = Cursor("c", "", DESC, rows(), streaming=True)
        fetching = asyncio.ensure_future(cursor.fetch(1, None))
        await asyncio.sleep(0)
        fetching.cancel()
        gate.set()
        assert values(await cursor.fetch(1, None)) == [1]
        await cursor.close()
        assert closed == [True]

    run(main())
