"""Statements through a real client: objects, rows, views over views, answers, and errors with their SQLSTATE."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import psycopg
import pytest


def rows(db: psycopg.Connection, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    return db.execute(sql, parameters or None).fetchall()


def test_rows_go_in_and_views_over_views_follow(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (k integer, v bigint)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_by_k AS SELECT k, sum(v) AS total FROM {name} GROUP BY k")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_all AS SELECT count(*) AS n, max(total) AS top FROM {name}_by_k")
    assert db.execute(f"INSERT INTO {name} VALUES (1, 10), (1, 20), (2, 5)").statusmessage == "INSERT 0 3"
    assert rows(db, f"SELECT * FROM {name}_by_k ORDER BY k") == [(1, 30), (2, 5)]
    assert rows(db, f"SELECT * FROM {name}_all") == [(2, 30)]
    assert db.execute(f"UPDATE {name} SET v = v + 1 WHERE k = 1").statusmessage == "UPDATE 2"
    assert rows(db, f"SELECT * FROM {name}_all") == [(2, 32)]
    assert db.execute(f"DELETE FROM {name} WHERE k = 1").statusmessage == "DELETE 2"
    assert rows(db, f"SELECT * FROM {name}_all") == [(1, 5)]


def test_joins_outer_joins_and_top_k(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name}_c (id integer, who text)")
    db.execute(f"CREATE TABLE {name}_o (customer integer, amount numeric(12,2))")
    db.execute(
        f"CREATE MATERIALIZED VIEW {name}_best AS SELECT who, count(amount) AS orders, sum(amount) AS total"
        f" FROM {name}_c LEFT JOIN {name}_o ON id = customer GROUP BY who ORDER BY total DESC NULLS LAST LIMIT 2"
    )
    db.execute(f"INSERT INTO {name}_c VALUES (1, 'ada'), (2, 'grace'), (3, 'edsger')")
    assert len(rows(db, f"SELECT * FROM {name}_best")) == 2
    db.execute(f"INSERT INTO {name}_o VALUES (1, 12.50), (2, 99.90), (1, 0.50)")
    assert rows(db, f"SELECT * FROM {name}_best ORDER BY total DESC") == [
        ("grace", 1, Decimal("99.90")),
        ("ada", 2, Decimal("13.00")),
    ]
    db.execute(f"DELETE FROM {name}_o WHERE customer = 2")
    assert rows(db, f"SELECT who FROM {name}_best WHERE orders > 0") == [("ada",)]


def test_plain_views_are_inlined_and_indexes_are_used(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer, v text)")
    db.execute(f"CREATE VIEW {name}_v AS SELECT id, upper(v) AS loud FROM {name} WHERE id > 1")
    db.execute(f"INSERT INTO {name} VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    assert rows(db, f"SELECT loud FROM {name}_v ORDER BY id") == [("B",), ("C",)]
    db.execute(f"CREATE INDEX {name}_i ON {name}_v (id)")
    assert rows(db, f"SELECT loud FROM {name}_v WHERE id = 3") == [("C",)]
    assert rows(db, f"SELECT loud FROM {name}_v WHERE id IN (2, 3, 9) ORDER BY 1") == [("B",), ("C",)]
    db.execute(f"INSERT INTO {name} VALUES (3, 'd')")
    assert rows(db, f"SELECT loud FROM {name}_v WHERE id = 3 ORDER BY 1") == [("C",), ("D",)]
    plan = "\n".join(str(row[0]) for row in rows(db, f"EXPLAIN SELECT loud FROM {name}_v WHERE id = 3"))
    assert f"{name}_i" in plan


def test_a_filter_on_a_view_is_not_taken_for_one_on_the_indexed_table_below(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer)")
    db.execute(f"CREATE VIEW {name}_v AS SELECT id + 1 AS id FROM {name}")
    db.execute(f"CREATE INDEX {name}_i ON {name} (id)")
    db.execute(f"INSERT INTO {name} VALUES (4), (5)")
    assert rows(db, f"SELECT * FROM {name} WHERE id = 5") == [(5,)]
    assert rows(db, f"SELECT * FROM {name}_v WHERE id = 5") == [(5,)]
    assert rows(db, f"SELECT * FROM {name}_v WHERE id = 4") == []
    assert "key(s)" not in str(rows(db, f"EXPLAIN SELECT * FROM {name}_v WHERE id = 4"))


@pytest.mark.parametrize(
    ("condition", "parameters", "expected"),
    [
        ("k = 2", (), [2, 2]),
        ("k IN (1, 2, 2, NULL)", (), [1, 2, 2]),
        ("k = ANY(%s)", ([2, 2, None, 9],), [2, 2]),
        ("k = ANY(%s)", ([],), []),
        ("k = %s", (None,), []),
        ("k = 2 AND v = 'b'", (), [2]),
        ("k = 2 AND k = 1", (), []),
        ("k = 2.5", (), []),
        ("k = 2.0", (), [2, 2]),
        ("k = %s", (2.0,), [2, 2]),
        ("NOT k = 2", (), [1]),
        ("k = 2 OR k = 1", (), [1, 2, 2]),
        ("d = '2026-01-02'", (), [2, 2]),
        ("d = %s", (dt.date(2026, 1, 2),), [2, 2]),
        ("d = %s", (dt.datetime(2026, 1, 2, 10, 0),), []),
        ("d = %s", (dt.datetime(2026, 1, 2, 0, 0),), [2, 2]),
        ("v = 'a' AND k = 1", (), [1]),
        ("v = ANY(%s) AND k = ANY(%s)", (["a", "b", "c"], [1, 2]), [1, 2, 2]),
    ],
)
def test_rows_found_by_key_are_those_that_the_filter_means(
    db: psycopg.Connection, name: str, condition: str, parameters: tuple[object, ...], expected: list[int]
) -> None:
    db.execute(f"CREATE TABLE {name} (d date, k integer, v text)")
    for number, key in enumerate(["k", "d", "k, v"]):
        db.execute(f"CREATE INDEX {name}_{number} ON {name} ({key})")
    db.execute(
        f"INSERT INTO {name} VALUES ('2026-01-01', 1, 'a'), ('2026-01-02', 2, 'b'), ('2026-01-02', 2, 'c'),"
        " (NULL, NULL, NULL)"
    )
    found = rows(db, f"SELECT v, {name}.k, * FROM {name} WHERE {condition}", *parameters)
    assert sorted(row[1] for row in found) == expected  # type: ignore[type-var]
    assert all(row[0] == row[4] and row[1] == row[3] for row in found)
    assert db.execute(f"DELETE FROM {name} WHERE {condition}", parameters).rowcount == len(expected)
    assert rows(db, f"SELECT count(*) FROM {name}") == [(4 - len(expected),)]


def test_types_come_back_as_they_went_in(db: psycopg.Connection, name: str) -> None:
    db.execute(
        f"CREATE TABLE {name} (b boolean, s smallint, i integer, l bigint, r real, d double precision, n numeric,"
        " t text, y bytea, day date, at timestamp, tz timestamptz, u uuid, j jsonb)"
    )
    values = (
        True,
        -32768,
        2**31 - 1,
        -(2**63),
        1.5,
        0.1,
        Decimal("123.456"),
        "naïve ☃ 'quoted'",
        b"\x00\xff",
        dt.date(2024, 2, 29),
        dt.datetime(2024, 2, 29, 12, 30, 0, 123456),
        dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC),
        uuid.UUID(int=7),
    )
    marks = ", ".join(["%s"] * len(values))
    db.execute(f"INSERT INTO {name} VALUES ({marks}, '{{\"a\": [1, null]}}')", values)
    db.execute(f"INSERT INTO {name} (b) VALUES (NULL)")
    assert rows(db, f"SELECT * FROM {name} WHERE b") == [(*values, {"a": [1, None]})]
    assert rows(db, f"SELECT count(*), count(b), count(j) FROM {name}") == [(2, 1, 1)]


def test_defaults_not_null_and_returning(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer NOT NULL, note text DEFAULT 'none')")
    assert rows(db, f"INSERT INTO {name} (id) VALUES (1), (2) RETURNING id, note") == [(1, "none"), (2, "none")]
    with pytest.raises(psycopg.errors.NotNullViolation):
        db.execute(f"INSERT INTO {name} VALUES (NULL, 'x')")
    with pytest.raises(psycopg.errors.NotNullViolation):
        db.execute(f"UPDATE {name} SET id = NULL")
    assert rows(db, f"SELECT count(*) FROM {name}") == [(2,)]
    db.execute(f"INSERT INTO {name} SELECT id + 10, note FROM {name}")
    assert rows(db, f"SELECT id FROM {name} ORDER BY id") == [(1,), (2,), (11,), (12,)]


@pytest.mark.parametrize(
    ("sql", "sqlstate", "position"),
    [
        ("SELEC 1", "42601", 1),
        ("SELECT * FROM no_such_table", "42P01", 15),
        ("SELECT no_such_column FROM (VALUES (1)) v(a)", "42703", 8),
        ("CREATE TABLE broken (a no_such_type)", "42704", None),
        ("INSERT INTO no_such_table VALUES (1)", "42P01", None),
        ("DROP TABLE no_such_table", "42P01", None),
        ("SELECT 1/0", "22012", None),
        ("SELECT 'x'::integer", "22P02", None),
        ("SELECT 2147483647::integer + 1", "22003", None),
        ("SET no_such_variable = 1", "42704", None),
        ("FETCH ALL no_such_cursor", "34000", None),
        ("EXECUTE no_such_statement", "26000", None),
        ("CREATE MATERIALIZED VIEW random_one AS SELECT random()", "0A000", None),
    ],
)
def test_errors_say_what_and_where(db: psycopg.Connection, sql: str, sqlstate: str, position: int | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.execute(sql)
    assert caught.value.sqlstate == sqlstate
    if position is not None:
        assert caught.value.diag.statement_position == str(position)
    assert rows(db, "SELECT 1") == [(1,)]


def test_an_error_in_a_views_data_is_answered_and_goes_when_the_data_is_mended(
    db: psycopg.Connection, name: str
) -> None:
    db.execute(f"CREATE TABLE {name} (a integer, b integer)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_v AS SELECT a / b AS q FROM {name}")
    db.execute(f"INSERT INTO {name} VALUES (6, 2), (1, 0)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute(f"SELECT * FROM {name}_v")
    db.execute(f"DELETE FROM {name} WHERE b = 0")
    assert rows(db, f"SELECT * FROM {name}_v") == [(3,)]


def test_names_are_taken_once_and_if_not_exists_forgives(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (a integer)")
    with pytest.raises(psycopg.errors.DuplicateTable):
        db.execute(f"CREATE TABLE {name} (a integer)")
    db.execute(f"CREATE TABLE IF NOT EXISTS {name} (a integer)")
    db.execute(f"CREATE VIEW {name}_v AS SELECT a FROM {name}")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        db.execute(f"DROP TABLE {name}")
    db.execute(f"DROP TABLE {name} CASCADE")
    with pytest.raises(psycopg.errors.UndefinedTable):
        db.execute(f"SELECT * FROM {name}_v")
    db.execute(f"DROP TABLE IF EXISTS {name}")
    db.execute(f"CREATE TABLE {name} (other text)")
    assert rows(db, f"SELECT * FROM {name}") == []


def test_replacing_views_and_renaming(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (a integer)")
    db.execute(f"INSERT INTO {name} VALUES (1)")
    db.execute(f"CREATE OR REPLACE VIEW {name}_v AS SELECT a FROM {name}")
    db.execute(f"CREATE OR REPLACE VIEW {name}_v AS SELECT a + 1 AS b FROM {name}")
    assert rows(db, f"SELECT b FROM {name}_v") == [(2,)]
    db.execute(f"ALTER TABLE {name} RENAME TO {name}_new")
    assert rows(db, f"SELECT b FROM {name}_v") == [(2,)]
    assert rows(db, f"SELECT a FROM {name}_new") == [(1,)]


def test_prepared_statements_and_variables(db: psycopg.Connection, name: str) -> None:
    db.execute(f"PREPARE {name} (integer, text) AS SELECT $1 + 1, $2 || '!'")
    assert rows(db, f"EXECUTE {name} (41, 'ja')") == [(42, "ja!")]
    db.execute(f"DEALLOCATE {name}")
    db.execute("SET application_name = 'tests'")
    assert rows(db, "SHOW application_name") == [("tests",)]
    db.execute("RESET application_name")
    db.execute("SET statement_timeout = '50ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        db.execute("SELECT mz_now() AS OF 99999999999999")
    db.execute("DISCARD ALL")
    assert rows(db, "SHOW statement_timeout") == [("0 s",)]


def test_parameters_in_every_place(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer, v text)")
    with db.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {name} VALUES (%s, %s)", [(i, str(i)) for i in range(50)])
    assert rows(db, f"SELECT v FROM {name} WHERE id = %s", 7) == [("7",)]
    assert db.execute(f"UPDATE {name} SET v = %s WHERE id = %s", ("seven", 7)).rowcount == 1
    assert rows(db, f"SELECT id FROM {name} WHERE v = %s", "seven") == [(7,)]
    assert db.execute(f"DELETE FROM {name} WHERE id >= %s", (10,)).rowcount == 40


def test_copy_both_ways(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer, v text)")
    with db.cursor() as cursor:
        with cursor.copy(f"COPY {name} FROM STDIN") as copy:
            for i in range(20_000):
                copy.write_row((i, None if i % 3 else f"tab\t{i}"))
        assert cursor.rowcount == 20_000
        with cursor.copy(f"COPY (SELECT v, id FROM {name} WHERE id < 2 ORDER BY id) TO STDOUT (FORMAT csv)") as out:
            assert b"".join(bytes(part) for part in out) == b"tab\t0,0\n,1\n"
    assert rows(db, f"SELECT count(*), count(v), sum(id) FROM {name}") == [(20_000, 6_667, 199_990_000)]


def test_a_broken_copy_leaves_nothing(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer)")
    with pytest.raises(psycopg.DataError), db.cursor().copy(f"COPY {name} FROM STDIN") as copy:
        copy.write("1\n2\nthree\n")
    assert rows(db, f"SELECT count(*) FROM {name}") == [(0,)]


def test_system_relations_and_show(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_v AS SELECT id FROM {name}")
    assert (name,) in rows(db, "SELECT name FROM mz_catalog.mz_tables")
    assert rows(
        db,
        "SELECT c.name FROM mz_materialized_views v JOIN mz_clusters c ON c.id = v.cluster_id WHERE v.name = %s",
        f"{name}_v",
    ) == [("quickstart",)]
    assert rows(
        db,
        "SELECT hydrated FROM mz_internal.mz_hydration_statuses h JOIN mz_objects o ON o.id = h.object_id"
        " WHERE o.name = %s",
        f"{name}_v",
    ) in ([(True,)], [(False,)])
    assert (name,) in [row[:1] for row in rows(db, "SHOW TABLES")]
    assert [row[0] for row in rows(db, f"SHOW COLUMNS FROM {name}")] == ["id"]
    assert "CREATE TABLE" in str(rows(db, f"SHOW CREATE TABLE {name}")[0][1])


def test_explain_tells_the_plan_and_the_timestamp(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer)")
    assert rows(db, f"EXPLAIN OPTIMIZED PLAN FOR SELECT id FROM {name} WHERE id > 3")
    text = "\n".join(str(row[0]) for row in rows(db, f"EXPLAIN TIMESTAMP FOR SELECT id FROM {name}"))
    assert "query timestamp" in text
    assert "can respond immediately" in text


def test_text_that_is_too_long_is_refused_however_it_gets_there(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (id integer, v varchar(3))")
    db.execute(f"INSERT INTO {name} VALUES (1, 'abc'), (2, 'abc  ')")  # blanks beyond the end are dropped
    for statement in (
        f"INSERT INTO {name} VALUES (3, 'abcd')",
        f"INSERT INTO {name} SELECT 3, 'ab' || 'cd'",
        f"INSERT INTO {name} SELECT id, v || 'd' FROM {name}",
        f"UPDATE {name} SET v = v || 'd'",
        f"UPDATE {name} SET v = 'abcd'",
    ):
        with pytest.raises(psycopg.errors.StringDataRightTruncation):
            db.execute(statement)
    db.execute(f"INSERT INTO {name} SELECT 3, CAST('abcd' AS varchar(3))")  # a cast in so many words does cut
    assert rows(db, f"SELECT * FROM {name} ORDER BY id") == [(1, "abc"), (2, "abc"), (3, "abc")]
