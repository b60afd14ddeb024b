"""Job (a) of the engine's design page: a grouped count and sum."""

from __future__ import annotations

from bench.report import Report
from bench.versus import compare


def run(report: Report, *, quick: bool) -> None:
    compare(report, "grouped", rows=500_000 if quick else 5_000_000)
