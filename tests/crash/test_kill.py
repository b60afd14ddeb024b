"""kill -9 at random moments under load: nothing acknowledged is lost, nothing is doubled, views are right.

Writers move amounts between two tables in one transaction each and note what was acknowledged. After each kill and
restart every acknowledged transaction is there whole, every other one is there whole or not at all, and each view
equals its query run from scratch by DuckDB on the tables' contents at one timestamp.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from tools.serving import Server

TABLES = {"moves": "id bigint, account integer, amount bigint", "audit": "id bigint, account integer, amount bigint"}
VIEWS = {
    "balances": "SELECT account, sum(amount) AS balance, count(*) AS n FROM moves GROUP BY account",
    "richest": "SELECT account, balance FROM balances ORDER BY balance DESC, account LIMIT 3",
    "matched": "SELECT m.account, count(*) AS n FROM moves m JOIN audit a ON a.id = m.id GROUP BY m.account",
}
WRITERS = 3


class Load:
    """Writers that insert one row into each table per transaction until told to stop or cut off."""

    def __init__(self, server: Server, first_id: int) -> None:
        self.acknowledged: set[int] = set()
        self.attempted: set[int] = set()
        self._server = server
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(first_id + writer * 1_000_000,)) for writer in range(WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        try:
            with self._server.connect() as connection:
                while not self._stop.is_set():
                    self.attempted.add(number)
                    with connection.transaction():
                        row = (number, number % 7, number % 100 - 50)
                        connection.execute("INSERT INTO moves VALUES (%s, %s, %s)", row)
                        connection.execute("INSERT INTO audit VALUES (%s, %s, %s)", row)
                    self.acknowledged.add(number)
                    number += 1
        except psycopg.OperationalError:
            return  # the server was killed: what is not in `acknowledged` may or may not have happened

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()


@pytest.mark.crash
@pytest.mark.xdist_group("crash")
@pytest.mark.parametrize("seed", [1, 2])
def test_killing_everything_loses_nothing_acknowledged(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    server = Server(tmp_path)
    server.start()
    create(server)
    acknowledged: set[int] = set()
    attempted: set[int] = set()
    for cycle in range(3):
        load = Load(server, first_id=(cycle + 1) * 100_000_000)
        until(lambda load=load: len(load.acknowledged) >= 3 + dice.randrange(40))  # type: ignore[misc]
        server.kill()
        load.end()
        acknowledged |= load.acknowledged
        attempted |= load.attempted
        server.start()
        found = verify(server)
        assert acknowledged <= found, f"lost: {sorted(acknowledged - found)[:10]}"
        assert found <= attempted
    assert server.stop() == 0


@pytest.mark.crash
@pytest.mark.xdist_group("crash")
def test_killing_the_replica_makes_queries_wait_then_answer(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    create(server)
    load = Load(server, first_id=1)
    with server.connect() as reader:
        for _ in range(3):
            before = server.replica_pids()
            assert before, "no replica is running"
            floor = len(load.acknowledged)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            row = reader.execute("SELECT sum(n) FROM balances").fetchone()
            assert row is not None
            assert int(row[0] or 0) >= floor, "an acknowledged transaction is not in the answer"
            until(lambda before=before: set(server.replica_pids()).isdisjoint(before) and server.replica_pids() != [])  # type: ignore[misc]
    load.end()
    assert verify(server) == load.acknowledged
    assert server.stop() == 0


def create(server: Server) -> None:
    with server.connect() as connection:
        for name, columns in TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({columns})")
        for name, query in VIEWS.items():
            connection.execute(f"CREATE MATERIALIZED VIEW {name} AS {query}")


def verify(server: Server) -> set[int]:
    """Compare all views with DuckDB at one timestamp; returns the ids in the tables (the same in both, each once)."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN READ ONLY")
        tables = {name: cursor.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
        views = {name: cursor.execute(f"SELECT * FROM {name}").fetchall() for name in VIEWS}
        cursor.execute("COMMIT")
    assert sorted(tables["moves"]) == sorted(tables["audit"]), "a transaction is there by half"
    ids = [row[0] for row in tables["moves"]]
    assert len(ids) == len(set(ids)), "a transaction is there twice"
    second = duckdb.connect()
    for name, columns in TABLES.items():
        second.execute(f"CREATE TABLE {name} ({columns})")
        if tables[name]:
            second.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", tables[name])
    for name, query in VIEWS.items():
        second.execute(f"CREATE VIEW {name} AS {query}")
        assert integers(views[name]) == integers(second.execute(f"SELECT * FROM {name}").fetchall()), name
    return set(ids)


def integers(rows: list[tuple[Any, ...]]) -> list[tuple[int, ...]]:
    return sorted(tuple(int(value) for value in row) for row in rows)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for `condition`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        pause.wait(0.01)
