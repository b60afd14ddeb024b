"""The messages of protocol 3.0 as bytes: what the backend sends is built here, the frontend's are read here.

Pure functions. DataRow and CopyData of large results are built elsewhere (`data_rows`, `copy_out`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from penstock.adapter.session_api import Notice
from penstock.runtime import PenstockError, SqlError

PROTOCOL_3_0 = 196_608
CANCEL_REQUEST, SSL_REQUEST, GSSENC_REQUEST = 80_877_102, 80_877_103, 80_877_104

AUTHENTICATION_OK = b"R\x00\x00\x00\x08\x00\x00\x00\x00"
AUTHENTICATION_CLEARTEXT = b"R\x00\x00\x00\x08\x00\x00\x00\x03"
PARSE_COMPLETE = b"1\x00\x00\x00\x04"
BIND_COMPLETE = b"2\x00\x00\x00\x04"
CLOSE_COMPLETE = b"3\x00\x00\x00\x04"
NO_DATA = b"n\x00\x00\x00\x04"
PORTAL_SUSPENDED = b"s\x00\x00\x00\x04"
EMPTY_QUERY_RESPONSE = b"I\x00\x00\x00\x04"
COPY_DONE = b"c\x00\x00\x00\x04"

_length = struct.Struct("!i").pack


class ProtocolViolation(PenstockError):
    """The client broke the protocol; nothing after it can be trusted: the connection ends with FATAL 08P01."""

    sqlstate = "08P01"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + _length(len(body) + 4) + body


def cstring(text: str) -> bytes:
    """`text` with its terminator. Embedded zero bytes cannot be sent and are dropped."""
    return text.replace("\x00", "").encode("utf-8", "replace") + b"\x00"


def sasl(code: int, body: bytes) -> bytes:
    """AuthenticationSASL (10), SASLContinue (11), SASLFinal (12)."""
    return message(b"R", _length(code) + body)


def parameter_status(name: str, value: str) -> bytes:
    return message(b"S", cstring(name) + cstring(value))


def backend_key_data(process_id: int, secret: int) -> bytes:
    return message(b"K", struct.pack("!II", process_id & 0xFFFF_FFFF, secret & 0xFFFF_FFFF))


def ready_for_query(status: str) -> bytes:
    return b"Z\x00\x00\x00\x05" + status.encode()


def command_complete(tag: str) -> bytes:
    return message(b"C", cstring(tag))


def negotiate_version(unknown_options: Sequence[str]) -> bytes:
    """We speak 3.0 only: asked for a later minor version or for options of one, say so."""
    names = b"".join(map(cstring, unknown_options))
    return message(b"v", _length(0) + _length(len(unknown_options)) + names)


def row_description(fields: Iterable[tuple[str, int, int, int, int]]) -> bytes:
    """`fields`: (name, type OID, type size, type modifier, format code 0 text / 1 binary)."""
    parts = [cstring(name) + struct.pack("!ihIhih", 0, 0, oid, *rest) for name, oid, *rest in fields]
    return message(b"T", len(parts).to_bytes(2, "big") + b"".join(parts))


def parameter_description(types: Sequence[int]) -> bytes:
    return message(b"t", struct.pack(f"!H{len(types)}I", len(types), *types))


def copy_response(kind: bytes, binary: bool, columns: int) -> bytes:
    """CopyInResponse (``G``) or CopyOutResponse (``H``)."""
    code = int(binary)
    return message(kind, struct.pack(f"!bH{columns}H", code, columns, *[code] * columns))


def error_response(error: BaseException, severity: str = "ERROR", where: str | None = None) -> bytes:
    """All fields of ErrorResponse that the error carries. An exception that is not ours shows as XX000."""
    if isinstance(error, PenstockError):
        text, state = error.message, error.sqlstate
    else:
        text, state = f"internal error: {type(error).__name__}: {error}", "XX000"
    fields = [("S", severity), ("V", severity), ("C", state), ("M", text)]
    if isinstance(error, SqlError):
        fields += [(code, value) for code, value in (("D", error.detail), ("H", error.hint)) if value]
        if error.position is not None:
            fields.append(("P", str(error.position)))
    where = where or getattr(error, "where", None)
    if where:
        fields.append(("W", where))
    return _fields(b"E", fields)


def notice_response(notice: Notice) -> bytes:
    fields = [("S", notice.severity), ("V", notice.severity), ("C", notice.sqlstate), ("M", notice.message)]
    fields += [(code, value) for code, value in (("D", notice.detail), ("H", notice.hint)) if value]
    return _fields(b"N", fields)


def _fields(kind: bytes, fields: Sequence[tuple[str, str]]) -> bytes:
    return message(kind, b"".join(code.encode() + cstring(value) for code, value in fields) + b"\x00")


class Reader:
    """Reads the fields of one message. Every overrun is a `ProtocolViolation` that names the message."""

    def __init__(self, name: str, body: bytes) -> None:
        self._name = name
        self._body = body
        self._at = 0

    def cstring(self) -> str:
        end = self._body.find(b"\x00", self._at)
        if end < 0:
            raise ProtocolViolation(f"invalid string in {self._name} message: it has no terminator")
        raw = self._body[self._at : end]
        self._at = end + 1
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise SqlError(
                f'invalid byte sequence for encoding "UTF8": 0x{raw[error.start : error.start + 1].hex()}',
                sqlstate="22021",
            ) from None

    def _number(self, width: int, signed: bool) -> int:
        return int.from_bytes(self.take(width), "big", signed=signed)

    def int16(self) -> int:
        """An unsigned count or code; the protocol's counts are never negative."""
        return self._number(2, signed=False)

    def int32(self) -> int:
        return self._number(4, signed=True)

    def uint32(self) -> int:
        return self._number(4, signed=False)

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._body):
            raise ProtocolViolation(f"insufficient data left in {self._name} message")
        raw = self._body[self._at : self._at + count]
        self._at += count
        return raw

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)

    def end(self) -> None:
        if self._at != len(self._body):
            raise ProtocolViolation(f"invalid message format: {self._name} message has trailing bytes")
