"""The hash of a row is part of what is stored: runs of parts are in its order, and replicas must agree on it."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime.hashing import hash_array, hash_columns

WORD = 2**64 - 1

LONG = st.binary(max_size=40) | st.binary(min_size=56, max_size=80) | st.binary(min_size=120, max_size=300)


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def hash_of_bytes(value: bytes) -> int:
    """The sum of the mixed words, each offset by its place, then the length: one byte string after the other."""
    words = [int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 8)]
    total = sum(mix(word + number * 0x9FB21C651E98DF25 & WORD) for number, word in enumerate(words)) & WORD
    return mix(mix(total ^ (len(value) * 0x2545F4914F6CDD1D & WORD)))  # the second time as a row of one column


@settings(max_examples=200, deadline=None)
@given(st.lists(LONG, min_size=1, max_size=20), st.integers(0, 5))
def test_strings_of_every_length(values: list[bytes], skipped: int) -> None:
    expected = [hash_of_bytes(value) for value in values]
    for kind in (pa.binary(), pa.large_binary()):
        column = pa.array(values, type=kind)
        assert hash_array(column).tolist() == expected
        assert hash_array(column.slice(skipped)).tolist() == expected[skipped:]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.int16(), [0, -1, None], [0, 13029008266876403067, 16294208416658607535]),
        (pa.int64(), [0, -1, 4611686018427387904], [0, 13029008266876403067, 1360429390938723525]),
        (pa.bool_(), [True, False, None], [6238072747940578789, 0, 16294208416658607535]),
        (pa.float64(), [0.0, -0.0, 1.5, float("nan")], [0, 0, 16657480027015623784, 5087927234000983963]),
        (pa.date32(), [date(2026, 1, 2)], [1001149782070181931]),
        (pa.decimal128(38, 2), [Decimal("1.50"), None], [900184569969595700, 16294208416658607535]),
        (
            pa.string(),
            ["", "abcdefgh", "abcdefghi", None],
            [0, 13129412117890780176, 7641119990025441549, 16294208416658607535],
        ),
        (
            pa.list_(pa.int64()),
            [[], [1], [1, 2], None],
            [0, 10342536456542151730, 6512333941108474184, 16294208416658607535],
        ),
        (pa.struct([("x", pa.int64())]), [{"x": 1}], [8841707400507832957]),
    ],
)
def test_hashes_never_change(kind: pa.DataType, values: list[Any], expected: list[int]) -> None:
    assert hash_array(pa.array(values, type=kind)).tolist() == expected


def test_a_row_hashes_its_columns_in_order() -> None:
    columns = [pa.array([1, None]), pa.array(["a", "b"])]
    assert hash_columns(columns, 2).tolist() == [8649192713859460957, 7408095917508007106]
    assert hash_columns(reversed(columns), 2).tolist() == [6556338882806442734, 2314809881752161915]
