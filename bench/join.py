"""Job (c) of the engine's design page: a join of two changing tables, grouped."""

from __future__ import annotations

from bench.report import Report
from bench.versus import compare


def run(report: Report, *, quick: bool) -> None:
    compare(report, "join", rows=500_000 if quick else 5_000_000)
