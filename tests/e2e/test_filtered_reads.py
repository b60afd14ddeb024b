"""What a WHERE clause says of single columns goes down to the shards: fewer parts are read, the answer stays the same.

A condition that is negated twice means the same and is not passed down: the comparison of both is the test.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from tools.serving import Server, copy_in

COLUMNS = "k integer, s text, n numeric(8,2), d date, at timestamp, v varchar(5), u uint2, w numeric"
TEXTS = ["", "a", "a ", "B", "b", "é", "zz", "10", "9"]
"""Sorted by their bytes, not as a language would."""
ODD = {
    "k": ["0x2", " 2 ", "+2", "2.0", "02", "-0"],
    "n": ["0x1", " 1.5 ", "+1", "1e0", ".5", "1.", "NaN"],
    "d": ["2026-1-3", "20260103", "2026-01-03 12:30:00", " 2026-01-03 ", "Jan 3 2026", "infinity"],
    "at": [
        "2026-01-03T12:30:00Z",
        "2026-01-03 12:30:00+02",
        "2026-01-03 12:30:00.5000004",
        "2026-01-03 24:00",
        "epoch",
    ],
}
"""Texts that may be values, or none."""


def rows(db: psycopg.Connection, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    return sorted(db.execute(sql, parameters or None, binary=bool(parameters)).fetchall(), key=repr)


def literal(rng: random.Random, column: str) -> str:
    """A value of the column as text, as likely as not one that some row has."""
    day = dt.date(2026, 1, 1) + dt.timedelta(rng.randrange(6))
    return {
        "k": lambda: str(rng.randrange(-4, 5)),
        "s": lambda: rng.choice(TEXTS),
        "n": lambda: f"{rng.randrange(-300, 300) / 100:.2f}",
        "d": lambda: str(day),
        "at": lambda: f"{day} {rng.choice(['00:00:00', '12:30:00.5'])}",
        "v": lambda: rng.choice(TEXTS),
        "u": lambda: str(rng.randrange(5)),
        "w": lambda: rng.choice(["0", "-0.5", "1.25", "1e2", "100.0000000001"]),
    }[column]()


def constant(rng: random.Random, column: str) -> str:
    text = literal(rng, column)
    if rng.random() < 0.1:
        return "NULL"
    if rng.random() < 0.1 and column in ODD:
        return f"'{rng.choice(ODD[column])}'"
    if column in ("k", "n", "u", "w"):
        odd = ["2.5", "0.005", "70000", "12345678901234567890", "-1", f"'{text}'", f"({text})"]
        return rng.choice(odd) if rng.random() < 0.3 else text
    if column == "d" and rng.random() < 0.5:
        return rng.choice([f"DATE '{text}'", f"'{text}'::date", f"TIMESTAMP '{text} 06:00'", f"'{text}'::timestamp"])
    if column == "at" and rng.random() < 0.5:
        return rng.choice(
            [f"TIMESTAMP '{text}'", f"'{text}'::timestamp", f"DATE '{text[:10]}'", f"'{text}'::timestamptz"]
        )
    return f"'{text}'"


def comparison(rng: random.Random, alias: str) -> str:
    column = rng.choice(["k", "s", "n", "d", "at", "v", "u", "w"])
    name = rng.choice([column, column.upper(), f'"{column}"', f"{alias}.{column}"])
    operator = rng.choice(["=", "<>", "!=", "<", "<=", ">", ">="])
    first, second = constant(rng, column), constant(rng, column)
    cast = f"{name}::text {operator} '{literal(rng, column)}'"
    choices = [f"{name} {operator} {first}", f"{first} {operator} {name}", f"{name} BETWEEN {first} AND {second}", cast]
    choices += [f"{name} NOT BETWEEN {first} AND {second}", f"{name} IN ({first}, {second})", f"{name} IS NULL"]
    choices += [f"{name} IS NOT DISTINCT FROM {first}", f"NOT {name} {operator} {first}", f"{name} {operator} {name}"]
    return rng.choices(choices, [6, 3, 2, 1, 1, 1, 1, 1, 1, 1])[0]


def condition(rng: random.Random, alias: str, depth: int = 0) -> str:
    if depth == 3 or rng.random() < 0.3:
        return comparison(rng, alias)
    joined = rng.choice([" AND ", " AND ", " AND ", " OR "])
    return "(" + joined.join(condition(rng, alias, depth + 1) for _ in range(2)) + ")"


@pytest.fixture(scope="module")
def filled(server: Server) -> list[str]:
    """A table and a materialized view of rows that were inserted, changed and deleted in many commits."""
    rng = random.Random(7)
    with server.connect() as db:
        db.execute(f"CREATE TABLE f ({COLUMNS})")
        db.execute("CREATE MATERIALIZED VIEW f_view AS SELECT * FROM f")
        names = ["k", "s", "n", "d", "at", "v", "u", "w"]
        for _ in range(25):
            values = [
                ", ".join("NULL" if rng.random() < 0.15 else f"'{literal(rng, name)}'" for name in names)
                for _ in range(8)
            ]
            db.execute(f"INSERT INTO f VALUES {', '.join(f'({value})' for value in values)}")
            if rng.random() < 0.5:
                db.execute(f"DELETE FROM f WHERE k = {rng.randrange(-4, 5)} AND s < '{rng.choice(TEXTS)}'")
            if rng.random() < 0.5:
                db.execute(f"UPDATE f SET k = k + 1, s = '{rng.choice(TEXTS)}' WHERE n < {rng.randrange(-3, 3)}")
        assert rows(db, "SELECT * FROM f") == rows(db, "SELECT * FROM f_view") != []
    return ["f", "f_view"]


def outcome(db: psycopg.Connection, sql: str) -> object:
    """The answer, or the SQLSTATE."""
    try:
        return rows(db, sql)
    except psycopg.Error as error:
        return error.sqlstate


@pytest.mark.parametrize("seed", range(4))
def test_answers_do_not_depend_on_what_is_passed_down(db: psycopg.Connection, filled: list[str], seed: int) -> None:
    rng = random.Random(seed)
    selective = 0
    for _ in range(60):
        table, alias = rng.choice(filled), rng.choice(["f", "x", '"Q"'])
        where = condition(rng, alias)
        known = outcome(db, f"SELECT * FROM {table} AS {alias} WHERE NOT (NOT ({where}))")
        assert outcome(db, f"SELECT * FROM {table} AS {alias} WHERE {where}") == known, where
        selective += isinstance(known, list) and len(known) > 0
    assert selective >= 10, "conditions that nothing meets show nothing"


@pytest.mark.parametrize(
    "from_where",
    [
        "{0} AS x(u, s, n, d, at, v, k) WHERE k = 1",  # what is called k is the column u
        "{0} AS x(a) WHERE a = 1 AND n > 0",
        "{0} x LEFT JOIN {0} y ON x.k = y.u WHERE y.k IS NULL",
        "{0} x LEFT JOIN {0} y ON x.k = y.u AND y.k > 2 WHERE x.k > 0",
        "{0} x LEFT JOIN {0} y ON x.k = y.u WHERE y.s > 'a' AND x.k > 0",
        "{0} x, {0} y WHERE x.k = 1 AND y.k = 2 AND x.n > y.n",
        "{0} x WHERE k = 1 AND EXISTS (SELECT 1 FROM {0} y WHERE y.k = x.k + 1)",
        "{0} x WHERE k = 1 AND NOT EXISTS (SELECT 1 FROM {0} y WHERE y.k = 2 AND y.s = x.s)",
        "{0} x WHERE k = 1 AND EXISTS (SELECT 1 FROM other y WHERE y.link = x.k)",
        "{0} x WHERE k = 1 AND u IN (SELECT k FROM {0} WHERE k > 1)",
        "{0} x WHERE k = 1 AND u < (SELECT max(k) FROM {0})",
        "{0} x WHERE k = 1 AND u < ALL (SELECT k FROM {0} WHERE k > 2)",
        "(SELECT u AS k, k AS u FROM {0}) x WHERE k = 1",
        "(SELECT k + 1 AS k FROM {0}) x WHERE k = 1",
        "{0} x WHERE k > 0 AND array_length(ARRAY(SELECT k FROM {0} WHERE k < 0), 1) > 0",
        "{0} x WHERE k = ANY(ARRAY[1]) AND u = ANY(ARRAY[2, 3, 4])",
        "{0} x WHERE k > - 2 AND mz_now() > 5",
    ],
)
@pytest.mark.parametrize("index", [False, True])
def test_a_condition_is_about_its_own_relation(
    db: psycopg.Connection, filled: list[str], name: str, from_where: str, index: bool
) -> None:
    db.execute(f"CREATE TABLE {name} (k integer, link integer)")
    db.execute(f"INSERT INTO {name} VALUES (7, 1), (8, 2), (1, 9)")
    if index:
        db.execute("CREATE INDEX f_by_k ON f (k)")
        db.execute(f"CREATE INDEX {name}_i ON {name} (k)")
    from_, where = from_where.replace("other", name).split(" WHERE ", 1)
    try:
        for table in filled:
            plain = outcome(db, f"SELECT * FROM {from_.format(table)} WHERE {where.format(table)}")
            negated = outcome(db, f"SELECT * FROM {from_.format(table)} WHERE NOT (NOT ({where.format(table)}))")
            assert plain == negated
            assert isinstance(negated, list)
            assert negated, "an empty answer shows little"
    finally:
        db.execute("DROP INDEX IF EXISTS f_by_k")


@pytest.mark.parametrize(
    ("condition", "parameter"),
    [
        ("n = {}::numeric(8,1)", Decimal("1.25")),
        ("n >= {}::numeric", Decimal("1.25")),
        ("n >= {}", Decimal("1.255")),
        ("s = {}::varchar(1)", "bb"),
        ("s = {}::char", "bb"),
        ("s = {}::text", "b"),
        ("k > {}::smallint", 2),
        ("k > {}", 2.5),
        ("k = {}::text::integer", 2),
        ("at >= {}", dt.datetime(2026, 1, 3, 12)),
        ("at >= {}", dt.datetime(2026, 1, 3, 12, tzinfo=dt.timezone(dt.timedelta(hours=5)))),
        ("at >= {}", dt.date(2026, 1, 3)),
        ("d >= {}", dt.datetime(2026, 1, 3, 12)),
        ("d BETWEEN {0} AND {0}", dt.date(2026, 1, 3)),
        ("k = {}", None),
        ("k = ANY({})", [1, None]),
    ],
)
def test_parameters_mean_the_same(
    db: psycopg.Connection, filled: list[str], name: str, condition: str, parameter: object
) -> None:
    db.execute(f"CREATE TABLE {name} ({COLUMNS})")
    db.execute(f"INSERT INTO {name} (n, s) VALUES (1.30, 'b'), (1.25, 'bb'), (1.2, 'a')")
    for table in [name, *filled]:
        where = condition.format("%(p)s")
        texts = [f"SELECT * FROM {table} WHERE {where}", f"SELECT * FROM {table} WHERE NOT (NOT ({where}))"]
        plain, negated = (sorted(db.execute(text, {"p": parameter}).fetchall(), key=repr) for text in texts)
        assert plain == negated


def test_an_error_is_seen_whatever_is_asked_for(db: psycopg.Connection, name: str) -> None:
    db.execute(f"CREATE TABLE {name} (k integer, v integer)")
    db.execute(f"CREATE MATERIALIZED VIEW {name}_v AS SELECT k, 10 / v AS q FROM {name}")
    db.execute(f"INSERT INTO {name} VALUES (1, 1), (2, 0), (3, 5)")
    for where in ["k = 1", "k = 99", "k > 2 AND q < 3", "q = 10"]:
        with pytest.raises(psycopg.errors.DivisionByZero):
            db.execute(f"SELECT * FROM {name}_v WHERE {where}")
    db.execute(f"DELETE FROM {name} WHERE v = 0")
    assert rows(db, f"SELECT q FROM {name}_v WHERE k > 2") == [(2,)]


@contextmanager
def without(files: set[Path]) -> Iterator[None]:
    """While these are not there."""
    moved = {file: file.with_name(file.name + ".moved") for file in files}
    for file, aside in moved.items():
        file.rename(aside)
    try:
        yield
    finally:
        for file, aside in moved.items():
            aside.rename(file)


def blobs(server: Server) -> set[Path]:
    return {path for path in (server.directory / "data" / "blob").rglob("*") if path.is_file()}


def test_parts_that_the_condition_excludes_are_not_read(own_server: Server) -> None:
    count, written = 60_000, []
    with own_server.connect() as db:
        db.execute("CREATE TABLE big (id bigint, at timestamp, who text)")
        for part in range(5):
            before = blobs(own_server)
            ids = range(part * count, (part + 1) * count)
            start = dt.datetime(2026, 1, 1 + part)
            times = [start + dt.timedelta(seconds=n) for n in range(count)]
            copy_in(db, "big", pa.table({"id": ids, "at": times, "who": [f"{i * 7919 % 1000003:07}" for i in ids]}))
            written.append({path for path in blobs(own_server) - before if path.stat().st_size > 256 * 1024})
            assert len(written[-1]) == 1, "a part has statistics when it is large"
        selective = {
            "id BETWEEN 150000 AND 150999": 1000,
            "id = 150000": 1,
            "id > 120000 AND id < 180000 AND who >= '0'": 59_999,
            "at >= '2026-01-03' AND at < TIMESTAMP '2026-01-03 00:01:00'": 60,
        }
        with without(set.union(*written) - written[2]):
            for where, expected in selective.items():
                assert rows(db, f"SELECT count(*) FROM big AS b WHERE {where}") == [(expected,)]
            for where in ["NOT (NOT (id = 150000))", "id = 150000 OR id = 0", "who = '0500000'"]:
                with pytest.raises(psycopg.Error):
                    db.execute(f"SELECT count(*) FROM big WHERE {where}")
        assert rows(db, "SELECT count(*) FROM big WHERE id >= 0") == [(5 * count,)]
        explained = str(rows(db, "EXPLAIN SELECT * FROM big WHERE id >= 5 AND who < 'x' AND id + 1 = 7"))
        assert "read from its shard, the parts that may have rows with id >= 5 and who < x'" in explained
        assert db.execute("DELETE FROM big WHERE id BETWEEN 59990 AND 60009").rowcount == 20
        assert db.execute("UPDATE big SET id = -1 WHERE id = 150000").rowcount == 1
        assert rows(db, "SELECT count(*) FROM big WHERE id BETWEEN 59980 AND 60019") == [(20,)]
        assert rows(db, "SELECT who FROM big WHERE id = -1") == [(f"{150000 * 7919 % 1000003:07}",)]
        assert rows(db, "SELECT * FROM big WHERE id = 150000") == []
