"""A client that sends exactly what a test says, and checks every byte that comes back with pygwire's state machine."""

from __future__ import annotations

import asyncio
from typing import Any

from pygwire import FrontendConnection
from pygwire import messages as m


class WireClient:
    """`send` queues nothing and waits for nothing; `until` reads messages up to the first of a kind."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.oracle = FrontendConnection()
        self._ready: list[Any] = []

    @staticmethod
    async def open(port: int) -> WireClient:
        return WireClient(*await asyncio.open_connection("127.0.0.1", port))

    @staticmethod
    async def started(port: int, user: str = "u") -> WireClient:
        client = await WireClient.open(port)
        client.send(m.StartupMessage({"user": user, "database": "d"}))
        await client.until(m.ReadyForQuery)
        return client

    def send(self, *messages: Any) -> None:
        self.writer.write(b"".join(self.oracle.send(message) for message in messages))

    def send_raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def next(self) -> Any:
        """The next message; None at the end of the stream."""
        async with asyncio.timeout(10):
            while not self._ready:
                data = await self.reader.read(1 << 16)
                if not data:
                    return None
                self._ready += self.oracle.receive(data)
        return self._ready.pop(0)

    async def until(self, kind: type) -> list[Any]:
        seen: list[Any] = []
        while not (seen and isinstance(seen[-1], kind)):
            message = await self.next()
            assert message is not None, f"closed after {seen}"
            seen.append(message)
        return seen

    async def to_the_end(self) -> bytes:
        """Raw bytes until the server closes."""
        async with asyncio.timeout(10):
            return await self.reader.read(-1)

    def close(self) -> None:
        self.writer.close()


def kinds(messages: list[Any]) -> list[str]:
    return [type(message).__name__ for message in messages]
