"""How data enters a dataflow: a thread-safe, bounded door between an I/O task and the worker.

The producer sends updates and frontiers from any thread; the worker takes them at its next step. The buffer
between the two is bounded by bytes: `send` says when it is full, and `wait_for_room` waits, on the producer's
event loop, until the worker has taken what was there.
"""

from __future__ import annotations

import asyncio
import threading

import pyarrow as pa

from penstock.dataflow.graph import ERRORS_SCHEMA, Dataflow, Operator, Slices
from penstock.runtime import DONE, Frontier, InternalError, Updates, conform

_BUFFER_BYTES_MAX = 64 << 20


class InputOperator(Operator):
    """Passes on what its handle holds."""

    def __init__(self, dataflow: Dataflow, name: str, schema: pa.Schema) -> None:
        super().__init__(dataflow, f"input-{name}", schema, [])
        self.handle: InputHandle | None = None

    def activate(self) -> Slices | None:
        assert self.handle is not None
        messages, frontier = self.handle.take()
        for is_error, updates in messages:
            if is_error:
                self.send_errors(updates)
            else:
                self.send(updates)
        self.advance(frontier)
        return None


class InputHandle:
    """The producer's end of an input. All methods are thread-safe and none blocks.

    Contract of the producer: times of sent updates are at or beyond the last frontier given; frontiers do not
    go back; after `send` returned False it awaits `wait_for_room` before the next `send`.
    """

    def __init__(self, operator: InputOperator, *, buffer_bytes_max: int | None = None) -> None:
        operator.handle = self
        self._operator = operator
        self._lock = threading.Lock()
        self._messages: list[tuple[bool, Updates]] = []
        self._bytes = 0
        self._bytes_max = _BUFFER_BYTES_MAX if buffer_bytes_max is None else buffer_bytes_max
        self._frontier = Frontier(0)
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._wake_dataflow = operator.dataflow
        self._activated = False
        self.on_activate: list[InputHandle] | None = None

    @property
    def name(self) -> str:
        return self._operator.name

    @property
    def frontier(self) -> Frontier:
        """The last frontier given."""
        return self._frontier

    @property
    def abandoned(self) -> bool:
        """Nobody will ever take what is sent: the dataflow was dropped, or is frozen by an error."""
        return self._operator.dataflow.detached or self._operator.dataflow.error is not None

    @property
    def has_room(self) -> bool:
        return self._bytes < self._bytes_max

    def send(self, updates: Updates) -> bool:
        """Hand over row changes; times before the dataflow's `as_of` become `as_of`. False: pause, the buffer
        is full.

        Raises `InternalError` when a time is below the frontier: the dataflow may have passed it.
        """
        if updates.rows.schema != self._operator.schema:
            updates = updates.with_rows(conform(updates.rows, self._operator.schema))
        return self._enqueue(False, updates)

    def send_errors(self, errors: Updates) -> bool:
        """The same for error rows (`ERRORS_SCHEMA`)."""
        if errors.rows.schema != ERRORS_SCHEMA:
            errors = errors.with_rows(conform(errors.rows, ERRORS_SCHEMA))
        return self._enqueue(True, errors)

    def advance_to(self, frontier: Frontier) -> None:
        """All updates below `frontier` have been sent. An earlier frontier than before is ignored."""
        with self._lock:
            if frontier <= self._frontier:
                return
            self._frontier = frontier
        self._wake()

    def close(self) -> None:
        """No more updates will come."""
        self.advance_to(DONE)

    async def wait_for_room(self) -> None:
        """Return when the buffer has room. Cancellable at any time."""
        with self._lock:
            if self.has_room:
                return
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.append((loop, waiter))
        await waiter

    def take(self) -> tuple[list[tuple[bool, Updates]], Frontier]:
        """For the worker: everything sent so far and the frontier that closes it, within the dataflow's time
        range."""
        dataflow = self._operator.dataflow
        with self._lock:
            messages, self._messages = self._messages, []
            frontier = self._frontier
            self._bytes = 0
            self._activated = False
            waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            _wake_waiter(loop, waiter)
        if frontier >= dataflow.until:
            frontier = DONE
        taken: list[tuple[bool, Updates]] = []
        for is_error, updates in messages:
            within = updates.advance_to(dataflow.as_of)
            if dataflow.until != DONE:
                within = within.filter(within.times < dataflow.until)
            if len(within):
                taken.append((is_error, within))
        return taken, frontier

    def _enqueue(self, is_error: bool, updates: Updates) -> bool:
        if len(updates) == 0:
            return self.has_room
        with self._lock:
            if int(updates.times.min()) < self._frontier:
                raise InternalError(
                    f"{self.name}: an update at {int(updates.times.min())} came after frontier {self._frontier}"
                )
            self._messages.append((is_error, updates))
            self._bytes += updates.nbytes
        self._wake()
        return self.has_room

    def _wake(self) -> None:
        with self._lock:
            if self._activated:
                return
            self._activated = True
        self._operator.dataflow.input_ready(self._operator)


def _wake_waiter(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    def finish() -> None:
        if not waiter.done():
            waiter.set_result(None)

    try:
        loop.call_soon_threadsafe(finish)
    except RuntimeError:
        assert loop.is_closed()  # nobody is left to wake
