"""Every acknowledged append is there exactly once, none that surely failed is, an unknown one is at most once.

Rows carry the number of their append, so each row that was ever committed names the append it came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

Row = tuple[int, str] | tuple[int, str, str]
"""The third column came later: rows from before it, and those where it is NULL, have two."""
Update = tuple[int, Row, int]
"""(time, row, diff)."""

OPS_PER_ROW_KEY = 64
"""A row's key is its append's number times this, plus its position."""


class Answer(Enum):
    """What the writer was told. LOST: nothing (an unknown outcome, a crash, a cancellation)."""

    DONE = "done"
    REFUSED = "refused"
    LOST = "lost"


@dataclass
class Append:
    """One call of a writer. `rows`: what it asked to add (retractions of other appends' rows are not listed)."""

    number: int
    process: str
    lower: int
    upper: int
    rows: tuple[Update, ...]
    answer: Answer = Answer.LOST


@dataclass(frozen=True)
class Committed:
    """One append in the shard's log."""

    seqno: int
    process: str
    lower: int
    upper: int
    updates: tuple[Update, ...]


def as_row(values: Sequence[Any]) -> Row:
    """The columns of one row, as they were read."""
    known = values[:2] if len(values) == 3 and values[2] is None else values
    return cast(Row, tuple(known))


def append_number(row: Row) -> int:
    return row[0] // OPS_PER_ROW_KEY


def problems(shard: str, appends: Sequence[Append], committed: Sequence[Committed]) -> list[str]:
    """What contradicts exactly-once; empty when nothing does. Appends without rows leave no trace and are skipped."""
    found: list[str] = []
    there: dict[int, list[tuple[Committed, Counter[Update]]]] = {}
    for one in committed:
        by_number: dict[int, Counter[Update]] = {}
        for time, row, diff in one.updates:
            if diff > 0:
                by_number.setdefault(append_number(row), Counter())[time, row, 0] += diff
        for number, updates in by_number.items():
            there.setdefault(number, []).append((one, updates))
    for append in appends:
        asked = Counter({(time, row, 0): diff for time, row, diff in append.rows if diff > 0})
        if not asked:
            continue
        times = there.pop(append.number, [])
        name = f"{shard}: append {append.number} of {append.process} for [{append.lower}, {append.upper})"
        if len(times) > 1:
            found.append(f"{name} is there {len(times)} times: {[one.seqno for one, _ in times]}")
        if append.answer is Answer.DONE and not times:
            found.append(f"{name} was acknowledged and is not there")
        if append.answer is Answer.REFUSED and times:
            found.append(f"{name} was refused and is there, as {[one.seqno for one, _ in times]}")
        for one, updates in times:
            if updates != asked:
                found.append(f"{name} is there with other rows: {dict(updates)} instead of {dict(asked)}")
            if append.answer is Answer.DONE and (one.lower, one.upper) != (append.lower, append.upper):
                found.append(f"{name} is there as [{one.lower}, {one.upper})")
    found += [f"{shard}: rows of append {number}, which nobody made" for number in there]
    return found
