"""Cursors: DECLARE keeps a result open, FETCH takes some of its rows.

The result is pulled ahead of the client by one task per cursor, into a buffer with a bound, so that FETCH can answer
"what is there now" for a SUBSCRIBE, whose next row may never come. Closing the cursor ends the task, which closes the
result and with it whatever the query holds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pyarrow as pa

from penstock.runtime import TaskOwner
from penstock.sql import RelationDesc

BUFFERED_BATCHES = 16
"""Batches pulled ahead of the client; a batch is bounded by whoever makes it."""


class Cursor:
    """`streaming`: the result has no end to wait for (SUBSCRIBE)."""

    def __init__(
        self, name: str, sql: str, desc: RelationDesc, batches: AsyncGenerator[pa.RecordBatch, None], *, streaming: bool
    ) -> None:
        self.name = name
        self.sql = sql
        self.desc = desc
        self.streaming = streaming
        self._batches = batches
        self._buffer: deque[pa.RecordBatch] = deque()
        self._changed = asyncio.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._tasks = TaskOwner(f"cursor/{name}", on_failure=None)
        self._tasks.spawn(self._pump(), "pump")

    async def fetch(self, count: int | None, timeout_s: float | None) -> list[pa.RecordBatch]:
        """Up to `count` rows (None: all there are).

        A finite result is waited for until `count` rows or its end. A streaming one: without a timeout until there
        is at least one row, then what is ready; with a timeout until `count` rows or `timeout_s` have passed,
        whichever is first. Raises what the query raised, after the rows before it. A cancelled call takes no rows.
        """
        wanted = count if count is not None else (1 << 62)
        if wanted <= 0:
            return []
        enough = 1 if self.streaming and timeout_s is None else wanted
        try:
            async with asyncio.timeout(timeout_s if self.streaming else None):
                async with self._changed:
                    # a full buffer is as much as can be waited for: the pump goes on once it is emptied
                    await self._changed.wait_for(
                        lambda: self._ended or self._rows() >= enough or len(self._buffer) >= BUFFERED_BATCHES
                    )
        except TimeoutError:
            pass  # what is there now is the answer
        taken = await self._take(wanted)
        rows = sum(batch.num_rows for batch in taken)
        if not self.streaming and rows < wanted and not (self._ended and not self._buffer):
            taken += await self.fetch(wanted - rows, None)
        if not taken and self._ended and self._error is not None:
            raise self._error
        return taken

    async def close(self) -> None:
        """End the query. May be called twice."""
        await self._tasks.close()
        await self._batches.aclose()

    def _rows(self) -> int:
        return sum(batch.num_rows for batch in self._buffer)

    async def _take(self, wanted: int) -> list[pa.RecordBatch]:
        taken: list[pa.RecordBatch] = []
        while self._buffer and wanted > 0:
            batch = self._buffer.popleft()
            if batch.num_rows > wanted:
                self._buffer.appendleft(batch.slice(wanted))
                batch = batch.slice(0, wanted)
            taken.append(batch)
            wanted -= batch.num_rows
        async with self._changed:
            self._changed.notify_all()
        return taken

    async def _pump(self) -> None:
        try:
            async with aclosing(self._batches) as batches:
                async for batch in batches:
                    async with self._changed:
                        if batch.num_rows:
                            self._buffer.append(batch)
                        self._changed.notify_all()
                        await self._changed.wait_for(lambda: len(self._buffer) < BUFFERED_BATCHES)
        except Exception as error:  # kept for the client's next FETCH, whatever it is
            self._error = error
        finally:
            self._ended = True
        async with self._changed:
            self._changed.notify_all()
