"""Stopping, killing and starting again: nothing acknowledged is lost, views go on, two servers never share data."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from tools.serving import Server


def fill(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE t (k integer, v integer)")
    db.execute("CREATE MATERIALIZED VIEW m AS SELECT k, sum(v) AS s FROM t GROUP BY k")
    db.execute("CREATE MATERIALIZED VIEW mm AS SELECT count(*) AS n, sum(s) AS s FROM m")
    db.execute("CREATE VIEW plain AS SELECT k + 1 AS k1 FROM t")
    db.execute("CREATE INDEX i ON plain (k1)")
    db.execute("INSERT INTO t SELECT x % 10, x FROM generate_series(1, 1000) AS g(x)")


def check(db: psycopg.Connection, extra: int = 0) -> None:
    assert db.execute("SELECT n, s FROM mm").fetchall() == [(10, 500_500 + extra)]
    assert db.execute("SELECT count(*) FROM plain WHERE k1 = 5").fetchall() == [(100,)]


@pytest.mark.parametrize("gentle", [True, False])
def test_everything_is_there_after_a_restart_and_goes_on(own_server: Server, gentle: bool) -> None:
    with own_server.connect() as db:
        fill(db)
        check(db)
    for turn in range(2):
        if gentle:
            started = time.monotonic()
            assert own_server.stop() == 0
            assert time.monotonic() - started < 5
        else:
            own_server.kill()
        own_server.start()
        with own_server.connect() as db:
            check(db, extra=turn * 5)
            db.execute("INSERT INTO t VALUES (1, 5)")
            check(db, extra=turn * 5 + 5)
            db.execute(f"CREATE TABLE after_{turn} (a integer)")


def test_kill_under_load_loses_nothing_acknowledged(own_server: Server) -> None:
    with own_server.connect() as db:
        db.execute("CREATE TABLE t (v integer)")
        db.execute("CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n, count(DISTINCT v) AS d FROM t")
    acknowledged: list[int] = []
    tried: list[int] = []

    def write(start: int) -> None:
        try:
            with own_server.connect() as db:
                for value in range(start, start + 100_000):
                    tried.append(value)
                    db.execute("INSERT INTO t VALUES (%s)", (value,))
                    acknowledged.append(value)
        except psycopg.Error:
            return

    threads = [threading.Thread(target=write, args=(i * 1_000_000,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 100:
        threading.Event().wait(0.01)
    own_server.kill()
    for thread in threads:
        thread.join()
    own_server.start()
    with own_server.connect() as db:
        there = {row[0] for row in db.execute("SELECT v FROM t").fetchall()}
        assert set(acknowledged) <= there <= set(tried)
        assert db.execute("SELECT n, d FROM m").fetchall() == [(len(there), len(there))]


def test_a_killed_replica_comes_back(own_server: Server, eventually: Callable[..., object]) -> None:
    with own_server.connect() as db:
        fill(db)
        check(db)
        (before,) = own_server.replica_pids()
        subprocess.run(["kill", "-9", str(before)], check=True)
        db.execute("INSERT INTO t VALUES (1, 5)")
        check(db, extra=5)
        eventually(lambda: own_server.replica_pids() not in ([], [before]))


def test_a_second_server_on_the_directory_is_refused(own_server: Server) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(own_server.directory / "data")
    second = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "serve", "--data-dir", data, "--port", str(port)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == 1
    assert f"process {own_server.pid}" in second.stderr
    assert data in second.stderr
    with own_server.connect() as db:
        assert db.execute("SELECT 1").fetchall() == [(1,)]


def test_a_port_in_use_is_told_and_leaves_the_directory_free(own_server: Server) -> None:
    data = str(own_server.directory / "other")
    second = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "serve", "--data-dir", data, "--port", str(own_server.port)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert str(own_server.port) in second.stderr
