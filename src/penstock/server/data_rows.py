"""DataRow messages for a whole Arrow batch, without a Python loop over its rows.

A DataRow is the byte ``D``, its length, the number of fields, and per field a length and its bytes. All of
these are columns: the value buffer of the element-wise join of header, length, value, length, value ...
*is* the wire stream. Runs of fixed-width pieces are glued by NumPy first, so a result of integers in binary
format is one copy. CopyData of COPY TO in binary has the same body behind another byte.

Arrow's kernels cost about 200 microseconds per result however small it is; below `SMALL` rows a plain loop
is faster.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.runtime import SqlError
from penstock.server import oids
from penstock.server.binary_format import Cells, big_endian, binary_column, length_cells
from penstock.server.text_format import fixed_width, float_text, text_column, trims

if TYPE_CHECKING:
    from penstock.sql.types import RelationDesc

SMALL = 64
CHUNK_BYTES = 1 << 20
_MAX_MESSAGE = 0x7FFF_FFFF - 8

_pack_length = struct.Struct("!i").pack


class RowEncoder:
    """Encodes batches of one result. `binary`: True per column where the format is binary."""

    def __init__(self, desc: RelationDesc, binary: Sequence[bool], *, message: bytes = b"D") -> None:
        assert len(desc.columns) == len(binary), (desc, binary)
        self._types = [(column.type.oid, trims(column.type)) for column in desc.columns]
        self._binary = list(binary)
        self._message = message

    def encode(self, batch: pa.RecordBatch) -> bytes | memoryview:
        """All rows of `batch`, which should be of moderate size (see `chunks`)."""
        assert batch.num_columns == len(self._types), (batch.schema, self._types)
        if batch.num_rows == 0:
            return b""
        if batch.num_rows < SMALL:
            return self._encode_small(batch)
        return self._encode_large(batch)

    def _encode_small(self, batch: pa.RecordBatch) -> bytes:
        columns = [
            _small_column(column, oid, trim, binary)
            for column, (oid, trim), binary in zip(batch.columns, self._types, self._binary, strict=True)
        ]
        count = len(columns).to_bytes(2, "big")
        out: list[bytes] = []
        for row in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
            fields = [count]
            for value in row:
                if value is None:
                    fields.append(b"\xff\xff\xff\xff")
                else:
                    fields.append(_pack_length(len(value)))
                    fields.append(value)
            body = b"".join(fields)
            out.append(self._message + _pack_length(len(body) + 4) + body)
        return b"".join(out)

    def _encode_large(self, batch: pa.RecordBatch) -> bytes | memoryview:
        rows = batch.num_rows
        sizes = np.full(rows, 4 + 2 + 4 * batch.num_columns, dtype=np.int64)
        pieces: list[Cells | pa.Array] = []
        for column, (oid, trim), binary in zip(batch.columns, self._types, self._binary, strict=True):
            encoded = _encoded(column, oid, trim, binary)
            if isinstance(encoded, np.ndarray):
                width = encoded.shape[1]
                sizes += width
                pieces.append(np.broadcast_to(np.frombuffer(_pack_length(width), np.uint8), (rows, 4)))
            else:
                lengths = pc.fill_null(pc.binary_length(encoded), 0).to_numpy(zero_copy_only=False)
                sizes += lengths
                pieces.append(length_cells(encoded))
            pieces.append(encoded)
        if int(sizes.max()) > _MAX_MESSAGE:
            raise SqlError("a row is larger than a message can be", sqlstate="54000")
        header = [
            np.broadcast_to(np.frombuffer(self._message, np.uint8), (rows, 1)),
            big_endian(sizes, ">i4"),
            np.broadcast_to(np.frombuffer(batch.num_columns.to_bytes(2, "big"), np.uint8), (rows, 2)),
        ]
        return join_pieces([*header, *pieces])


def join_pieces(pieces: Sequence[Cells | pa.Array]) -> bytes | memoryview:
    """The bytes of all pieces, row by row; NULLs contribute nothing. Neighbouring cells are glued first."""
    arrays: list[pa.Array] = []
    run: list[Cells] = []
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            run.append(piece)
            continue
        if run:
            arrays.append(fixed_width(np.concatenate(run, axis=1)))
            run = []
        arrays.append(piece)
    if not arrays:
        return np.concatenate(run, axis=1).tobytes()
    if run:
        arrays.append(fixed_width(np.concatenate(run, axis=1)))
    joined = pc.binary_join_element_wise(*arrays, pa.scalar(b""), null_handling="replace", null_replacement=b"")
    end = int(np.frombuffer(joined.buffers()[1], dtype=np.int32)[len(joined)])
    return memoryview(joined.buffers()[2])[:end]


def chunks(batch: pa.RecordBatch, limit_bytes: int = CHUNK_BYTES) -> Iterator[pa.RecordBatch]:
    """Slices of about `limit_bytes` (at least one row): no single encoding holds up other clients for long."""
    if batch.nbytes <= limit_bytes or batch.num_rows <= SMALL:
        yield batch
        return
    rows = max(SMALL, batch.num_rows * limit_bytes // batch.nbytes)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _encoded(column: pa.Array, oid: int, trim: bool, binary: bool) -> Cells | pa.Array:
    if binary:
        return binary_column(column, oid, trim=trim)
    return text_column(column, trim=trim).cast(pa.binary())


def _small_column(column: pa.Array, oid: int, trim: bool, binary: bool) -> list[bytes | None]:
    plain = _PLAIN_BINARY.get((column.type, oid)) if binary else _PLAIN_TEXT.get(column.type)
    if plain is not None:
        return [None if value is None else plain(value) for value in column.to_pylist()]
    encoded = _encoded(column, oid, trim, binary)
    if isinstance(encoded, np.ndarray):
        return [cell.tobytes() for cell in encoded]
    return encoded.to_pylist()


_PLAIN_TEXT: dict[pa.DataType, Callable[[Any], bytes]] = {
    **{
        kind: (lambda value: b"%d" % value)
        for kind in (pa.int16(), pa.int32(), pa.int64(), pa.uint16(), pa.uint32(), pa.uint64())
    },
    pa.string(): str.encode,
    pa.bool_(): lambda value: b"t" if value else b"f",
    pa.float64(): lambda value: float_text(value).encode(),
}

_PLAIN_BINARY: dict[tuple[pa.DataType, int], Callable[[Any], bytes]] = {
    (pa.int16(), oids.INT2): struct.Struct("!h").pack,
    (pa.int32(), oids.INT4): struct.Struct("!i").pack,
    (pa.int64(), oids.INT8): struct.Struct("!q").pack,
    (pa.float64(), oids.FLOAT8): struct.Struct("!d").pack,
    (pa.bool_(), oids.BOOL): lambda value: b"\x01" if value else b"\x00",
    (pa.string(), oids.TEXT): str.encode,
    (pa.string(), oids.VARCHAR): str.encode,
}
