"""The checker of compare-and-set histories, on hand-made ones: it accepts what can be, and refuses what cannot."""

from __future__ import annotations

import math

from penstock.persist import SeqNo, Versioned
from sim.checkers.cas import COMMITTED, DETERMINATE, MISMATCH, UNKNOWN, Attempt, CasHistory, Look


def attempt(who: str, seqno: int, began: float, ended: float, outcome: str, data: bytes | None = None) -> Attempt:
    return Attempt(who, seqno, data if data is not None else who.encode() + bytes([seqno]), began, ended, outcome)


def look(head: int | None, began: float, ended: float, versions: dict[int, bytes] | None = None) -> Look:
    return Look("reader", began, ended, head, [Versioned(SeqNo(n), data) for n, data in (versions or {}).items()])


def problems(attempts: list[Attempt], looks: list[Look] | None = None) -> list[str]:
    return CasHistory("key", attempts, looks or []).problems()


def test_a_race_with_one_winner_is_fine() -> None:
    history = [
        attempt("a", 0, 0, 1, COMMITTED),
        attempt("a", 1, 2, 5, COMMITTED),
        attempt("b", 1, 2, 4, MISMATCH),
        attempt("b", 2, 6, 7, DETERMINATE),
        attempt("b", 2, 8, math.inf, UNKNOWN),
        attempt("a", 3, 9, 10, COMMITTED),
    ]
    assert problems(history, [look(1, 5, 8), look(3, 10, 11, {2: b"b\x02"})]) == []


def test_two_winners() -> None:
    assert "committed by" in problems([attempt("a", 0, 0, 1, COMMITTED), attempt("b", 0, 0, 1, COMMITTED)])[0]


def test_a_version_that_nobody_wrote() -> None:
    assert "nobody" in problems([attempt("a", 0, 0, 1, COMMITTED), attempt("a", 2, 2, 3, COMMITTED)])[0]
    surely_not = [attempt("a", 0, 0, 1, COMMITTED), attempt("a", 1, 2, 3, DETERMINATE)]
    assert "nobody" in problems(surely_not, [look(1, 4, 5, {1: b"a\x01"})])[0]


def test_commits_against_real_time() -> None:
    history = [attempt("a", 0, 5, 6, COMMITTED), attempt("b", 1, 1, 2, COMMITTED)]
    assert "must be after" in problems(history)[0]


def test_a_refusal_without_a_reason() -> None:
    history = [attempt("a", 0, 0, 1, COMMITTED), attempt("b", 1, 2, 3, MISMATCH), attempt("a", 1, 4, 5, COMMITTED)]
    assert "without a reason" in problems(history)[0]
    ahead = [attempt("a", 0, 0, 1, COMMITTED), attempt("b", 5, 2, 3, MISMATCH)]
    assert problems(ahead) == [], "the head was not its predecessor"


def test_a_stale_head() -> None:
    history = [attempt("a", 0, 0, 1, COMMITTED), attempt("a", 1, 2, 3, COMMITTED)]
    assert "saw the head 0" in problems(history, [look(0, 4, 5)])[0]
    assert problems(history, [look(0, 2.5, 5)]) == []


def test_a_read_from_the_future() -> None:
    history = [attempt("a", 0, 5, 6, COMMITTED)]
    assert "before anybody wrote it" in problems(history, [look(0, 1, 2, {0: b"a\x00"})])[0]


def test_two_contents_of_one_version() -> None:
    history = [attempt("a", 0, 0, 1, COMMITTED)]
    found = problems(history, [look(0, 2, 3, {0: b"a\x00"}), look(0, 2, 3, {0: b"x"})])
    assert "two contents" in found[0]
    assert "other bytes" in problems(history, [look(0, 2, 3, {0: b"x"})])[0]
