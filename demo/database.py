"""The database as a child process, and one connection to it."""

from __future__ import annotations

import contextlib
import io
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psycopg
import pyarrow as pa
import pyarrow.csv as csv

READY_SECONDS = 60


@contextlib.contextmanager
def serving(directory: Path, port: int) -> Iterator[None]:
    """`penstock serve` on `port` with its data in `directory`, stopped by Ctrl-C's signal at the end."""
    log = (directory / "serve.log").open("w")
    command = [
        sys.executable,
        "-m",
        "penstock.cli",
        "serve",
        "--data-dir",
        str(directory / "data"),
        "--port",
        str(port),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    assert child.stdout is not None
    try:
        _wait_until_ready(child, child.stdout, directory / "serve.log")
        yield
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
        finally:
            log.close()


def connect(port: int) -> psycopg.Connection:
    return psycopg.connect(host="127.0.0.1", port=port, user="materialize", dbname="materialize", autocommit=True)


def copy_in(connection: psycopg.Connection, table: str, rows: pa.Table) -> int:
    """COPY `rows` into `table` as CSV; returns their number."""
    buffer = io.BytesIO()
    csv.write_csv(rows, buffer, csv.WriteOptions(include_header=False))
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT csv)") as copy:
        copy.write(buffer.getvalue())
    return rows.num_rows


def _wait_until_ready(child: subprocess.Popen[str], stdout: IO[str], log: Path) -> None:
    """Until the server prints its first line. Later lines are drained so that the pipe never fills."""
    lines: queue.Queue[str] = queue.Queue()

    def drain() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=drain, daemon=True).start()
    try:
        first = lines.get(timeout=READY_SECONDS)
    except queue.Empty:
        first = ""
    if not first:
        raise SystemExit(f"the database did not start (exit status {child.poll()}):\n{log.read_text()[-3000:]}")
