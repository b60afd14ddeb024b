"""Transactions: one time for all reads, one for all writes, nothing of a failed one, and clear refusals."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tools.serving import Server


def test_all_writes_of_a_transaction_appear_at_once(server: Server, db: psycopg.Connection, name: str) -> None:
    for table in ("a", "b"):
        db.execute(f"CREATE TABLE {name}_{table} (v integer)")
    db.execute(
        f"CREATE MATERIALIZED VIEW {name}_difference AS SELECT (SELECT count(*) FROM {name}_a) -"
        f" (SELECT count(*) FROM {name}_b) AS d"
    )
    stop = threading.Event()
    seen: set[int] = set()

    def read() -> None:
        with server.connect() as reader:
            while not stop.is_set():
                seen.add(reader.execute(f"SELECT d FROM {name}_difference").fetchone()[0])  # type: ignore[index]

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        with db.transaction():
            db.execute(f"INSERT INTO {name}_a VALUES (%s)", (i,))
            db.execute(f"INSERT INTO {name}_b VALUES (%s)", (i,))
    stop.set()
    reader.join()
    assert seen == {0}


def test_rollback_and_failure_leave_nothing(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    with server.connect(autocommit=False) as other:
        other.execute(f"INSERT INTO {name} VALUES (1)")
        other.rollback()
        other.execute(f"INSERT INTO {name} VALUES (2)")
        with pytest.raises(psycopg.errors.DivisionByZero):
            other.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            other.execute("SELECT 1")
        other.rollback()
        other.execute(f"INSERT INTO {name} VALUES (3)")
        other.commit()
    assert db.execute(f"SELECT v FROM {name}").fetchall() == [(3,)]


def test_a_read_only_transaction_reads_at_one_time(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_n AS SELECT count(*) AS n FROM {name}")
    with server.connect() as other, other.transaction():
        other.execute("SET TRANSACTION READ ONLY")
        first = other.execute("SELECT mz_now()::text").fetchone()
        db.execute(f"INSERT INTO {name} VALUES (1)")
        assert other.execute(f"SELECT n FROM {name}_n").fetchall() == [(0,)]
        assert other.execute(f"SELECT * FROM {name}").fetchall() == []
        assert other.execute("SELECT mz_now()::text").fetchone() == first
    assert db.execute(f"SELECT n FROM {name}_n").fetchall() == [(1,)]
    with server.connect() as other:
        other.execute("BEGIN READ ONLY")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            other.execute(f"INSERT INTO {name} VALUES (2)")


def test_mixing_reads_and_writes_and_ddl_are_refused_clearly(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    with server.connect(autocommit=False) as other:
        other.execute(f"INSERT INTO {name} VALUES (1)")
        with pytest.raises(psycopg.Error, match="write-only") as caught:
            other.execute(f"SELECT * FROM {name}")
        assert caught.value.sqlstate == "25000"
        other.rollback()
        other.execute(f"SELECT * FROM {name}")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            other.execute(f"INSERT INTO {name} VALUES (1)")
        other.rollback()
        other.execute(f"INSERT INTO {name} VALUES (1)")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            other.execute(f"UPDATE {name} SET v = 2")
        other.rollback()
        other.execute("SELECT 1")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            other.execute(f"DROP TABLE {name}")
        other.rollback()
    assert db.execute(f"SELECT * FROM {name}").fetchall() == []


def test_updates_of_one_row_by_many_lose_nothing(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (n integer)")
    db.execute(f"INSERT INTO {name} VALUES (0)")

    def bump() -> None:
        with server.connect() as other:
            for _ in range(10):
                other.execute(f"UPDATE {name} SET n = n + 1")

    threads = [threading.Thread(target=bump) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.execute(f"SELECT n FROM {name}").fetchall() == [(40,)]


def test_a_cycle_of_updates_is_a_deadlock_and_one_of_them_goes_on(
    server: Server, db: psycopg.Connection, name: str
) -> None:
    for table in ("a", "b"):
        db.execute(f"CREATE TABLE {name}_{table} (v integer)")
        db.execute(f"INSERT INTO {name}_{table} VALUES (0)")
    errors: list[str | None] = []
    meet = threading.Barrier(2)

    def swap(first: str, second: str) -> None:
        with server.connect(autocommit=False) as other:
            other.execute(f"UPDATE {name}_{first} SET v = v + 1")
            meet.wait()
            try:
                other.execute(f"UPDATE {name}_{second} SET v = v + 1")
                other.commit()
            except psycopg.Error as error:
                errors.append(error.sqlstate)
                other.rollback()

    threads = [threading.Thread(target=swap, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == ["40P01"]
    assert db.execute(f"SELECT a.v, b.v FROM {name}_a a, {name}_b b").fetchall() == [(1, 1)]


def test_a_script_of_statements_is_one_transaction(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute(f"INSERT INTO {name} VALUES (1); INSERT INTO {name} VALUES (2); SELECT 1/0")
    assert db.execute(f"SELECT count(*) FROM {name}").fetchall() == [(0,)]
    db.execute(f"INSERT INTO {name} VALUES (1); INSERT INTO {name} VALUES (2)")
    assert db.execute(f"SELECT count(*) FROM {name}").fetchall() == [(2,)]


def test_cancel_reaches_a_waiting_write(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    db.execute(f"INSERT INTO {name} VALUES (0)")
    with server.connect(autocommit=False) as holder, server.connect() as blocked:
        holder.execute(f"UPDATE {name} SET v = 1")
        failed: list[str | None] = []
        started = threading.Event()

        def insert() -> None:
            started.set()
            try:
                blocked.execute(f"INSERT INTO {name} VALUES (2)")
            except psycopg.Error as error:
                failed.append(error.sqlstate)

        thread = threading.Thread(target=insert)
        thread.start()
        started.wait()
        while thread.is_alive():
            blocked.cancel_safe()
            thread.join(0.05)
        holder.commit()
    assert failed == ["57014"]
    assert db.execute(f"SELECT v FROM {name}").fetchall() == [(1,)]
