"""Writers on schedule and readers that follow, on one shard: how late it is durable and read, and how fast."""

from __future__ import annotations

import argparse

from bench.open_loop import Load, Outcome, measure
from bench.report import Report, percentile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--writers", type=int, default=2, metavar="W", help="writing processes (2)")
    parser.add_argument("--readers", type=int, default=2, metavar="R", help="reading processes (2)")
    parser.add_argument("--rate", type=int, default=10_000, metavar="N", help="records a second, each (10,000)")
    parser.add_argument("--record-bytes", type=int, default=64, metavar="B", help="bytes of a record (64)")
    parser.add_argument("--batch", type=int, default=100, help="records of one append (100)")
    parser.add_argument("--seconds", type=float, default=None, metavar="S", help="how long to write (30; quick: 5)")


def run(report: Report, *, quick: bool, options: argparse.Namespace) -> None:
    load = Load(
        options.writers,
        options.readers,
        options.rate,
        options.record_bytes,
        options.seconds or (5.0 if quick else 30.0),
        options.batch,
    )
    ours = measure("penstock", load)
    try:
        peer: Outcome | None = measure("postgresql", load)
    except ModuleNotFoundError as error:
        report.note(f"PostgreSQL is not installed (extra `bench`: {error.name}); left out")
        peer = None
    name = "postgresql, COPY and LISTEN" if peer else None
    for metric, which, fraction in (
        ("write_ms_max", "write_ms", 1.0),
        ("write_ms_p50", "write_ms", 0.5),
        ("reader_lag_ms_p50", "lag_ms", 0.5),
        ("reader_lag_ms_max", "lag_ms", 1.0),
    ):
        theirs = percentile(getattr(peer, which), fraction) if peer else None
        report.add(metric, percentile(getattr(ours, which), fraction), "ms", peer=name, peer_value=theirs)
    report.add(
        "read_mb_per_s",
        ours.read_bytes_per_s / 1e6,
        "MB/s per reader",
        peer=name,
        peer_value=peer.read_bytes_per_s / 1e6 if peer else None,
        higher_is_better=True,
    )
