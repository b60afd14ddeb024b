"""`Updates`: consolidation agrees with a dictionary, hashing with equality."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime import Updates, conform, hash_columns
from penstock.runtime.updates import _consolidated_exactly, rows_equal, values_equal

SCHEMA = pa.schema(
    [
        ("i", pa.int32()),
        ("s", pa.string()),
        ("f", pa.float64()),
        ("d", pa.decimal128(38, 2)),
        ("b", pa.bool_()),
        ("l", pa.list_(pa.int64())),
    ]
)

ROWS = st.tuples(
    st.none() | st.integers(-2, 2),
    st.none() | st.sampled_from(["", "a", "b", "ab", "ba"]),
    st.none() | st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf]),
    st.none() | st.sampled_from([Decimal("0.00"), Decimal("1.50"), Decimal("-1.50")]),
    st.none() | st.booleans(),
    st.none() | st.lists(st.integers(0, 1), max_size=2),
)


def canonical(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Equal for rows that SQL groups together: NaN like NaN, -0.0 like 0.0, lists hashable."""
    return tuple(
        "NaN" if isinstance(v, float) and math.isnan(v) else v + 0.0 if isinstance(v, float) else repr(v) for v in row
    )


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMA]
    return pa.RecordBatch.from_arrays(
        [pa.array(list(c), type=f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ROWS, st.integers(1, 3), st.integers(-2, 2)), max_size=30))
def test_consolidation_agrees_with_a_dictionary(changes: list[tuple[Any, int, int]]) -> None:
    expected: Counter[tuple[Any, int]] = Counter()
    for row, time, diff in changes:
        expected[canonical(row), time] += diff
    updates = Updates(
        batch([row for row, _, _ in changes]),
        np.array([time for _, time, _ in changes], dtype=np.uint64),
        np.array([diff for _, _, diff in changes], dtype=np.int64),
    )
    slowly, sums = _consolidated_exactly(updates.rows, updates.times, updates.diffs)
    exactly = Updates(updates.rows, updates.times, updates.diffs).take(slowly)
    for consolidated in (updates.consolidate(), Updates(exactly.rows, exactly.times, sums)):
        rows = [canonical(tuple(row.values())) for row in consolidated.rows.to_pylist()]
        found = dict(zip(zip(rows, consolidated.times.tolist(), strict=True), consolidated.diffs.tolist(), strict=True))
        assert found == {key: diff for key, diff in expected.items() if diff}
        assert len(found) == len(consolidated)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROWS, min_size=2, max_size=12), st.integers(0, 3))
def test_hashes_are_equal_where_rows_are(rows: list[tuple[Any, ...]], skipped: int) -> None:
    whole = batch(rows)
    hashes = hash_columns(whole.columns, len(rows))
    sliced = whole.slice(min(skipped, len(rows)))
    assert hash_columns(sliced.columns, sliced.num_rows).tolist() == hashes[min(skipped, len(rows)) :].tolist()
    left, right = np.divmod(np.arange(len(rows) ** 2), len(rows))
    equal = rows_equal(whole, left, whole, right)
    expected = [canonical(rows[i]) == canonical(rows[j]) for i, j in zip(left, right, strict=True)]
    assert equal.tolist() == expected
    assert (hashes[left] == hashes[right]).tolist() == expected


def test_equal_hashes_of_different_rows_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.updates.hash_columns", lambda columns, n: np.zeros(n, dtype=np.uint64))
    rows = pa.RecordBatch.from_pydict({"a": [1, 2, 1, 2, 3]})
    consolidated = Updates(rows, np.zeros(5, np.uint64), np.array([1, 1, 1, -1, 0])).consolidate()
    assert consolidated.rows.to_pydict() == {"a": [1]}
    assert consolidated.diffs.tolist() == [2]


def test_rows_without_columns_keep_their_count() -> None:
    rows = pa.RecordBatch.from_struct_array(pa.array([{}] * 3, type=pa.struct([])))
    assert Updates.at(rows, 5).consolidate().diffs.tolist() == [3]
    assert len(Updates.empty(pa.schema([]))) == 0


def test_decimals_compare_across_null_and_sign() -> None:
    left = pa.array([Decimal("1.0"), None, None], pa.decimal128(38, 1))
    right = pa.array([Decimal("-1.0"), None, Decimal("0.0")], pa.decimal128(38, 1))
    assert values_equal(left, right).tolist() == [False, True, False]


def test_conform_casts_by_position_and_refuses_what_does_not_fit() -> None:
    target = pa.schema([("x", pa.string()), ("y", pa.int32())])
    view = pa.RecordBatch.from_arrays([pa.array(["a"], pa.string_view()), pa.array([7], pa.int64())], names=["p", "q"])
    assert conform(view, target).to_pydict() == {"x": ["a"], "y": [7]}
    with pytest.raises(pa.ArrowInvalid):
        conform(pa.RecordBatch.from_pydict({"p": ["a"], "q": [2**40]}), target)
    with pytest.raises(ValueError, match="1 columns where 2 are expected"):
        conform(pa.RecordBatch.from_pydict({"p": ["a"]}), target)
