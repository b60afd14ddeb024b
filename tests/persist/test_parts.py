"""Encodings of updates."""

from __future__ import annotations

import datetime
import zlib
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from penstock.persist.parts import (
    IPC,
    PARQUET,
    PartDamaged,
    decode_inline,
    decode_object,
    encode_inline,
    encode_object,
)
from penstock.runtime import Timestamp, Updates

INTERVAL = pa.month_day_nano_interval()
COLUMNS: dict[str, list[tuple[str, pa.DataType, list[object]]]] = {
    "plain": [
        ("b", pa.bool_(), [True, None, False]),
        ("i", pa.int16(), [1, -2, None]),
        ("f", pa.float64(), [float("nan"), -0.0, None]),
        ("s", pa.string(), ["", None, "é" * 100]),
        ("y", pa.binary(), [b"\0", None, b""]),
        ("n", pa.decimal128(38, 4), [Decimal("1.5"), None, Decimal("-1e20")]),
        ("d", pa.date32(), [datetime.date(2020, 1, 1), None, datetime.date(1, 1, 1)]),
        ("t", pa.timestamp("us", "UTC"), [0, None, -(2**50)]),
        ("z", pa.time64("us"), [datetime.time(1), None, datetime.time(2)]),
        ("l", pa.list_(pa.string()), [["a", None], None, []]),
        ("r", pa.struct([("x", pa.int64())]), [{"x": 1}, None, {"x": None}]),
        ("u", pa.null(), [None, None, None]),
    ],
    "interval": [("v", INTERVAL, [(1, 2, 3), None, (-1, 0, 0)]), ("k", pa.int64(), [1, 2, 3])],
    "nested interval": [("v", pa.list_(INTERVAL), [[(1, 2, 3)], None, []])],
    "repeated names": [("a", pa.int64(), [1, 2, 3]), ("a", pa.string(), ["x", "y", "z"])],
    "taken names": [("__time", pa.int64(), [1, 2, 3]), ("__diff", pa.int64(), [4, 5, 6])],
    "no columns": [],
}


def updates(kind: str, repeat: int = 1) -> Updates:
    columns = COLUMNS[kind]
    schema = pa.schema([pa.field(name, type_) for name, type_, _ in columns])
    times = np.array([5, 2**63 - 2, 0] * repeat, dtype=np.uint64)
    diffs = np.array([1, -(2**62), 3] * repeat, dtype=np.int64)
    if not columns:
        return Updates(Updates.at(_bare(3 * repeat), Timestamp(0)).rows, times, diffs)
    arrays = [pa.array(values * repeat, type_) for _, type_, values in columns]
    return Updates(pa.RecordBatch.from_arrays(arrays, schema=schema), times, diffs)


def _bare(count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.array([{}] * count, type=pa.struct([])))


def same(left: Updates, right: Updates) -> None:
    assert left.rows.num_rows == right.rows.num_rows
    assert left.schema.equals(right.schema)
    assert repr(left.rows.to_pylist()) == repr(right.rows.to_pylist())
    for ours, theirs in zip(left.rows.columns, right.rows.columns, strict=True):
        assert repr(ours.to_pylist()) == repr(theirs.to_pylist())
    np.testing.assert_array_equal(left.times, right.times)
    np.testing.assert_array_equal(left.diffs, right.diffs)


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("repeat", [1, 1000])
def test_round_trips(kind: str, repeat: int) -> None:
    original = updates(kind, repeat)
    part = encode_inline(original, 1 << 20)
    assert part is not None
    assert (part.rows, part.time_min, part.time_max) == (3 * repeat, 0, 2**63 - 2)
    same(decode_inline(part, original.schema), original)
    data, described = encode_object(original, "w/p")
    same(decode_object(data, described, original.schema), original)
    assert described.diff_sum == part.diff_sum
    assert described.format == (IPC if "interval" in kind else PARQUET)
    for sliced in (Updates(original.rows.slice(1, 2), original.times[1:3], original.diffs[1:3]),):
        part = encode_inline(sliced, 1 << 20)
        assert part is not None
        same(decode_inline(part, original.schema), sliced)


