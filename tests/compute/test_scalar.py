"""Scalar expressions three ways: on kernels, as a plan over the batch, and in an ad-hoc SELECT. All must
agree on values,
NULLs and on which rows fail."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datafusion import SessionConfig, SessionContext
from datafusion.substrait import Producer
from hypothesis import given, settings
from hypothesis import strategies as st
from view_oracle import context

from penstock.compute import from_substrait
from penstock.compute.fragment import Fragment
from penstock.compute.ir import Project, Scalar, columns_of
from penstock.compute.scalar import compile_scalars
from penstock.dataflow import BatchResult

SCHEMA = pa.schema(
    [
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("d", pa.decimal128(12, 2)),
        ("e", pa.decimal128(20, 4)),
        ("s", pa.string()),
        ("u", pa.string()),
        ("p", pa.bool_()),
        ("q", pa.bool_()),
        ("ts", pa.timestamp("us")),
        ("dt", pa.date32()),
    ]
)

EXPRESSIONS = [
    "a + b",
    "a - b * 2",
    "a / b",
    "a % b",
    "a / b + b / a",
    "-a",
    "abs(a)",
    "i + a",
    "f * 2 + f",
    "f / 4",
    "d + e",
    "d - e",
    "d * e",
    "d * d * d",
    "d / e",
    "d + a",
    "-d",
    "abs(e)",
    "cast(d as double)",
    "cast(a as double) / 3",
    "cast(a as decimal(25, 3))",
    "cast(d as decimal(20, 5))",
    "cast(e as decimal(10, 1))",
    "cast(i as bigint)",
    "cast(a as int)",
    "cast(a as varchar)",
    "cast(s as bigint)",
    "try_cast(s as bigint)",
    "cast(dt as timestamp)",
    "cast(p as int)",
    "a = b",
    "a <> b or f < 1.5",
    "a < b and b < 3",
    "f >= f * f",
    "d <= e",
    "s < u",
    "s = u",
    "ts > timestamp '2020-01-01 00:00:00'",
    "dt between date '1970-01-02' and date '2021-03-04'",
    "p and q",
    "p or q",
    "not p",
    "p = q",
    "p is true",
    "p is not true",
    "p is false",
    "p is not false",
    "p is unknown",
    "p is not unknown",
    "a is null",
    "s is not null",
    "a is distinct from b",
    "s is not distinct from u",
    "a in (1, 2, 3)",
    "a in (1, 2, null, 4)",
    "a not in (1, 2, 3, 4)",
    "s in ('x', 'yy', 'aB', '0')",
    "f in (0.5, 1.0, 2.0, 3.5)",
    "case when b <> 0 then a / b else -1 end",
    "case when a > 2 then 'big' when a > 0 then s end",
    "case a when 1 then 'one' when 2 then 'two' else u end",
    "case when p then a / b when q then b / a end",
    "coalesce(a, b, 7)",
    "coalesce(s, u)",
    "nullif(a, b)",
    "nullif(s, 'x')",
    "b <> 0 and a / b > 1",
    "b = 0 or a / b > 1",
    "upper(s)",
    "lower(s)",
    "length(s)",
    "trim(s)",
    "substr(s, 2)",
    "substr(s, 2, 1)",
    "s || u",
    "concat(s, '-', u)",
    "s || cast(a as varchar)",
    "s like 'x%'",
    "s like '%y%'",
    "s not like '_'",
    "s ilike 'X%'",
    "starts_with(s, 'x')",
    "reverse(s) || lpad(u, 4, '*')",
    "replace(s, 'x', 'zz')",
    "strpos(s, 'y')",
    "extract(year from ts)",
    "extract(month from dt)",
    "extract(day from ts)",
    "extract(hour from ts)",
    "extract(minute from ts)",
    "extract(quarter from dt)",
    "extract(dow from dt)",
    "extract(doy from ts)",
    "extract(epoch from ts)",
    "date_trunc('month', ts)",
    "date_trunc('week', ts)",
    "date_trunc('hour', ts)",
    "date_trunc('year', ts)",
    "ts + interval '1 month 2 days'",
    "dt - interval '1 day'",
    "dt - dt",
    "greatest(a, b)",
    "round(f, 1)",
    "sqrt(f)",
    "ln(f + 1)",
    "power(f, 2)",
]

_small = st.integers(-4, 6)
_integer = st.one_of(_small, st.integers(-(2**31), 2**31 - 1))
_text = st.sampled_from(["", "x", "xy", "yy", "aB", " x ", "12", "-3", "ß", "日本", "0", "x\ny"])
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "a": st.one_of(_small, st.integers(-(2**62), 2**62)),
    "b": _small,
    "i": _integer,
    "f": st.sampled_from([0.0, 0.5, 1.0, 1.5, -2.25, 3.5, 1e10, float("inf"), float("nan")]),
    "d": st.integers(-(10**12) + 1, 10**12 - 1).map(lambda n: Decimal(n).scaleb(-2)),
    "e": st.one_of(_small, st.integers(-(10**19), 10**19)).map(lambda n: Decimal(n).scaleb(-4)),
    "s": _text,
    "u": _text,
    "p": st.booleans(),
    "q": st.booleans(),
    "ts": st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2100, 1, 1)),
    "dt": st.dates(dt.date(1950, 1, 1), dt.date(2100, 1, 1)),
}
_row = st.fixed_dictionaries({name: st.one_of(st.none(), values, values, values) for name, values in _VALUES.items()})


def scalar_of(sql: str) -> Scalar:
    """The IR of one expression over a row of `SCHEMA`."""
    planned = context({"t": pa.Table.from_batches([], schema=SCHEMA)})
    plan = planned.sql(f"select {sql} as r from t").optimized_logical_plan()
    rel = from_substrait(Producer.to_substrait_plan(plan, planned).encode(), {"t": ("t", SCHEMA)})
    assert isinstance(rel, Project), f"{sql} is not a projection"
    return rel.exprs[0]


def session() -> SessionContext:
    return SessionContext(SessionConfig().with_target_partitions(1))


def by_select(sql: str, rows: pa.RecordBatch) -> list[Any]:
    """Each row's answer in a query of its own: its value, or `FAILED`."""
    try:
        return _select(sql, rows)
    except Exception:
        if rows.num_rows == 1:
            return [FAILED]
        half = rows.num_rows // 2
        return by_select(sql, rows.slice(0, half)) + by_select(sql, rows.slice(half))


