"""Outcomes on their way out: row descriptions, rows with limits, COPY TO STDOUT.

Batches are pulled only when the client has taken the last (`Wire.drain`), encoded in slices of about a
megabyte, and the event loop gets a turn between slices, so one client's large result neither fills memory
nor holds up the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from penstock.adapter.session_api import CopyOut, Rows
from penstock.runtime import SqlError
from penstock.server import messages
from penstock.server.copy_out import copy_encoder
from penstock.server.data_rows import RowEncoder, chunks
from penstock.server.wire import Wire

if TYPE_CHECKING:
    from penstock.sql.types import RelationDesc

MAX_COLUMNS = 1664


def row_description(desc: RelationDesc, formats: Sequence[bool]) -> bytes:
    """RowDescription. `formats`: True where the column is sent in binary."""
    return messages.row_description(
        (column.name, column.type.oid, column.type.size, column.type.modifier, int(binary))
        for column, binary in zip(desc.columns, formats, strict=True)
    )


def expand_formats(codes: Sequence[int], columns: int) -> list[bool]:
    """Bind's format codes (none, one for all, or one each) as a flag per column."""
    if any(code not in (0, 1) for code in codes):
        raise SqlError(f"unsupported format code: {max(codes)}", sqlstate="22023")
    if len(codes) == columns:
        return [code == 1 for code in codes]
    if len(codes) > 1:
        raise SqlError(f"bind message has {len(codes)} formats but {columns} columns or parameters", sqlstate="08P01")
    return [bool(codes and codes[0])] * columns


class RowStream:
    """The rows of one portal. May be sent in several goes, when Execute limits the rows."""

    def __init__(self, rows: Rows, formats: Sequence[bool]) -> None:
        self.desc = rows.desc
        self._rows = rows
        self._encoder = RowEncoder(rows.desc, formats)
        self._left: pa.RecordBatch | None = None  # the rest of a batch that a row limit cut
        self._done = False

    async def send(self, wire: Wire, limit: int = 0, head: bytes = b"") -> str | None:
        """Send up to `limit` rows (0: all). The command tag, or None when the limit was reached first.

        `head` goes out before the first row, but not before the first batch is there: an error that comes
        instead of rows then comes instead of their description too.
        """
        sent = 0
        while not self._done:
            batch = self._left
            self._left = None
            if batch is None:
                batch = await _next(self._rows.batches)
            if batch is None:
                break
            wire.send(head)
            head = b""
            if limit and sent + batch.num_rows > limit:
                self._left = batch.slice(limit - sent)
                batch = batch.slice(0, limit - sent)
            await _send_batch(wire, self._encoder, batch)
            sent += batch.num_rows
            if limit and sent >= limit:
                return None
        wire.send(head)
        await self.close()
        return self._rows.tag(sent)

    async def close(self) -> None:
        """Release what the query holds. May be called again."""
        if not self._done:
            self._done = True
            self._left = None
            await close_batches(self._rows.batches)


async def send_copy_out(wire: Wire, outcome: CopyOut) -> str:
    """COPY TO STDOUT, all of it. Returns the command tag."""
    encoder = copy_encoder(outcome.desc, outcome.format, outcome.options)
    sent = 0
    try:
        wire.send(messages.copy_response(b"H", encoder.binary, len(outcome.desc.columns)))
        wire.send(encoder.header())
        while (batch := await _next(outcome.batches)) is not None:
            await _send_batch(wire, encoder, batch)
            sent += batch.num_rows
        wire.send(encoder.trailer())
        wire.send(messages.COPY_DONE)
    finally:
        await close_batches(outcome.batches)
    return f"COPY {sent}"


async def _send_batch(wire: Wire, encoder: RowEncoder, batch: pa.RecordBatch) -> None:
    for part in chunks(batch):
        wire.send(encoder.encode(part))
        if part.num_rows < batch.num_rows:
            await asyncio.sleep(0)
        await wire.drain()


async def _next(batches: AsyncIterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    return await anext(batches, None)


async def close_batches(batches: AsyncIterator[pa.RecordBatch]) -> None:
    """End a result early. Generators release what they hold in their `finally`."""
    close = getattr(batches, "aclose", None)
    if close is not None:
        await close()
