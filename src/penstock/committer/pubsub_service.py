"""The gRPC service `PubSub`: passes state diffs between the processes of an environment.

Everything here is best effort: a diff may be lost, repeated or reordered, and persist's polling stays behind
it. A diff is the version that was committed to the consensus store, so a new subscriber is sent the head at
once: it learns of what was committed between its last read and its subscription without waiting for a poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import grpc
import structlog
from google.protobuf.message import DecodeError

from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer import metrics, wire
from penstock.committer.diff_queue import DiffQueue
from penstock.committer.peers import Peers
from penstock.persist import Consensus, PubSub, ShardId, Versioned
from penstock.runtime import ExternalError

_log = structlog.get_logger("penstock.pubsub")

SUBSCRIPTIONS_MAX = 100_000
"""Shards that one client may follow."""


class PubSubService(pb_grpc.PubSubServicer):
    """Joins the clients' streams with `pubsub`, the one of the process itself."""

    def __init__(self, consensus: Consensus, pubsub: PubSub, peers: Peers) -> None:
        self._consensus = consensus
        self._pubsub = pubsub
        self._peers = peers
        self._connections: set[_Connection] = set()
        self._closed = False

    async def Stream(self, request_iterator: object, context: grpc.aio.ServicerContext) -> None:
        """One client, until it goes away or the service closes."""
        if self._closed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the committer is shutting down")
        connection = _Connection(self._consensus, self._pubsub)
        self._connections.add(connection)
        metrics.PUBSUB_CONNECTIONS.inc()
        self._peers.connected(context.peer())
        try:
            await context.write(pb.ServerMessage())
            await connection.serve(context)
        finally:
            self._connections.discard(connection)
            metrics.PUBSUB_CONNECTIONS.dec()
        if connection.refusal is not None:
            reason, why = connection.refusal
            self._peers.refused(context.peer(), reason, why)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)

    def close(self) -> None:
        """End all streams; the clients will look for the next server."""
        self._closed = True
        for connection in self._connections:
            connection.end()


class _Connection:
    """One client: what it follows, and what waits to be sent to it."""

    def __init__(self, consensus: Consensus, pubsub: PubSub) -> None:
        self._consensus = consensus
        self._pubsub = pubsub
        self._queue = DiffQueue(metrics.PUBSUB_DROPPED)
        self._unsubscribe: dict[ShardId, Callable[[], None]] = {}
        self._own: dict[ShardId, int] = {}
        """Followed shard -> newest seqno that came from this client: it is not sent back."""
        self._greet: dict[ShardId, None] = {}
        """Newly followed shards whose head is still to be sent, in order."""
        self._wake = asyncio.Event()
        self._greet_wake = asyncio.Event()
        self._ended = asyncio.Event()
        self.refusal: tuple[str, str] | None = None
        """Why the stream was given up, in a word and in full: what came over it cannot be."""

    def end(self) -> None:
        self._ended.set()

    async def serve(self, context: grpc.aio.ServicerContext) -> None:
        tasks = [
            asyncio.ensure_future(work)
            for work in (
                self._receive(context),
                self._send(context),
                self._send_heads(),
                self._ended.wait(),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for unsubscribe in self._unsubscribe.values():
                unsubscribe()
            self._unsubscribe.clear()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    _log.debug("a pub-sub stream ended", error=repr(result))

    async def _receive(self, context: grpc.aio.ServicerContext) -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                self._take(message)
        except DecodeError as error:
            self.refusal = "garbage", f"not a message of this service: {error}"
        except wire.InvalidRequest as error:
            self.refusal = "invalid", str(error)

    def _take(self, message: pb.ClientMessage) -> None:
        for shard in message.unsubscribe:
            self._unfollow(ShardId(shard))
        for shard in message.subscribe:
            self._follow(ShardId(shard))
        for diff in message.diffs:
            self._publish(diff)

    def _follow(self, shard: ShardId) -> None:
        if shard in self._unsubscribe:
            return
        wire.check_key(shard)
        if len(self._unsubscribe) >= SUBSCRIPTIONS_MAX:
            _log.warning("a client follows too many shards; the rest it must poll", limit=SUBSCRIPTIONS_MAX)
            return
        # Subscribed before the head is read: a commit between the two is seen twice rather than never.
        self._unsubscribe[shard] = self._pubsub.subscribe(shard, partial(self._enqueue, shard))
        self._greet[shard] = None
        self._greet_wake.set()

    def _unfollow(self, shard: ShardId) -> None:
        unsubscribe = self._unsubscribe.pop(shard, None)
        if unsubscribe is not None:
            unsubscribe()
        self._own.pop(shard, None)
        self._greet.pop(shard, None)

    def _publish(self, diff: pb.PushDiff) -> None:
        wire.check_key(diff.shard)
        version = wire.from_version(diff.version)
        wire.check_version(version)
        shard = ShardId(diff.shard)
        if shard in self._unsubscribe:
            self._own[shard] = max(version.seqno, self._own.get(shard, 0))
        self._pubsub.publish(shard, version)

    def _enqueue(self, shard: ShardId, version: Versioned) -> None:
        if self._own.get(shard) == version.seqno:
            return
        self._queue.put(shard, version)
        metrics.PUBSUB_FORWARDED.inc()
        self._wake.set()

    async def _send(self, context: grpc.aio.ServicerContext) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while diffs := self._queue.take_message():
                await context.write(pb.ServerMessage(diffs=diffs))

    async def _send_heads(self) -> None:
        while True:
            await self._greet_wake.wait()
            self._greet_wake.clear()
            while self._greet:
                shard = next(iter(self._greet))
                del self._greet[shard]
                try:
                    head = await self._consensus.head(shard, linearized=False)
                except ExternalError as error:
                    _log.debug("no head for a new subscriber", shard=shard, error=str(error))
                    continue
                if head is not None and shard in self._unsubscribe:
                    self._enqueue(shard, head)
