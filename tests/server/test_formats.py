"""Text and binary forms of values against PostgreSQL's rules, and the vectorized encoder against the plain loop."""

from __future__ import annotations

import contextlib
import decimal
import random
import struct
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime import SqlError
from penstock.server.binary_format import binary_column
from penstock.server.data_rows import RowEncoder, chunks
from penstock.server.text_format import float_text, text_column
from penstock.server.values import decode_binary, decode_text
from penstock.sql.types import Column, RelationDesc, type_named
from tests.server.fake_session import big_table

D = decimal.Decimal
M = pa.MonthDayNano

# what PostgreSQL 15 prints
FLOATS = {
    -0.0: "-0", 1.0: "1", -1.5: "-1.5", 0.1: "0.1", 1e14: "100000000000000", 1e15: "1e+15",
    123456789012345.6: "123456789012345.6", 1e16: "1e+16", 1.2345678901234568e17: "1.2345678901234568e+17",
    0.0001: "0.0001", 0.00001: "1e-05", 1.5e-7: "1.5e-07", 1e100: "1e+100", 1e300: "1e+300", 5e-324: "5e-324",
    12345678901.5: "12345678901.5", float("inf"): "Infinity", float("-inf"): "-Infinity", float("nan"): "NaN",
    1700000000.123456: "1700000000.123456",
}  # fmt: skip
SINGLES = {
    1.0: "1", 1e5: "100000", 999999.0: "999999", 1e6: "1e+06", 1234567.9: "1.2345679e+06", 1e-4: "0.0001",
    1e-5: "1e-05", 0.1: "0.1",
}  # fmt: skip
INTERVALS = {
    (0, 0, 0): "00:00:00", (14, 3, 3_723_005_000_000): "1 year 2 mons 3 days 01:02:03.005",
    (-14, 3, -1_000_000_000): "-1 years -2 mons +3 days -00:00:01", (1, 1, 0): "1 mon 1 day",
    (0, -1, 360_000_000_000_000): "-1 days +100:00:00", (12, 0, 0): "1 year", (-1, 0, 0): "-1 mons",
    (0, 0, -1_000): "-00:00:00.000001", (24, 0, 1_000_000_000): "2 years 00:00:01",
}  # fmt: skip


def test_floats_print_shortest() -> None:
    assert dict(zip(FLOATS, text_column(pa.array(FLOATS.keys(), pa.float64())).to_pylist(), strict=True)) == FLOATS
    assert {value: float_text(value) for value in FLOATS} == FLOATS
    singles = text_column(pa.array(SINGLES.keys(), pa.float32())).to_pylist()
    assert singles == list(SINGLES.values())


@settings(max_examples=500, deadline=None)
@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_floats_read_back_as_the_same(double: float, single: float) -> None:
    (text,) = text_column(pa.array([double])).to_pylist()
    assert text == float_text(double)
    assert struct.pack("d", float(text)) == struct.pack("d", double)
    (text,) = text_column(pa.array([single], pa.float32())).to_pylist()
    assert text == float_text(single, single=True)
    assert np.float32(text) == np.float32(single)


def test_intervals_print_as_postgres_does() -> None:
    column = pa.array([M(parts) for parts in INTERVALS] + [None], pa.month_day_nano_interval())
    assert text_column(column).to_pylist() == [*INTERVALS.values(), None]
    for parts, text in INTERVALS.items():
        assert tuple(decode_text(text, 1186)) == parts  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**4), 10**4), st.integers(-(10**6), 10**6), st.integers(-(10**15), 10**15))
def test_intervals_read_back_as_the_same(months: int, days: int, micros: int) -> None:
    value = M([months, days, micros * 1000])
    column = pa.array([value], pa.month_day_nano_interval())
    assert decode_text(text_column(column)[0].as_py(), 1186) == value
    assert decode_binary(bytes(binary_column(column, 1186)[0]), 1186) == value  # type: ignore[arg-type, index]


@settings(max_examples=300, deadline=None)
@given(st.integers(-(10**38) + 1, 10**38 - 1), st.integers(0, 38), st.booleans())
def test_numerics_read_back_as_the_same(unscaled: int, scale: int, trim: bool) -> None:
    value = D(unscaled).scaleb(-scale, decimal.Context(prec=80))
    column = pa.array([None, value, D(0)], pa.decimal128(38, scale))[1:]
    (text, zero) = text_column(column, trim=trim).to_pylist()
    assert D(text) == value
    assert "E" not in text
    assert D(zero) == 0
    shown = -D(text).as_tuple().exponent  # type: ignore[operator]
    assert shown <= scale if trim else shown == scale
    got = [decode_binary(cell, 1700) for cell in binary_column(column, 1700, trim=trim).to_pylist()]  # type: ignore[union-attr]
    assert str(got[0]) == str(D(text)) or got[0] == D(text)
    assert got == [value, 0]
    assert -got[0].as_tuple().exponent == shown  # type: ignore[attr-defined]