def _select(sql: str, rows: pa.RecordBatch) -> list[Any]:
    made = session()
    made.register_record_batches("t", [[rows]])
    batches = made.sql(f"select {sql} as r from t").collect()
    return [plain(value) for batch in batches for value in batch.column(0).to_pylist()]


FAILED = "<failed>"


def plain(value: Any) -> Any:
    if isinstance(value, float):
        return "NaN" if value != value else value
    if isinstance(value, Decimal):
        return value.normalize()
    return value


def by_batch(expr: Scalar, rows: pa.RecordBatch) -> list[Any]:
    result = compile_scalars(None, [expr], pa.schema([("r", expr.type)]))(rows)
    return spread(result, rows.num_rows)


def spread(result: BatchResult, count: int) -> list[Any]:
    answers: list[Any] = [FAILED] * count
    selection = range(count) if result.selection is None else result.selection.tolist()
    for at, value in zip(selection, result.rows.column(0).to_pylist(), strict=True):
        answers[at] = plain(value)
    failed = [] if result.errors is None else result.error_selection.tolist()
    assert sorted([*selection, *failed]) == list(range(count)), "a row has neither a result nor an error, or both"
    return answers


def by_fragment(expr: Scalar, rows: pa.RecordBatch) -> list[Any]:
    """The whole expression as one DataFusion plan, row by row where it fails."""
    fragment = Fragment(expr, columns_of_schema())

    def run(part: pa.RecordBatch) -> list[Any]:
        try:
            values = fragment.run(list(part.columns), part.num_rows)
            assert isinstance(values, pa.Array)
            return [plain(value) for value in values.to_pylist()]
        except Exception:
            if part.num_rows == 1:
                return [FAILED]
            half = part.num_rows // 2
            return run(part.slice(0, half)) + run(part.slice(half))

    return run(rows)


