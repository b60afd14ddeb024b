"""INSERT to visible in a view of a view by SELECT, at 100 inserts a second.

One connection inserts on schedule, another reads the outer view in a loop; an insert is visible at the first answer
that counts it. The peer is PostgreSQL's way to have a current answer without incremental maintenance: run the whole
query again for each read. DuckDB stands in for it, in process and in memory: INSERT, then the outer query from scratch.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import psycopg

from bench.report import Report, percentile
from tools.serving import serving

PER_SECOND = 100
HISTORY = 1_000_000
INNER = "SELECT k, count(*) AS n, sum(v) AS total FROM events GROUP BY k"
OUTER = "SELECT n % 10 AS bucket, count(*) AS keys, sum(n) AS n FROM inner_view GROUP BY n % 10"


def run(report: Report, *, quick: bool) -> None:
    seconds = 5 if quick else 30
    ours = _penstock(seconds)
    peer = _duckdb(seconds)
    for fraction, name in ((0.5, "p50"), (0.99, "p99")):
        report.add(
            f"visible_ms_{name}",
            percentile(ours, fraction),
            "ms",
            peer="duckdb, in process, whole query per insert",
            peer_value=percentile(peer, fraction),
        )


def _penstock(seconds: int) -> list[float]:
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        serving(Path(folder)) as server,
        server.connect() as writer,
        server.connect() as reader,
    ):
        writer.execute("CREATE TABLE events (k integer, v bigint)")
        with writer.cursor() as cursor, cursor.copy("COPY events FROM STDIN") as copy:
            copy.write("".join(f"{i % 1000}\t{i}\n" for i in range(HISTORY)))
        writer.execute(f"CREATE MATERIALIZED VIEW inner_view AS {INNER}")
        writer.execute(f"CREATE MATERIALIZED VIEW outer_view AS {OUTER}")
        assert _visible(reader) == HISTORY
        return _on_schedule(writer, reader, seconds)


def _visible(reader: psycopg.Connection) -> int:
    row = reader.execute("SELECT sum(n) FROM outer_view").fetchone()
    assert row is not None
    return int(row[0])


def _on_schedule(writer: psycopg.Connection, reader: psycopg.Connection, seconds: int) -> list[float]:
    """Milliseconds from the scheduled time of each insert to the first answer that shows it.

    From the schedule, not from the send: a server that falls behind must not look better for it.
    """
    total = PER_SECOND * seconds
    begin = time.perf_counter() + 0.1
    seen: list[float] = []

    def write() -> None:
        for number in range(total):
            time.sleep(max(0.0, begin + number / PER_SECOND - time.perf_counter()))
            writer.execute(f"INSERT INTO events VALUES ({number % 1000}, 1)")

    thread = threading.Thread(target=write)
    thread.start()
    while len(seen) < total:
        count = _visible(reader) - HISTORY
        now = time.perf_counter()
        seen.extend((now - (begin + number / PER_SECOND)) * 1000 for number in range(len(seen), count))
        if now - begin > seconds + 60:
            raise RuntimeError(f"only {len(seen)} of {total} inserts became visible")
    thread.join()
    return seen


def _duckdb(seconds: int) -> list[float]:
    import duckdb

    connection = duckdb.connect()
    connection.execute("CREATE TABLE events (k integer, v bigint)")
    connection.execute(f"INSERT INTO events SELECT i % 1000, i FROM range({HISTORY}) r(i)")
    connection.execute(f"CREATE VIEW inner_view AS {INNER}")
    connection.execute(f"CREATE VIEW outer_view AS {OUTER}")
    waits = []
    begin = time.perf_counter() + 0.1
    for number in range(PER_SECOND * seconds):
        due = begin + number / PER_SECOND
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.execute(f"INSERT INTO events VALUES ({number % 1000}, 1)")
        connection.sql("SELECT sum(n) FROM outer_view").fetchall()
        waits.append((time.perf_counter() - due) * 1000)
    return waits
