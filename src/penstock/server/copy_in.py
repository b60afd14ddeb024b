"""COPY FROM STDIN: CopyData messages into Arrow batches, in chunks of about a megabyte.

Messages are collected until a chunk is full, cut at the last row boundary, parsed by Arrow's CSV reader and
converted column by column; the batch goes to the sink, whose back-pressure stops the reading. An error
names table, line and column as PostgreSQL does. However the copy ends, but for a good `finish`, the sink is
aborted: by CopyFail, by a bad row, by a cancel request, by the client's death.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from penstock.adapter.session_api import CopyFormat, CopyIn
from penstock.runtime import SqlError
from penstock.server import messages
from penstock.server.columns import BadValue, build_column
from penstock.server.copy_lines import CsvReader, LineReader, located
from penstock.server.copy_out import BINARY_SIGNATURE, LineFormat
from penstock.server.messages import ProtocolViolation, Reader
from penstock.server.values import decode_binary
from penstock.server.wire import Wire

if TYPE_CHECKING:
    from penstock.sql.types import RelationDesc

_BINARY_CHUNK_ROWS = 8192
_MAX_ROW_BYTES = 1 << 28


class CopyReader(Protocol):
    """Turns a stream of bytes into batches. Errors are SqlErrors that say where."""

    def feed(self, data: bytes) -> Iterator[pa.RecordBatch]: ...

    def finish(self) -> Iterator[pa.RecordBatch]: ...


async def receive_copy(wire: Wire, outcome: CopyIn) -> str:
    """Run one COPY FROM STDIN to its end. Returns the command tag."""
    try:
        reader = _reader(outcome)
        binary = outcome.format is CopyFormat.BINARY
        wire.send(messages.copy_response(b"G", binary, len(outcome.desc.columns)))
        wire.flush()
        while True:
            kind, body = await wire.receive()
            if kind == b"d":
                for batch in reader.feed(body):
                    await outcome.sink.write(batch)
                    await asyncio.sleep(0)  # other clients get their turn between chunks
            elif kind == b"c":
                for batch in reader.finish():
                    await outcome.sink.write(batch)
                return f"COPY {await outcome.sink.finish()}"
            elif kind == b"f":
                reason = Reader("CopyFail", body).cstring()
                raise SqlError(f"COPY from stdin failed: {reason}", sqlstate="57014")
            elif kind not in b"HS":
                raise ProtocolViolation(f"unexpected message type {kind!r} during COPY from stdin")
    except BaseException:
        await outcome.sink.abort()
        raise


def _reader(outcome: CopyIn) -> CopyReader:
    if outcome.format is CopyFormat.BINARY:
        return BinaryReader(outcome.desc, outcome.table)
    kind = CsvReader if outcome.format is CopyFormat.CSV else LineReader
    return kind(outcome.desc, outcome.table, LineFormat.of(outcome.format, outcome.options))


class BinaryReader:
    """The binary format: a signature, then tuples of length-prefixed fields.

    Where a field begins is known only from the lengths of all before it, so this walks field by field in
    Python.
    """

    def __init__(self, desc: RelationDesc, table: str) -> None:
        self._columns = desc.columns
        self._schema = desc.arrow
        self._table = table
        self._buffer = bytearray()
        self._started = False
        self._ended = False
        self._row = 0
        self._values: list[list[object]] = [[] for _ in desc.columns]

    def feed(self, data: bytes) -> Iterator[pa.RecordBatch]:
        self._buffer += data
        at = self._header() if not self._started else 0
        while self._started and not self._ended:
            following = self._tuple(at)
            if following is None:
                break
            at = following
            if len(self._values[0]) >= _BINARY_CHUNK_ROWS:
                yield self._take()
        del self._buffer[:at]
        if len(self._buffer) > _MAX_ROW_BYTES:
            raise self._error("a row is larger than COPY can take", "54000")
        if self._ended and self._buffer:
            raise self._error("received copy data after EOF marker")

    def finish(self) -> Iterator[pa.RecordBatch]:
        if not self._started:
            raise self._error("COPY file signature not recognized")
        if self._buffer:
            raise self._error("unexpected EOF in COPY data")
        if self._values[0]:
            yield self._take()

    def _header(self) -> int:
        size = len(BINARY_SIGNATURE) + 8
        if not BINARY_SIGNATURE.startswith(self._buffer[: len(BINARY_SIGNATURE)]):
            raise self._error("COPY file signature not recognized")
        if len(self._buffer) < size:
            return 0
        flags, extension = struct.unpack_from("!Ii", self._buffer, len(BINARY_SIGNATURE))
        if flags >> 16 or extension < 0:
            raise self._error("unrecognized critical flags in COPY file header")
        if len(self._buffer) < size + extension:
            return 0
        self._started = True
        return size + extension

    def _tuple(self, at: int) -> int | None:
        """Read the tuple at `at`; where the next begins, or None when it is not complete yet."""
        buffer, size = self._buffer, len(self._buffer)
        if at + 2 > size:
            return None
        count = int.from_bytes(buffer[at : at + 2], "big", signed=True)
        at += 2
        if count == -1:
            self._ended = True
            return at
        if count != len(self._columns):
            raise self._error(f"row field count is {count}, expected {len(self._columns)}")
        raw: list[bytes | None] = []
        for _ in range(count):
            if at + 4 > size:
                return None
            length = int.from_bytes(buffer[at : at + 4], "big", signed=True)
            at += 4
            if length < -1:
                raise self._error("invalid field size")
            if at + max(length, 0) > size:
                return None
            raw.append(None if length < 0 else bytes(buffer[at : at + length]))
            at += max(length, 0)
        self._row += 1
        for column, values, data in zip(self._columns, self._values, raw, strict=True):
            try:
                values.append(None if data is None else decode_binary(data, column.type.oid))
            except SqlError as error:
                raise located(error, self._table, self._row, column.name) from None
        return at

    def _take(self) -> pa.RecordBatch:
        values, self._values = self._values, [[] for _ in self._columns]
        first = self._row - len(values[0]) + 1
        arrays = []
        for column, items in zip(self._columns, values, strict=True):
            try:
                arrays.append(build_column(items, column.type))
            except BadValue as bad:
                raise located(bad.error, self._table, first + bad.row, column.name) from None
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _error(self, text: str, sqlstate: str = "22P04") -> SqlError:
        return located(SqlError(text, sqlstate=sqlstate), self._table, self._row + 1)