def columns_of_schema() -> tuple[Scalar, ...]:
    from penstock.compute.ir import Get, fields_of

    return columns_of(Get("t", fields_of(SCHEMA)))


@pytest.mark.parametrize("sql", EXPRESSIONS)
def test_kernels_plans_and_queries_agree(sql: str) -> None:
    expr = scalar_of(sql)

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(st.lists(_row, min_size=1, max_size=24))
    def agree(rows: list[dict[str, Any]]) -> None:
        batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
        want = by_select(sql, batch)
        got = by_batch(expr, batch)
        assert got == want, [
            (row, ours, theirs) for row, ours, theirs in zip(rows, got, want, strict=True) if ours != theirs
        ]
        assert by_fragment(expr, batch) == want

    agree()


def test_a_row_fails_or_not_by_itself() -> None:
    """The same row gives the same in any batch: alone, among good rows, among failing ones."""
    expr = scalar_of("case when b > 3 then a / (b - 4) else a % b end")
    rng = np.random.default_rng(0)
    rows = [{"a": int(a), "b": int(b)} for a, b in zip(rng.integers(0, 9, 200), rng.integers(0, 6, 200), strict=True)]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    together = by_batch(expr, batch)
    alone = [by_batch(expr, batch.slice(i, 1))[0] for i in range(batch.num_rows)]
    assert together == alone
    assert together.count(FAILED) == sum(row["b"] in (0, 4) for row in rows) > 10


def test_a_filter_protects_the_expressions_behind_it() -> None:
    predicate, expr = scalar_of("b <> 0"), scalar_of("a / b")
    batch = pa.RecordBatch.from_pylist([{"a": 6, "b": b} for b in (0, 1, 2, None, 3)], schema=SCHEMA)
    result = compile_scalars(predicate, [expr], pa.schema([("r", pa.int64())]))(batch)
    assert result.errors is None
    assert result.selection is not None
    assert result.selection.tolist() == [1, 2, 4]
    assert result.rows.column(0).to_pylist() == [6, 3, 2]


def test_errors_carry_sqlstate_message_and_row() -> None:
    expr = scalar_of("a / b + cast(s as bigint)")
    rows = [
        {"a": 1, "b": 1, "s": "2"},
        {"a": 1, "b": 0, "s": "2"},
        {"a": 1, "b": 1, "s": "x"},
        {"a": 1, "b": 0, "s": "x"},
    ]
    result = compile_scalars(None, [expr], pa.schema([("r", pa.int64())]))(
        pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    )
    assert result.rows.column(0).to_pylist() == [3]
    assert result.error_selection.tolist() == [1, 2, 3]
    assert result.errors is not None
    assert result.errors.column(0).to_pylist() == ["22012", "22P02", "22012"]
    assert "division by zero" in result.errors.column(1)[0].as_py()
    assert "x" in result.errors.column(1)[1].as_py()


def test_no_rows_and_no_columns() -> None:
    expr = scalar_of("reverse(s)")
    empty = pa.RecordBatch.from_pylist([], schema=SCHEMA)
    assert compile_scalars(None, [expr], pa.schema([("r", pa.string())]))(empty).rows.num_rows == 0
    five = pa.RecordBatch.from_pylist([{"a": 1}] * 5, schema=SCHEMA)
    result = compile_scalars(scalar_of("a = 1"), [], pa.schema([]))(five)
    assert result.rows.num_rows == 5
