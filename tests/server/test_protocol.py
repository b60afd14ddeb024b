"""The protocol message by message, with pygwire's state machine as a judge; malformed and hostile clients."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pyarrow as pa
import pytest
from pygwire import messages as m

from penstock.adapter.session_api import Rows
from penstock.server import PgServer
from penstock.sql.types import Column, RelationDesc, type_named
from tests.server.fake_session import FakeCoordinator, FakeSession, FakeSink, big_table, serving
from tests.server.wire_client import WireClient, kinds

Body = Callable[[PgServer, FakeCoordinator], Awaitable[None]]


def run(body: Body, seconds: float = 60, **config: object) -> None:
    async def main() -> None:
        coordinator = FakeCoordinator()
        async with serving(coordinator, **config) as server:
            await asyncio.wait_for(body(server, coordinator), seconds)

    asyncio.run(main())


def extended(sql: str, *, limit: int = 0, portal: str = "", name: str = "") -> list[object]:
    return [
        m.Parse(name, sql, []),
        m.Bind(portal, name, [], [], []),
        m.Describe("P", portal),
        m.Execute(portal, limit),
    ]


def test_message_sequence_of_both_query_protocols() -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        client.send(m.Query("select 1; select 2 where false; set x to y; notice"))
        seen = await client.until(m.ReadyForQuery)
        assert kinds(seen) == [
            *["RowDescription", "DataRow", "CommandComplete", "RowDescription", "CommandComplete"],
            *["CommandComplete", "NoticeResponse", "CommandComplete", "ParameterStatus", "ReadyForQuery"],
        ]
        client.send(*extended("select 7::int8 as n"), m.Sync())
        seen = await client.until(m.ReadyForQuery)
        assert kinds(seen) == [
            *["ParseComplete", "BindComplete", "RowDescription", "DataRow", "CommandComplete", "ReadyForQuery"]
        ]
        assert seen[3].columns == [b"7"]
        assert seen[4].tag == "SELECT 1"
        client.send(*extended(""), m.Sync())
        assert kinds(await client.until(m.ReadyForQuery))[2:] == ["NoData", "EmptyQueryResponse", "ReadyForQuery"]
        client.send(m.Query("  ;"))
        assert kinds(await client.until(m.ReadyForQuery)) == ["EmptyQueryResponse", "ReadyForQuery"]
        client.send(m.Terminate())
        assert await client.next() is None

    run(body)


def test_everything_after_an_error_is_skipped_until_sync() -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        client.send(m.Parse("", "fail", []), m.Bind("", "", [], [], []), m.Execute("", 0))
        client.send_raw(b"".join(x.to_wire() for x in [*extended("insert never"), m.Flush()]))  # type: ignore[attr-defined]
        client.send(m.Sync())
        assert kinds(await client.until(m.ReadyForQuery)) == [
            *["ParseComplete", "BindComplete", "ErrorResponse", "ReadyForQuery"]
        ]
        assert coordinator.events == []

    run(body)


def test_portal_suspension_and_its_rows() -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        client.send(m.Query("begin"))
        await client.until(m.ReadyForQuery)
        client.send(*extended("select * from range(5) t(n)", limit=2, portal="p"), m.Flush())
        assert kinds((await client.until(m.PortalSuspended))[2:]) == [
            *["RowDescription", "DataRow", "DataRow", "PortalSuspended"]
        ]
        client.send(m.Execute("p", 3), m.Execute("p", 3), m.Execute("p", 0), m.Sync())
        seen = await client.until(m.ReadyForQuery)
        assert [x.columns[0] for x in seen if isinstance(x, m.DataRow)] == [b"2", b"3", b"4"]
        assert kinds(seen)[3:] == ["PortalSuspended", "CommandComplete", "CommandComplete", "ReadyForQuery"]
        client.send(m.Query("commit"))
        await client.until(m.ReadyForQuery)
        client.send(m.Execute("p", 0), m.Sync())
        (error, _ready) = await client.until(m.ReadyForQuery)
        assert error.fields["C"] == "34000"

    run(body)


def test_completion_waits_for_the_commit() -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        client.send(m.Parse("", "insert unlucky", []), m.Bind("", "", [], [], []), m.Execute("", 0), m.Sync())
        assert kinds(await client.until(m.ReadyForQuery)) == [
            *["ParseComplete", "BindComplete", "ErrorResponse", "ReadyForQuery"]
        ]
        client.send(m.Parse("", "insert x", []), m.Bind("", "", [], [], []), m.Execute("", 0), m.Flush())
        assert kinds(await client.until(m.CommandComplete))[-1] == "CommandComplete"  # asked for, so not held back
        client.send(m.Sync())
        await client.until(m.ReadyForQuery)

    run(body)


@pytest.mark.parametrize(
    ("messages", "sqlstate"),
    [
        ([m.Parse("s", "select 1", []), m.Parse("s", "select 2", [])], "42P05"),
        ([m.Parse("", "select 1; select 2", [])], "42601"),
        ([m.Bind("", "nothing", [], [], [])], "26000"),
        ([m.Describe("S", "nothing")], "26000"),
        ([m.Execute("nothing", 0)], "34000"),
        ([m.Parse("", "select $1::int4", []), m.Bind("", "", [], [], [])], "08P01"),
        ([m.Parse("", "select $1::int4", []), m.Bind("", "", [], [b"x"], [])], "22P02"),
        ([m.Parse("", "select $1::int4", []), m.Bind("", "", [1], [b"abc"], [])], "22P03"),
        ([m.Parse("", "select $1::text", []), m.Bind("", "", [], [b"\xff"], [])], "22021"),
        ([m.Parse("", "select 1", []), m.Bind("", "", [], [], [0, 1, 0])], "08P01"),
        ([m.Parse("", "select 1", []), m.Bind("", "", [], [], [7])], "22023"),
        ([m.Parse("", "set x to y", []), m.Bind("p", "", [], [], []), m.Execute("p", 0), m.Execute("p", 0)], "55000"),
    ],
)
def test_misuse_is_an_error_of_the_statement(messages: list[object], sqlstate: str) -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        client.send(*messages, m.Sync())
        seen = await client.until(m.ReadyForQuery)
        (error,) = [x for x in seen if isinstance(x, m.ErrorResponse)]
        assert (error.fields["S"], error.fields["C"]) == ("ERROR", sqlstate)
        client.send(m.Query("select 1"))
        assert "DataRow" in kinds(await client.until(m.ReadyForQuery))

    run(body)


def test_function_call_is_refused_by_name() -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        client.send(m.FunctionCall())
        error, _ready = await client.next(), await client.next()
        assert error.fields["C"] == "0A000"

    run(body)


MALFORMED = {
    "unknown type": b"\xff\x00\x00\x00\x04",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "negative length": b"Q\xff\xff\xff\xff",
    "length below four": b"Q\x00\x00\x00\x03",
    "too long": b"Q\x7f\xff\xff\xff",
    "query without terminator": b"Q\x00\x00\x00\x08abcd",
    "query with trailing bytes": b"Q\x00\x00\x00\x08a\x00bc",
    "parse that is cut off": b"P\x00\x00\x00\x06a\x00",
    "bind with a negative length": b"B\x00\x00\x00\x10\x00\x00\x00\x00\x00\x01\xff\xff\xff\x00\x00\x00",
    "bind whose count runs over": b"B\x00\x00\x00\x0a\x00\x00\xff\xff\x00\x00",
    "describe of nothing": b"D\x00\x00\x00\x06Xa",
    "close of something odd": b"C\x00\x00\x00\x06Z\x00",
    "password out of turn": b"p\x00\x00\x00\x05\x00",
    "execute without a limit": b"E\x00\x00\x00\x05\x00",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_message_ends_its_connection_only(data: bytes) -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        other = await WireClient.started(server.port)
        client = await WireClient.started(server.port)
        client.send_raw(data)
        error = await client.next()
        assert (error.fields["S"], error.fields["C"]) == ("FATAL", "08P01"), error
        assert await client.next() is None
        other.send(m.Query("select 1"))
        assert "DataRow" in kinds(await other.until(m.ReadyForQuery))
        await coordinator.until(lambda: coordinator.closed == 1)

    run(body)


STARTUPS = {
    "empty body": struct.pack("!i", 4),
    "version 2": struct.pack("!ii", 8, 2 << 16),
    "no user": struct.pack("!ii", 9, 196_608) + b"\x00",
    "no terminator": struct.pack("!ii", 13, 196_608) + b"user\x00",
    "huge": struct.pack("!ii", 1 << 30, 196_608),
    "negative": struct.pack("!i", -1),
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "replication": struct.pack("!ii", 9 + 7 + 17, 196_608) + b"user\x00u\x00replication\x00true\x00\x00",
    "cancel without secret": struct.pack("!ii", 8, 80_877_102),
}


@pytest.mark.parametrize("data", STARTUPS.values(), ids=list(STARTUPS))
def test_a_malformed_startup_is_refused(data: bytes) -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.open(server.port)
        client.send_raw(data)
        answer = await client.to_the_end()
        assert answer.startswith(b"E"), answer
        assert b"FATAL" in answer
        (await WireClient.started(server.port)).close()

    run(body)


def test_startup_negotiates_versions_and_encryption() -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        client = await WireClient.open(server.port)
        for code in (80_877_104, 80_877_103):  # GSSENCRequest, SSLRequest
            client.send_raw(struct.pack("!ii", 8, code))
            assert await client.reader.readexactly(1) == b"N"
        options = b"user\x00u\x00_pq_.magic\x00on\x00\x00"
        client.send_raw(struct.pack("!ii", 8 + len(options), (3 << 16) + 2) + options)
        head = await client.reader.readexactly(5)
        assert head[:1] == b"v"
        rest = await client.reader.readexactly(int.from_bytes(head[1:], "big") - 4)
        assert rest == struct.pack("!ii", 0, 1) + b"_pq_.magic\x00"
        assert coordinator.connects[0][:2] == ("u", "u")
        client.close()

    run(body)


def test_a_silent_client_is_timed_out() -> None:
    async def body(server: PgServer, _: FakeCoordinator) -> None:
        client = await WireClient.open(server.port)
        client.send_raw(b"\x00\x00")
        assert b"authentication due to timeout" in await client.to_the_end()

    run(body, startup_timeout_s=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_garbage_never_harms_the_server(seed: int) -> None:
    """Mutated recordings of real sessions, on many connections, before and after startup."""
    rng = random.Random(seed)
    startup = m.StartupMessage({"user": "u", "database": "d"}).to_wire()
    messages = [
        *extended("select $1::int4 as n"),
        *extended("result big", limit=5, portal="p"),
        m.Bind("", "", [1], [b"\x00\x00\x00\x01"], [1]),
        m.Query("select 1; copy t from stdin csv"),
        m.CopyData(b"1\n2\n"),
        m.CopyFail("no"),
        m.Close("P", "p"),
        m.Flush(),
        m.Sync(),
        m.Query("copy big to stdout binary"),
    ]

    def recording() -> bytes:
        data = bytearray(b"".join(x.to_wire() for x in rng.choices(messages, k=rng.randint(1, 12))))  # type: ignore[attr-defined]
        for _ in range(rng.choice([0, 1, 3, 30])):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(8)]
                    data += b"\x00"
                case 2:
                    data[at:at] = rng.randbytes(rng.randrange(8))
        return (startup if rng.random() < 0.9 else b"") + bytes(data)

    async def attack(port: int, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for start in range(0, len(data), 97):
                writer.write(data[start : start + 97])
                await writer.drain()
            writer.write_eof()
            await reader.read(-1)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        coordinator.results["big"] = big_table(100)
        coordinator.relations["t"] = RelationDesc.of(Column("n", type_named("integer")))
        witness = await WireClient.started(server.port)
        await asyncio.gather(*(attack(server.port, recording()) for _ in range(60)))
        witness.send(m.Query("select 1"))
        assert "DataRow" in kinds(await witness.until(m.ReadyForQuery))
        await coordinator.until(lambda: server.connections == 1)
        assert len(coordinator.sessions) == 1

    run(body)


def test_a_slow_reader_slows_its_query_not_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    table = big_table(20_000)
    pulled = 0

    async def endless() -> AsyncIterator[pa.RecordBatch]:
        nonlocal pulled
        while True:
            pulled += 1
            yield table.to_batches()[0]

    async def result(*_: object) -> Rows:
        return Rows(RelationDesc.from_arrow(table.schema), endless())

    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        monkeypatch.setattr(FakeSession, "_do_result", result)
        client = await WireClient.started(server.port)
        client.send(m.Query("result endless"))
        await coordinator.until(lambda: pulled > 0)
        before = -1
        while before != pulled:  # until the socket is full and nothing is pulled any more
            before = pulled
            await asyncio.sleep(0.1)
        assert pulled * table.nbytes < 64 << 20
        other = await WireClient.started(server.port)
        other.send(m.Query("select 1"))
        assert "DataRow" in kinds(await other.until(m.ReadyForQuery))
        client.close()
        await coordinator.until(lambda: coordinator.closed == 1)

    run(body)


def test_a_fast_writer_is_slowed_by_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        gate = asyncio.Event()
        write = FakeSink.write

        async def slow(self: FakeSink, batch: object) -> None:
            await gate.wait()
            await write(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(FakeSink, "write", slow)
        coordinator.relations["t"] = RelationDesc.of(Column("n", type_named("integer")))
        client = await WireClient.started(server.port)
        client.send(m.Query("copy t from stdin"))
        await client.until(m.CopyInResponse)
        sent = 0
        chunk = m.CopyData(b"1\n" * 50_000).to_wire()

        async def pour() -> None:
            nonlocal sent
            while sent < 300:
                client.send_raw(chunk)
                await client.writer.drain()
                sent += 1

        pouring = asyncio.ensure_future(pour())
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 200  # 100 kB each: what sockets hold, and one chunk
        gate.set()
        await pouring
        client.send(m.CopyDone())
        seen = await client.until(m.ReadyForQuery)
        assert seen[0].tag == "COPY 15000000"

    run(body)


def test_cancel_needs_the_secret() -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        client = await WireClient.started(server.port)
        (session,) = coordinator.sessions.values()
        client.send(m.Query("sleep"))
        await coordinator.until(lambda: "sleeping" in coordinator.events)
        for secret in (session.secret ^ 1, session.secret):
            other = await WireClient.open(server.port)
            other.send_raw(struct.pack("!iiII", 16, 80_877_102, session.process_id, secret))
            assert await other.to_the_end() == b""
            assert session.cancelled.is_set() == (secret == session.secret)
        error, _ready = await client.next(), await client.next()
        assert error.fields["C"] == "57014"

    run(body)


def test_a_client_that_vanishes_cancels_its_query() -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        for sql in ("sleep", "stream", "copy stream to stdout"):
            client = await WireClient.started(server.port)
            client.send(m.Query(sql))
            if sql == "sleep":
                await coordinator.until(lambda: "sleeping" in coordinator.events)
            else:
                await client.next()
            client.writer.transport.abort()
            await coordinator.until(lambda: not coordinator.sessions)
        assert server.connections == 0

    run(body)


def test_shutdown_tells_clients() -> None:
    async def main() -> None:
        coordinator = FakeCoordinator()
        async with serving(coordinator) as server:
            idle = await WireClient.started(server.port)
            busy = await WireClient.started(server.port)
            busy.send(m.Query("sleep"))
            await coordinator.until(lambda: "sleeping" in coordinator.events)
        for client in (idle, busy):
            error = await client.next()
            assert (error.fields["S"], error.fields["C"]) == ("FATAL", "57P01")
            assert await client.next() is None
        assert not coordinator.sessions

    asyncio.run(main())


def test_connections_are_bounded() -> None:
    async def body(server: PgServer, coordinator: FakeCoordinator) -> None:
        first = await WireClient.started(server.port)
        await WireClient.started(server.port)
        third = await WireClient.open(server.port)
        assert b"53300" in await third.to_the_end()
        first.send(m.Terminate())
        await coordinator.until(lambda: server.connections == 1)
        await WireClient.started(server.port)

    run(body, connections_max=2)
