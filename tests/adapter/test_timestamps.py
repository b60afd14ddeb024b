"""Which time a query reads at: one table of isolation level, AS OF, sinces and uppers."""

from __future__ import annotations

import pytest

from penstock.adapter.timestamps import (
    FRESHEST_TABLE_WRITE,
    IMMEDIATELY,
    InputFrontiers,
    Isolation,
    When,
    WhenKind,
    choose_timestamp,
)
from penstock.runtime import DONE, Frontier, SqlError, Timestamp

STRICT, SESSION, SERIALIZABLE = (
    Isolation.STRICT_SERIALIZABLE,
    Isolation.STRONG_SESSION_SERIALIZABLE,
    Isolation.SERIALIZABLE,
)


def inputs(*frontiers: tuple[int, int]) -> dict[str, InputFrontiers]:
    return {
        f"u{i}": InputFrontiers(f"t{i}", Frontier(since), Frontier(upper)) for i, (since, upper) in enumerate(frontiers)
    }


@pytest.mark.parametrize(
    ("isolation", "when", "frontiers", "oracle", "session", "expected"),
    [
        (STRICT, IMMEDIATELY, [(3, 10)], 20, None, 20),
        (STRICT, IMMEDIATELY, [(30, 40)], 20, None, 30),
        (STRICT, IMMEDIATELY, [(3, 100)], 20, None, 20),
        (SERIALIZABLE, IMMEDIATELY, [(3, 10)], 20, None, 9),
        (SERIALIZABLE, IMMEDIATELY, [(3, 10), (5, 8)], 20, None, 7),
        (SERIALIZABLE, IMMEDIATELY, [(3, 10), (15, 18)], 20, None, 15),
        (SERIALIZABLE, IMMEDIATELY, [(3, DONE)], 20, None, 20),
        (SESSION, IMMEDIATELY, [(3, 10)], 20, None, 9),
        (SESSION, IMMEDIATELY, [(3, 10)], 20, 15, 15),
        (SESSION, IMMEDIATELY, [(3, 50)], 20, 15, 20),
        (SERIALIZABLE, FRESHEST_TABLE_WRITE, [(3, 10)], 20, None, 20),
        (STRICT, When(WhenKind.AT, Timestamp(7)), [(3, 10)], 20, None, 7),
        (STRICT, When(WhenKind.AT, Timestamp(70)), [(3, 10)], 20, None, 70),
        (STRICT, When(WhenKind.AT_LEAST, Timestamp(7)), [(3, 10)], 20, None, 7),
        (STRICT, When(WhenKind.AT_LEAST, Timestamp(1)), [(3, 10)], 20, None, 3),
        (STRICT, IMMEDIATELY, [], 20, None, 20),
    ],
)
def test_the_chosen_time(isolation, when, frontiers, oracle, session, expected) -> None:  # type: ignore[no-untyped-def]
    choice = choose_timestamp(inputs(*frontiers), when, isolation, oracle_read_ts=Timestamp(oracle), session_ts=session)
    assert choice.timestamp == expected
    assert choice.responds_immediately == (expected < choice.upper)


def test_as_of_before_the_since_names_the_collection() -> None:
    with pytest.raises(SqlError, match="timestamp 2 is not valid for all inputs") as caught:
        choose_timestamp(inputs((1, 10), (3, 10)), When(WhenKind.AT, Timestamp(2)), STRICT, oracle_read_ts=Timestamp(9))
    assert caught.value.sqlstate == "22023"
    assert caught.value.detail == "t1 is readable from 3"


def test_the_binding_constraint_is_told() -> None:
    choice = choose_timestamp(inputs((1, 10)), IMMEDIATELY, STRICT, oracle_read_ts=Timestamp(9))
    assert [bound.reason for bound in choice.constraints] == ["oracle read timestamp"]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("Strict  Serializable", STRICT),
        ("strong session serializable", SESSION),
        ("SERIALIZABLE", SERIALIZABLE),
        ("read committed", SERIALIZABLE),
        ("snapshot", None),
    ],
)
def test_spellings_of_isolation_levels(text: str, level: Isolation | None) -> None:
    assert Isolation.parse(text) is level
