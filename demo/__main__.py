"""``python -m demo``. ``DEMO_SECONDS``: end by itself after so many seconds of replay. ``DEMO_PORT``: default 6875."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import psycopg
from rich.console import Console
from rich.live import Live

from demo import data
from demo.check import differences
from demo.replay import Replay
from demo.screen import Frame
from demo.views import INDEXES, TABLES, VIEWS
from tools.serving import copy_in, free_port, serving

TICK_SECONDS = 0.25
SPEED = 3600 * 2  # two hours a second: December takes six minutes
SHOWN = {
    "delays": "SELECT airline, hour, flights, delay, wind FROM delays WHERE hour = 17 ORDER BY delay DESC LIMIT 8",
    "worst_routes": "SELECT origin, dest, flights, delay FROM worst_routes ORDER BY delay DESC",
    "in_the_air_by_airline": "SELECT airline, planes, seats FROM in_the_air_by_airline ORDER BY planes DESC LIMIT 8",
}

console = Console()


def main() -> int:
    seconds = float(os.environ.get("DEMO_SECONDS", "inf"))
    port = free_port(int(os.environ.get("DEMO_PORT", "6875")))
    flights = data.load()
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder, serving(Path(folder), port) as server:
        connect = f"psql -h 127.0.0.1 -p {port} -U materialize materialize"
        console.print(f"Penstock is up. Look around meanwhile: [bold]{connect}[/bold]")
        with server.connect() as connection:
            loaded, load_rate = _load(connection, flights)
            _create_views(connection)
            try:
                _replay(connection, flights, seconds, loaded, load_rate, connect)
            except KeyboardInterrupt:
                console.print("stopped; comparing before the end")
            return _verdict(connection)


def _load(connection: psycopg.Connection, flights: data.Flights) -> tuple[int, float]:
    started = time.perf_counter()
    loaded = 0
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {table} ({columns})")
    for table, rows in {**flights.reference, "flights": flights.history}.items():
        loaded += copy_in(connection, table, rows)
        console.print(f"  {table:10} {rows.num_rows:>9,} rows")
    elapsed = time.perf_counter() - started
    console.print(f"loaded {loaded:,} rows in {elapsed:.1f} s; {flights.live.num_rows:,} flights are left to replay")
    return loaded, loaded / elapsed


def _create_views(connection: psycopg.Connection) -> None:
    for name, on in INDEXES.items():
        connection.execute(f"CREATE INDEX {name} ON {on}")
    for name, query in VIEWS.items():
        started = time.perf_counter()
        connection.execute(f"CREATE MATERIALIZED VIEW {name} AS {query}")
        count = connection.execute(f"SELECT count(*) FROM {name}").fetchone()
        elapsed = time.perf_counter() - started
        console.print(
            f"  view {name:22} {count[0] if count else 0:>6} rows, first answer after {elapsed * 1000:.0f} ms"
        )


def _replay(
    connection: psycopg.Connection, flights: data.Flights, seconds: float, loaded: int, load_rate: float, connect: str
) -> None:
    """Write, read, show, until the time is over or December is."""
    replay = Replay(flights.live, SPEED)
    freshness: deque[float] = deque(maxlen=200)
    started = last = time.perf_counter()
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while not replay.finished and time.perf_counter() - started < seconds:
            sent = time.perf_counter()
            rows = replay.step(connection, sent - last)
            last = sent
            shown = {name: _read(connection, query) for name, query in SHOWN.items()}
            if rows:
                freshness.append((time.perf_counter() - sent) * 1000)
            live.update(
                Frame(
                    f"{replay.clock:%Y-%m-%d %H:%M}",
                    loaded,
                    load_rate,
                    replay.written / (time.perf_counter() - started),
                    statistics.median(freshness) if freshness else 0.0,
                    max(freshness, default=0.0),
                    shown,
                    connect,
                )
            )
            time.sleep(max(0.0, TICK_SECONDS - (time.perf_counter() - sent)))
    console.print(f"replayed {replay.written:,} changes up to {replay.clock:%Y-%m-%d %H:%M} UTC")


def _read(connection: psycopg.Connection, query: str) -> tuple[list[str], list[tuple[object, ...]]]:
    cursor = connection.execute(query)
    return [column.name for column in cursor.description or []], cursor.fetchall()


def _verdict(connection: psycopg.Connection) -> int:
    """Compare with DuckDB; 0 when everything is equal."""
    found = differences(connection)
    for view, rows in found.items():
        console.print(f"  {view:22} {'equal to DuckDB from scratch' if not rows else 'DIFFERS'}")
        for row in rows:
            console.print(f"    {row}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
