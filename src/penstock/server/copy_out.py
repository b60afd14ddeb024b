"""COPY TO STDOUT: rows as CopyData messages, one per row, in text, csv or binary."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.adapter.session_api import CopyFormat, CopyOptions
from penstock.server.binary_format import big_endian
from penstock.server.data_rows import RowEncoder, join_pieces
from penstock.server.messages import message
from penstock.server.text_format import text_column

if TYPE_CHECKING:
    from penstock.sql.types import RelationDesc

BINARY_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_ESCAPES = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def copy_encoder(desc: RelationDesc, form: CopyFormat, options: CopyOptions) -> CopyEncoder:
    """The encoder of one COPY TO."""
    if form is CopyFormat.BINARY:
        return _BinaryCopy(desc)
    return _LineCopy(desc, LineFormat.of(form, options))


class CopyEncoder(RowEncoder):
    """A row encoder with something before the first and after the last row."""

    binary = False

    def header(self) -> bytes:
        """What goes out before the first batch."""
        return b""

    def trailer(self) -> bytes:
        """What goes out after the last batch."""
        return b""


class _BinaryCopy(CopyEncoder):
    """A row is a DataRow's body behind the byte of CopyData.

    The signature shares the first row's message, as from PostgreSQL: clients that read rows expect it there.
    """

    binary = True

    def __init__(self, desc: RelationDesc) -> None:
        super().__init__(desc, [True] * len(desc.columns), message=b"d")
        self._signature = BINARY_SIGNATURE + bytes(8)

    def encode(self, batch: pa.RecordBatch) -> bytes | memoryview:
        data = super().encode(batch)
        if not self._signature or not data:
            return data
        end = 1 + int.from_bytes(data[1:5], "big")
        first = message(b"d", self._take_signature() + bytes(data[5:end]))
        return first + bytes(data[end:])

    def trailer(self) -> bytes:
        return message(b"d", self._take_signature() + b"\xff\xff")

    def _take_signature(self) -> bytes:
        signature, self._signature = self._signature, b""
        return signature


class LineFormat:
    """Delimiters of a line format with the defaults filled in."""

    def __init__(self, options: CopyOptions, *, csv: bool) -> None:
        self.csv = csv
        self.delimiter = options.delimiter or ("," if csv else "\t")
        self.null = options.null if options.null is not None else ("" if csv else "\\N")
        self.quote = options.quote or '"'
        self.escape = options.escape or self.quote
        self.header = options.header

    @staticmethod
    def of(form: CopyFormat, options: CopyOptions) -> LineFormat:
        return LineFormat(options, csv=form is CopyFormat.CSV)


class _LineCopy(CopyEncoder):
    def __init__(self, desc: RelationDesc, line: LineFormat) -> None:
        super().__init__(desc, [False] * len(desc.columns), message=b"d")
        self._names = [column.name for column in desc.columns]
        self._line = line

    def header(self) -> bytes:
        if not self._line.header:
            return b""
        names = pa.RecordBatch.from_arrays([pa.array([name]) for name in self._names], names=self._names)
        return bytes(self.encode(names))

    def encode(self, batch: pa.RecordBatch) -> bytes | memoryview:
        rows = batch.num_rows
        if rows == 0:
            return b""
        line = self._line
        single = batch.num_columns == 1
        fields = [
            pc.fill_null(self._field(text_column(column, trim=trim), single), line.null).cast(pa.binary())
            for column, (_, trim) in zip(batch.columns, self._types, strict=True)
        ]
        fields = fields or [pa.array([b""] * rows, pa.binary())]
        lines = pc.binary_join_element_wise(*fields, pa.scalar(line.delimiter.encode()))
        lengths = pc.binary_length(lines).to_numpy(zero_copy_only=False).astype(np.int64)
        return join_pieces(
            [
                np.broadcast_to(np.frombuffer(b"d", np.uint8), (rows, 1)),
                big_endian(lengths + 5, ">i4"),
                lines,
                np.broadcast_to(np.frombuffer(b"\n", np.uint8), (rows, 1)),
            ]
        )

    def _field(self, texts: pa.Array, single: bool) -> pa.Array:
        line = self._line
        if not line.csv:
            return _escaped(texts, line.delimiter)
        special = "".join(map(re.escape, {line.delimiter, line.quote}))
        pattern = f"[{special}\\r\\n]|^{re.escape(line.null)}$" + (r"|^\\\.$" if single else "")
        needs = pc.match_substring_regex(texts, pattern)
        if not needs.true_count:
            return texts
        inner = texts
        if line.escape != line.quote:
            inner = pc.replace_substring(inner, line.escape, line.escape * 2)
        inner = pc.replace_substring(inner, line.quote, line.escape + line.quote)
        return pc.if_else(needs, pc.binary_join_element_wise(line.quote, inner, line.quote, ""), texts)


def _escaped(texts: pa.Array, delimiter: str) -> pa.Array:
    data = texts.buffers()[2]
    if data is None:
        return texts
    raw = memoryview(data).tobytes() if len(texts) else b""
    escapes = dict(_ESCAPES)
    escapes.setdefault(delimiter, "\\" + delimiter)
    # the backslash first: it is in every other replacement
    for character, replacement in escapes.items():
        if character.encode() in raw:
            texts = pc.replace_substring(texts, character, replacement)
    return texts