def test_dictionaries_are_not_inlined_and_come_back() -> None:
    rows = pa.record_batch({"c": pa.array(["a", "b", "a"]).dictionary_encode()})
    original = Updates.at(rows, Timestamp(1))
    assert encode_inline(original, 1 << 20) is None
    data, part = encode_object(original, "k")
    assert decode_object(data, part, original.schema).rows.to_pylist() == rows.to_pylist()


def test_large_updates_are_not_inlined_but_compressible_ones_are() -> None:
    noise = pa.array(np.random.default_rng(1).integers(0, 2**62, 4000))
    assert encode_inline(Updates.at(pa.record_batch({"k": noise}), Timestamp(1)), 16384) is None
    smooth = pa.array([7] * 4000)
    assert encode_inline(Updates.at(pa.record_batch({"k": smooth}), Timestamp(1)), 16384) is not None


def test_projection_reads_the_named_columns() -> None:
    original = updates("plain", 10)
    data, part = encode_object(original, "k")
    some = decode_object(data, part, original.schema, ["s", "b"])
    assert some.rows.equals(original.rows.select(["s", "b"]))
    assert len(decode_object(data, part, original.schema, [])) == 30
    data, part = encode_object(updates("interval"), "k")
    assert decode_object(data, part, updates("interval").schema, ["k"]).rows.to_pydict() == {"k": [1, 2, 3]}


@pytest.mark.parametrize("kind", ["plain", "taken names", "no columns", "interval"])
@pytest.mark.parametrize(("time", "diff"), [(2**63 - 1, 1), (0, -7), (5, None), (None, 1)])
def test_times_and_diffs_that_are_all_the_same_come_back(kind: str, time: int | None, diff: int | None) -> None:
    whole = updates(kind, 100)
    times = whole.times if time is None else np.full(300, time, dtype=np.uint64)
    diffs = whole.diffs if diff is None else np.full(300, diff, dtype=np.int64)
    data, part = encode_object(Updates(whole.rows, times, diffs), "k")
    for columns in (None, [], [whole.schema.names[0]] if kind == "plain" else None):
        back = decode_object(data, part, whole.schema, columns)
        assert back.times.dtype == np.uint64
        assert back.diffs.dtype == np.int64
        assert back.times.tolist() == times.tolist()
        assert back.diffs.tolist() == diffs.tolist()
        assert pa.array(back.times).to_pylist() == times.tolist(), "whatever their strides"


def test_parts_without_statistics_of_their_diffs_are_read_as_they_are() -> None:
    whole = Updates.at(updates("plain").rows, Timestamp(5))
    data, part = encode_object(whole, "k")
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(pa.BufferReader(data)), sink, write_statistics=["__time"])
    older = sink.getvalue().to_pybytes()
    described = replace(part, size=len(older), crc=zlib.crc32(older))
    back = decode_object(older, described, whole.schema)
    assert str(back.rows.to_pylist()) == str(whole.rows.to_pylist())  # NaN is not equal to itself
    assert back.diffs.tolist() == [1, 1, 1]
    assert back.times.tolist() == [5, 5, 5]


def test_any_parquet_reader_understands_a_part() -> None:
    data, _ = encode_object(updates("plain"), "k")
    names = pq.read_table(pa.BufferReader(data)).column_names
    assert names == [*updates("plain").schema.names, "__time", "__diff"]


def test_damage_is_recognized() -> None:
    original = updates("plain", 100)
    data, part = encode_object(original, "k")
    for position in (0, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        with pytest.raises(PartDamaged, match="checksum"):
            decode_object(bytes(damaged), part, original.schema)
    with pytest.raises(PartDamaged, match="bytes instead of"):
        decode_object(data[:-1], part, original.schema)
