"""Statistics are true, small, and enough to leave parts out; filters never leave a row out that might pass."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.persist.filter import (
    And,
    Compare,
    Filter,
    IsNull,
    KnownColumn,
    Not,
    Opaque,
    Operator,
    Or,
    columns_of,
    matching,
    may_match,
)
from penstock.persist.parts import encode_inline, encode_object
from penstock.persist.statistics import ColumnStatistics, bounds_of_arrays, decode_statistics, encode_statistics
from penstock.runtime import Timestamp, Updates

NAN, INF = math.nan, math.inf
UTC = dt.UTC
INTERVAL = pa.month_day_nano_interval()
KINDS: dict[str, tuple[pa.DataType, list[Any], tuple[Any, Any] | None]] = {
    "boolean": (pa.bool_(), [True, None, False], (0, 1)),
    "int16": (pa.int16(), [-5, None, 3], (-5, 3)),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1], (-(2**63), 2**63 - 1)),
    "uint64": (pa.uint64(), [2**63 + 1, 5], (5, 2**63 + 1)),
    "float32": (pa.float32(), [0.5, -1.5], (-1.5, 0.5)),
    "float64": (pa.float64(), [1.5, None, -INF], (-INF, 1.5)),
    "some NaN": (pa.float64(), [1.5, NAN, 0.5], (0.5, NAN)),
    "only NaN": (pa.float64(), [NAN, None], (NAN, NAN)),
    "negative zero": (pa.float64(), [-0.0, 1.0], (0.0, 1.0)),
    "numeric": (pa.decimal128(38, 4), [Decimal("-1.5"), Decimal(f"1{'0' * 33}.0001")], (-15000, 10**37 + 1)),
    "small numeric": (pa.decimal128(5, 2), [Decimal("1.25"), Decimal("-3.00")], (-300, 125)),
    "date": (pa.date32(), [dt.date(1970, 1, 2), dt.date(1, 1, 1)], (-719162, 1)),
    "time": (pa.time64("us"), [dt.time(0, 0, 1), dt.time(0)], (0, 1_000_000)),
    "timestamp": (pa.timestamp("us"), [-(2**62), 7], (-(2**62), 7)),
    "timestamptz": (pa.timestamp("us", "UTC"), [dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)], (10**6, 10**6)),
    "string": (pa.string(), ["b", "", None, "é"], (b"", "é".encode())),
    "long string": (pa.string(), ["a" * 40, "a" * 33 + "b"], (b"a" * 32, b"a" * 31 + b"b")),
    "string of greatest bytes": (pa.binary(), [b"\xff" * 40], (b"\xff" * 32, None)),
    "too long for Parquet": (pa.string(), ["a" * 5000, "b"], None),
    "bytea": (pa.binary(), [b"\x00", b"\xff"], (b"\x00", b"\xff")),
    "all null": (pa.int64(), [None, None], None),
    "null type": (pa.null(), [None], None),
    "list": (pa.list_(pa.int64()), [[1], None], None),
    "struct": (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1, "b": "x"}, None], None),
    "no rows of interest": (pa.time32("s"), [1], None),
}


def equal(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) or one == other


def part_of(rows: pa.RecordBatch, stats_bytes: int = 1024) -> dict[int, ColumnStatistics]:
    _, part = encode_object(Updates.at(rows, Timestamp(1)), "k", stats_bytes=stats_bytes)
    return decode_statistics(part.stats)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_each_type(kind: str) -> None:
    type_, values, bounds = KINDS[kind]
    column = pa.array(values, type_)
    # Nested columns around it: the Parquet columns of a later one are not those of an earlier one.
    nested = pa.array([{"x": 1, "y": [2]}] * len(values), pa.struct([("x", pa.int64()), ("y", pa.list_(pa.int8()))]))
    for names in (["a", "b", "c"], ["a.x", "a", "b"], ["a", "a", "b"]):
        rows = pa.RecordBatch.from_arrays([nested, column, nested], names=names)
        found = part_of(rows)
        assert found[1].nulls == column.null_count
        assert equal(found[1].bounds, bounds)
        assert found[0] == found[2] == ColumnStatistics(0, None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "too long for Parquet"])
def test_bounds_without_parquet(kind: str) -> None:
    """A column that Parquet cannot hold makes the part an Arrow file; the statistics are the same."""
    type_, values, bounds = KINDS[kind]
    column = pa.array(values, type_)
    interval = pa.array([None] * len(values), INTERVAL)
    rows = pa.RecordBatch.from_arrays([interval, column], names=["i", "c"])
    assert equal(part_of(rows)[1].bounds, bounds)


def test_bounds_over_several_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.persist.parts._ROW_GROUP_ROWS", 2)
    rows = pa.record_batch(
        {
            "i": pa.array([5, 3, None, None, 9, 7]),
            "f": pa.array([NAN, NAN, 1.0, 2.0, None, None]),
            "s": pa.array(["c", "d", None, None, "a", "b" * 5000]),
        }
    )
    found = part_of(rows)
    assert found[0] == ColumnStatistics(2, (3, 9))
    assert equal(found[1].bounds, (1.0, NAN))
    assert found[2] == ColumnStatistics(2, None), "the long one has no bound, so neither has the column"


def test_untrimmable_columns_are_those_with_small_bounds() -> None:
    columns: dict[str, Any] = {f"s{i}": pa.array([f"{i}" * 40, "x" * 40]) for i in range(50)}
    columns |= {f"i{i}": pa.array([i, 70_000]) for i in range(20)}
    columns["error"] = pa.array([None, None], pa.string())
    rows = pa.record_batch(columns)
    for limit in (1024, 300, 30):
        stats = encode_statistics(rows, bounds_of_arrays(rows), limit)
        assert 0 < len(stats) <= limit
    kept = set(decode_statistics(encode_statistics(rows, bounds_of_arrays(rows), 300)))
    assert set(range(50, 71)) <= kept, "the longest entries go first; that nothing failed is worth knowing to the last"
    assert encode_statistics(rows, bounds_of_arrays(rows), 0) == b""
    assert part_of(rows, 0) == {}
    assert decode_statistics(b"\x07from the future") == {}
    inline = encode_inline(Updates.at(rows, Timestamp(1)), 1 << 20)
    assert inline is not None
    assert not hasattr(inline, "stats")


# Filters

LEAST, GREATEST = -3, 3
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int16(), st.integers(LEAST, GREATEST)),
    "f": (pa.float64(), st.sampled_from([NAN, -INF, INF, -0.0, 0.0, 1.0, 1.5])),
    "g": (pa.float32(), st.sampled_from([NAN, 0.1, 1.0]).map(lambda x: float(np.float32(x)))),
    "s": (pa.string(), st.sampled_from(["", "a", "a" * 40, "a" * 40 + "b", "é", "\U0010ffff" * 20])),
    "b": (pa.bool_(), st.booleans()),
    "n": (pa.decimal128(10, 2), st.sampled_from([Decimal("1.25"), Decimal("-1"), Decimal("0.01")])),
    "t": (pa.timestamp("us", "UTC"), st.sampled_from([dt.datetime(2020, 1, day, tzinfo=UTC) for day in (1, 2, 3)])),
    "l": (pa.list_(pa.int64()), st.just([1])),
}
LITERALS = st.one_of(
    st.none(), st.integers(-4, 70_000), st.sampled_from([0.1, 1.0, NAN, -0.0, "a", b"a", True, Decimal("1.255")])
)


@st.composite
def leaves(draw: st.DrawFn) -> Filter:
    column = draw(st.sampled_from(sorted(COLUMNS)))
    if draw(st.booleans()):
        own = COLUMNS[column][1]
        return Compare(column, draw(st.sampled_from(Operator)), draw(st.one_of(own, LITERALS)))
    return draw(st.sampled_from([IsNull(column), Opaque(True), Opaque(False)]))


FILTERS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        inner.map(Not), st.lists(inner, max_size=3).map(tuple).flatmap(lambda p: st.sampled_from([And(p), Or(p)]))
    ),
    max_leaves=5,
)


@st.composite
def row_batches(draw: st.DrawFn) -> pa.RecordBatch:
    count = draw(st.integers(1, 4))
    arrays = [
        pa.array(draw(st.lists(st.one_of(st.none(), own), min_size=count, max_size=count)), kind)
        for kind, own in COLUMNS.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(COLUMNS))


def known_of(rows: pa.RecordBatch, stats: dict[int, ColumnStatistics]) -> Any:
    def known(column: str) -> KnownColumn:
        index = rows.schema.get_field_index(column)
        return KnownColumn(rows.schema.field(index).type, rows.num_rows, stats.get(index))

    return known


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(row_batches(), FILTERS, st.sampled_from([1024, 40]))
def test_a_part_is_never_discarded_with_a_row_that_may_pass(rows: pa.RecordBatch, filter_: Filter, budget: int) -> None:
    stats = decode_statistics(encode_statistics(rows, bounds_of_arrays(rows), budget))
    if matching(filter_, rows).any():
        assert may_match(filter_, known_of(rows, stats))


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(row_batches(), FILTERS)
def test_rows_are_judged_as_sql_judges_them(rows: pa.RecordBatch, filter_: Filter) -> None:
    judged = matching(filter_, rows)
    assert columns_of(filter_) <= set(COLUMNS)
    for row, found in zip(rows.to_pylist(), judged, strict=True):
        outcomes = sql(filter_, row, rows.schema)
        assert found == bool(outcomes & {True, "error"})


def sql(filter_: Filter, row: dict[str, Any], schema: pa.Schema) -> set[Any]:
    """Possible outcomes, written the slow and obvious way."""
    match filter_:
        case IsNull(column):
            return {row[column] is None}
        case Opaque(may_fail):
            return {True, False, None} | ({"error"} if may_fail else set())
        case Not(part):
            return {not one if isinstance(one, bool) else one for one in sql(part, row, schema)}
        case And(parts) | Or(parts):
            least = isinstance(filter_, Or)
            total: set[Any] = {not least}
            for part in parts:
                total = {join(a, b, least) for a in total for b in sql(part, row, schema)} | (
                    {"error"} if "error" in sql(part, row, schema) | total else set()
                )
                if "error" in total:  # an error may come before or after the other one decides
                    others = {one for one in sql(part, row, schema) if one != "error"}
                    total |= {least} if least in others else set()
            return total
        case Compare(column, operator, value):
            return compared(operator, row[column], value, schema.field(column).type)


def join(a: Any, b: Any, dominant: bool) -> Any:
    if a == "error" or b == "error":
        return "error"
    if dominant in (a, b):
        return dominant
    return None if None in (a, b) else not dominant


def compared(operator: Operator, mine: Any, value: Any, kind: pa.DataType) -> set[Any]:
    if value is None:
        return {None}
    fits = {
        pa.int16(): not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
        and -(2**15) <= value < 2**15,
        pa.float64(): isinstance(value, int | float) and not isinstance(value, bool),
        pa.float32(): isinstance(value, int | float) and not isinstance(value, bool),
        pa.string(): isinstance(value, str),
        pa.bool_(): isinstance(value, bool),
        pa.decimal128(10, 2): (isinstance(value, Decimal) and value != Decimal("1.255"))
        or (isinstance(value, int) and not isinstance(value, bool)),
        pa.timestamp("us", "UTC"): isinstance(value, dt.datetime),
    }.get(kind, False)
    if not fits:
        return {True, False, None, "error"}
    if mine is None:
        return {None}
    a, b = (place(mine), place(value))
    return {
        {
            Operator.EQ: a == b,
            Operator.NE: a != b,
            Operator.LT: a < b,
            Operator.LE: a <= b,
            Operator.GT: a > b,
            Operator.GE: a >= b,
        }[operator]
    }


def place(value: Any) -> Any:
    if isinstance(value, float):
        return (1, 0) if math.isnan(value) else (0, value)
    if isinstance(value, int) and not isinstance(value, bool):
        return (0, value)  # beside a float that is a whole number
    return value.encode() if isinstance(value, str) else (0, value) if isinstance(value, Decimal) else value


def test_what_can_be_told_is_told() -> None:
    rows = pa.record_batch({"k": pa.array([5, 9]), "n": pa.array([None, None], pa.int64()), "f": pa.array([1.0, NAN])})
    known = known_of(rows, part_of(rows))

    def keeps(filter_: Filter) -> bool:
        return may_match(filter_, known)

    def k(operator: str, value: Any) -> Compare:
        return Compare("k", Operator(operator), value)

    assert [keeps(k("=", value)) for value in (4, 5, 7, 9, 10)] == [False, True, True, True, False]
    assert [keeps(k(operator, 5)) for operator in ("<", "<=", ">", ">=", "<>")] == [False, True, True, True, True]
    assert [keeps(k(operator, 9)) for operator in ("<", "<=", ">", ">=", "<>")] == [True, True, False, True, True]
    assert not keeps(And((k(">", 3), k("<", 5))))
    assert not keeps(Or((k("<", 3), k(">", 12))))
    assert not keeps(Not(k(">", 3)))
    assert not keeps(Not(Or((k(">", 3), Opaque(may_fail=False)))))
    assert keeps(And((k("<", 3), Opaque(may_fail=True)))), "it may fail"
    assert not keeps(And((k("<", 3), Opaque(may_fail=False))))
    assert not keeps(IsNull("k"))
    assert keeps(IsNull("n"))
    assert not keeps(Not(IsNull("n")))
    assert not keeps(Compare("n", Operator.EQ, 3))
    assert not keeps(Not(Compare("n", Operator.EQ, 3))), "NOT NULL is NULL"
    assert not keeps(k("=", None))
    assert keeps(k("=", "5")), "a comparison that may fail is not judged"
    assert keeps(k("=", 5.5)), "nor one that would be inexact"
    assert keeps(Compare("f", Operator.GT, 100.0)), "NaN is greater than all"
    assert keeps(Compare("k", Operator.EQ, pa.scalar(5)))
    assert not keeps(Compare("k", Operator.EQ, pa.scalar(4)))
