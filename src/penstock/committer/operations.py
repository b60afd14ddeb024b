"""The client's end of a stream of operations: numbers requests, gathers them into messages, hands out answers.

A request made while there is no connection waits for one until its deadline; so a restart of the server costs callers
one wait, not a storm of failures. When a stream breaks, what was sent over it is indeterminate at once; what was not
sent yet goes over the next one. When the server ends it in order, it has answered all that it had taken, and the rest
goes over the next stream too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import structlog

from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer.address import COMMITTER_CHANNEL_OPTIONS
from penstock.committer.credentials import Credentials
from penstock.committer.streams import Disconnected, or_disconnected
from penstock.persist import StoreUnusable
from penstock.runtime import Clock, Indeterminate, TaskOwner

_log = structlog.get_logger("penstock.committer")

PENDING_MAX = 4_096
"""Requests of one stream without an answer; callers beyond that wait for their turn."""

MESSAGE_REQUESTS_MAX = 1_024
MESSAGE_BYTES_MAX = 1 << 20

BACKOFF_S = 0.02
BACKOFF_MAX_S = 0.5


_Kind: TypeAlias = type[Indeterminate] | type[StoreUnusable]


Fill = Callable[[pb.Request], None]
"""Writes an operation into a request."""


class _Pending:
    __slots__ = ("answer", "deadline", "fill", "nbytes", "sent")

    def __init__(self, fill: Fill, nbytes: int, answer: asyncio.Future[pb.Response], deadline: float) -> None:
        self.fill = fill
        self.nbytes = nbytes
        self.answer = answer
        self.deadline = deadline
        self.sent = False


class CallFailed(Exception):
    """A call has no answer. `kind` is what its caller should see; the text does not say yet what was tried."""

    def __init__(self, kind: _Kind, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class ConnectionLog:
    """What a client tells of its connection: each fact once, however many streams find it out."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._told: set[str] = set()

    def connecting(self) -> None:
        self._once("connecting", lambda: _log.info(f"connecting to the committer: {self._target}"))

    def connected(self) -> None:
        self._once("connected", lambda: _log.info("connected", target=self._target))

    def lost(self, cause: str) -> None:
        """Again when there has been a connection since."""
        self._once("lost", lambda: _log.info("no connection to the committer", target=self._target, cause=cause))

    def found(self) -> None:
        """A stream stands: that is news after a loss, and the next loss will be."""
        self.connected()
        if "lost" in self._told:
            self._told.discard("lost")
            _log.info("connected to the committer again", target=self._target)

    def _once(self, fact: str, tell: Callable[[], None]) -> None:
        if fact not in self._told:
            self._told.add(fact)
            tell()


