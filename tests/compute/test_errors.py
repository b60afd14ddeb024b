"""Failing expressions in views: errors that come and go with the rows that cause them."""

from __future__ import annotations

import pyarrow as pa
from view_oracle import View, lower

from penstock.runtime import Timestamp, Updates

SCHEMAS = {"t": pa.schema([("a", pa.int64()), ("b", pa.int64())])}


def rows(*values: tuple[int, int]) -> pa.RecordBatch:
    columns = [pa.array([value[i] for value in values], pa.int64()) for i in (0, 1)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMAS["t"])


def test_correcting_the_data_retracts_the_error() -> None:
    view = View(lower("select a / b as x from t", SCHEMAS), SCHEMAS)
    view.send("t", Updates.at(rows((6, 3), (1, 0), (2, 0)), Timestamp(1)))
    view.advance(2)
    assert view.errors_at(1) == {("22012", "division by zero"): 2}
    assert view.at(1) == {(2,): 1}, "good rows are kept beside failing ones"
    view.send("t", Updates.at(rows((1, 0)), Timestamp(2), -1))
    view.advance(3)
    assert view.errors_at(2) == {("22012", "division by zero"): 1}
    view.send("t", Updates.at(rows((2, 0)), Timestamp(3), -1))
    view.send("t", Updates.at(rows((2, 1)), Timestamp(3)))
    view.advance(4)
    assert not view.errors_at(3)
    assert view.at(3) == {(2,): 2}
    assert view.errors_at(2), "the past keeps its errors"


def test_an_error_poisons_everything_above_it() -> None:
    view = View(lower("select count(*) as n, sum(x) as s from (select a / b as x from t) q", SCHEMAS), SCHEMAS)
    view.send("t", Updates.at(rows((6, 3), (1, 0)), Timestamp(1)))
    view.advance(2)
    assert view.errors_at(1)
    view.send("t", Updates.at(rows((1, 0)), Timestamp(2), -1))
    view.advance(3)
    assert not view.errors_at(2)
    assert view.at(2) == {(1, 2): 1}


def test_a_join_condition_can_fail() -> None:
    sql = "select x.a from t x join t y on x.a = y.a and x.b / y.b = 1"
    view = View(lower(sql, SCHEMAS), SCHEMAS)
    view.send("t", Updates.at(rows((1, 1), (2, 0)), Timestamp(1)))
    view.advance(2)
    assert view.errors_at(1) == {("22012", "division by zero"): 1}
    assert view.at(1) == {(1,): 1}
    view.send("t", Updates.at(rows((2, 0)), Timestamp(2), -1))
    view.advance(3)
    assert not view.errors_at(2)


def test_a_scalar_subquery_with_two_rows_is_an_error_while_it_has_them() -> None:
    view = View(lower("select a, (select b from t where a = 9) as x from t where a <> 9", SCHEMAS), SCHEMAS)
    view.send("t", Updates.at(rows((1, 1)), Timestamp(1)))
    view.advance(2)
    assert view.at(1) == {(1, None): 1}
    view.send("t", Updates.at(rows((9, 5)), Timestamp(2)))
    view.advance(3)
    assert view.at(2) == {(1, 5): 1}
    view.send("t", Updates.at(rows((9, 6)), Timestamp(3)))
    view.advance(4)
    assert [sqlstate for sqlstate, _ in view.errors_at(3)] == ["21000"]
    view.send("t", Updates.at(rows((9, 5)), Timestamp(4), -1))
    view.advance(5)
    assert not view.errors_at(4)
    assert view.at(4) == {(1, 6): 1}


def test_a_sum_out_of_range_is_an_error_until_it_is_in_range_again() -> None:
    view = View(lower("select sum(a) as s from t", SCHEMAS), SCHEMAS)
    view.send("t", Updates.at(rows((2**62, 0), (2**62, 1)), Timestamp(1)))
    view.advance(2)
    assert [sqlstate for sqlstate, _ in view.errors_at(1)] == ["22003"]
    view.send("t", Updates.at(rows((2**62, 1)), Timestamp(2), -1))
    view.advance(3)
    assert not view.errors_at(2)
    assert view.at(2) == {(2**62,): 1}


def test_errors_of_an_input_reach_the_view() -> None:
    view = View(lower("select a from t where b > 1", SCHEMAS), SCHEMAS)
    from penstock.dataflow import ERRORS_SCHEMA

    error = pa.record_batch([["22012"], ["division by zero"]], schema=ERRORS_SCHEMA)
    handle = next(iter(view.rendered.inputs.values()))
    handle.send_errors(Updates.at(error, Timestamp(1)))
    view.advance(2)
    assert view.errors_at(1) == {("22012", "division by zero"): 1}
    handle.send_errors(Updates.at(error, Timestamp(2), -1))
    view.advance(3)
    assert not view.errors_at(2)
