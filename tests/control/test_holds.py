"""Read holds against a model: a plain list of held times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from penstock.control import HoldBook, ReadHold, SinceError
from penstock.runtime import DONE, Frontier, GlobalId, InternalError

ID = GlobalId("u1")


class HoldModel(RuleBasedStateMachine):
    """The since is the least live hold; it never goes back; every live hold is at or beyond it."""

    holds: Bundle[ReadHold] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Frontier] = []
        self.book = HoldBook(ID, Frontier(3), lambda book: self.changes.append(book.since))
        self.implied = self.book.acquire()
        self.live: list[ReadHold] = [self.implied]

    @rule(target=holds, ahead=st.none() | st.integers(0, 9))
    def acquire(self, ahead: int | None) -> ReadHold:
        at = None if ahead is None else Frontier(min(self.book.since + ahead, DONE))
        hold = self.book.acquire(at)
        assert hold.since == (self.book.since if at is None else at)
        self.live.append(hold)
        return hold

    @rule(target=holds, hold=holds)
    def clone(self, hold: ReadHold) -> ReadHold:
        copy = hold.clone()
        self.live.append(copy)
        return copy

    @rule(hold=holds, ahead=st.integers(0, 9))
    def downgrade(self, hold: ReadHold, ahead: int) -> None:
        hold.downgrade(Frontier(hold.since + ahead))

    @rule(hold=consumes(holds))
    def release(self, hold: ReadHold) -> None:
        hold.release()
        hold.release()
        self.live.remove(hold)

    @rule(ahead=st.integers(0, 5))
    def policy(self, ahead: int) -> None:
        self.implied.downgrade(Frontier(self.implied.since + ahead))

    @invariant()
    def since_is_the_least_hold(self) -> None:
        assert self.book.since == min(hold.since for hold in self.live)
        assert self.changes == sorted(set(self.changes))

    def teardown(self) -> None:
        for hold in self.live:
            hold.release()
        assert self.book.since == DONE


TestHolds = HoldModel.TestCase


def test_a_hold_before_the_since_is_refused() -> None:
    book = HoldBook(ID, Frontier(5))
    first = book.acquire()
    with pytest.raises(SinceError) as refused:
        book.acquire(Frontier(4))
    assert refused.value.since == 5
    with pytest.raises(InternalError, match="go back"):
        first.downgrade(Frontier(4))
    first.release()
    assert book.since == DONE
    with pytest.raises(InternalError, match="released"):
        first.clone()


@given(st.integers(100, 2000))
def test_a_pinned_book_stays_small(moves: int) -> None:
    book = HoldBook(ID, Frontier(0))
    pin, runner = book.acquire(), book.acquire()
    for at in range(1, moves):
        runner.downgrade(Frontier(at))
    assert len(book._heap) < 100
    assert book.since == 0
    pin.release()
    assert book.since == moves - 1
    runner.release()