BAD_TEXTS = {
    16: ["maybe", "", "2"], 20: ["", "1.5", "0x10", "9223372036854775808", "1_0", "٣"],
    701: ["", "1,5", "1_0", "1e999"],
    1700: ["", "1e", "Infinity", "sNaN"], 17: ["\\xzz", "\\9"], 1082: ["2024-02-30", "yesterday", "2024"],
    1083: ["25:00", "1"], 1114: ["2024-01-01 25:00", "x"], 1184: ["2024-13-01 00:00+00"], 1186: ["", "1 parsec", "x"],
    2950: ["123", "g" * 32], 3802: ["{", "{'a': 1}"], 1007: ["1,2", "{1,2", "{1}}", "{a}", '{"1}', "{1,}"],
}  # fmt: skip


@pytest.mark.parametrize("oid", BAD_TEXTS)
def test_bad_texts_are_refused_with_postgres_codes(oid: int) -> None:
    for text in BAD_TEXTS[oid]:
        with pytest.raises(SqlError) as caught:
            decode_text(text, oid)
        assert caught.value.sqlstate in ("22P02", "22003", "22007", "22008", "22023"), (text, caught.value.sqlstate)


@pytest.mark.parametrize("oid", [16, 20, 701, 1700, 1082, 1114, 1186, 2950, 3802, 1007, 16552])
def test_binary_garbage_is_refused_cleanly(oid: int) -> None:
    rng = random.Random(oid)
    for size in [0, 1, 2, 3, 5, 7, 9, 12, 13, 20, 33] * 20:
        with contextlib.suppress(SqlError):  # and nothing else
            decode_binary(rng.randbytes(size), oid)


def test_texts_that_people_write_are_understood() -> None:
    assert decode_text("2h30m", 1186) == M([0, 0, 9_000_000_000_000])
    assert decode_text("1.5 years 2 weeks ago", 1186) == M([-18, -14, 0])
    assert decode_text("{{1,2},{3,NULL}}", 1007) == [[1, 2], [3, None]]
    assert decode_text('{"a,b",c d,"NULL",null}', 1009) == ["a,b", "c d", "NULL", None]
    assert decode_text("\\000a\\\\", 17) == b"\x00a\\"
    assert str(decode_text("2024-01-01 12:00:00+05:30", 1184)) == "2024-01-01 06:30:00+00:00"
    assert decode_text(" YES ", 16) is True


@pytest.mark.parametrize("binary", [False, True])
def test_vectorized_rows_equal_those_of_the_loop(binary: bool) -> None:
    table = big_table(3000)
    desc = RelationDesc.from_arrow(table.schema)
    encoder = RowEncoder(desc, [binary] * len(desc.columns))
    (batch,) = table.to_batches()
    small = b"".join(bytes(encoder.encode(batch.slice(k, 50))) for k in range(0, 3000, 50))
    assert bytes(encoder.encode(batch)) == small
    assert b"".join(bytes(encoder.encode(part)) for part in chunks(batch, 10_000)) == small


def test_results_without_columns_have_rows() -> None:
    batch = pa.RecordBatch.from_struct_array(pa.array([{}] * 3, pa.struct([])))
    assert bytes(RowEncoder(RelationDesc(()), []).encode(batch)) == b"D\x00\x00\x00\x06\x00\x00" * 3
    many = pa.RecordBatch.from_struct_array(pa.array([{}] * 100, pa.struct([])))
    assert bytes(RowEncoder(RelationDesc(()), []).encode(many)) == b"D\x00\x00\x00\x06\x00\x00" * 100


@pytest.mark.parametrize("binary", [False, True])
def test_encoding_reaches_a_million_rows_a_second(binary: bool) -> None:
    rows = 200_000
    desc = RelationDesc.of(*(Column(n, type_named(k)) for n, k in (("a", "bigint"), ("b", "text"), ("c", "timestamp"))))
    n = np.arange(rows)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(n), pa.array(n).cast(pa.string()), pa.array(n * 10**9).cast(pa.timestamp("us"))], schema=desc.arrow
    )
    encoder = RowEncoder(desc, [binary] * 3)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for part in chunks(batch):
            encoder.encode(part)
        best = max(best, rows / (time.perf_counter() - began))
    assert best > 500_000, best  # about two million on an idle core; half of the aim leaves room for a busy one
