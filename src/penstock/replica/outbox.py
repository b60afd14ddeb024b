"""Responses on their way to the controller, for one session.

Frontiers are coalesced: while the connection is busy, only the newest of each collection is kept, so that a slow
reader costs memory by the number of collections and a fast one sees every move at once. Everything else keeps its
order and is bounded by bytes: peeks by their credit, and a session whose controller does not read is ended (it will
come back and is then told the present state).
"""

from __future__ import annotations

import asyncio
from collections import deque

from penstock.replica import compute_pb2 as pb
from penstock.runtime import Frontier

_QUEUED_BYTES_MAX = 512 << 20
_FIELDS = ("write", "input", "output")


class Outbox:
    """For one event loop."""

    def __init__(self) -> None:
        self._reported: dict[str, dict[str, Frontier]] = {}
        self._moved: dict[str, dict[str, Frontier]] = {}
        self._queue: deque[tuple[pb.Response, int]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._closed = False

    def frontiers(
        self,
        id_: str,
        *,
        write: Frontier | None = None,
        input: Frontier | None = None,
        output: Frontier | None = None,
    ) -> None:
        """Report those that moved; what would be a regress within this session is left out."""
        reported = self._reported.setdefault(id_, {})
        for field, frontier in zip(_FIELDS, (write, input, output), strict=True):
            if frontier is not None and frontier > reported.get(field, -1):
                reported[field] = frontier
                self._moved.setdefault(id_, {})[field] = frontier
                self._news.set()

    def forget(self, id_: str) -> None:
        """The collection is gone; what was reported of it is not compared with any more."""
        self._reported.pop(id_, None)

    def send(self, response: pb.Response) -> None:
        """Queue a response. Ends the session when too much waits."""
        if self._closed:
            return
        size = response.ByteSize()
        self._bytes += size
        self._queue.append((response, size))
        self._news.set()
        if self._bytes > _QUEUED_BYTES_MAX and len(self._queue) > 1:
            self.close()

    def close(self) -> None:
        """No more responses; `next` answers None from now on."""
        self._closed = True
        self._queue.clear()
        self._moved.clear()
        self._news.set()

    async def next(self) -> pb.Response | None:
        """The next response, or None once closed. A cancelled call loses nothing."""
        while not self._closed:
            if self._moved:
                moved, self._moved = self._moved, {}
                reports = [pb.Frontiers(id=id_, **fields) for id_, fields in moved.items()]
                return pb.Response(frontiers=pb.FrontierReports(reports=reports))
            if self._queue:
                response, size = self._queue.popleft()
                self._bytes -= size
                return response
            self._news.clear()
            await self._news.wait()
        return None
