"""A real server on shared stores: PostgreSQL and S3, S3 alone, killed, started again, taken over."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.servers import s3_url
from tools.serving import Server

_numbers = itertools.count()
SECRET = "no-secret"


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Callable[[str, str], Server]]:
    """Starts servers on given stores, each with a data directory of its own; ends them all."""
    with ExitStack() as stack:

        def start(consensus: str, blob: str) -> Server:
            directory = tmp_path / f"server-{next(_numbers)}"
            directory.mkdir()
            server = Server(directory, environment={"PENSTOCK_CONSENSUS_URL": consensus, "PENSTOCK_BLOB_URL": blob})
            server.start()
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(params=["postgres and s3", "s3 alone"])
def urls(request: pytest.FixtureRequest, postgres_url: str, s3_endpoint: str) -> tuple[str, str]:
    """Locations of consensus and blobs that no other test uses."""
    number = next(_numbers)
    objects = s3_url(s3_endpoint, f"e2e-{number}")
    return (f"{postgres_url}&table=e2e_{number}" if request.param == "postgres and s3" else objects), objects


def test_everything_is_there_after_a_kill(starting: Callable[[str, str], Server], urls: tuple[str, str]) -> None:
    server = starting(*urls)
    with server.connect() as db:
        db.execute("CREATE TABLE t (k integer, v integer)")
        db.execute("CREATE MATERIALIZED VIEW m AS SELECT k, sum(v) AS s FROM t GROUP BY k")
        db.execute("INSERT INTO t SELECT x % 10, x FROM generate_series(1, 1000) AS g(x)")
        assert db.execute("SELECT count(*), sum(s) FROM m").fetchall() == [(10, 500_500)]
        for pid in [server.pid, *server.replica_pids()]:
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text(), (
                "everybody may read the arguments of a process"
            )
    server.kill()
    server.start()
    with server.connect() as db:
        assert db.execute("SELECT count(*), sum(s) FROM m").fetchall() == [(10, 500_500)]
        db.execute("INSERT INTO t VALUES (3, 7)")
        assert db.execute("SELECT sum(s) FROM m").fetchall() == [(500_507,)]
    assert not (server.directory / "data" / "blob").exists(), "nothing is kept locally"
    assert not (server.directory / "data" / "consensus.sqlite").exists()

    # Another one, with another directory: it takes over, and the first one ends by itself.
    heir = starting(*urls)
    with heir.connect() as db:
        db.execute("INSERT INTO t VALUES (3, 1)")
        assert db.execute("SELECT sum(s) FROM m").fetchall() == [(500_508,)]
    assert server.wait(30) == 1
    assert "the server had to stop" in said(server.log.read_text())
    with pytest.raises(psycopg.OperationalError):
        server.connect()
    for one in (server, heir):
        for file in one.directory.rglob("*"):
            if file.is_file():
                assert SECRET not in file.read_text(errors="replace"), f"{file} holds a password"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--consensus", "ftp://me:hunter2@host/x"], "is not a consensus store"),
        (["--blob", "s3://bucket/x?sekret_access_key=hunter2"], "unknown setting"),
        (["--consensus", "file:/tmp/x"], "use sqlite:FILE"),
        (["--blob", "mem:"], "a store in memory serves no database"),
    ],
)
def test_urls_that_can_never_work_end_the_start_with_a_reason(
    options: list[str], complaint: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "penstock.cli", "serve", "--data-dir", str(tmp_path), "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert complaint in said(ended.stderr)
    assert "hunter2" not in ended.stderr + ended.stdout


def test_refused_credentials_end_the_start_and_a_server_that_is_not_up_is_waited_for(
    postgres_url: str, tmp_path: Path, eventually: Callable[..., object]
) -> None:
    refused = postgres_url.replace("postgres:@", "nobody:hunter2@")
    command = [sys.executable, "-m", "penstock.cli", "serve", "--data-dir", str(tmp_path), "--port", "0"]
    ended = subprocess.run([*command, "--consensus", refused], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert 'role "nobody" does not exist' in said(ended.stderr)
    assert "hunter2" not in ended.stderr + ended.stdout
    log = tmp_path / "log"
    with log.open("w") as stderr:
        absent = "postgres://me:hunter2@127.0.0.1:1/db"
        waiting = subprocess.Popen([*command, "--consensus", absent], stderr=stderr, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: "waiting for the consensus store" in log.read_text())
        assert "hunter2" not in log.read_text()
        waiting.terminate()
        assert waiting.wait(15) == 0
    finally:
        waiting.kill()


def said(stderr: str) -> str:
    """What was meant for people, between the lines of the log."""
    return "".join(line for line in stderr.splitlines() if line.startswith("penstock: "))
