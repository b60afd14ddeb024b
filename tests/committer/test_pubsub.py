"""Pub-sub between processes: delivery, re-subscription, bounds, and that a bad peer harms nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import structlog

from penstock.committer import CommitterServer, InProcessConsensus, RpcPubSub, metrics
from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer.diff_queue import BYTES_MAX, DIFFS_MAX, DiffQueue
from penstock.persist import LocalPubSub, MemConsensus, SeqNo, ShardId, Versioned

S = ShardId("s-one")
T = ShardId("s-two")


def version(seqno: int, data: bytes = b"x") -> Versioned:
    return Versioned(SeqNo(seqno), data)


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(
    address: str, pubsub: LocalPubSub, store: MemConsensus | None = None
) -> AsyncIterator[CommitterServer]:
    server = CommitterServer(InProcessConsensus(store or MemConsensus()), pubsub)
    await server.listen(address)
    try:
        yield server
    finally:
        await server.close(0.1)


def follows(server: CommitterServer, shard: ShardId, clients: int = 1) -> Callable[[], bool]:
    return lambda: sum(shard in c._unsubscribe for c in server._pubsub._connections) == clients


def test_diffs_reach_every_other_process_and_never_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        address, local = f"unix:{tmp_path}/c", LocalPubSub()
        async with serving(address, local) as server:
            a, b = RpcPubSub(address), RpcPubSub(address)
            seen: dict[str, list[Versioned]] = {"a": [], "b": [], "host": []}
            a.subscribe(S, seen["a"].append)
            b.subscribe(S, seen["b"].append)
            b.subscribe(T, seen["b"].append)
            local.subscribe(S, seen["host"].append)
            await until(follows(server, S, 2))
            a.publish(S, version(1))
            await until(lambda: seen["b"] and seen["host"])
            b.publish(S, version(2))
            await until(lambda: len(seen["a"]) == 2)
            local.publish(S, version(3))
            await until(lambda: len(seen["a"]) == 3 and len(seen["b"]) == 3)
            everything = [version(1), version(2), version(3)]
            assert seen == {"a": everything, "b": everything, "host": everything}
            await a.close()
            await b.close()
            await until(lambda: not server._pubsub._connections)

    asyncio.run(main())


def test_unsubscribing_ends_delivery_and_resubscribing_resumes_it(tmp_path: Path) -> None:
    async def main() -> None:
        address, local = f"unix:{tmp_path}/c", LocalPubSub()
        async with serving(address, local) as server:
            client = RpcPubSub(address)
            seen: list[Versioned] = []
            first = client.subscribe(S, seen.append)
            second = client.subscribe(S, lambda _: None)
            await until(follows(server, S))
            first()
            first()
            local.publish(S, version(1))
            second()
            await until(follows(server, S, 0))
            client.subscribe(S, seen.append)
            await until(follows(server, S))
            local.publish(S, version(2))
            await until(lambda: seen)
            assert seen == [version(2)]
            await client.close()

    asyncio.run(main())


def test_a_new_subscriber_is_sent_the_head(tmp_path: Path) -> None:
    """What was committed between a reader's last look and its subscription is not left to polling."""

    async def main() -> None:
        store = MemConsensus()
        await store.compare_and_set(S, version(0))
        await store.compare_and_set(S, version(1, b"head"))
        async with serving(f"unix:{tmp_path}/c", LocalPubSub(), store):
            client = RpcPubSub(f"unix:{tmp_path}/c")
            seen: list[Versioned] = []
            client.subscribe(T, seen.append)
            client.subscribe(S, seen.append)
            await until(lambda: seen)
            assert seen == [version(1, b"head")]
            await client.close()

    asyncio.run(main())


def test_subscriptions_are_sent_again_to_a_restarted_server(tmp_path: Path) -> None:
    async def main() -> None:
        address = f"unix:{tmp_path}/c"
        client = RpcPubSub(address)
        seen: list[Versioned] = []
        client.subscribe(S, seen.append)
        client.publish(T, version(7))
        for round_ in range(3):
            local, store = LocalPubSub(), MemConsensus()
            async with serving(address, local, store) as server:
                await until(follows(server, S))
                local.publish(S, version(round_))
                await until(lambda: len(seen) > round_)  # noqa: B023
        await client.close()

    asyncio.run(main())


