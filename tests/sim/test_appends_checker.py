"""The checker of appends, on hand-made histories."""

from __future__ import annotations

from sim.checkers.appends import OPS_PER_ROW_KEY, Answer, Append, Committed, Update, problems


def rows(number: int, *times: int) -> tuple[Update, ...]:
    return tuple((time, (number * OPS_PER_ROW_KEY + index, ""), 1) for index, time in enumerate(times))


def asked(number: int, answer: Answer, *times: int) -> Append:
    return Append(number, "p", 0, 10, rows(number, *times), answer)


def there(seqno: int, *updates: Update) -> Committed:
    return Committed(seqno, "p", 0, 10, updates)


def test_what_was_acknowledged_is_there_and_what_was_refused_is_not() -> None:
    asks = [asked(1, Answer.DONE, 3, 4), asked(2, Answer.REFUSED, 3), asked(3, Answer.LOST, 5)]
    asks.append(asked(4, Answer.LOST, 5))
    assert problems("s", asks, [there(7, *rows(1, 3, 4)), there(8, *rows(4, 5))]) == []


def test_each_way_to_be_wrong() -> None:
    one = rows(1, 3)
    assert "is not there" in problems("s", [asked(1, Answer.DONE, 3)], [])[0]
    assert "2 times" in problems("s", [asked(1, Answer.LOST, 3)], [there(7, *one), there(8, *one)])[0]
    assert "was refused and is there" in problems("s", [asked(1, Answer.REFUSED, 3)], [there(7, *one)])[0]
    assert "other rows" in problems("s", [asked(1, Answer.DONE, 3, 4)], [there(7, *one)])[0]
    assert "other rows" in problems("s", [asked(1, Answer.DONE, 3)], [there(7, *one, *one)])[0]
    assert "nobody made" in problems("s", [], [there(7, *one)])[0]
    other_bounds = Append(1, "p", 0, 9, one, Answer.DONE)
    assert "as [0, 10)" in problems("s", [other_bounds], [there(7, *one)])[0]


def test_retractions_are_nobodys_rows() -> None:
    gone = tuple((5, row, -1) for _, row, _ in rows(1, 3))
    asks = [asked(1, Answer.DONE, 3), asked(2, Answer.DONE, 5)]
    assert problems("s", asks, [there(7, *rows(1, 3)), there(8, *rows(2, 5), *gone)]) == []
