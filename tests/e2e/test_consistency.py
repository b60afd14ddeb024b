"""Strict serializability across connections: what a client was told is seen by every later read, through views too."""

from __future__ import annotations

import threading
import time

import psycopg

from tools.serving import Server


def test_every_acknowledged_write_is_seen_by_the_next_read_through_a_view_of_a_view(
    server: Server, db: psycopg.Connection, name: str
) -> None:
    db.execute(f"CREATE TABLE {name} (v bigint)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_mod AS SELECT v % 7 AS m, count(*) AS n FROM {name} GROUP BY v % 7")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_sum AS SELECT sum(n) AS n FROM {name}_mod")
    acknowledged = 0
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        with server.connect() as reader:
            last = -1
            while not stop.is_set():
                before = acknowledged
                row = reader.execute(f"SELECT n FROM {name}_sum").fetchone()
                seen = int(row[0] or 0) if row else 0
                if seen < before or seen < last:
                    wrong.append(f"read {seen} after {before} were acknowledged and {last} seen")
                last = seen

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for value in range(150):
        db.execute(f"INSERT INTO {name} VALUES (%s)", (value,))
        acknowledged += 1
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert db.execute(f"SELECT n FROM {name}_sum").fetchall() == [(150,)]


def test_serializable_reads_answer_without_waiting_and_never_go_back(
    server: Server, db: psycopg.Connection, name: str
) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_n AS SELECT count(*) AS n FROM {name}")
    db.execute(f"SELECT * FROM {name}_n")
    with server.connect() as reader:
        reader.execute("SET transaction_isolation = 'serializable'")
        seen = []
        for value in range(20):
            db.execute(f"INSERT INTO {name} VALUES (%s)", (value,))
            seen.append(reader.execute(f"SELECT n FROM {name}_n").fetchone()[0])  # type: ignore[index]
    assert seen == sorted(seen)


def test_many_writers_at_once_commit_in_groups(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (writer integer, turn integer)")

    def write(writer: int) -> None:
        with server.connect() as connection:
            for turn in range(40):
                connection.execute(f"INSERT INTO {name} VALUES (%s, %s)", (writer, turn))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 30
    assert db.execute(f"SELECT count(*), count(DISTINCT (writer * 1000 + turn)) FROM {name}").fetchall() == [(320, 320)]
