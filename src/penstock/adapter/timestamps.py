"""Choosing the time at which a query reads: constraints from below and above, and a preference.

A pure function from what is known (sinces, uppers, oracle, isolation, AS OF) to a time, or to an error that names the
collection in the way. The caller has acquired its read holds *before* it looks at any frontier: otherwise compaction
can pass the chosen time between choosing and reading.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.runtime import DONE, Frontier, SqlError, Timestamp, join, meet, step_back


class Isolation(enum.Enum):
    """Levels that differ here; PostgreSQL's weaker spellings are all `SERIALIZABLE`."""

    STRICT_SERIALIZABLE = "strict serializable"
    STRONG_SESSION_SERIALIZABLE = "strong session serializable"
    SERIALIZABLE = "serializable"

    @staticmethod
    def parse(text: str) -> Isolation | None:
        """The level that `text` names, in any case; None when it names none."""
        spelled = " ".join(text.lower().split())
        if spelled in ("read uncommitted", "read committed", "repeatable read"):
            return Isolation.SERIALIZABLE
        return next((level for level in Isolation if level.value == spelled), None)


class WhenKind(enum.Enum):
    """What the statement asks for."""

    IMMEDIATELY = "immediately"
    FRESHEST_TABLE_WRITE = "freshest table write"
    AT_LEAST = "at least"
    AT = "at"


@dataclass(frozen=True, slots=True)
class When:
    """`timestamp` is set for `AT` and `AT_LEAST` only."""

    kind: WhenKind
    timestamp: Timestamp | None = None


IMMEDIATELY = When(WhenKind.IMMEDIATELY)
FRESHEST_TABLE_WRITE = When(WhenKind.FRESHEST_TABLE_WRITE)


@dataclass(frozen=True, slots=True)
class InputFrontiers:
    """One collection that is read: `since` of the hold on it, `upper` as last known, `name` for messages."""

    name: str
    since: Frontier
    upper: Frontier


@dataclass(frozen=True, slots=True)
class Constraint:
    """The time must be at or beyond `bound`, because of `reason`."""

    bound: Timestamp
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen time and everything that EXPLAIN TIMESTAMP tells about it."""

    timestamp: Timestamp
    oracle_read_ts: Timestamp | None
    since: Frontier
    upper: Frontier
    inputs: Mapping[str, InputFrontiers] = field(default_factory=dict)
    constraints: Sequence[Constraint] = ()

    @property
    def responds_immediately(self) -> bool:
        return self.timestamp < self.upper

    @property
    def largest_complete(self) -> Timestamp:
        return step_back(self.upper)


def choose_timestamp(
    inputs: Mapping[str, InputFrontiers],
    when: When,
    isolation: Isolation,
    *,
    oracle_read_ts: Timestamp,
    session_ts: Timestamp | None = None,
) -> Choice:
    """The read time for a query over `inputs` (keyed by id).

    `oracle_read_ts`: the oracle's read time, looked up after the statement arrived. `session_ts`: the largest time
    this session has seen, used under strong session serializable. Raises `SqlError` 22023 when the time asked for is
    no longer (or never) readable.
    """
    since = join(*(frontiers.since for frontiers in inputs.values()))
    upper = meet(*(frontiers.upper for frontiers in inputs.values()))
    fixed = when.timestamp if when.kind is WhenKind.AT else None
    bounds = _lower_bounds(inputs, since, upper, when, isolation, oracle_read_ts, session_ts)
    candidate = Timestamp(max((bound.bound for bound in bounds), default=0))
    if fixed is None and _prefers_freshest(when, isolation):
        candidate = max(candidate, step_back(upper) if upper < DONE else oracle_read_ts)
    if fixed is not None:
        candidate = fixed
    if candidate < since:
        raise _not_valid(inputs, candidate)
    uses_oracle = when.kind is WhenKind.FRESHEST_TABLE_WRITE or (
        when.kind is WhenKind.IMMEDIATELY and isolation is not Isolation.SERIALIZABLE
    )
    binding = [bound for bound in bounds if bound.bound == candidate]
    return Choice(candidate, oracle_read_ts if uses_oracle else None, since, upper, inputs, binding)


def _lower_bounds(
    inputs: Mapping[str, InputFrontiers],
    since: Frontier,
    upper: Frontier,
    when: When,
    isolation: Isolation,
    oracle_read_ts: Timestamp,
    session_ts: Timestamp | None,
) -> list[Constraint]:
    if when.kind is WhenKind.AT:
        assert when.timestamp is not None
        return [Constraint(when.timestamp, "AS OF")]
    bounds = [
        Constraint(Timestamp(frontiers.since), f"read frontier of {frontiers.name}") for frontiers in inputs.values()
    ]
    if when.kind is WhenKind.AT_LEAST:
        assert when.timestamp is not None
        return [*bounds, Constraint(when.timestamp, "AS OF AT LEAST")]
    if when.kind is WhenKind.FRESHEST_TABLE_WRITE or isolation is Isolation.STRICT_SERIALIZABLE:
        bounds.append(Constraint(oracle_read_ts, "oracle read timestamp"))
    elif isolation is Isolation.STRONG_SESSION_SERIALIZABLE:
        bounds.append(Constraint(min(step_back(upper), oracle_read_ts), "freshest complete time"))
        if session_ts is not None:
            bounds.append(Constraint(session_ts, "session timestamp"))
    return bounds


def _prefers_freshest(when: When, isolation: Isolation) -> bool:
    return when.kind is WhenKind.IMMEDIATELY and isolation is Isolation.SERIALIZABLE


def _not_valid(inputs: Mapping[str, InputFrontiers], candidate: Timestamp) -> SqlError:
    late = [f"{f.name} is readable from {f.since}" for f in inputs.values() if f.since > candidate]
    return SqlError(
        f"timestamp {candidate} is not valid for all inputs",
        sqlstate="22023",
        detail="; ".join(late),
        hint="Read without AS OF, or at a later time. RETAIN HISTORY keeps older times readable.",
    )
