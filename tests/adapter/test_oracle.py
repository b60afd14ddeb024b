"""Conformance of the timestamp oracle: times are handed out upwards only, reads follow applied writes."""

from __future__ import annotations

import asyncio

import pytest

from penstock.adapter.oracle import TimestampOracle
from penstock.runtime import DONE, Timestamp, VirtualClock

MAX = Timestamp(int(DONE) - 1)


def oracle(initially: int, now_ms: int = 0) -> TimestampOracle:
    return TimestampOracle(VirtualClock(now_ms), Timestamp(initially))


@pytest.mark.parametrize("initially", [0, MAX])
def test_opens_at_the_initial_time(initially: int) -> None:
    fresh = oracle(initially)
    assert (fresh.read_ts(), fresh.peek_write_ts()) == (initially, initially)


def test_write_time_follows_the_clock_and_leaves_reads_alone() -> None:
    late = 10**15
    fresh = oracle(0, now_ms=late)
    assert fresh.write_ts() == (late, late + 1)
    assert fresh.read_ts() == 0


def test_consecutive_writes_go_up_when_the_clock_stands() -> None:
    fresh = oracle(0)
    assert [fresh.write_ts().timestamp for _ in range(2)] == [1, 2]


def test_peeking_does_not_advance() -> None:
    fresh = oracle(0)
    fresh.write_ts()
    assert [fresh.peek_write_ts(), fresh.peek_write_ts()] == [1, 1]


def test_applying_an_older_write_changes_nothing() -> None:
    fresh = oracle(10)
    fresh.apply_write(Timestamp(5))
    assert (fresh.read_ts(), fresh.peek_write_ts()) == (10, 10)


def test_applying_below_the_last_allocation_moves_reads_only() -> None:
    fresh = oracle(0)
    for _ in range(4):
        fresh.write_ts()
    fresh.apply_write(Timestamp(2))
    assert (fresh.read_ts(), fresh.peek_write_ts()) == (2, 4)


def test_applying_above_moves_both_and_later_writes_are_above() -> None:
    fresh = oracle(0)
    fresh.apply_write(Timestamp(20))
    assert (fresh.read_ts(), fresh.peek_write_ts()) == (20, 20)
    assert fresh.write_ts().timestamp == 21


def test_a_clock_that_goes_back_never_takes_times_back() -> None:
    clock = VirtualClock(1_000)
    ours = TimestampOracle(clock, Timestamp(0))
    first = ours.write_ts().timestamp
    clock.advance(-0.5)
    assert ours.write_ts().timestamp == first + 1


def test_waiting_for_a_read_time_ends_when_it_is_applied_and_survives_cancellation() -> None:
    async def main() -> None:
        fresh = oracle(0)
        early, late, gone = (asyncio.ensure_future(fresh.wait_until_read(Timestamp(t))) for t in (5, 9, 5))
        await asyncio.sleep(0)
        gone.cancel()
        fresh.apply_write(Timestamp(7))
        await early
        assert not late.done()
        fresh.apply_write(Timestamp(9))
        await late

    asyncio.run(main())
