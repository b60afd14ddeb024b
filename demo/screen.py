"""What the terminal shows: the views, rows per second, freshness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Frame:
    """One picture. `freshness_ms`: from sending a write to having read a view that shows it."""

    clock: str
    loaded: int
    load_rows_per_s: float
    rows_per_s: float
    freshness_ms: float
    freshness_ms_worst: float
    views: dict[str, tuple[Sequence[str], list[tuple[Any, ...]]]]
    connect: str

    def __rich__(self) -> RenderableType:
        line = Text.assemble(
            ("Penstock", "bold"),
            f"   New York, {self.clock} UTC   ",
            (f"{self.loaded:,} rows of history at {self.load_rows_per_s:,.0f} rows/s", "dim"),
            f"   live {self.rows_per_s:,.0f} rows/s   freshness ",
            (f"{self.freshness_ms:.0f} ms", "bold green"),
            f" (worst {self.freshness_ms_worst:.0f} ms)",
        )
        tables = [_table(name, columns, rows) for name, (columns, rows) in self.views.items()]
        return Group(line, Columns(tables), Text(f"meanwhile: {self.connect}", style="dim"))


def _table(name: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> Table:
    table = Table(*columns, title=name, title_justify="left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float | Decimal):
        return f"{value:,.2f}"
    return str(value)
