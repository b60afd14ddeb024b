"""The correction buffer against a model: a plain list of desired and persisted updates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from penstock.compute.correction import CorrectionBuffer
from penstock.runtime import Frontier, Updates

SCHEMA = pa.schema([("a", pa.int64())])
Update = tuple[int, int, int]


def batch(updates: list[Update]) -> Updates:
    rows, times, diffs = zip(*updates, strict=True) if updates else ((), (), ())
    return Updates(
        pa.RecordBatch.from_arrays([pa.array(rows, pa.int64())], schema=SCHEMA),
        np.array(times, np.uint64),
        np.array(diffs, np.int64),
    )


def counts(updates: Updates) -> dict[tuple[int, int], int]:
    keys = zip(updates.rows.column(0).to_pylist(), updates.times.tolist(), strict=True)
    found = list(zip(keys, updates.diffs.tolist(), strict=True))
    assert len({key for key, _ in found}) == len(found), "not consolidated"
    return dict(found)


UPDATES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20), st.sampled_from([-1, 1, 2])), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), UPDATES),
        st.tuples(st.just("remove"), UPDATES),
        st.tuples(st.just("write"), st.tuples(st.integers(0, 5), st.booleans())),
    ),
    max_size=30,
)


@given(STEPS)
def test_it_says_what_is_missing(steps: list) -> None:
    buffer = CorrectionBuffer(SCHEMA)
    model: Counter[tuple[int, int]] = Counter()
    since = 0
    for kind, argument in steps:
        if kind == "write":
            ahead, success = argument
            upper = since + ahead
            buffer.advance(Frontier(since))
            answer = buffer.before(Frontier(upper))
            due: Counter[tuple[int, int]] = Counter()
            for (row, time), count in model.items():
                due[row, max(time, since)] += count
            expected = {key: count for key, count in due.items() if count and key[1] < upper}
            assert counts(answer) == expected
            if success:
                buffer.remove(answer)
                for (row, time), count in expected.items():
                    model[row, time] -= count
                since = upper
        else:
            sign = 1 if kind == "insert" else -1
            (buffer.insert if kind == "insert" else buffer.remove)(batch(argument))
            for row, time, diff in argument:
                model[row, time] += sign * diff


def test_what_cancels_out_does_not_stay() -> None:
    buffer = CorrectionBuffer(SCHEMA)
    for round_ in range(50):
        changes = batch([(row, round_, 1) for row in range(1000)])
        buffer.insert(changes)
        buffer.remove(changes)
    assert len(buffer.before(Frontier(100))) == 0
    assert len(buffer) == 0
