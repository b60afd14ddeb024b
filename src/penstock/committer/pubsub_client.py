"""`RpcPubSub`: persist's `PubSub` between processes, through the committer's stream.

One stream per process. It is opened with the first use and reconnected for ever; after a reconnect all live
subscriptions are sent again, and the server answers each with the shard's head, so that what was missed
meanwhile is noticed at once. Nothing depends on a message: all may be lost, repeated or reordered.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import grpc
import structlog

from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer import metrics, wire
from penstock.committer.address import COMMITTER_CHANNEL_OPTIONS, check_address
from penstock.committer.credentials import NO_CREDENTIALS, Credentials
from penstock.committer.diff_queue import DiffQueue
from penstock.committer.streams import Disconnected, or_disconnected
from penstock.persist import ShardId, Versioned
from penstock.runtime import Clock, SystemClock, TaskOwner

_log = structlog.get_logger("penstock.pubsub")

OnDiff = Callable[[Versioned], None]

CONNECT_POLL_S = 0.01
BACKOFF_S = 0.05
BACKOFF_MAX_S = 2.0


class RpcPubSub:
    """Publish and subscribe through the committer at `target` (``unix:/path`` or ``host:port``, loopback
    only unless `credentials` say who we are).

    All methods belong to one running event loop. Callbacks run on it and must not block; what they raise is
    logged. Subscribers in this process hear of its own diffs directly; the server does not send them back.
    """

    def __init__(self, target: str, *, credentials: Credentials = NO_CREDENTIALS, clock: Clock | None = None) -> None:
        self._target = check_address(target, authenticated=credentials.token is not None or credentials.tls)
        self._credentials = credentials
        self._clock = clock if clock is not None else SystemClock()
        self._tasks = TaskOwner("pubsub-client")
        self._queue = DiffQueue(metrics.PUBSUB_CLIENT_DROPPED)
        self._callbacks: dict[ShardId, dict[int, OnDiff]] = {}
        self._tokens = itertools.count()
        self._announced: set[ShardId] = set()
        self._changed: set[ShardId] = set()
        """Shards whose subscription may differ from what was announced on the present stream."""
        self._wake = asyncio.Event()
        self._running = False
        self._closed = False
        self._connects = 0
        self._connected = asyncio.Event()

    def publish(self, shard: ShardId, version: Versioned) -> None:
        """Offer `version` to every other process; never blocks. Drops the oldest when the server does not
        keep up.
        """
        if self._closed:
            return
        self._start()
        self._deliver(shard, version)
        self._queue.put(shard, version)
        self._wake.set()

    def subscribe(self, shard: ShardId, on_diff: OnDiff) -> Callable[[], None]:
        """Call `on_diff` with diffs of `shard` until the returned function is called (more than once is
        harmless).
        """
        self._start()
        token = next(self._tokens)
        self._callbacks.setdefault(shard, {})[token] = on_diff
        self._mark(shard)

        def unsubscribe() -> None:
            callbacks = self._callbacks.get(shard)
            if callbacks is None or callbacks.pop(token, None) is None:
                return
            if not callbacks:
                del self._callbacks[shard]
                self._mark(shard)

        return unsubscribe

    async def connected(self) -> None:
        """Return once a stream stands. Cancellable; there is no need to wait before using the other
        methods.
        """
        self._start()
        await self._connected.wait()

    async def close(self) -> None:
        """End the stream. Undelivered diffs are dropped; later calls of `publish` do nothing."""
        self._closed = True
        await self._tasks.close()
        self._callbacks.clear()

    def _mark(self, shard: ShardId) -> None:
        self._changed.add(shard)
        self._wake.set()

    def _start(self) -> None:
        if not self._running and not self._closed:
            self._running = True
            self._tasks.spawn(self._reconnect_for_ever(), self._target)

    async def _reconnect_for_ever(self) -> None:
        async with self._credentials.channel(self._target, COMMITTER_CHANNEL_OPTIONS) as channel:
            stub = pb_grpc.PubSubStub(channel)  # type: ignore[no-untyped-call]
            backoff_s = BACKOFF_S
            while True:
                connects = self._connects
                await self._ready(channel)
                try:
                    await self._stream(stub)
                except Disconnected as error:
                    if self._connects > connects:
                        backoff_s = BACKOFF_S
                        _log.info("lost the pub-sub server", target=self._target, cause=str(error))
                await self._clock.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _ready(self, channel: grpc.aio.Channel) -> None:
        """Wait until `channel` has a connection.

        By looking, because what gRPC offers for waiting cannot be ended cleanly: a call with
        ``wait_for_ready`` swallows the cancellation of whoever awaits it, and a watch of the channel's
        state fires after the event loop is gone.
        """
        while channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            await self._clock.sleep(CONNECT_POLL_S)

    async def _stream(self, stub: pb_grpc.PubSubStub) -> None:
        """One connection, until it breaks: raises `Disconnected`."""
        call = stub.Stream(metadata=self._credentials.metadata())
        self._announced = set()
        self._changed = set(self._callbacks)
        self._wake.set()
        # Not a TaskGroup: it forgets a cancellation from outside that meets an error within.
        both = [asyncio.ensure_future(self._receive(call)), asyncio.ensure_future(self._send(call))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connected.clear()
            call.cancel()
            for task in both:
                task.cancel()
            results = await asyncio.gather(*both, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    async def _send(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed or self._queue:
                await or_disconnected(call.write(self._next_message()))

    def _next_message(self) -> pb.ClientMessage:
        changed, self._changed = self._changed, set()
        gone = [shard for shard in changed if shard not in self._callbacks and shard in self._announced]
        new = [shard for shard in changed if shard in self._callbacks and shard not in self._announced]
        self._announced.difference_update(gone)
        self._announced.update(new)
        return pb.ClientMessage(unsubscribe=gone, subscribe=new, diffs=self._queue.take_message())

    async def _receive(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            message = await or_disconnected(call.read())
            if message is grpc.aio.EOF:
                raise Disconnected("the server ended the stream")
            if not self._connected.is_set():  # the first message, an empty one
                self._connects += 1
                metrics.PUBSUB_CLIENT_CONNECTS.inc()
                _log.info("connected to the pub-sub server", target=self._target)
                self._connected.set()
            for diff in message.diffs:
                self._deliver(ShardId(diff.shard), wire.from_version(diff.version))

    def _deliver(self, shard: ShardId, version: Versioned) -> None:
        for on_diff in list(self._callbacks.get(shard, {}).values()):
            try:
                on_diff(version)
            except Exception:
                _log.exception("a subscriber failed on a diff", shard=shard, seqno=version.seqno)
