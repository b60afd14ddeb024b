"""What is compacted: enough to keep batches few, no more than that, and small things beside large ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from penstock.persist import PersistConfig
from penstock.persist.policy import Policy, Size
from penstock.persist.state import HollowPart, InlinePart, LinkedBatch, State
from tests.persist.shards import most_urgent

ROW_BYTES = 5_000
"""In memory: merges of a few thousand rows are of every size."""


def stored(rows: int, row_bytes: int = ROW_BYTES) -> HollowPart:
    return HollowPart("k", "parquet", 100, 1, rows, rows, 0, 0, memory=row_bytes * rows)


def of(*rows: int | tuple[int, int]) -> State:
    """A state with a batch for each of `rows`, or (rows, bytes of each); ids from 0."""
    parts = [stored(*one) if isinstance(one, tuple) else stored(one) for one in rows]
    return replace(State(), batches=tuple(LinkedBatch(id_, id_, 0, (part,)) for id_, part in enumerate(parts)))


def chosen(state: State, claimed: frozenset[int] = frozenset()) -> dict[Size, list[int]]:
    due = Policy(PersistConfig(compaction_fan_in=4)).by_size(state, claimed)
    return {size: [batch.id for batch in inputs] for size, inputs in due.items()}


@pytest.mark.parametrize("by_size", [False, True], ids=["most-urgent", "by-size"])
@pytest.mark.parametrize("shape", ["equal", "skewed", "alternating", "shrinking"])
def test_the_policy_bounds_batches_and_work(shape: str, by_size: bool) -> None:
    dice = random.Random(1)
    policy = Policy(PersistConfig(compaction_fan_in=8))
    state, rewritten, appended = State(), 0, 0

    def due() -> tuple[LinkedBatch, ...]:
        choices = list(policy.by_size(state).values()) if by_size else [most_urgent(policy, state)]
        return dice.choice(choices) if choices else ()

    for number in range(5000):
        rows = {
            "equal": 3,
            "skewed": int(dice.paretovariate(0.6)),
            "alternating": 100_000 if number % 2 else 1,
            "shrinking": 8,
        }[shape]
        appended += rows
        state = replace(state, batches=(*state.batches, LinkedBatch(2 * number, number, 0, (stored(rows),))))
        while inputs := due():
            total = sum(batch.rows for batch in inputs)
            rewritten += total
            rows = max(1, total // 8) if shape == "shrinking" else total
            start = state.batches.index(inputs[0])
            merged = LinkedBatch(inputs[-1].id + 1, inputs[0].lower, 0, (stored(rows),))
            rest = state.batches[start + len(inputs) :]
            state = replace(state, batches=(*state.batches[:start], merged, *rest))
        assert len(state.batches) <= 64
    assert rewritten <= 7 * appended, f"{rewritten / appended:.1f} rewrites of each row"


def test_a_merge_has_the_least_size_that_it_fits_into() -> None:
    assert chosen(of(1, 1, 1)) == {}
    assert chosen(of(*[20] * 5)) == {Size.SMALL: [0, 1, 2, 3, 4]}
    assert chosen(of(*[60] * 5)) == {Size.MEDIUM: [0, 1, 2, 3, 4]}, "three of them are a mebibyte"
    assert chosen(of(*[5000] * 4)) == {Size.LARGE: [0, 1, 2, 3]}
    assert chosen(of(*[50] * 9)) == {Size.SMALL: [0, 1, 2, 3], Size.MEDIUM: [4, 5, 6, 7, 8]}, "the rest"
    assert chosen(of(*[50] * 7)) == {Size.SMALL: [0, 1, 2, 3]}, "if that is worth it"


def test_small_merges_are_found_beside_large_ones() -> None:
    assert chosen(of(*[5000] * 4, *[300] * 4, *[20] * 5)) == {
        Size.SMALL: [8, 9, 10, 11, 12],
        Size.MEDIUM: [4, 5, 6, 7],
        Size.LARGE: [0, 1, 2, 3],
    }
    assert chosen(of(*[5000] * 4, *[20] * 5), claimed=frozenset({0, 1, 2, 3})) == {Size.SMALL: [4, 5, 6, 7, 8]}
    wide = [(20, 1 << 20)] * 4
    assert chosen(of(*wide, 300, *[20] * 4)) == {Size.LARGE: [0, 1, 2, 3], Size.SMALL: [5, 6, 7, 8]}, "a run each"
    assert chosen(of(*wide, *[20] * 4)) == {Size.LARGE: [0, 1, 2, 3], Size.SMALL: [4, 5, 6, 7]}, "in one run"
    assert chosen(of(*[20] * 4, *wide)) == {Size.SMALL: [0, 1, 2, 3], Size.LARGE: [4, 5, 6, 7]}
    assert chosen(of(20, 20, *wide, 20, 20)) == {Size.LARGE: list(range(8))}, "too few to be merged by themselves"
    assert chosen(of(20, 20, (20, 1 << 20), 20, 20)) == {Size.MEDIUM: [0, 1, 2, 3, 4]}


def test_what_comes_after_a_run_is_left_to_those_who_append() -> None:
    assert chosen(of(*[300] * 4, 20, 1)) == {Size.MEDIUM: [0, 1, 2, 3]}
    assert chosen(of(1, 300, 300, 20, 300, 300, 20)) == {Size.MEDIUM: [0, 1, 2, 3, 4, 5]}


def test_nothing_is_small_where_the_limit_is_zero() -> None:
    policy = Policy(PersistConfig(compaction_fan_in=4, compaction_small_bytes=0))
    assert list(policy.by_size(of(*[20] * 5))) == [Size.LARGE]


def inline(sizes: Sequence[int], memory: int) -> State:
    """A state with an inline part of each of `sizes`, which takes `memory` when decoded."""
    parts = [InlinePart(b"x" * size, memory, 1, 1, 0, 0, 0) for size in sizes]
    batches = tuple(LinkedBatch(id_, id_, 0, (part,)) for id_, part in enumerate(parts))
    return replace(State(), batches=batches, inline_bytes=sum(sizes))


@pytest.mark.parametrize("small_bytes", [1 << 20, 1 << 40])
def test_what_the_state_holds_is_merged_early_when_it_grows(small_bytes: int) -> None:
    config = PersistConfig(compaction_fan_in=8, inline_total_bytes=1000, compaction_small_bytes=small_bytes)

    def ids(state: State, claimed: frozenset[int] = frozenset()) -> list[list[int]]:
        return [[one.id for one in inputs] for inputs in Policy(config).by_size(state, claimed).values()]

    assert ids(inline([100] * 5, 10)) == []
    assert ids(inline([100] * 6, 10)) == [[0, 1, 2, 3, 4, 5]]
    assert ids(inline([100] * 6, 10), claimed=frozenset({0, 1, 2})) == [], "three of seven hundred are in use"
    assert ids(inline([100] * 7, 10), claimed=frozenset({0, 1, 2})) == [[3, 4, 5, 6]]
    if small_bytes == 1 << 20:
        state = inline([100] * 7, 400_000)
        assert list(Policy(config).by_size(state)) == [Size.MEDIUM], "not two by two"
