"""The extended query protocol: prepared statements, portals, and what happens between two Syncs.

An error anywhere in a batch makes everything up to the next Sync be skipped. The CommandComplete of an
Execute waits for the message that follows it: a Sync commits first (see `connection`), any other message
lets it go.

Portals end with their transaction: at the Sync outside a transaction block, and whenever a block has ended.
A portal whose iterator is still open is closed before `Session.sync`, which releases what it reads from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.adapter.session_api import Parameters, Rows, Session, StatementDescription
from penstock.runtime import SqlError
from penstock.server import messages
from penstock.server.messages import ProtocolViolation, Reader
from penstock.server.results import RowStream, expand_formats, row_description
from penstock.server.values import decode_binary, decode_text, utf8
from penstock.server.wire import Disconnected

if TYPE_CHECKING:
    from penstock.server.connection import Connection

MAX_PREPARED = 10_000
MAX_PORTALS = 1_000


@dataclass(slots=True)
class _Prepared:
    """A named or unnamed statement. `statement` is None for an empty text."""

    statement: Any | None
    types: list[int]
    description: StatementDescription


@dataclass(slots=True)
class _Portal:
    prepared: _Prepared
    parameters: Parameters
    formats: list[bool]
    stream: RowStream | None = None
    finished: bool = False
    tag_when_drained: str = field(default="SELECT 0")


class ExtendedQuery:
    """The statements and portals of one connection."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._session = session
        self._prepared: dict[str, _Prepared] = {}
        self._portals: dict[str, _Portal] = {}
        self._held = b""
        self._skipping = False
        self._handlers = {
            b"P": self._parse,
            b"B": self._bind,
            b"D": self._describe,
            b"E": self._execute,
            b"C": self._close,
        }

    async def handle(self, kind: bytes, body: bytes) -> None:
        """One of Parse, Bind, Describe, Execute, Close, Flush, Sync."""
        if kind == b"S":
            await self._sync()
            return
        if self._skipping:
            return
        self.release_held()
        if kind == b"H":
            self._wire.flush()
            return
        try:
            await self._handlers[kind](body)
        except (Disconnected, ProtocolViolation, ConnectionError):
            raise
        except Exception as error:
            self._skipping = True
            self._connection.report(self._session, error)
            self._wire.flush()

    def release_held(self) -> None:
        """Something other than a Sync follows the last Execute: its completion may go."""
        if self._held:
            self._wire.send(self._held)
            self._held = b""

    async def begin_simple_query(self) -> None:
        """A simple query replaces the unnamed statement and portal."""
        self._prepared.pop("", None)
        await self._drop_portal("")
        await self.close_ended_portals()

    async def close_ended_portals(self) -> None:
        """Close portals whose transaction is over or has failed."""
        if self._session.transaction_status != "T":
            await self._close_portals()

    async def _close_portals(self) -> None:
        for name in list(self._portals):
            await self._drop_portal(name)

    async def close_all(self) -> None:
        """The client says goodbye."""
        self.release_held()
        self._prepared.clear()
        await self._close_portals()

    async def _sync(self) -> None:
        self._skipping = False
        held, self._held = self._held, b""
        await self.close_ended_portals()
        await self._connection.sync(self._session, held)

    async def _parse(self, body: bytes) -> None:
        reader = Reader("Parse", body)
        name, text = reader.cstring(), reader.cstring()
        types = [reader.uint32() for _ in range(reader.int16())]
        reader.end()
        if name and name in self._prepared:
            raise SqlError(f'prepared statement "{name}" already exists', sqlstate="42P05")
        if len(self._prepared) >= MAX_PREPARED:
            raise SqlError(f"a session can have {MAX_PREPARED} prepared statements", sqlstate="53400")
        if not name:
            self._prepared.pop("", None)
        statements = await self._session.parse(text)
        if len(statements) > 1:
            raise SqlError("cannot insert multiple commands into a prepared statement", sqlstate="42601")
        if not statements:
            self._prepared[name] = _Prepared(None, types, StatementDescription([], None))
        else:
            description = await self._session.describe(statements[0], types)
            self._prepared[name] = _Prepared(statements[0], types, description)
        self._wire.send(messages.PARSE_COMPLETE)

    async def _bind(self, body: bytes) -> None:
        reader = Reader("Bind", body)
        portal_name, name = reader.cstring(), reader.cstring()
        parameter_formats = [reader.int16() for _ in range(reader.int16())]
        raw: list[bytes | None] = []
        for _ in range(reader.int16()):
            length = reader.int32()
            raw.append(None if length == -1 else reader.take(length))
        result_formats = [reader.int16() for _ in range(reader.int16())]
        reader.end()
        prepared = self._statement(name)
        expected = prepared.description.parameters
        if len(raw) != len(expected):
            raise SqlError(
                f"bind message supplies {len(raw)} parameters, but prepared statement "
                f'"{name}" requires {len(expected)}',
                sqlstate="08P01",
            )
        binary = expand_formats(parameter_formats, len(raw))
        values = [self._parameter(value, index, prepared, binary[index]) for index, value in enumerate(raw)]
        parameters = Parameters(values, prepared.types)
        columns = prepared.description.columns
        formats = expand_formats(result_formats, len(columns.columns) if columns is not None else 0)
        if portal_name and portal_name in self._portals:
            raise SqlError(f'cursor "{portal_name}" already exists', sqlstate="42P03")
        if len(self._portals) >= MAX_PORTALS:
            raise SqlError(f"a session can have {MAX_PORTALS} portals", sqlstate="53400")
        await self._drop_portal(portal_name)
        self._portals[portal_name] = _Portal(prepared, parameters, formats)
        self._wire.send(messages.BIND_COMPLETE)

    def _parameter(self, raw: bytes | None, index: int, prepared: _Prepared, binary: bool) -> object | None:
        if raw is None:
            return None
        # the client encoded by the type it declared; where it declared none, by the one it was told
        declared = prepared.types[index] if index < len(prepared.types) else 0
        oid = declared or prepared.description.parameters[index].oid
        try:
            return decode_binary(raw, oid) if binary else decode_text(utf8(raw), oid)
        except SqlError as error:
            error.where = f"unnamed portal parameter ${index + 1}"  # type: ignore[attr-defined]
            raise

    async def _describe(self, body: bytes) -> None:
        reader = Reader("Describe", body)
        kind, name = reader.take(1), reader.cstring()
        reader.end()
        if kind == b"S":
            description = self._statement(name).description
            self._wire.send(messages.parameter_description([p.oid for p in description.parameters]))
            formats = [False] * len(description.columns.columns) if description.columns is not None else []
        elif kind == b"P":
            portal = self._portal(name)
            description, formats = portal.prepared.description, portal.formats
        else:
            raise ProtocolViolation(f"invalid DESCRIBE message subtype {kind!r}")
        if description.columns is None:
            self._wire.send(messages.NO_DATA)
        else:
            self._wire.send(row_description(description.columns, formats))

    async def _execute(self, body: bytes) -> None:
        reader = Reader("Execute", body)
        name, limit = reader.cstring(), reader.int32()
        reader.end()
        portal = self._portal(name)
        if portal.prepared.statement is None:
            self._held = messages.EMPTY_QUERY_RESPONSE
            return
        if portal.finished:
            if portal.prepared.description.columns is None:
                raise SqlError(f'portal "{name}" cannot be run', sqlstate="55000")
            self._held = messages.command_complete(portal.tag_when_drained)
            return
        if portal.stream is None:
            outcome = await self._session.execute(portal.prepared.statement, portal.parameters)
            self._connection.send_notices(self._session)
            if not isinstance(outcome, Rows):
                portal.finished = True
                self._held = await self._connection.run_rowless(outcome)
                return
            portal.stream = RowStream(outcome, self._checked_formats(portal, outcome))
        try:
            tag = await portal.stream.send(self._wire, max(limit, 0))
        except BaseException:
            portal.finished = True
            await portal.stream.close()
            raise
        if tag is None:
            self._wire.send(messages.PORTAL_SUSPENDED)
        else:
            portal.finished = True
            self._held = messages.command_complete(tag)

    @staticmethod
    def _checked_formats(portal: _Portal, rows: Rows) -> list[bool]:
        """The client decodes by what Describe said; a result of other types would be garbage to it."""
        described = portal.prepared.description.columns
        told = [column.type.oid for column in described.columns] if described is not None else []
        if told != [column.type.oid for column in rows.desc.columns]:
            raise SqlError("cached plan must not change result type", sqlstate="0A000")
        return portal.formats

    async def _close(self, body: bytes) -> None:
        reader = Reader("Close", body)
        kind, name = reader.take(1), reader.cstring()
        reader.end()
        if kind == b"S":
            self._prepared.pop(name, None)
        elif kind == b"P":
            await self._drop_portal(name)
        else:
            raise ProtocolViolation(f"invalid CLOSE message subtype {kind!r}")
        self._wire.send(messages.CLOSE_COMPLETE)

    def _statement(self, name: str) -> _Prepared:
        prepared = self._prepared.get(name)
        if prepared is None:
            shown = f'prepared statement "{name}"' if name else "unnamed prepared statement"
            raise SqlError(f"{shown} does not exist", sqlstate="26000")
        return prepared

    def _portal(self, name: str) -> _Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise SqlError(f'portal "{name}" does not exist', sqlstate="34000")
        return portal

    async def _drop_portal(self, name: str) -> None:
        portal = self._portals.pop(name, None)
        if portal is not None and portal.stream is not None:
            await portal.stream.close()
