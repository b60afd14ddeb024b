"""COPY both ways, through psycopg and psql, and the readers under it chunk by chunk."""

from __future__ import annotations

import datetime
import decimal
import io
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest
from psycopg import errors

from penstock.adapter.session_api import CopyFormat, CopyIn, CopyOptions
from penstock.runtime import SqlError
from penstock.server import copy_lines
from penstock.server.copy_in import CopyReader, _reader
from penstock.sql.types import Column, RelationDesc, type_named
from tests.server.fake_session import FakeCoordinator, FakeSink, Serving, big_table

WIDE = RelationDesc.of(
    *(
        Column(name, type_named(kind))
        for name, kind in {
            "b": "boolean",
            "i": "integer",
            "f": "double precision",
            "n": "numeric(12,3)",
            "m": "numeric",
            "t": "text",
            "y": "bytea",
            "d": "date",
            "ts": "timestamp",
            "tz": "timestamptz",
            "iv": "interval",
            "u": "uuid",
            "j": "jsonb",
            "a": "text[]",
            "z": "mz_timestamp",
            "ti": "time",
        }.items()
    )
)
UTC = datetime.UTC
ROW = {
    "b": True,
    "i": -5,
    "f": 0.1,
    "n": decimal.Decimal("1.500"),
    "m": decimal.Decimal("2.25"),
    "t": "a\tb\\c\nd\r\"'é,|nil",
    "y": b"\x00\\\xff",
    "d": datetime.date(2024, 2, 29),
    "ts": datetime.datetime(2024, 2, 29, 1, 2, 3, 400000),
    "tz": datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC),
    "iv": pa.MonthDayNano([14, 3, 4_000_000_000]),
    "u": str(uuid.UUID(int=5)),
    "j": '{"a": "x\\ty"}',
    "a": ["x,y", None, 'q"\\'],
    "z": 2**63,
    "ti": datetime.time(1, 2, 3),
}
EMPTY: dict[str, object] = dict.fromkeys(ROW)
STRANGE = EMPTY | {"t": ""}
DOT = EMPTY | {"t": "\\."}


@pytest.fixture
def live() -> Iterator[Serving]:
    with Serving(FakeCoordinator()) as running:
        yield running


def _wide(repeat: int = 1) -> pa.Table:
    return pa.Table.from_pylist([ROW, EMPTY, STRANGE, DOT] * repeat, schema=WIDE.arrow)


def _written(live: Serving, name: str) -> pa.Table:
    return pa.Table.from_batches(live.coordinator.tables[name])


@pytest.mark.parametrize(
    "words", ["text", "csv", "binary", "text bar", "csv nil", "csv backslash", "text header", "csv match"]
)
def test_what_copy_writes_copy_reads(live: Serving, words: str) -> None:
    live.coordinator.relations["w"] = WIDE
    live.coordinator.results["w"] = _wide(100)
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        with connection.cursor().copy(f"copy w to stdout {words}") as copy:
            data = b"".join(copy)
        cursor = connection.cursor()
        with cursor.copy(f"copy w from stdin {words}") as copy:
            copy.write(data)
        assert cursor.statusmessage == "COPY 400"
    assert _written(live, "w").to_pylist() == _wide(100).to_pylist()


def test_copy_out_is_one_row_per_message(live: Serving) -> None:
    live.coordinator.results["big"] = big_table(1000)
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        with connection.cursor().copy("copy big to stdout") as copy:
            rows = list(copy.rows())
        assert len(rows) == 1000
        assert rows[1] == ("1", "0.14285714285714285", "row 1\t'é'", "1970-01-01 00:00:01.000003")
        assert rows[3][0] is None
        with connection.cursor().copy("copy big to stdout binary") as copy:
            copy.set_types(["int8", "float8", "text", "timestamp"])
            assert list(copy.rows()) == list(zip(*big_table(1000).to_pydict().values(), strict=True))


def test_psycopg_writes_rows_in_text_and_binary(live: Serving) -> None:
    desc = RelationDesc.of(*(Column(n, type_named(k)) for n, k in (("i", "bigint"), ("t", "text"), ("d", "date"))))
    live.coordinator.relations["t"] = desc
    rows = [(k, None if k % 3 == 0 else f"x\t{k}\\", datetime.date(2024, 1, 1)) for k in range(30_000)]
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        for words in ("text", "binary"):
            live.coordinator.tables.clear()
            with connection.cursor().copy(f"copy t from stdin {words}") as copy:
                if words == "binary":
                    copy.set_types(["int8", "text", "date"])
                for row in rows:
                    copy.write_row(row)
            assert [tuple(r.values()) for r in _written(live, "t").to_pylist()] == rows
            assert len(live.coordinator.tables["t"]) >= 1


