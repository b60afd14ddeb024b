"""One job measured in Penstock's engine, through its SQL, and in each peer, all in the same run."""

from __future__ import annotations

from bench.measure import measured
from bench.peers import Measured
from bench.report import Report, percentile

PEERS = {"duckdb": "duckdb, full recompute", "pathway": "pathway"}


def compare(report: Report, job: str, rows: int) -> None:
    """Print every metric once per peer. A side that fails fails the run, except a peer that is missing."""
    engine = measured("engine", job, rows)
    sql = measured("sql", job, rows)
    if engine.answer != sql.answer:
        raise RuntimeError(f"the engine and SQL give different answers for {job}")
    for side, label in PEERS.items():
        try:
            peer = measured(side, job, rows)
        except RuntimeError as error:
            if "ModuleNotFoundError" not in str(error):
                raise
            report.note(f"{side} is not installed (extra `bench`); left out")
            continue
        if peer.answer != engine.answer:
            raise RuntimeError(f"{side} and Penstock give different answers for {job}")
        _lines(report, rows, engine, sql, peer, label)


def _lines(report: Report, rows: int, engine: Measured, sql: Measured, peer: Measured, label: str) -> None:
    report.add(
        "initial_rows_per_s",
        rows / engine.initial_s,
        "rows/s",
        peer=label,
        peer_value=rows / peer.initial_s,
        higher_is_better=True,
    )
    for fraction, name in ((0.5, "p50"), (0.95, "p95")):
        peer_ms = percentile(peer.batch_ms, fraction)
        for side, ours in (("engine", engine), ("sql", sql)):
            value = percentile(ours.batch_ms, fraction)
            report.add(f"{side}_batch_ms_{name}", value, "ms", peer=label, peer_value=peer_ms)
    report.add("memory_mb_peak", engine.memory_mb_peak, "MB", peer=label, peer_value=peer.memory_mb_peak)
