"""December as live changes: departures inserted, arrivals updated, some flights corrected, some deleted."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pyarrow as pa

FLIGHT_COLUMNS = [
    *("id", "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time"),
    *("arr_delay", "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute"),
    "time_hour",
]
UNKNOWN_AT_DEPARTURE = ("arr_time", "arr_delay", "air_time")
CORRECTED_SHARE, DELETED_SHARE = 0.05, 0.02


@dataclass
class Replay:
    """Moves a replayed clock through `live` flights. `speed`: replayed seconds per real second."""

    live: pa.Table
    speed: float
    clock: dt.datetime = field(init=False)
    written: int = 0
    _next: int = 0
    _arrivals: list[tuple[dt.datetime, dict[str, Any]]] = field(default_factory=list)
    _second_thoughts: list[tuple[dt.datetime, dict[str, Any]]] = field(default_factory=list)
    _dice: random.Random = field(default_factory=lambda: random.Random(2013))

    def __post_init__(self) -> None:
        self._flights = self.live.to_pylist()
        self.clock = self._flights[0]["departs"]

    @property
    def finished(self) -> bool:
        return self._next == len(self._flights) and not self._arrivals and not self._second_thoughts

    def step(self, connection: psycopg.Connection, seconds: float) -> int:
        """Let `seconds` of real time pass and write what happened, in at most four statements. Returns rows changed."""
        self.clock += dt.timedelta(seconds=seconds * self.speed)
        departed = self._departed()
        arrived = _due(self._arrivals, self.clock)
        changed = _due(self._second_thoughts, self.clock)
        corrected = [f for f in changed if self._dice.random() < CORRECTED_SHARE / (CORRECTED_SHARE + DELETED_SHARE)]
        deleted = [f for f in changed if f not in corrected]
        with connection.cursor() as cursor:
            if departed:
                with connection.transaction():
                    _insert(cursor, "flights", FLIGHT_COLUMNS, [self._at_departure(f) for f in departed])
                    airborne = ["flight_id", "tailnum", "carrier", "origin", "dest", "took_off", "lands"]
                    _insert(cursor, "airborne", airborne, [self._airborne(f) for f in departed])
            _update(cursor, arrived, UNKNOWN_AT_DEPARTURE)
            _update(cursor, [{**f, "dep_delay": f["dep_delay"] + 1} for f in corrected], ("dep_delay",))
            if deleted:
                cursor.execute(f"DELETE FROM flights WHERE id IN ({', '.join(str(f['id']) for f in deleted)})")
        rows = 2 * len(departed) + len(arrived) + len(corrected) + len(deleted)
        self.written += rows
        return rows

    def _departed(self) -> list[dict[str, Any]]:
        first = self._next
        while self._next < len(self._flights) and self._flights[self._next]["departs"] <= self.clock:
            flight = self._flights[self._next]
            self._next += 1
            lands = flight["departs"] + dt.timedelta(minutes=flight["air_time"] or 120)
            if flight["air_time"] is not None:
                self._arrivals.append((lands, flight))
            if self._dice.random() < CORRECTED_SHARE + DELETED_SHARE:
                self._second_thoughts.append((lands + dt.timedelta(minutes=30), flight))
        return self._flights[first : self._next]

    def _at_departure(self, flight: dict[str, Any]) -> list[Any]:
        return [None if c in UNKNOWN_AT_DEPARTURE else flight[c] for c in FLIGHT_COLUMNS]

    def _airborne(self, flight: dict[str, Any]) -> list[Any]:
        """In the air for as long as it really was, on the replayed clock: its times are real times from now on.

        In whole milliseconds, as mz_now() is: what is compared with it loses the rest, in DuckDB it does not.
        """
        now = dt.datetime.now(dt.UTC)
        took_off = now.replace(microsecond=now.microsecond // 1000 * 1000)
        lands = took_off + dt.timedelta(milliseconds=round((flight["air_time"] or 120) * 60_000 / self.speed))
        return [*(flight[c] for c in ("id", "tailnum", "carrier", "origin", "dest")), took_off, lands]


def _due(waiting: list[tuple[dt.datetime, dict[str, Any]]], clock: dt.datetime) -> list[dict[str, Any]]:
    due = [flight for time, flight in waiting if time <= clock]
    waiting[:] = [entry for entry in waiting if entry[0] > clock]
    return due


def _insert(cursor: psycopg.Cursor, table: str, columns: list[str], rows: list[list[Any]]) -> None:
    values = ", ".join(f"({', '.join(_literal(value) for value in row)})" for row in rows)
    cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES {values}")


def _update(cursor: psycopg.Cursor, flights: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """One statement for many rows with values of their own."""
    if not flights:
        return
    cases = [f"{column} = CASE id {_whens(flights, column)} END" for column in columns]
    ids = ", ".join(str(flight["id"]) for flight in flights)
    cursor.execute(f"UPDATE flights SET {', '.join(cases)} WHERE id IN ({ids})")


def _whens(flights: list[dict[str, Any]], column: str) -> str:
    return " ".join(f"WHEN {flight['id']} THEN {_literal(flight[column])}" for flight in flights)


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"
