"""Peeks and subscriptions answered by several replicas that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pyarrow as pa
import pytest

from penstock.control.answers import PeekStream, SubscribeStream
from penstock.control.holds import HoldBook
from penstock.control.specs import ReplicaId
from penstock.replica import compute_pb2 as pb
from penstock.replica.wire import to_ipc, updates_to_ipc
from penstock.runtime import DONE, DataError, Frontier, GlobalId, SqlError, Updates

SCHEMA = pa.schema([("a", pa.int64())])
R1, R2 = ReplicaId("r1"), ReplicaId("r2")
COMPLETE = pb.PeekEnd(complete=pb.Complete())


def ipc(*values: int) -> bytes:
    return to_ipc([pa.RecordBatch.from_arrays([pa.array(values, pa.int64())], schema=SCHEMA)], SCHEMA)


def failure(definite: bool) -> pb.PeekEnd:
    return pb.PeekEnd(error=pb.Error(sqlstate="22012", message="division by zero", definite=definite))


class Peeks:
    def __init__(self) -> None:
        self.log: list[str] = []
        book = HoldBook(GlobalId("u1"), Frontier(0), lambda book: self.log.append(f"since {book.since}"))
        self.stream = PeekStream(
            b"p",
            [book.acquire(Frontier(7))],
            lambda replica: self.log.append(f"grant {replica}"),
            lambda stream: self.log.append("finish"),
        )

    async def read(self) -> list[int]:
        return [value for batch in [b async for b in self.stream] for value in batch.column(0).to_pylist()]


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await body()

    asyncio.run(main())


def test_the_first_replica_wins() -> None:
    async def body() -> None:
        peeks = Peeks()
        assert peeks.stream.rows(R1, ipc(1, 2))
        assert not peeks.stream.rows(R2, ipc(1))
        assert not peeks.stream.ended(R2, COMPLETE, True)
        assert peeks.stream.rows(R1, ipc(3))
        assert peeks.stream.ended(R1, COMPLETE, True)
        assert await peeks.read() == [1, 2, 3]
        assert peeks.log == ["finish", f"since {DONE}"]

    run(body)


def test_credit_is_granted_as_chunks_are_taken() -> None:
    async def body() -> None:
        peeks = Peeks()
        peeks.stream.rows(R1, ipc(1))
        peeks.stream.rows(R1, ipc(2))
        assert peeks.log == []
        await anext(peeks.stream)
        assert peeks.log == ["grant r1"]
        await peeks.stream.aclose()

    run(body)


def test_cancel_first_release_after() -> None:
    async def body() -> None:
        peeks = Peeks()
        reading = asyncio.ensure_future(peeks.read())
        await asyncio.sleep(0)
        await peeks.stream.aclose()
        await peeks.stream.aclose()
        assert peeks.log == ["finish", f"since {DONE}"]
        with pytest.raises(SqlError, match="cancelled"):
            await reading

    run(body)


def test_a_lost_replica_that_delivered_nothing_is_forgotten() -> None:
    async def body() -> None:
        peeks = Peeks()
        peeks.stream.rows(R1, ipc(1))
        peeks.stream.lost(R1)
        peeks.stream.rows(R2, ipc(1, 2))
        peeks.stream.ended(R2, COMPLETE, False)
        assert await peeks.read() == [1, 2]

    run(body)


def test_a_lost_replica_that_delivered_rows_fails_the_peek() -> None:
    async def body() -> None:
        peeks = Peeks()
        peeks.stream.rows(R1, ipc(1))
        await anext(peeks.stream)
        peeks.stream.lost(R1)
        with pytest.raises(SqlError) as failed:
            await peeks.read()
        assert failed.value.sqlstate == "40001"

    run(body)


def test_errors_that_are_data_win_and_trouble_of_one_replica_does_not() -> None:
    async def body() -> None:
        peeks = Peeks()
        assert not peeks.stream.ended(R1, failure(definite=False), True)
        assert peeks.stream.ended(R2, failure(definite=True), False)
        with pytest.raises(DataError, match="division"):
            await peeks.read()
        alone = Peeks()
        assert alone.stream.ended(R1, failure(definite=False), False)
        with pytest.raises(SqlError, match="division"):
            await alone.read()

    run(body)


def batch(lower: int, upper: int, *updates: tuple[int, int]) -> pb.SubscribeBatch:
    values, times = zip(*updates, strict=True) if updates else ((), ())
    rows = pa.RecordBatch.from_arrays([pa.array(values, pa.int64())], schema=SCHEMA)
    data = Updates(rows, np.array(times, np.uint64), np.ones(len(times), np.int64))
    return pb.SubscribeBatch(id="t1", lower=lower, upper=upper, updates_ipc=updates_to_ipc(data))


def test_subscribe_batches_of_two_replicas_are_merged_by_time() -> None:
    async def body() -> None:
        finished: list[SubscribeStream] = []
        stream = SubscribeStream(Frontier(5), finished.append)
        stream.batch(batch(5, 8, (1, 5), (2, 7)))
        stream.batch(batch(5, 7, (1, 5)))
        stream.batch(batch(5, 10, (1, 5), (2, 7), (3, 9)))
        stream.batch(batch(8, 10, (3, 9)))
        stream.batch(batch(9, DONE, (3, 9)))
        events = [event async for event in stream]
        assert [(event.lower, event.upper) for event in events] == [(5, 8), (8, 10), (10, DONE)]
        assert [event.updates.rows.column(0).to_pylist() for event in events] == [[1, 2], [3], []]
        assert finished == [stream]

    run(body)


def test_a_subscribe_ends_with_an_error() -> None:
    async def body() -> None:
        stream = SubscribeStream(Frontier(5), lambda _: None)
        stream.batch(
            pb.SubscribeBatch(lower=5, upper=6, error=pb.Error(sqlstate="22012", message="bad", definite=True))
        )
        stream.batch(batch(6, 9, (1, 8)))
        events = [event async for event in stream]
        assert len(events) == 1
        assert isinstance(events[0].updates, DataError)

    run(body)


def test_a_slow_subscriber_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.control.answers._SUBSCRIBE_BYTES_MAX", 100)

    async def body() -> None:
        stream = SubscribeStream(Frontier(0), lambda _: None)
        for time in range(20):
            stream.batch(batch(time, time + 1, (1, time)))
        with pytest.raises(SqlError) as failed:
            [event async for event in stream]
        assert failed.value.sqlstate == "53400"

    run(body)
