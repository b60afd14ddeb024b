"""From the beginning of an append to the moment that a listen in another process has it; 100 appends a second."""

from __future__ import annotations

from bench.open_loop import Load, measure
from bench.report import Report, percentile


def run(report: Report, *, quick: bool) -> None:
    load = Load(rate=100, batch=1, seconds=5.0 if quick else 30.0)
    ours = measure("penstock", load)
    try:
        peer = measure("postgresql", load)
    except ModuleNotFoundError as error:
        report.note(f"PostgreSQL is not installed (extra `bench`: {error.name}); left out")
        peer = None
    for fraction, name in ((0.5, "p50"), (0.99, "p99")):
        report.add(
            f"append_to_listen_ms_{name}",
            percentile(ours.seen_ms, fraction),
            "ms",
            peer="postgresql, COPY, NOTIFY and SELECT" if peer else None,
            peer_value=percentile(peer.seen_ms, fraction) if peer else None,
        )