ERRORS = [
    ("text", b"1\ta\n2\n", "22P04", 'missing data for column "t"', 'COPY t, line 2: "2"'),
    ("text", b"1\ta\tb\n", "22P04", "extra data after last expected column", 'COPY t, line 1: "1\ta\tb"'),
    ("text", b"1\ta\n\n", "22P04", 'missing data for column "t"', "COPY t, line 2"),
    ("text", b"1\ta\nx\tb\n", "22P02", 'invalid input syntax for type integer: "x"', 'line 2, column i: "x"'),
    ("text", b"9999999999\ta\n", "22003", "out of range for type integer", 'line 1, column i: "9999999999"'),
    ("text", b"1\ta\n2\t\xff\n", "22021", 'invalid byte sequence for encoding "UTF8": 0xff', "line 2"),
    ("text", b"1\ta\n2\tb\x00\n", "22021", "0x00", "line 2"),
    ("text", b"1\ta\rb\n", "22P04", "literal carriage return found in data", "line 1"),
    ("csv", b'1,"a\nb"\n2,"c\n', "22P04", "unterminated CSV quoted field", "line"),
    ("csv", b'1,"a\nb"\nx,c\n', "22P02", 'invalid input syntax for type integer: "x"', "line 3, column i"),
    ("csv header match", b"i,wrong\n1,2\n", "22P04", "header line", "line 1"),
    ("binary", b"PGCOPX\n\xff\r\n\x00" + bytes(8), "22P04", "signature not recognized", "line 1"),
    ("binary", b"PGCOPY\n\xff\r\n\x00" + bytes(8) + b"\x00\x05", "22P04", "row field count is 5", "line 1"),
    ("binary", b"PGCOPY\n\xff\r\n\x00" + bytes(8) + b"\x00\x02\x00", "22P04", "unexpected EOF", "line 1"),
    (
        "binary",
        b"PGCOPY\n\xff\r\n\x00" + bytes(8) + b"\x00\x02\x00\x00\x00\x01x\xff\xff\xff\xff",
        "22P03",
        "incorrect binary data format",
        "line 1, column i",
    ),
]


@pytest.mark.parametrize(("words", "data", "sqlstate", "message", "where"), ERRORS)
def test_bad_data_is_named_by_line_and_column(
    live: Serving, words: str, data: bytes, sqlstate: str, message: str, where: str
) -> None:
    live.coordinator.relations["t"] = RelationDesc.of(
        Column("i", type_named("integer")), Column("t", type_named("text"))
    )
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        cursor = connection.cursor()
        with pytest.raises(psycopg.Error) as caught, cursor.copy(f"copy t from stdin {words}") as copy:
            copy.write(data)
        assert caught.value.sqlstate == sqlstate
        assert message in str(caught.value)
        assert where in (caught.value.diag.context or "")
        assert connection.execute("select 1").fetchone() == (1,)
    assert "t" not in live.coordinator.tables
    assert live.coordinator.events == ["abort"]


def test_copy_fail_aborts(live: Serving) -> None:
    live.coordinator.relations["t"] = RelationDesc.of(Column("i", type_named("integer")))
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        cursor = connection.cursor()
        with pytest.raises(ZeroDivisionError), cursor.copy("copy t from stdin") as copy:  # noqa: PT012
            copy.write(b"1\n")
            raise ZeroDivisionError
        assert live.coordinator.events == ["abort"]


def test_a_client_that_drops_in_mid_copy_aborts_it(live: Serving) -> None:
    live.coordinator.relations["t"] = RelationDesc.of(Column("i", type_named("integer")))
    connection = psycopg.connect(live.dsn, autocommit=True)
    manager = connection.cursor().copy("copy t from stdin")
    copy = manager.__enter__()
    copy.write(b"1\n" * 1_000_000)
    connection.pgconn.flush()
    live.wait_until(lambda: "write" in live.coordinator.events)
    connection.close()
    live.wait_until(lambda: live.coordinator.closed == 1)
    assert live.coordinator.events[-1] == "abort"
    assert "t" not in live.coordinator.tables


def test_cancel_ends_a_copy_that_waits_for_data(live: Serving) -> None:
    live.coordinator.relations["t"] = RelationDesc.of(Column("i", type_named("integer")))
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        manager = connection.cursor().copy("copy t from stdin")
        copy = manager.__enter__()
        copy.write(b"1\n")
        connection.cancel_safe()
        live.wait_until(lambda: "abort" in live.coordinator.events)
        with pytest.raises(errors.QueryCanceled):
            manager.__exit__(None, None, None)
        assert connection.execute("select 1").fetchone() == (1,)


