"""A real `penstock serve` for benchmarks, in a scratch directory and on a free port."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.csv as csv


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Yields the port of a running server; stops it at the end. RuntimeError with its log when it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        log = Path(folder) / "serve.log"
        command = [sys.executable, "-m", "penstock.cli", "serve", "--data-dir", f"{folder}/data", "--port", str(port)]
        with log.open("w") as sink:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True)
        assert child.stdout is not None
        try:
            if not child.stdout.readline():
                raise RuntimeError(f"penstock serve did not start:\n{log.read_text()[-4000:]}")
            yield port
        finally:
            child.send_signal(signal.SIGINT)
            child.wait(timeout=30)
            child.stdout.close()


def connect(port: int) -> psycopg.Connection:
    return psycopg.connect(host="127.0.0.1", port=port, user="materialize", dbname="materialize", autocommit=True)


def copy_in(cursor: psycopg.Cursor, table: str, rows: pa.Table) -> None:
    """COPY `rows` into `table` as CSV, in chunks of a megabyte."""
    buffer = io.BytesIO()
    csv.write_csv(rows, buffer, csv.WriteOptions(include_header=False))
    data = buffer.getbuffer()
    with cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT csv)") as copy:
        for start in range(0, len(data), 1 << 20):
            copy.write(bytes(data[start : start + (1 << 20)]))
