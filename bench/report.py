"""How figures are printed: one line per metric and peer, with a ratio above 1 where Penstock is better."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table


class Report:
    """Collects figures of one benchmark; prints JSON lines at once, or a table at `close`."""

    def __init__(self, bench: str, *, as_json: bool) -> None:
        self._bench = bench
        self._as_json = as_json
        self._table = Table("metric", "value", "unit", "peer", "peer's value", "ratio", title=bench)

    def add(
        self,
        metric: str,
        value: float,
        unit: str,
        *,
        peer: str | None,
        peer_value: float | None,
        higher_is_better: bool = False,
    ) -> None:
        """One figure. `peer_value` None: the peer could not do it; the ratio is then null, never made up."""
        ratio = None
        if peer_value and value:
            ratio = value / peer_value if higher_is_better else peer_value / value
        if not self._as_json:
            shown = ["-" if x is None else f"{x:,.2f}" for x in (value, peer_value, ratio)]
            self._table.add_row(metric, shown[0], unit, peer or "-", shown[1], shown[2])
            return
        line = {
            "bench": self._bench,
            "metric": metric,
            "value": round(value, 4),
            "unit": unit,
            "peer": peer,
            "peer_value": None if peer_value is None else round(peer_value, 4),
            "ratio": None if ratio is None else round(ratio, 3),
        }
        print(json.dumps(line), flush=True)

    def note(self, text: str) -> None:
        """Say on standard error what was skipped and why."""
        print(f"{self._bench}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if not self._as_json:
            Console().print(self._table)


def percentile(values: list[float], fraction: float) -> float:
    """The value below which `fraction` of `values` lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(fraction * len(ranked)))]