def test_an_endless_copy_out_streams_and_cancels(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        seen = []
        streaming = connection.cursor().copy("copy stream to stdout")
        with pytest.raises(errors.QueryCanceled), streaming as copy:  # noqa: PT012
            for data in copy:
                seen.append(bytes(data))
                if len(seen) == 3:
                    connection.cancel_safe()
        assert seen[:3] == [b"0\n", b"1\n", b"2\n"]
        assert live.coordinator.events == ["stream closed"]


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")
def test_psql_copies_both_ways(live: Serving, tmp_path: Path) -> None:
    live.coordinator.relations["t"] = RelationDesc.of(
        Column("i", type_named("integer")), Column("t", type_named("text"))
    )
    (tmp_path / "in.csv").write_text('i,t\n1,"a ""b"""\n2,\n')
    dsn = live.dsn
    script = (
        f"\\copy t from '{tmp_path}/in.csv' csv header\ncopy t from stdin;\n3\tx\\\\y\n4\t\\N\n\\.\nselect 1 as one;\n"
    )
    done = subprocess.run(
        ["psql", "-X", "-v", "ON_ERROR_STOP=1", dsn], input=script, text=True, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "COPY 2" in done.stdout
    assert "one" in done.stdout
    assert _written(live, "t").to_pylist() == [
        {"i": 1, "t": 'a "b"'},
        {"i": 2, "t": None},
        {"i": 3, "t": "x\\y"},
        {"i": 4, "t": None},
    ]


# The readers by themselves.

LINE = RelationDesc.of(Column("i", type_named("integer")), Column("t", type_named("text")))


def _read(data: bytes, form: CopyFormat, sizes: Iterator[int], **options: object) -> list[tuple[object, ...]]:
    outcome = CopyIn(LINE, form, CopyOptions(**options), FakeSink(FakeCoordinator(), "t"), "t")  # type: ignore[arg-type]
    reader: CopyReader = _reader(outcome)
    source = io.BytesIO(data)
    batches = []
    while part := source.read(next(sizes)):
        batches += list(reader.feed(part))
    batches += list(reader.finish())
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("seed", range(20))
def test_rows_do_not_depend_on_how_the_bytes_arrive(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    alphabet = ["a", "\n", "\t", "\\", '"', ",", "\r", "é", " ", ".", "N", "|", "\b", "\v", ""]
    rows = [
        (
            rng.choice([None, rng.randint(-9, 9)]),
            rng.choice([None, "".join(rng.choices(alphabet, k=rng.randint(0, 6)))]),
        )
        for _ in range(200)
    ]
    monkeypatch.setattr(copy_lines, "CHUNK_BYTES", rng.choice([1, 10, 100, 10_000]))

    def sizes() -> Iterator[int]:
        while True:
            yield rng.randint(1, 300)

    def text(value: object) -> str:
        shown = "\\N" if value is None else str(value).replace("\\", "\\\\")
        for raw, escape in (("\n", rng.choice(["\\n", "\\\n", "\\x0a", "\\012"])), ("\t", "\\t"), ("\r", "\\r")):
            shown = shown.replace(raw, escape)
        return shown

    def csv(value: object) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    lines = "".join(f"{text(a)}\t{text(b)}\n" for a, b in rows).encode()
    assert _read(lines, CopyFormat.TEXT, sizes()) == rows
    lines = "".join(f"{csv(a)},{csv(b)}\n" for a, b in rows).encode()
    assert _read(lines, CopyFormat.CSV, sizes()) == rows
    if not any(b and "\r" in b for _, b in rows):
        crlf = "".join(f"{csv(a)},{csv(b)}\r\n" for a, b in rows).encode()
        assert _read(crlf, CopyFormat.CSV, sizes()) == rows


def _whole() -> Iterator[int]:
    while True:
        yield 1 << 20


def test_end_marker_and_odd_line_ends() -> None:
    assert _read(b"1\ta\n\\.\nrubbish", CopyFormat.TEXT, _whole()) == [(1, "a")]
    assert _read(b"\\.\nrubbish", CopyFormat.TEXT, _whole()) == []
    assert _read(b"1,a\n\\.\nrubbish\n", CopyFormat.CSV, _whole()) == [(1, "a")]
    assert _read(b'1,"\n\\.\n"\n', CopyFormat.CSV, _whole()) == [(1, "\n\\.\n")]
    assert _read(b"1\ta\r\n2\tb", CopyFormat.TEXT, _whole()) == [(1, "a"), (2, "b")]
    assert _read(b"", CopyFormat.CSV, _whole()) == []
    assert _read(b"i,t\n", CopyFormat.CSV, _whole(), header=True) == []
    assert _read(b" 7 ,a\n+8,b\n", CopyFormat.CSV, _whole()) == [(7, "a"), (8, "b")]


def test_a_row_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_lines, "CHUNK_BYTES", 10)
    monkeypatch.setattr(copy_lines, "MAX_ROW_BYTES", 1000)
    with pytest.raises(SqlError, match="larger than COPY can take"):
        _read(b"x" * 5000, CopyFormat.TEXT, iter([100] * 100))