def test_a_failing_subscriber_does_not_disturb_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        address, local = f"unix:{tmp_path}/c", LocalPubSub()

        def fail(_: Versioned) -> None:
            raise ValueError("cannot apply")

        async with serving(address, local) as server:
            client = RpcPubSub(address)
            seen: list[Versioned] = []
            client.subscribe(S, fail)
            client.subscribe(S, seen.append)
            await until(follows(server, S))
            local.publish(S, version(1))
            local.publish(S, version(2))
            await until(lambda: len(seen) == 2)
            await client.close()

    asyncio.run(main())


def test_many_subscriptions_and_a_burst_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        address, local = f"unix:{tmp_path}/c", LocalPubSub()
        async with serving(address, local) as server:
            client = RpcPubSub(address)
            seen: dict[ShardId, int] = {}
            shards = [ShardId(f"s-{i}") for i in range(2_000)]
            for shard in shards:
                client.subscribe(shard, lambda v, shard=shard: seen.__setitem__(shard, v.seqno))  # type: ignore[misc]
            await until(lambda: all(follows(server, shard)() for shard in (shards[0], shards[-1])))
            for shard in shards:
                local.publish(shard, version(3))
            await until(lambda: len(seen) == len(shards))
            await client.close()

    asyncio.run(main())


def test_a_client_that_sends_garbage_loses_only_its_own_stream(tmp_path: Path) -> None:
    """It is told why and counted, and the log says so once per peer."""

    def refused(reason: str) -> float:
        return metrics.REFUSED.labels(reason)._value.get()

    async def main() -> None:
        address, local = f"unix:{tmp_path}/c", LocalPubSub()
        async with serving(address, local) as server:
            client = RpcPubSub(address)
            seen: list[Versioned] = []
            client.subscribe(S, seen.append)
            await until(follows(server, S))
            before = {reason: refused(reason) for reason in ("garbage", "invalid")}
            async with grpc.aio.insecure_channel(address) as channel:
                stream = channel.stream_stream("/penstock.committer.PubSub/Stream")
                invalid = [
                    pb.ClientMessage(subscribe=[""]),
                    pb.ClientMessage(diffs=[pb.PushDiff(shard=S, version=pb.Version(seqno=2**64 - 1))]),
                    pb.ClientMessage(diffs=[pb.PushDiff(shard="k" * 5_000)]),
                ]
                for message in (*(message.SerializeToString() for message in invalid), b"\xff\xff not a message"):
                    call = stream()
                    assert await call.read() == b""
                    await call.write(message)
                    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
                call = pb_grpc.PubSubStub(channel).Stream()  # type: ignore[no-untyped-call]
                await call.write(pb.ClientMessage(subscribe=[S]))
                await until(follows(server, S, 2))
                call.cancel()
            assert refused("invalid") - before["invalid"] == len(invalid)
            assert refused("garbage") - before["garbage"] == 1
            local.publish(S, version(1))
            await until(lambda: seen)
            assert seen == [version(1)]
            await client.close()

    with structlog.testing.capture_logs() as logs:
        asyncio.run(main())
    assert [log["reason"] for log in logs if log["event"] == "refused"] == ["invalid", "garbage"]


def test_a_queue_drops_the_oldest_and_counts() -> None:
    queue = DiffQueue(metrics.PUBSUB_DROPPED)
    before = metrics.PUBSUB_DROPPED._value.get()
    for seqno in range(DIFFS_MAX + 10):
        queue.put(S, version(seqno))
    assert len(queue) == DIFFS_MAX
    assert metrics.PUBSUB_DROPPED._value.get() - before == 10
    taken = []
    while message := queue.take_message():
        taken += [diff.version.seqno for diff in message]
    assert taken == list(range(10, DIFFS_MAX + 10))
    for seqno in range(4):
        queue.put(S, version(seqno, b"x" * (BYTES_MAX // 2)))
    assert len(queue) == 2
    queue.put(S, version(9, b"x" * (BYTES_MAX + 1)))
    assert [diff.version.seqno for diff in queue.take_message()] == [9]
    assert queue.take_message() == []


def test_nobody_to_send_to_costs_nothing_but_the_queue(tmp_path: Path) -> None:
    async def main() -> None:
        client = RpcPubSub(f"unix:{tmp_path}/nobody")
        for seqno in range(DIFFS_MAX + 1):
            client.publish(S, version(seqno))
        await asyncio.sleep(0)
        assert len(client._queue) == DIFFS_MAX
        await client.close()
        client.publish(S, version(0))

    asyncio.run(main())
