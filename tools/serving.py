"""A real `penstock serve` as a child process: started, connected to, stopped gently or killed.

The demo, the benchmarks and the crash tests all drive the product through this, never through its insides.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import socket
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
STOP_SECONDS = 15


class Server:
    """One server on one data directory. Restartable: `start` after `stop` or `kill` serves the same data again."""

    def __init__(self, directory: Path, port: int | None = None, *, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.log = directory / "serve.log"
        self._environment = {**os.environ, **(environment or {})}
        self._child: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None, "the server is not running"
        return self._child.pid

    def start(self) -> None:
        """Start and wait until it says that it is ready. RuntimeError with the end of its log when it does not."""
        data = str(self.directory / "data")
        command = [sys.executable, "-m", "penstock.cli", "serve", "--data-dir", data, "--port", str(self.port)]
        with self.log.open("a") as log:
            self._child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment, start_new_session=True
            )
        assert self._child.stdout is not None
        if not _first_line(self._child.stdout):
            status = self._child.poll()
            self.kill()
            raise RuntimeError(f"penstock serve did not start (status {status}):\n{self.log.read_text()[-4000:]}")

    def stop(self) -> int:
        """Ctrl-C; returns the exit status. TimeoutExpired (after killing it) when it does not end in time."""
        assert self._child is not None
        self._child.send_signal(signal.SIGINT)
        try:
            return self._child.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """``kill -9`` of the coordinator and its replicas, all at once."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        for child in self.replica_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._child.wait()

    def wait(self, seconds: float) -> int:
        """Wait until the server has ended by itself; returns its exit status. TimeoutExpired when it does not."""
        assert self._child is not None
        return self._child.wait(timeout=seconds)

    def replica_pids(self) -> list[int]:
        """Process ids of the server's children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def logs(self) -> list[Path]:
        """Where the server and its replicas write their logs."""
        return [self.log, *(Path(f"/proc/{pid}/fd/2").resolve() for pid in self.replica_pids())]

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="materialize", dbname="materialize", autocommit=autocommit
        )


@contextlib.contextmanager
def serving(directory: Path, port: int | None = None) -> Iterator[Server]:
    """A started server that is stopped at the end, whatever happened."""
    server = Server(directory, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def copy_in(connection: psycopg.Connection, table: str, rows: pa.Table) -> int:
    """COPY `rows` into `table` as CSV, in chunks of a megabyte; returns their number."""
    buffer = io.BytesIO()
    csv.write_csv(rows, buffer, csv.WriteOptions(include_header=False))
    data = buffer.getbuffer()
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT csv)") as copy:
        for start in range(0, len(data), 1 << 20):
            copy.write(bytes(data[start : start + (1 << 20)]))
    return rows.num_rows


def free_port(wanted: int = 0) -> int:
    """`wanted`, or any free port when something listens there already."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("no free port on 127.0.0.1")


def _first_line(stdout: IO[str]) -> str:
    """The first line of `stdout`, or nothing in time. Later lines are drained so that the pipe never fills."""
    lines: queue.Queue[str] = queue.Queue()

    def drain() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=drain, daemon=True).start()
    try:
        return lines.get(timeout=READY_SECONDS)
    except queue.Empty:
        return ""