class OperationStream:
    """Operations on the committer at `target`, over one stream that is opened with the first and reopened for ever.

    Belongs to the event loop of its first call.
    """

    def __init__(
        self, target: str, credentials: Credentials, timeout_s: float, clock: Clock, log: ConnectionLog
    ) -> None:
        self._target = target
        self._log = log
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._clock = clock
        self._tasks = TaskOwner("committer-client")
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        """By id, and so by deadline: ids are given out in time and all wait equally long."""
        self._outbox: deque[int] = deque()
        self._wake = asyncio.Event()
        self._turns = asyncio.Semaphore(PENDING_MAX)
        self._why = "not connected yet"
        self._running = False
        self._closed = False

    async def call(self, fill: Fill, nbytes: int) -> pb.Response:
        """Send the operation that `fill` writes, of about `nbytes`, and return the answer.

        Raises `CallFailed`: `Indeterminate` when the connection breaks after it was sent or no answer comes in time,
        `StoreUnusable` when the committer refuses who we are. A cancelled call may or may not have happened.
        """
        if self._closed:
            raise CallFailed(Indeterminate, "the client is closed")
        self._start()
        async with self._turns:
            id_ = next(self._ids)
            answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()
            self._pending[id_] = _Pending(fill, nbytes, answer, self._clock.monotonic() + self._timeout_s)
            self._outbox.append(id_)
            self._wake.set()
            try:
                return await answer
            finally:
                self._pending.pop(id_, None)

    async def close(self) -> None:
        """End the stream. Calls in flight fail with `Indeterminate`, as do later ones."""
        self._closed = True
        self._fail(list(self._pending.values()), Indeterminate, "the client was closed meanwhile")
        await self._tasks.close()

    def _start(self) -> None:
        if not self._running:
            self._running = True
            self._tasks.spawn(self._reconnect_for_ever(), self._target)
            self._tasks.spawn(self._watch_deadlines(), f"deadlines of {self._target}")

    # The connection

    async def _reconnect_for_ever(self) -> None:
        self._log.connecting()
        backoff_s = BACKOFF_S
        async with self._credentials.channel(self._target, COMMITTER_CHANNEL_OPTIONS) as channel:
            stub: Any = pb_grpc.ConsensusStub(channel)  # type: ignore[no-untyped-call]
            while True:
                call = stub.Operate(metadata=self._credentials.metadata())
                try:
                    await or_disconnected(call.read())  # the first message is empty: the server takes requests
                    backoff_s = BACKOFF_S
                    self._log.found()
                    await self._exchange(call)
                except Disconnected as error:
                    self._disconnected(error)
                finally:
                    call.cancel()
                await self._clock.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _exchange(self, call: grpc.aio.StreamStreamCall) -> None:
        # Not a TaskGroup: it forgets a cancellation from outside that meets an error within.
        both = [asyncio.ensure_future(self._receive(call)), asyncio.ensure_future(self._send(call))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            for task in both:
                task.cancel()
            results = await asyncio.gather(*both, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        raise Disconnected("the connection was cancelled")

    def _disconnected(self, error: Disconnected) -> None:
        self._log.lost(str(error))
        self._why = str(error)
        if error.refused:
            # Refused before anything was taken: nothing happened, and nothing will until somebody mends it.
            self._fail(list(self._pending.values()), StoreUnusable, f"it refuses us: {error}", error)
            return
        if error.orderly:
            # It has answered all that it had taken: the rest never reached it.
            unanswered = {id_: pending for id_, pending in self._pending.items() if not pending.answer.done()}
            for pending in unanswered.values():
                pending.sent = False
            self._outbox = deque(unanswered)
            return
        sent = [pending for pending in self._pending.values() if pending.sent]
        self._fail(sent, Indeterminate, f"the connection broke: {error}", error)

    async def _send(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            while self._outbox:
                await or_disconnected(call.write(self._message()))
            self._wake.clear()
            await self._wake.wait()

    def _message(self) -> pb.Requests:
        message = pb.Requests()
        nbytes = 0
        while self._outbox and len(message.requests) < MESSAGE_REQUESTS_MAX:
            id_ = self._outbox[0]
            pending = self._pending.get(id_)
            if pending is not None:  # else it was given up meanwhile
                nbytes += 64 + pending.nbytes
                if message.requests and nbytes > MESSAGE_BYTES_MAX:
                    break
                request = message.requests.add()
                request.id = id_
                pending.fill(request)
                pending.sent = True
            self._outbox.popleft()
        return message

    async def _receive(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            message = await or_disconnected(call.read())
            if message is grpc.aio.EOF:
                orderly = await or_disconnected(call.code()) is grpc.StatusCode.OK
                raise Disconnected("the server ended the stream", orderly=orderly)
            for response in message.responses:
                pending = self._pending.get(response.id)
                if pending is not None and not pending.answer.done():
                    pending.answer.set_result(response)

    # Giving up

    async def _watch_deadlines(self) -> None:
        while True:
            oldest = next(iter(self._pending.values()), None)
            now = self._clock.monotonic()
            if oldest is not None and oldest.deadline <= now:
                self._expire(now)
                continue
            await self._clock.sleep(self._timeout_s if oldest is None else oldest.deadline - now)

    def _expire(self, now: float) -> None:
        late = [(id_, pending) for id_, pending in self._pending.items() if pending.deadline <= now]
        for id_, pending in late:
            where = "no answer" if pending.sent else f"no connection ({self._why})"
            self._fail([pending], Indeterminate, f"{where} within {self._timeout_s:g} s")
            del self._pending[id_]

    def _fail(self, pending: list[_Pending], kind: _Kind, why: str, cause: BaseException | None = None) -> None:
        for one in pending:
            if not one.answer.done():
                failed = CallFailed(kind, why)
                failed.__cause__ = cause
                one.answer.set_exception(failed)
