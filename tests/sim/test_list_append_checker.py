"""The checker of list-append transactions, on hand-made histories with one anomaly each."""

from __future__ import annotations

import math

from sim.checkers.list_append import Transaction, anomalies, strong_components


def txn(
    name: str,
    began: float,
    ended: float = math.inf,
    outcome: bool | None = True,
    reads: dict[str, str] | None = None,
    appends: dict[str, str] | None = None,
) -> Transaction:
    """Values are single letters: "ab" is the list [a, b]."""
    return Transaction(
        name,
        began,
        ended,
        outcome,
        {key: tuple(values) for key, values in (reads or {}).items()},
        {key: list(values) for key, values in (appends or {}).items()},
    )


def test_a_serial_history_is_fine() -> None:
    history = [
        txn("t1", 0, 1, appends={"x": "a"}),
        txn("t2", 2, 3, reads={"x": "a"}, appends={"x": "b", "y": "c"}),
        txn("t3", 2, math.inf, None, appends={"x": "d"}),
        txn("t4", 4, 5, False, appends={"x": "e"}),
        txn("t5", 6, 7, reads={"x": "abd", "y": "c"}),
    ]
    assert anomalies(history) == []


def test_aborted_read() -> None:
    found = anomalies([txn("t1", 0, 1, False, appends={"x": "a"}), txn("t2", 2, 3, reads={"x": "a"})])
    assert found[0].startswith("G1a")


def test_intermediate_read() -> None:
    history = [txn("t1", 0, 4, appends={"x": "ab"}), txn("t2", 1, 3, reads={"x": "a"})]
    assert anomalies(history)[0].startswith("G1b")


def test_garbage_and_doubled_values() -> None:
    assert anomalies([txn("t1", 0, 1, reads={"x": "z"})])[0].startswith("garbage")
    history = [txn("t1", 0, 1, appends={"x": "a"}), txn("t2", 2, 3, reads={"x": "aa"})]
    assert anomalies(history)[0].startswith("doubled")


def test_incompatible_orders() -> None:
    history = [
        txn("t1", 0, 1, appends={"x": "a"}),
        txn("t2", 0, 1, appends={"x": "b"}),
        txn("t3", 2, 3, reads={"x": "ab"}),
        txn("t4", 2, 3, reads={"x": "ba"}),
    ]
    assert anomalies(history)[0].startswith("incompatible")


def test_write_cycle() -> None:
    history = [
        txn("t1", 0, 9, appends={"x": "a", "y": "c"}),
        txn("t2", 0, 9, appends={"x": "b", "y": "d"}),
        txn("t3", 0, 9, reads={"x": "ab", "y": "dc"}),
    ]
    assert anomalies(history)[0].startswith("G0:")


def test_circular_information_flow() -> None:
    history = [
        txn("t1", 0, 9, reads={"y": "b"}, appends={"x": "a"}),
        txn("t2", 0, 9, reads={"x": "a"}, appends={"y": "b"}),
    ]
    assert anomalies(history)[0].startswith("G1c:")


def test_a_read_of_half_a_transaction() -> None:
    history = [
        txn("t1", 0, 9, appends={"x": "a", "y": "b"}),
        txn("t2", 0, 9, reads={"x": "a", "y": ""}),
        txn("t3", 10, 11, reads={"x": "a", "y": "b"}),
    ]
    assert anomalies(history)[0].startswith("G-single:")


def test_write_skew() -> None:
    history = [
        txn("t1", 0, 9, reads={"x": ""}, appends={"y": "a"}),
        txn("t2", 0, 9, reads={"y": ""}, appends={"x": "b"}),
        txn("t3", 10, 11, reads={"x": "b", "y": "a"}),
    ]
    assert anomalies(history)[0].startswith("G2:")


def test_a_stale_read_is_an_anomaly_in_real_time_only() -> None:
    history = [txn("t1", 0, 1, appends={"x": "a"}), txn("t2", 2, 3, reads={"x": ""}), txn("t3", 4, 5, reads={"x": "a"})]
    assert anomalies(history)[0].startswith("G-single against real time")
    overlapping = [txn("t1", 0, 2.5, appends={"x": "a"}), *history[1:]]
    assert anomalies(overlapping) == []


def test_a_lost_append() -> None:
    history = [txn("t1", 0, 1, appends={"x": "a"}), txn("t2", 2, 3, reads={"x": ""})]
    assert anomalies(history)[0].startswith("G-single against real time")


def test_each_anomaly_names_its_cycle() -> None:
    history = [
        txn("t1", 0, 9, reads={"y": "b"}, appends={"x": "a"}),
        txn("t2", 0, 9, reads={"x": "a"}, appends={"y": "b"}),
    ]
    assert "t1 -> t2 (wr: x was read up to a)" in anomalies(history)[0]
    assert "t2 -> t1 (wr: y was read up to b)" in anomalies(history)[0]


def test_strong_components() -> None:
    edges = {"a": {"b": ""}, "b": {"c": ""}, "c": {"a": "", "d": ""}, "d": {"e": ""}, "e": {"d": ""}}
    assert {frozenset(one) for one in strong_components(edges)} == {frozenset("abc"), frozenset("de")}
    chain = {str(n): {str(n + 1): ""} for n in range(5000)}
    assert len(strong_components(chain)) == 5001, "deep graphs need no recursion"
