"""One client from its first byte to its last: startup, simple queries, and the loop over messages.

A connection is one task. It reads a message, does what it says, and answers; nothing of the connection runs
beside it except `Wire`'s callbacks. When the client goes away the task is cancelled, which is how
everything the session had running learns of it; `run` then closes the session, whatever happened before.

The answer "done" is held back until it is true: the CommandComplete of an implicit transaction's last
command leaves after `Session.sync` has committed it, and an error of that commit is sent in its place.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from penstock.adapter.session_api import (
    Completed,
    Coordinator,
    CopyIn,
    CopyOut,
    EmptyQuery,
    Outcome,
    Parameters,
    Rows,
    Session,
)
from penstock.runtime import PenstockError, SqlError
from penstock.server import messages
from penstock.server.authentication import Authenticator
from penstock.server.copy_in import receive_copy
from penstock.server.extended import ExtendedQuery
from penstock.server.messages import ProtocolViolation, Reader
from penstock.server.results import RowStream, row_description, send_copy_out
from penstock.server.wire import Disconnected, Wire

_log = structlog.get_logger("penstock.server")

MAX_STARTUP_BYTES = 10_000
MAX_AUTHENTICATION_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """What every connection of a listener has in common. Sizes in bytes, times in seconds."""

    coordinator: Coordinator
    authenticator: Authenticator | None
    tls: ssl.SSLContext | None
    require_tls: bool
    max_message_bytes: int
    startup_timeout_s: float
    on_cancel_request: Callable[[int, int], None]
    on_ready: Callable[[Connection], None]
    """Called when the session exists; raises SqlError 53300 when there is no room for it."""


class Connection:
    """`run` is the whole life of the connection."""

    def __init__(self, wire: Wire, config: ConnectionConfig) -> None:
        self.wire = wire
        self.session: Session | None = None
        self._config = config
        self._reported: dict[str, str] = {}
        self._copying = False
        self._encrypted = False

    async def run(self) -> None:
        """Serve until the client leaves. Errors end here; only cancellation gets out."""
        try:
            async with asyncio.timeout(self._config.startup_timeout_s):
                started = await self._start()
            if started is not None:
                self.session = started
                self._config.on_ready(self)
                self.wire.begin_messages(self._config.max_message_bytes)
                await self._serve(started)
        except (Disconnected, ConnectionError, ssl.SSLError):
            pass
        except TimeoutError:
            self._fatal(SqlError("canceling authentication due to timeout", sqlstate="57014"))
        except PenstockError as error:
            self._fatal(error)
        except Exception as error:
            _log.exception("connection failed", error=repr(error))
            self._fatal(error)
        finally:
            self.wire.on_lost = None  # from here on nothing is left to cancel
            self.wire.close()
            if self.session is not None:
                await self.session.close()

    def terminate(self, error: SqlError) -> None:
        """Tell the client why, and close. For shutdown."""
        self._fatal(error)
        self.wire.close()

    def interrupt(self) -> None:
        """A cancel request matched. The session stops by itself; only a wait for COPY data is ours to end."""
        if self._copying:
            self.wire.interrupt(SqlError("canceling statement due to user request", sqlstate="57014"))

    def _fatal(self, error: BaseException) -> None:
        self.wire.send(messages.error_response(error, "FATAL"))

    # -- startup

    async def _start(self) -> Session | None:
        """Negotiate, authenticate, open the session. None for a connection that only carries a cancel request."""
        while True:
            _, body = await self.wire.receive()
            reader = Reader("startup", body)
            code = reader.int32()
            if code == messages.CANCEL_REQUEST:
                process_id, secret = reader.uint32(), reader.uint32()
                self._config.on_cancel_request(process_id, secret)
                return None
            if code == messages.SSL_REQUEST:
                await self._answer_ssl_request()
            elif code == messages.GSSENC_REQUEST:
                self.wire.send(b"N")
                self.wire.flush()
            else:
                return await self._open_session(code, reader)

    async def _answer_ssl_request(self) -> None:
        if self._encrypted:
            raise ProtocolViolation("SSL request on an encrypted connection")
        if self._config.tls is None:
            self.wire.send(b"N")
            self.wire.flush()
            return
        await self.wire.start_tls(self._config.tls)
        self._encrypted = True

    async def _open_session(self, code: int, reader: Reader) -> Session:
        major, minor = divmod(code, 65_536)
        if major != 3:
            raise SqlError(f"unsupported frontend protocol {major}.{minor}: server supports 3.0", sqlstate="0A000")
        options: dict[str, str] = {}
        while name := reader.cstring():
            options[name] = reader.cstring()
        reader.end()
        unknown = [name for name in options if name.startswith("_pq_.")]
        if minor or unknown:
            self.wire.send(messages.negotiate_version(unknown))
        options = {name: value for name, value in options.items() if name not in unknown}
        user = options.pop("user", "")
        if not user:
            raise SqlError("no PostgreSQL user name specified in startup packet", sqlstate="28000")
        database = options.pop("database", "") or user
        if options.pop("replication", "false").lower() not in ("false", "off", "no", "0"):
            raise SqlError("replication connections are not supported", sqlstate="0A000")
        if self._config.require_tls and not self._encrypted:
            raise SqlError(
                "this server accepts encrypted connections only",
                sqlstate="28000",
                hint="Connect with sslmode=require.",
            )
        self.wire.begin_messages(MAX_AUTHENTICATION_BYTES)
        address, local = self._peer()
        if self._config.authenticator is not None:
            await self._config.authenticator.authenticate(self.wire, user, safe_line=self._encrypted or local)
        session = await self._config.coordinator.connect(user, database, options, address)
        self.wire.send(messages.AUTHENTICATION_OK)
        self._report_parameters(session)
        self.wire.send(messages.backend_key_data(session.process_id, session.secret))
        return session

    def _peer(self) -> tuple[str, bool]:
        """The client's address, and whether it is on this host."""
        assert self.wire.transport is not None
        peer = self.wire.transport.get_extra_info("peername")
        if not isinstance(peer, tuple):
            return "local", True
        host = str(peer[0])
        return f"{host}:{peer[1]}", host in ("::1", "::ffff:127.0.0.1") or host.startswith("127.")

    # -- the loop

    async def _serve(self, session: Session) -> None:
        extended = ExtendedQuery(self, session)
        self.send_notices(session)
        self.wire.send(messages.ready_for_query(session.transaction_status))
        while True:
            kind, body = await self.wire.receive()
            if kind == b"X":
                await extended.close_all()
                return
            if kind == b"Q":
                extended.release_held()
                await self._simple_query(session, extended, Reader("Query", body))
            elif kind in b"dcf":
                pass  # the tail of a COPY that has failed on our side already
            elif kind == b"F":
                error = SqlError("the function call message is not supported; use SELECT", sqlstate="0A000")
                self.report(session, error)
                await self._ready(session)
            elif kind == b"p":
                raise ProtocolViolation("unexpected password message")
            else:
                await extended.handle(kind, body)

    async def _simple_query(self, session: Session, extended: ExtendedQuery, reader: Reader) -> None:
        held = b""
        try:
            text = reader.cstring()
            reader.end()
            await extended.begin_simple_query()
            statements = await session.parse(text)
            if not statements:
                held = messages.EMPTY_QUERY_RESPONSE
            for statement in statements:
                self.wire.send(held)
                held = await self._run_simple(session, await session.execute(statement, Parameters()))
                self.send_notices(session)
            await extended.close_ended_portals()
            await session.sync()
            self.wire.send(held)
        except (Disconnected, ProtocolViolation, ConnectionError):
            raise
        except Exception as error:
            self.report(session, error)
            await extended.close_ended_portals()
            await self._sync_after_error(session)
        await self._ready(session, synced=True)

    async def _run_simple(self, session: Session, outcome: Outcome) -> bytes:
        """Send one statement's result, all but its completion, which is returned."""
        if isinstance(outcome, Rows):
            formats = [False] * len(outcome.desc.columns)
            stream = RowStream(outcome, formats)
            try:
                tag = await stream.send(self.wire, head=row_description(outcome.desc, formats))
            finally:
                await stream.close()
            assert tag is not None
            return messages.command_complete(tag)
        return await self.run_rowless(outcome)

    async def run_rowless(self, outcome: Outcome) -> bytes:
        """Everything but a result set. Returns the completion message."""
        if isinstance(outcome, Completed):
            return messages.command_complete(outcome.tag)
        if isinstance(outcome, EmptyQuery):
            return messages.EMPTY_QUERY_RESPONSE
        if isinstance(outcome, CopyOut):
            return messages.command_complete(await send_copy_out(self.wire, outcome))
        assert isinstance(outcome, CopyIn), outcome
        self._copying = True
        try:
            return messages.command_complete(await receive_copy(self.wire, outcome))
        finally:
            self._copying = False

    # -- what follows each command

    def report(self, session: Session, error: BaseException) -> None:
        """Tell the client and the session of an error."""
        if not isinstance(error, PenstockError):
            _log.error("a statement failed with an internal error", error=repr(error), exc_info=error)
        self.send_notices(session)
        self.wire.send(messages.error_response(error))
        session.fail()

    async def _sync_after_error(self, session: Session) -> None:
        try:
            await session.sync()
        except PenstockError as error:
            self.report(session, error)

    async def sync(self, session: Session, held: bytes) -> None:
        """End of an extended batch: commit, and only then say `held`."""
        try:
            await session.sync()
            self.wire.send(held)
        except (Disconnected, ConnectionError):
            raise
        except Exception as error:
            self.report(session, error)
        await self._ready(session, synced=True)

    async def _ready(self, session: Session, *, synced: bool = False) -> None:
        if not synced:
            await self._sync_after_error(session)
        self.send_notices(session)
        self._report_parameters(session)
        self.wire.send(messages.ready_for_query(session.transaction_status))
        if not self.wire.has_frame:
            self.wire.flush()
        await self.wire.drain()

    def send_notices(self, session: Session) -> None:
        if session.notices:
            for notice in session.notices:
                self.wire.send(messages.notice_response(notice))
            session.notices.clear()

    def _report_parameters(self, session: Session) -> None:
        if session.parameters != self._reported:
            for name, value in session.parameters.items():
                if self._reported.get(name) != value:
                    self.wire.send(messages.parameter_status(name, value))
            self._reported = dict(session.parameters)
