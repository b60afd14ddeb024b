"""SUBSCRIBE through COPY and cursors: snapshot, changes, progress, bounds, errors, and its end by cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

from tools.serving import Server


def test_changes_of_a_view_arrive_through_copy(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (k integer, v integer)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_v AS SELECT k, sum(v) AS s FROM {name} GROUP BY k")
    db.execute(f"INSERT INTO {name} VALUES (1, 10)")

    def follow(connection: psycopg.Connection) -> None:
        with connection.cursor() as cursor, cursor.copy(f"COPY (SUBSCRIBE {name}_v) TO STDOUT") as copy:
            got = copy.rows()
            first = next(got)
            assert first[1:] == ("1", "1", "10")
            db.execute(f"INSERT INTO {name} VALUES (1, 5)")
            second, third = next(got), next(got)
            assert sorted([second[1:], third[1:]]) == [("-1", "1", "10"), ("1", "1", "15")]
            assert int(first[0]) < int(second[0]) == int(third[0])
            connection.cancel_safe()
            next(got)

    with server.connect() as other, pytest.raises(psycopg.errors.QueryCanceled):
        follow(other)
    assert db.execute("SELECT 1").fetchall() == [(1,)]


def test_a_cursor_fetches_what_is_there_or_waits(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    with server.connect(autocommit=False) as other:
        other.execute(f"DECLARE c CURSOR FOR SUBSCRIBE {name}")
        assert other.execute("FETCH ALL c WITH (timeout = '0s')").fetchall() == []
        assert other.execute("FETCH 1 c WITH (timeout = '50ms')").fetchall() == []
        waiter: list[tuple[object, ...]] = []
        thread = threading.Thread(target=lambda: waiter.extend(other.execute("FETCH ALL c").fetchall()))
        thread.start()
        db.execute(f"INSERT INTO {name} VALUES (7)")
        thread.join(timeout=30)
        assert [row[1:] for row in waiter] == [(1, 7)]
        db.execute(f"INSERT INTO {name} VALUES (8), (9)")
        two = other.execute("FETCH 2 c WITH (timeout = '30s')").fetchall()
        assert sorted(row[2] for row in two) == [8, 9]
        other.execute("CLOSE c")
        other.rollback()


def test_progress_snapshot_and_bounds(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    db.execute(f"INSERT INTO {name} VALUES (1), (1)")
    now = int(db.execute("SELECT mz_now()::text").fetchone()[0])  # type: ignore[index]
    rows = db.execute(f"SUBSCRIBE {name} WITH (PROGRESS) AS OF {now} UP TO {now + 1}").fetchall()
    assert rows[0] == (now, True, None, None)
    assert (now, False, 2, 1) in rows
    assert db.execute(f"SUBSCRIBE {name} WITH (SNAPSHOT = false) AS OF {now} UP TO {now + 1}").fetchall() == []
    assert db.execute(f"SUBSCRIBE {name} AS OF {now} UP TO {now}").fetchall() == []
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"SUBSCRIBE {name} AS OF {now} UP TO {now - 1}")
    assert caught.value.sqlstate == "22000"


def test_a_query_can_be_subscribed_to(server: Server, db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (k integer, v integer)")
    with server.connect(autocommit=False) as other:
        other.execute(f"DECLARE c CURSOR FOR SUBSCRIBE (SELECT k, count(*) AS n FROM {name} WHERE v > 1 GROUP BY k)")
        db.execute(f"INSERT INTO {name} VALUES (1, 1), (1, 2), (2, 5)")
        got = other.execute("FETCH 2 c WITH (timeout = '30s')").fetchall()
        assert sorted(row[1:] for row in got) == [(1, 1, 1), (1, 2, 1)]


def test_dropping_the_object_ends_the_subscription(
    server: Server, db: psycopg.Connection, name: str, eventually: Callable[..., object]
) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    db.execute(f"INSERT INTO {name} VALUES (1)")
    with server.connect(autocommit=False) as other:
        other.execute(f"DECLARE c CURSOR FOR SUBSCRIBE {name}")
        assert len(other.execute("FETCH ALL c").fetchall()) == 1
        db.execute(f"DROP TABLE {name}")
        with pytest.raises(psycopg.Error, match="dropped"):
            eventually(lambda: other.execute("FETCH ALL c WITH (timeout = '100ms')").fetchall() and False)


def test_a_lost_client_frees_what_it_subscribed_to(
    server: Server, db: psycopg.Connection, name: str, eventually: Callable[..., object]
) -> None:
    db.execute(f"CREATE TABLE {name} (v integer)")
    other = server.connect(autocommit=False)
    other.execute(f"DECLARE c CURSOR FOR SUBSCRIBE {name}")
    other.execute("FETCH ALL c WITH (timeout = '0s')")
    count = "SELECT count(*) FROM mz_internal.mz_subscriptions"
    assert db.execute(count).fetchone() == (1,)
    other.close()
    eventually(lambda: db.execute(count).fetchone() == (0,))
