"""The gRPC service `Consensus`: checks requests, calls the committer, and sends results and errors as
data.

A client's operations come over one or more streams, many in one message, and are answered in the order in which they
end. What has ended by the time the stream is free shares a message. Only a broken transport shows as a status.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

import grpc
import structlog
from google.protobuf.message import DecodeError

from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer import metrics, wire
from penstock.committer.coalesce import Change
from penstock.committer.in_process import InProcessConsensus
from penstock.committer.peers import Peers
from penstock.persist import CasResult, Consensus, SeqNo, Versioned
from penstock.runtime import Clock, Determinate, ExternalError

_log = structlog.get_logger("penstock.committer")

OUTSTANDING_MAX = 4_096
"""Operations of one stream whose answer is not sent yet; beyond that it is not read, and the client has to wait."""

MESSAGE_OPERATIONS_MAX = 1_024
MESSAGE_BYTES_MAX = 1 << 20
"""A message is not filled beyond this; a single larger answer goes alone."""


class ConsensusService(pb_grpc.ConsensusServicer):
    """Answers every operation with a result or ``err``. Owns nothing of `consensus`."""

    def __init__(self, consensus: Consensus, clock: Clock, peers: Peers) -> None:
        self._consensus = consensus
        self._clock = clock
        self._peers = peers
        self._streams: set[_Stream] = set()
        self._closed = False

    async def Operate(self, request_iterator: object, context: grpc.aio.ServicerContext) -> None:
        """One stream of a client, until it goes away or the service closes."""
        if self._closed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the committer is shutting down")
        self._peers.connected(context.peer())
        stream = _Stream(self._consensus, self._clock, self._peers, context)
        self._streams.add(stream)
        self._tell_streams()
        metrics.CONNECTIONS.inc()
        try:
            await context.write(pb.Responses())
            await stream.serve()
        finally:
            self._streams.discard(stream)
            self._tell_streams()
            metrics.CONNECTIONS.dec()
        if stream.garbage is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, stream.garbage)
        if not stream.answered_all:
            # Only an orderly end tells the client that what has no answer was not taken.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not all that was taken is answered")

    def _tell_streams(self) -> None:
        if isinstance(self._consensus, InProcessConsensus):
            self._consensus.called_by(len(self._streams))

    def close(self) -> None:
        """Take no more requests; the streams end when what they have taken is answered."""
        self._closed = True
        for stream in self._streams:
            stream.drain()


class _Stream:
    """One stream: what is being answered, and the answers that wait to be sent."""

    def __init__(self, consensus: Consensus, clock: Clock, peers: Peers, context: grpc.aio.ServicerContext) -> None:
        self._consensus = consensus
        self._committer = consensus if isinstance(consensus, InProcessConsensus) and consensus.coalesces else None
        self._clock = clock
        self._peers = peers
        self._context = context
        self._offered: dict[int, Change | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: deque[pb.Response] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._draining = asyncio.Event()
        self._drained = False
        """Nothing more is taken; the stream ends with the last answer."""
        self.garbage: str | None = None
        """Why the stream was given up: what came over it was no message."""
        self.answered_all = False

    def drain(self) -> None:
        self._draining.set()

    async def serve(self) -> None:
        sending = asyncio.ensure_future(self._send())
        taking = asyncio.ensure_future(self._take())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait([sending, taking, draining], return_when=asyncio.FIRST_COMPLETED)
            taking.cancel()
            if not sending.done() and self.garbage is None:
                self._drained = True
                self._wake.set()
                await sending
                self.answered_all = True
        finally:
            everything = [sending, taking, draining, *self._tasks]
            for task in everything:
                task.cancel()
            for change in self._offered.values():
                if change is not None:
                    change.withdraw()
            for result in await asyncio.gather(*everything, return_exceptions=True):
                if isinstance(result, Exception):
                    _log.debug("a stream of operations ended", error=repr(result))

    async def _take(self) -> None:
        while True:
            await self._room.wait()
            try:
                message = await self._context.read()
            except DecodeError as error:
                self.garbage = f"not a message of this service: {error}"
                self._peers.refused(self._context.peer(), "garbage", self.garbage)
                return
            if message is grpc.aio.EOF:
                return
            started = self._clock.monotonic()
            if self._committer is not None:
                await self._committer.room()
            for request in message.requests:
                if self._committer is not None and request.HasField("compare_and_set"):
                    self._offer(self._committer, request.id, request.compare_and_set, started)
                else:
                    task = asyncio.ensure_future(self._answer(request, started))
                    self._tasks.add(task)
            self._look_for_room()

    def _offer(self, committer: InProcessConsensus, id_: int, change: pb.CompareAndSetRequest, started: float) -> None:
        """A compare-and-set without a task of its own: there are more of them than of all else together."""
        _SETS.in_flight += 1
        settle = partial(self._settled, id_, started)
        self._offered[id_] = None
        try:
            self._offered[id_] = committer.offer(change.key, _checked(change), settle)
        except Determinate as error:
            settle(error)

    def _settled(self, id_: int, started: float, outcome: CasResult | ExternalError) -> None:
        self._offered.pop(id_, None)
        response = pb.Response(id=id_)
        if isinstance(outcome, CasResult):
            response.committed = outcome is CasResult.COMMITTED
            result = outcome.value
        else:
            result = self._failed("compare_and_set", outcome, response)
        self._answered("compare_and_set", result, started, response)

    def _look_for_room(self) -> None:
        if len(self._tasks) + len(self._offered) + len(self._answers) < OUTSTANDING_MAX:
            self._room.set()
        else:
            self._room.clear()

    async def _send(self) -> None:
        while True:
            while self._answers:
                await self._context.write(self._message())
                self._look_for_room()
            if self._drained and not self._tasks and not self._offered:
                return
            self._wake.clear()
            await self._wake.wait()

    def _message(self) -> pb.Responses:
        message = pb.Responses()
        nbytes = 0
        while self._answers and len(message.responses) < MESSAGE_OPERATIONS_MAX:
            nbytes += _data_bytes(self._answers[0])
            if message.responses and nbytes > MESSAGE_BYTES_MAX:
                break
            message.responses.append(self._answers.popleft())
        return message

    async def _answer(self, request: pb.Request, started: float) -> None:
        op = request.WhichOneof("operation") or "unknown"
        metrics.RPC.of[op].in_flight += 1
        response = pb.Response(id=request.id)
        task = asyncio.current_task()
        assert task is not None
        try:
            result = await self._operate(op, request, response)
        except asyncio.CancelledError:
            self._tasks.discard(task)
            self._answered(op, "cancelled", started, None)
            raise
        except Exception as error:
            result = self._failed(op, error, response)
        self._tasks.discard(task)
        self._answered(op, result, started, response)

    def _answered(self, op: str, result: str, started: float, response: pb.Response | None) -> None:
        metrics.RPC.of[op].ended(result, self._clock.monotonic() - started)
        if response is not None:
            self._answers.append(response)
            self._wake.set()

    def _failed(self, op: str, error: Exception, response: pb.Response) -> str:
        """Put `error` into `response` and say its kind in a word.

        Everything a store can throw must reach the client with its causes: an escaped exception would become a bare
        status without them.
        """
        kind = _kind(error)
        if kind == "indeterminate":
            _log.warning("the consensus store failed", op=op, causes=wire.cause_chain(error))
        elif kind == "invalid":
            self._peers.refused(self._context.peer(), "invalid", str(error))
        response.err.CopyFrom(wire.to_error(error))
        return kind

    async def _operate(self, op: str, request: pb.Request, response: pb.Response) -> str:
        """Carry out `request`, put its result into `response`, and say it in a word for the metrics."""
        match op:
            case "compare_and_set":
                change = request.compare_and_set
                new = _checked(change)
                outcome = await self._consensus.compare_and_set(change.key, new)
                response.committed = outcome is CasResult.COMMITTED
                return outcome.value
            case "head":
                wire.check_key(request.head.key)
                version = await self._consensus.head(request.head.key, linearized=request.head.linearized)
                response.head.SetInParent()
                if version is not None:
                    response.head.version.CopyFrom(wire.to_version(version))
            case "scan":
                scan = request.scan
                wire.check_key(scan.key)
                wire.check_seqno(scan.from_seqno)
                wire.check_limit(scan.limit)
                versions = await self._consensus.scan(scan.key, SeqNo(scan.from_seqno), scan.limit)
                response.scan.SetInParent()
                response.scan.versions.extend(wire.to_version(version) for version in versions)
            case "truncate":
                wire.check_key(request.truncate.key)
                wire.check_seqno(request.truncate.seqno)
                response.deleted = await self._consensus.truncate(request.truncate.key, SeqNo(request.truncate.seqno))
            case "list_keys":
                keys = await self._consensus.list_keys()
                response.list_keys.SetInParent()
                response.list_keys.keys.extend(keys)
            case _:
                raise wire.InvalidRequest("a request for an operation that this committer does not know")
        return "ok"


def _checked(change: pb.CompareAndSetRequest) -> Versioned:
    wire.check_key(change.key)
    if not change.HasField("seqno"):
        raise wire.InvalidRequest("a compare-and-set without a seqno")
    new = Versioned(SeqNo(change.seqno), change.data)
    wire.check_version(new)
    return new


def _data_bytes(response: pb.Response) -> int:
    """What the answer weighs, roughly."""
    match response.WhichOneof("result"):
        case "head" | "scan" | "list_keys":
            return int(response.ByteSize())
        case _:
            return 64


def _kind(error: Exception) -> str:
    if isinstance(error, wire.InvalidRequest):
        return "invalid"
    return "determinate" if isinstance(error, Determinate) else "indeterminate"


_SETS = metrics.RPC.of["compare_and_set"]
