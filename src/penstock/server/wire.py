"""One connection's bytes: framing, limits and flow control, in both directions.

Inbound, frames queue up until the connection's task takes them; past `QUEUE_BYTES` the socket is no longer
read, so a client that sends faster than we work is slowed by TCP, not by our memory. A frame's length is
checked before its body is awaited. Outbound, small messages collect and are written at the latest when the
event loop next comes round (so one answer is one packet, and a message never waits on a task that sleeps);
`drain` waits while the socket is full.

The class knows nothing of what messages mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable

from penstock.runtime import PenstockError
from penstock.server.messages import ProtocolViolation

QUEUE_BYTES = 1 << 18
_WRITE_THROUGH_BYTES = 1 << 16
_KINDS = frozenset(b"BCDEFHPQSXcdfpd")


class Disconnected(PenstockError):
    """The client is gone. Ends the connection quietly."""

    sqlstate = "08006"


class Wire(asyncio.Protocol):
    """`on_connect(wire)` starts the connection's work and sets `on_lost`. `limit`: bytes of one frame."""

    def __init__(self, on_connect: Callable[[Wire], None], *, limit: int) -> None:
        self.limit = limit
        self.on_lost: Callable[[], object] | None = None
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self._on_connect = on_connect
        self._buffer = bytearray()
        self._needed = 0  # bytes the incomplete frame at the buffer's start will have, when known
        self._frames: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._framed = False  # startup packets have no type byte
        self._waiter: asyncio.Future[None] | None = None
        self._failure: PenstockError | None = None
        self._reading = True
        self._eof = False
        self._out = bytearray()
        self._flush_scheduled = False
        self._writable: asyncio.Future[None] | None = None

    # -- asyncio.Protocol
    # -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), transport
        self.transport = transport
        self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        if self._failure is not None:
            return
        self._buffer += data
        if self._needed and len(self._buffer) < self._needed:
            return
        self._split()
        self._wake()

    def eof_received(self) -> bool:
        """No client speaks on after it closed its side: what runs for it is cancelled, as if it had died."""
        self._eof = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._eof = True
        self._wake()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # -- inbound

    async def receive(self) -> tuple[bytes, bytes]:
        """The next frame: (type byte, body); the type is empty during startup.

        `Disconnected` at the end, `ProtocolViolation` for a frame that cannot be one. Cancel-safe: a frame
        is either returned or stays queued.
        """
        if self._buffer and not self._frames and not self._needed and self._failure is None:
            self._split()  # behind a startup packet that was only a question
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            if self._eof:
                raise Disconnected("the client closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        kind, body = self._frames.popleft()
        self._queued_bytes -= len(body) + 16
        if not self._reading and self._queued_bytes < QUEUE_BYTES // 2 and self.transport is not None:
            self._reading = True
            if not self.lost:
                self.transport.resume_reading()
        return (bytes((kind,)) if kind else b"", body)

    @property
    def has_frame(self) -> bool:
        return bool(self._frames)

    def interrupt(self, error: PenstockError) -> None:
        """Make a `receive` that waits now raise `error`; without one, nothing happens."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def begin_messages(self, limit: int) -> None:
        """Startup is over: frames have a type byte from here on, and at most `limit` bytes."""
        self._framed = True
        self.limit = limit
        self._split()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Answer an SSLRequest with yes. Bytes that came before encryption began are refused: nobody signed them."""
        assert self.transport is not None
        if self._buffer or self._frames:
            raise ProtocolViolation("received unencrypted data after SSL request")
        self.flush()
        self.transport.write(b"S")
        # no await between the two: the client's hello must find the TLS layer in place
        transport = await asyncio.get_running_loop().start_tls(
            self.transport, self, context, server_side=True, ssl_handshake_timeout=10
        )
        if transport is None:
            raise Disconnected("the client left during the TLS handshake")
        self.transport = transport

    def _split(self) -> None:
        head = 5 if self._framed else 4
        buffer = self._buffer
        start, end = 0, len(buffer)
        self._needed = 0
        while end - start >= head:
            length = int.from_bytes(buffer[start + head - 4 : start + head], "big", signed=True)
            kind = buffer[start] if self._framed else 0
            if self._framed and kind not in _KINDS:
                return self._break(f"invalid frontend message type {kind}")
            if length < 4:
                return self._break("invalid message length")
            if length - 4 > self.limit:
                return self._break(f"message of {length} bytes is larger than the limit of {self.limit} bytes")
            size = head - 4 + length
            if end - start < size:
                self._needed = size
                break
            self._frames.append((kind, bytes(memoryview(buffer)[start + head : start + size])))
            self._queued_bytes += size - head + 16
            start += size
            if not self._framed:
                break  # what the startup packet was decides how to read on
        if start:
            del buffer[:start]
        if self._queued_bytes > QUEUE_BYTES and self._reading and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()

    def _break(self, reason: str) -> None:
        self._failure = ProtocolViolation(reason)
        self._buffer.clear()
        if self.transport is not None and self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- outbound

    def send(self, data: bytes | memoryview) -> None:
        """Queue bytes; they leave when the loop next comes round, at `flush`, or when they are many."""
        if self.lost:
            return
        if len(data) >= _WRITE_THROUGH_BYTES:
            self.flush()
            assert self.transport is not None
            self.transport.write(data)
            return
        self._out += data
        if len(self._out) >= _WRITE_THROUGH_BYTES:
            self.flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        if self._out and not self.lost and self.transport is not None:
            self.transport.write(bytes(self._out))
            self._out.clear()

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent. `Disconnected` when it is gone."""
        if self._writable is not None:
            await self._writable
        if self.lost:
            raise Disconnected("the client closed the connection")

    def close(self) -> None:
        """Send what is queued, then close."""
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        if self.transport is not None:
            self.transport.abort()
