"""Bad input never takes the server down: each case gets an error that says what, where and how, and the rest keeps
running."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tools.serving import Server, serving

pytestmark = pytest.mark.xdist_group("bad-input")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("bad-input")) as running:
        with running.connect() as connection:
            connection.execute("CREATE TABLE t (id integer NOT NULL, name text, amount bigint)")
            connection.execute("INSERT INTO t VALUES (1, 'one', 10), (2, 'two', 20)")
        yield running


@pytest.fixture
def connection(server: Server) -> Iterator[psycopg.Connection]:
    with server.connect() as connected:
        yield connected


def alive(server: Server) -> None:
    with server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        pause.wait(0.02)


@pytest.mark.parametrize(
    ("statement", "sqlstate", "fragment", "position"),
    [
        ("SELEC 1", "42601", "SELEC", 1),
        ("SELECT 1 FROM", "42601", "", None),
        ("SELECT * FROM t WHERE", "42601", "", None),
        ("SELECT * FROM nowhere", "42P01", "nowhere", 15),
        ("SELECT nothing FROM t", "42703", "nothing", 8),
        ("SELECT no_such_function(id) FROM t", "42883", "no_such_function", 8),
        ("SELECT id + name FROM t", "42883", "", None),
        ("SELECT 'x'::integer", "22P02", '"x"', None),
        ("SELECT 1 / 0", "22012", "division by zero", None),
        ("SELECT amount / (id - id) FROM t", "22012", "division by zero", None),
        ("SELECT 2147483647::integer + 1::integer", "22003", "out of range", None),
        ("SELECT sum(id) FROM t GROUP BY nothing", "42703", "nothing", 32),
        ("SELECT id, count(*) FROM t", "42803", "id", None),
        ("INSERT INTO t VALUES (NULL, 'x', 1)", "23502", "id", None),
        ("INSERT INTO t VALUES (1, 'x', 1, 2)", "42601", "", None),
        ("INSERT INTO t (id, nothing) VALUES (1, 2)", "42703", "nothing", None),
        ("INSERT INTO t VALUES ('abc', 'x', 1)", "22P02", "abc", None),
        ("INSERT INTO t VALUES (3000000000, 'x', 1)", "22003", "out of range", None),
        ("CREATE TABLE t (a integer)", "42P07", '"t"', None),
        ("CREATE TABLE u (a no_such_type)", "42704", "no_such_type", None),
        ("CREATE TABLE u (a integer, a text)", "42701", '"a"', None),
        ("DROP TABLE nowhere", "42P01", "nowhere", None),
        ("CREATE MATERIALIZED VIEW v AS SELECT random() FROM t", "0A000", "random", None),
        ("SET no_such_variable = 1", "42704", "no_such_variable", None),
        ("CREATE TRIGGER x BEFORE INSERT ON t EXECUTE FUNCTION f()", "0A000", "TRIGGER", None),
        ("VACUUM t", "0A000", "VACUUM", None),
    ],
)
def test_the_error_says_what_and_where(
    connection: psycopg.Connection, statement: str, sqlstate: str, fragment: str, position: int | None
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)
    diagnosis = caught.value.diag
    assert diagnosis.sqlstate == sqlstate, f"{diagnosis.sqlstate}: {diagnosis.message_primary}"
    assert fragment.lower() in (diagnosis.message_primary or "").lower()
    if position is not None:
        assert diagnosis.statement_position == str(position)
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_division_by_zero_in_a_view_and_its_correction(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE ratios (id integer, a bigint, b bigint)")
    connection.execute("INSERT INTO ratios VALUES (1, 10, 2), (2, 9, 3)")
    connection.execute("CREATE MATERIALIZED VIEW quotients AS SELECT id, a / b AS q FROM ratios")
    assert connection.execute("SELECT q FROM quotients ORDER BY id").fetchall() == [(5,), (3,)]
    connection.execute("INSERT INTO ratios VALUES (3, 1, 0)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT q FROM quotients")
    assert connection.execute("SELECT count(*) FROM ratios").fetchone() == (3,)
    connection.execute("UPDATE ratios SET b = 1 WHERE id = 3")
    assert connection.execute("SELECT q FROM quotients ORDER BY id").fetchall() == [(5,), (3,), (1,)]


@pytest.mark.parametrize(
    ("data", "sqlstate", "fragment"),
    [
        ("1\tone\t1\n2\ttwo\n", "22P04", "amount"),
        ("1\tone\t1\t9\n", "22P04", "extra"),
        ("1\tone\tmany\n", "22P02", "many"),
        ("\\N\tone\t1\n", "23502", "id"),
    ],
)
def test_a_bad_copy_line_fails_the_whole_copy(
    server: Server, connection: psycopg.Connection, data: str, sqlstate: str, fragment: str
) -> None:
    with (
        pytest.raises(psycopg.Error) as caught,
        connection.cursor() as cursor,
        cursor.copy("COPY t FROM STDIN") as copy,
    ):
        copy.write(data)
    diagnosis = caught.value.diag
    said = f"{diagnosis.message_primary} {diagnosis.message_detail} {diagnosis.context}"
    assert caught.value.diag.sqlstate == sqlstate, said
    assert fragment in said
    assert re.search(r"(line|row) [12]\b", said)
    alive(server)


def test_a_client_that_drops_in_mid_copy_leaves_nothing(server: Server) -> None:
    wire = startup(server)
    wire.sendall(message(b"Q", b"COPY t FROM STDIN\0"))
    read_until(wire, b"G")
    wire.sendall(message(b"d", b"7\tseven\t7\n8\tei"))
    wire.close()
    alive(server)


@pytest.mark.parametrize(
    "garbage",
    [
        b"Q" + struct.pack("!I", 3),
        b"Q" + struct.pack("!I", 0xFFFFFFFF) + b"SELECT 1",
        b"\xff" + struct.pack("!I", 8) + b"abcd",
        b"B" + struct.pack("!I", 12) + b"\0\0\xff\xff\xff\xff\xff\xff",
        b"P" + struct.pack("!I", 20) + b"no terminator at",
    ],
)
def test_a_malformed_message_ends_that_connection_only(server: Server, garbage: bytes) -> None:
    wire = startup(server)
    wire.sendall(garbage)
    answer = read_to_end(wire)
    assert b"FATAL" in answer
    alive(server)


def test_a_truncated_message_is_forgotten_with_its_connection(server: Server) -> None:
    wire = startup(server)
    wire.sendall(b"Q" + struct.pack("!I", 100) + b"SELECT")
    wire.close()
    alive(server)


@pytest.mark.parametrize(
    "start", [b"\0\0\0\x04", b"\0\0\0\x08\x12\x34\x56\x78", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64]
)
def test_garbage_before_the_session_starts(server: Server, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        wire.sendall(start)
        with contextlib.suppress(ConnectionResetError):
            read_to_end(wire)
    alive(server)


def test_two_thousand_idle_connections(server: Server) -> None:
    wires = []
    try:
        for _ in range(2000):
            wires.append(startup(server))
        started = time.monotonic()
        alive(server)
        assert time.monotonic() - started < 10
    finally:
        for wire in wires:
            wire.close()
    alive(server)


def test_a_corrupted_blob_stalls_only_what_needs_it(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    with server.connect() as connection:
        for name in ("healthy", "hurt"):
            connection.execute(f"CREATE TABLE {name} (id integer, filler text)")
            with connection.cursor() as cursor, cursor.copy(f"COPY {name} FROM STDIN") as copy:
                for number in range(20_000):
                    copy.write(f"{number}\t{name}-{number * 7919}\n")
            connection.execute(f"CREATE MATERIALIZED VIEW {name}_count AS SELECT count(*) AS n FROM {name}")
            assert connection.execute(f"SELECT n FROM {name}_count").fetchone() == (20_000,)
        found = connection.execute(
            "SELECT s.shard_id FROM mz_internal.mz_storage_shards s"
            " JOIN mz_catalog.mz_tables t ON t.id = s.object_id WHERE t.name = 'hurt'"
        ).fetchone()
        assert found is not None
        shard = found[0]
    assert server.stop() == 0
    parts = [p for p in (tmp_path / "data").rglob("*") if p.is_file() and shard in str(p) and p.stat().st_size > 10_000]
    assert parts, "the table's rows are in no blob"
    for part in parts:
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 0xFF
        data[200:260] = bytes(60)
        part.write_bytes(data)
    server.start()
    with server.connect() as connection:
        assert connection.execute("SELECT n FROM healthy_count").fetchone() == (20_000,)
        assert connection.execute("SELECT count(*) FROM healthy").fetchone() == (20_000,)
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("SELECT sum(id) FROM hurt")
        said = (
            f"{caught.value.diag.message_primary} {caught.value.diag.message_detail} {caught.value.diag.message_hint}"
        )
        assert shard in said
        assert any(part.name[-32:] in said for part in parts), said
        connection.execute("INSERT INTO healthy VALUES (-1, 'after')")
        assert connection.execute("SELECT n FROM healthy_count").fetchone() == (20_001,)
    assert server.stop() == 0


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="a small file system needs root and mount"
)
def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        full_disk(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def full_disk(folder: Path) -> None:
    server = Server(folder)
    server.start()
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept (id integer, filler text)")
        connection.execute("CREATE MATERIALIZED VIEW kept_count AS SELECT count(*) AS n FROM kept")
        acknowledged = 0
        ballast = folder / "ballast"
        ballast.write_bytes(os.urandom(10 << 20))
        while (refused := refusal(connection, 2000)) is None:
            acknowledged += 2000
        assert refused.diag.sqlstate == "53100", f"{refused.diag.sqlstate}: {refused}"
        assert connection.execute("SELECT 1").fetchone() == (1,)
        ballast.unlink()
        until(lambda: refusal(connection, 1) is None)
        assert connection.execute("SELECT n FROM kept_count").fetchone() == (acknowledged + 1,)
    assert server.stop() == 0
    server.start()
    with server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (acknowledged + 1,)
    assert server.stop() == 0


def refusal(connection: psycopg.Connection, rows: int) -> psycopg.Error | None:
    """COPY so many rows into `kept`; the error when the server refuses them."""
    try:
        with connection.cursor() as cursor, cursor.copy("COPY kept FROM STDIN") as copy:
            copy.write("".join(f"1\t{os.urandom(100).hex()}\n" for _ in range(rows)))
    except psycopg.Error as error:
        return error
    return None


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def startup(server: Server) -> socket.socket:
    """A connection whose session has started, spoken by hand."""
    wire = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    body = struct.pack("!I", 196608) + b"user\0materialize\0database\0materialize\0\0"
    wire.sendall(struct.pack("!I", len(body) + 4) + body)
    read_until(wire, b"Z")
    return wire


def read_until(wire: socket.socket, kind: bytes) -> None:
    """Read whole messages until one of `kind` has come."""
    while True:
        header = read_exactly(wire, 5)
        read_exactly(wire, struct.unpack("!I", header[1:])[0] - 4)
        if header[:1] == kind:
            return


def read_exactly(wire: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = wire.recv(count - len(data))
        assert chunk, "the server closed the connection"
        data += chunk
    return data


def read_to_end(wire: socket.socket) -> bytes:
    data = b""
    while chunk := wire.recv(4096):
        data += chunk
    return data
