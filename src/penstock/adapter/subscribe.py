"""The rows of SUBSCRIBE: events of a changing collection as a table of ``mz_timestamp``, ``mz_diff`` and the data.

With PROGRESS there is a column ``mz_progressed``; a row where it is true promises that nothing below its time
follows, and has NULL everywhere else. Times never go down. A definite error in the data ends the stream as that
error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.control import SubscribeEvent
from penstock.runtime import DONE, DataError, Frontier, Timestamp, Updates
from penstock.sql import Column, RelationDesc, numeric
from penstock.sql.types import BOOL, INT8

BATCH_ROWS = 8192


def subscribe_desc(data: RelationDesc, *, progress: bool) -> RelationDesc:
    """The columns of SUBSCRIBE over a collection with the columns `data`."""
    head = [Column("mz_timestamp", numeric(38, 0), False)]
    if progress:
        head.append(Column("mz_progressed", BOOL, False))
    head.append(Column("mz_diff", INT8, True))
    return RelationDesc((*head, *(Column(c.name, c.type, c.nullable or progress) for c in data.columns)))


async def subscribe_rows(
    events: AsyncIterator[SubscribeEvent], schema: pa.Schema, as_of: Timestamp, *, snapshot: bool, progress: bool
) -> AsyncGenerator[pa.RecordBatch, None]:
    """`events` as batches of `schema` (see `subscribe_desc`). Closing it closes `events`.

    Without `snapshot` what was there at `as_of` is left out. With `progress` the first row is progress at `as_of`.
    """
    if progress:
        yield _progress_row(schema, Frontier(as_of))
    async with aclosing(_closable(events)) as open_events:
        async for event in open_events:
            if isinstance(event.updates, DataError):
                raise event.updates
            updates = event.updates
            if not snapshot:
                updates = updates.filter(updates.times > np.uint64(as_of))
            updates = updates.take(np.argsort(updates.times, kind="stable"))
            for start in range(0, len(updates), BATCH_ROWS):
                yield _data_rows(schema, updates, start, progress=progress)
            if progress and as_of < event.upper < DONE:
                yield _progress_row(schema, event.upper)


def _data_rows(schema: pa.Schema, updates: Updates, start: int, *, progress: bool) -> pa.RecordBatch:
    stop = min(start + BATCH_ROWS, len(updates))
    count = stop - start
    head: list[Any] = [pa.array(updates.times[start:stop]).cast(schema.field(0).type)]
    if progress:
        head.append(pa.repeat(False, count))
    head.append(pa.array(updates.diffs[start:stop]))
    data = updates.rows.slice(start, count).columns
    return pa.RecordBatch.from_arrays([*head, *data], schema=schema)


def _progress_row(schema: pa.Schema, at: Frontier) -> pa.RecordBatch:
    columns = [pa.array([int(at)], pa.uint64()).cast(schema.field(0).type), pa.array([True])]
    columns += [pa.nulls(1, field.type) for field in list(schema)[2:]]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


async def _closable(events: AsyncIterator[SubscribeEvent]) -> AsyncGenerator[SubscribeEvent, None]:
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
