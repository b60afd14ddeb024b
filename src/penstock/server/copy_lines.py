"""The text and csv formats of COPY FROM: where rows end, what a field says, and where an error is.

Arrow's CSV reader does the splitting; what PostgreSQL means by a backslash, by NULL, by an end marker and
by a row of the wrong width is settled around it. Line numbers in errors count physical lines from 1, the
header included.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from penstock.runtime import SqlError
from penstock.server.columns import BadValue, parse_column
from penstock.server.copy_out import LineFormat

if TYPE_CHECKING:
    from penstock.sql.types import RelationDesc

CHUNK_BYTES = 1 << 20
MAX_ROW_BYTES = 1 << 28
_SHOWN_CHARACTERS = 100
_SIMPLE_ESCAPES = {"\\b": "\b", "\\f": "\f", "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\v": "\v"}
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_CODE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
_LETTERS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def located(error: SqlError, table: str, line: int, column: str | None = None, text: str | None = None) -> SqlError:
    """`error` with the context field that PostgreSQL gives: ``COPY t, line 3, column a: "x"``."""
    where = f"COPY {table}, line {line}"
    if column is not None:
        where += f", column {column}"
    if text is not None:
        shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
        where += f': "{shown}"'
    error.where = where  # type: ignore[attr-defined]
    return error


class LineReader:
    """The text format. `CsvReader` differs in where rows end and how fields are quoted."""

    def __init__(self, desc: RelationDesc, table: str, line: LineFormat) -> None:
        self._columns = desc.columns
        self._schema = desc.arrow
        self._table = table
        self._format = line
        self._buffer = bytearray()
        self._checked = 0  # no row boundary lies before this many buffered bytes
        self._line = 1  # physical line at which the buffer begins
        self._header_due = bool(line.header)
        self._ended = False
        names = [str(index) for index in range(len(desc.columns))]
        self._names = names
        self._convert = pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[line.null],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=True,
        )

    def feed(self, data: bytes) -> Iterator[pa.RecordBatch]:
        """Take bytes; the rows of a full chunk come out."""
        if self._ended:
            return
        self._buffer += data
        if len(self._buffer) - self._checked < CHUNK_BYTES:
            return
        cut = self._boundary()
        if cut == 0:
            self._checked = len(self._buffer)
            if len(self._buffer) > MAX_ROW_BYTES:
                raise self._error("a row is larger than COPY can take", "54000", self._line)
            return
        self._checked = 0
        chunk = bytes(self._buffer[:cut])
        del self._buffer[:cut]
        yield from self._rows(chunk)

    def finish(self) -> Iterator[pa.RecordBatch]:
        """The rows of what is left; a last line needs no newline."""
        if self._buffer and not self._ended:
            chunk = bytes(self._buffer)
            self._buffer.clear()
            yield from self._rows(chunk if chunk.endswith(b"\n") else chunk + b"\n")

    # -- rows

    def _boundary(self) -> int:
        """Bytes of the buffer that are whole rows."""
        if b"\\\n" in self._buffer:
            self._buffer = bytearray(self._without_escaped_newlines(bytes(self._buffer)))
        return self._buffer.rfind(b"\n") + 1

    def _rows(self, chunk: bytes) -> Iterator[pa.RecordBatch]:
        if b"\x00" in chunk:
            line = self._line + chunk.count(b"\n", 0, chunk.index(b"\x00"))
            raise self._error('invalid byte sequence for encoding "UTF8": 0x00', "22021", line)
        chunk = self._prepare(chunk)
        if self._header_due:
            chunk = self._without_header(chunk)
        chunk = self._until_end_marker(chunk)
        if chunk:
            batch = self._parse(chunk)
            self._line += chunk.count(b"\n")
            yield batch

    def _prepare(self, chunk: bytes) -> bytes:
        """Rows end in a bare newline; what the CSV reader would take for a delimiter becomes an escape."""
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n")
            if b"\r" in chunk:
                line = self._line + chunk.count(b"\n", 0, chunk.index(b"\r"))
                error = self._error("literal carriage return found in data", "22P04", line)
                error.hint = 'Use "\\r" to represent carriage return.'
                raise error
        if b"\\\n" in chunk:
            chunk = self._without_escaped_newlines(chunk)
        delimiter = self._format.delimiter.encode()
        if b"\\" + delimiter in chunk:
            code = b"\\x%02x" % delimiter[0]
            chunk = _ESCAPE.sub(lambda found: code if found[1] == delimiter else found[0], chunk)
        return chunk

    @staticmethod
    def _without_escaped_newlines(data: bytes) -> bytes:
        return _ESCAPE.sub(lambda found: b"\\n" if found[1] == b"\n" else found[0], data)

    def _without_header(self, chunk: bytes) -> bytes:
        self._header_due = False
        end = self._first_row_end(chunk)
        if self._format.header == "match":
            names = [column.name for column in self._columns]
            found = self._read(chunk[:end], self._line)
            given = [column[0].as_py() if len(column) else None for column in found.columns]
            if [name if name is not None else self._format.null for name in given] != names:
                raise self._error(f"header line does not match: expected {names}", "22P04", self._line)
        self._line += chunk.count(b"\n", 0, end)
        return chunk[end:]

    def _first_row_end(self, chunk: bytes) -> int:
        return chunk.index(b"\n") + 1

    def _until_end_marker(self, chunk: bytes) -> bytes:
        at = 0 if chunk.startswith(b"\\.\n") else chunk.find(b"\n\\.\n") + 1
        if at == 0 and not chunk.startswith(b"\\.\n"):
            return chunk
        self._ended = True
        return chunk[:at]

    # -- fields

    def _parse(self, chunk: bytes) -> pa.RecordBatch:
        table = self._read(chunk, self._line)
        arrays = []
        for column, texts in zip(self._columns, table.columns, strict=True):
            try:
                arrays.append(parse_column(self._unescape(texts), column.type))
            except BadValue as bad:
                line = self._line + self._lines_before(chunk, bad.row)
                raise located(bad.error, self._table, line, column.name, texts[bad.row].as_py()) from None
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _read(self, chunk: bytes, line: int) -> pa.RecordBatch:
        """Split into string columns."""
        if len(self._columns) > 1 and (blank := self._blank_row(chunk)) is not None:
            missing = self._columns[1].name
            raise self._error(f'missing data for column "{missing}"', "22P04", line + chunk.count(b"\n", 0, blank), "")
        invalid: list[Any] = []

        def collect(row: Any) -> str:
            invalid.append(row)
            return "skip"

        try:
            table = pacsv.read_csv(
                io.BytesIO(chunk),
                # one block: the reader must not guess types or split rows by itself
                pacsv.ReadOptions(
                    use_threads=False, block_size=len(chunk) + 1, column_names=self._names, encoding="utf8"
                ),
                self._parse_options(collect),
                self._convert,
            )
        except pa.ArrowInvalid as error:
            raise self._unreadable(chunk, line, error) from None
        if invalid:
            row = invalid[0]
            at = line + self._lines_before(chunk, row.number - 1)
            if row.actual_columns < row.expected_columns:
                missing = self._columns[row.actual_columns].name
                raise self._error(f'missing data for column "{missing}"', "22P04", at, row.text)
            raise self._error("extra data after last expected column", "22P04", at, row.text)
        batches = table.combine_chunks().to_batches()
        if batches:
            return batches[0]
        return pa.RecordBatch.from_arrays([pa.array([], pa.string()) for _ in self._names], self._names)

    def _blank_row(self, chunk: bytes) -> int | None:
        """Where the first empty row begins: Arrow would read it as a row of empty values."""
        if chunk.startswith(b"\n"):
            return 0
        at = chunk.find(b"\n\n")
        return None if at < 0 else at + 1

    def _parse_options(self, collect: Any) -> pacsv.ParseOptions:
        return pacsv.ParseOptions(
            delimiter=self._format.delimiter,
            quote_char=False,
            escape_char=False,
            newlines_in_values=False,
            ignore_empty_lines=False,
            invalid_row_handler=collect,
        )

    def _unreadable(self, chunk: bytes, line: int, error: pa.ArrowInvalid) -> SqlError:
        try:
            chunk.decode()
        except UnicodeDecodeError as bad:
            shown = chunk[bad.start : bad.end].hex()
            at = line + chunk.count(b"\n", 0, bad.start)
            return self._error(f'invalid byte sequence for encoding "UTF8": 0x{shown}', "22021", at)
        return self._error(f"bad COPY data: {error}", "22P04", line)

    def _lines_before(self, chunk: bytes, row: int) -> int:
        """Physical lines of `chunk` before its row number `row` (from 0)."""
        return row

    def _unescape(self, texts: pa.Array) -> pa.Array:
        data = texts.buffers()[2]
        if data is None or b"\\" not in memoryview(data).tobytes():
            return texts
        # a zero byte cannot occur in the data, so it can stand for a literal backslash meanwhile
        texts = pc.replace_substring(texts, "\\\\", "\x00")
        for escape, character in _SIMPLE_ESCAPES.items():
            texts = pc.replace_substring(texts, escape, character)
        codes = pc.fill_null(pc.match_substring_regex(texts, r"\\[0-7x]"), False)
        if codes.true_count:
            # numeric escapes may build a character of several bytes: these rows one by one
            values = [_decode_codes(text) for text in texts.filter(codes).to_pylist()]
            texts = pc.replace_with_mask(texts, codes, pa.array(values, pa.string()))
        texts = pc.replace_substring_regex(texts, r"\\(.)", r"\1")
        return pc.replace_substring(texts, "\x00", "\\")

    def _error(self, text: str, sqlstate: str, line: int, shown: str | None = None) -> SqlError:
        return located(SqlError(text, sqlstate=sqlstate), self._table, line, text=shown)


def _decode_codes(text: str) -> str:
    def replace(found: re.Match[bytes]) -> bytes:
        octal, digits, other = found.groups()
        if octal:
            return bytes((int(octal, 8) & 0xFF,))
        return bytes((int(digits, 16),)) if digits else _LETTERS.get(other, other)

    raw = _CODE.sub(replace, text.encode())
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise SqlError(f'invalid byte sequence for encoding "UTF8": 0x{raw.hex()}', sqlstate="22021") from None


class CsvReader(LineReader):
    """The csv format: a newline ends a row only outside quotes."""

    def __init__(self, desc: RelationDesc, table: str, line: LineFormat) -> None:
        super().__init__(desc, table, line)
        quote, escape = (re.escape(text.encode()) for text in (line.quote, line.escape))
        self._own_escape = line.escape != line.quote
        self._escapes = re.compile(escape + b"(.)", re.DOTALL)
        self._quoted = re.compile(quote + b"((?:[^" + quote + escape + b"]|" + escape + b".)*)" + quote, re.DOTALL)

    def _boundary(self) -> int:
        ends = self._row_ends(self._without_escapes(bytes(self._buffer)))
        return int(ends[-1]) if len(ends) else 0

    def finish(self) -> Iterator[pa.RecordBatch]:
        if self._buffer and not self._ended:
            data = self._without_escapes(bytes(self._buffer))
            if data.count(self._format.quote.encode()) % 2:
                raise self._error("unterminated CSV quoted field", "22P04", self._line + data.count(b"\n"))
        yield from super().finish()

    def _without_escapes(self, data: bytes) -> bytes:
        """The same length with every escaped character blanked, so that the quotes left are real ones."""
        return self._escapes.sub(b"__", data) if self._own_escape else data

    def _prepare(self, chunk: bytes) -> bytes:
        """With an escape character of its own: quoted fields rewritten with doubled quotes.

        Arrow's reader would apply an escape character outside of quotes too, PostgreSQL does not.
        """
        if not self._own_escape:
            return chunk
        quote, escape = self._format.quote.encode(), self._format.escape.encode()

        def double(found: re.Match[bytes]) -> bytes:
            character = found[1]
            if character == quote:
                return quote * 2
            return character if character == escape else found[0]

        return self._quoted.sub(lambda field: quote + self._escapes.sub(double, field[1]) + quote, chunk)

    def _first_row_end(self, chunk: bytes) -> int:
        return int(self._row_ends(chunk)[0])

    def _until_end_marker(self, chunk: bytes) -> bytes:
        if b"\\.\n" not in chunk and b"\\.\r\n" not in chunk:
            return chunk
        start = 0
        for end in map(int, self._row_ends(chunk)):
            if chunk[start:end].rstrip(b"\r\n") == b"\\.":
                self._ended = True
                return chunk[:start]
            start = end
        return chunk

    def _parse_options(self, collect: Any) -> pacsv.ParseOptions:
        line = self._format
        return pacsv.ParseOptions(
            delimiter=line.delimiter,
            quote_char=line.quote,
            double_quote=True,
            escape_char=False,
            newlines_in_values=True,
            ignore_empty_lines=False,
            invalid_row_handler=collect,
        )

    def _blank_row(self, chunk: bytes) -> int | None:
        if not (chunk.startswith((b"\n", b"\r\n")) or b"\n\n" in chunk or b"\n\r\n" in chunk):
            return None
        starts = np.concatenate([[0], self._row_ends(chunk)])[:-1]
        data = np.frombuffer(chunk, np.uint8)
        at = data[starts]
        at = np.where(at == ord("\r"), data[np.minimum(starts + 1, len(data) - 1)], at)
        blank = np.flatnonzero(at == ord("\n"))
        return int(starts[blank[0]]) if len(blank) else None

    def _lines_before(self, chunk: bytes, row: int) -> int:
        ends = self._row_ends(chunk)
        return chunk.count(b"\n", 0, int(ends[row - 1])) if row else 0

    def _unescape(self, texts: pa.Array) -> pa.Array:
        return texts

    def _row_ends(self, data: bytes) -> npt.NDArray[np.int64]:
        """Where rows end: behind each newline with an even number of quotes before it."""
        raw = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(raw == ord("\n"))
        quotes = np.flatnonzero(raw == ord(self._format.quote))
        outside = np.searchsorted(quotes, newlines) % 2 == 0
        return newlines[outside] + 1
