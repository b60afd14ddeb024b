"""Filters on mz_now(): rows come and go by themselves as time passes."""

from __future__ import annotations

import datetime as dt

import datafusion
import pyarrow as pa
import pytest
from datafusion.substrait import Producer
from view_oracle import View, no_rows

from penstock.compute import from_substrait
from penstock.compute.ir import Rel
from penstock.runtime import SqlError, Timestamp, Updates

SCHEMA = pa.schema([("id", pa.int64()), ("lo", pa.uint64()), ("hi", pa.uint64()), ("ts", pa.timestamp("us"))])


def plan(sql: str) -> Rel:
    """The IR of `sql` with mz_now() as planned SQL has it: a volatile function without arguments."""
    made = datafusion.SessionContext(datafusion.SessionConfig().with_target_partitions(1))
    made.register_record_batches("t", [[no_rows(SCHEMA)]])
    now = datafusion.udf(lambda *_: pa.array([0], pa.uint64()), [], pa.uint64(), "volatile", "mz_now")
    made.register_udf(now)
    message = Producer.to_substrait_plan(made.sql(sql).optimized_logical_plan(), made).encode()
    return from_substrait(message, {"t": ("t", SCHEMA)})


def rows(*values: tuple[int, int | None, int | None, int | None]) -> pa.RecordBatch:
    columns = list(zip(*values, strict=True))
    stamps = [None if ms is None else dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ms) for ms in columns[3]]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(columns[0], pa.int64()),
            *(pa.array(c, pa.uint64()) for c in columns[1:3]),
            pa.array(stamps, pa.timestamp("us")),
        ],
        schema=SCHEMA,
    )


DATA = [(1, 10, 20, 15), (2, 5, 8, None), (3, None, 30, 0), (4, 12, 12, 12), (5, 0, 100, 40)]

CASES = {
    "mz_now() >= lo": lambda now, row: row[1] is not None and now >= row[1],
    "mz_now() > lo": lambda now, row: row[1] is not None and now > row[1],
    "mz_now() < hi": lambda now, row: row[2] is not None and now < row[2],
    "mz_now() <= hi": lambda now, row: row[2] is not None and now <= row[2],
    "hi > mz_now() and lo <= mz_now()": lambda now, row: None not in row[1:3] and row[1] <= now < row[2],
    "mz_now() between lo and hi": lambda now, row: None not in row[1:3] and row[1] <= now <= row[2],
    "mz_now() = hi": lambda now, row: row[2] is not None and now == row[2],
    "mz_now() < hi + 5 and id <> 3": lambda now, row: row[2] is not None and now < row[2] + 5 and row[0] != 3,
    "mz_now() < hi and mz_now() < lo + 15": lambda now, row: (
        None not in row[1:3] and now < row[2] and now < row[1] + 15
    ),
    "mz_now() <= id * 10": lambda now, row: now <= row[0] * 10,
}


@pytest.mark.parametrize("condition", CASES)
def test_a_row_is_there_exactly_while_its_condition_holds(condition: str) -> None:
    view = View(plan(f"select id from t where {condition}"), {"t": SCHEMA})
    view.send("t", Updates.at(rows(*DATA), Timestamp(3)))
    for frontier in (4, 13, 14, 120):
        view.advance(frontier)
    for now in range(3, 120):
        want = sorted(row[0] for row in DATA if CASES[condition](now, row))
        assert sorted(key for (key,) in view.at(now).elements()) == want, f"{condition} at {now}"


def test_a_retracted_row_leaves_at_once_and_never_comes() -> None:
    view = View(plan("select id from t where mz_now() >= lo and mz_now() < hi"), {"t": SCHEMA})
    view.send("t", Updates.at(rows(*DATA), Timestamp(3)))
    view.advance(11)
    assert sorted(view.at(10).elements()) == [(1,), (5,)]
    view.send("t", Updates.at(rows(*DATA), Timestamp(11), -1))
    view.advance(200)
    assert all(not view.at(now) for now in range(11, 200))


def test_aggregates_over_a_window_of_time() -> None:
    sql = "select count(*) as n, min(id) as first from t where mz_now() >= lo and mz_now() < hi"
    view = View(plan(sql), {"t": SCHEMA})
    view.send("t", Updates.at(rows(*DATA), Timestamp(3)))
    view.advance(300)
    for now in range(3, 299):
        valid = [row[0] for row in DATA if None not in row[1:3] and row[1] <= now < row[2]]
        assert view.at(now) == {(len(valid), min(valid, default=None)): 1}


def test_bounds_over_both_sides_of_a_join() -> None:
    sql = "select x.id, y.id as other from t x join t y on x.id = y.id and mz_now() >= x.lo and mz_now() < y.hi"
    view = View(plan(sql), {"t": SCHEMA})
    view.send("t", Updates.at(rows(*DATA), Timestamp(3)))
    view.advance(50)
    for now in range(3, 50):
        want = {(row[0], row[0]): 1 for row in DATA if None not in row[1:3] and row[1] <= now < row[2]}
        assert view.at(now) == want


@pytest.mark.parametrize(
    "sql",
    [
        "select id from t where mz_now() >= lo or id = 1",
        "select mz_now() as n from t",
        "select id from t where mz_now() + 1 > hi",
        "select id from t where mz_now() <> hi",
        "select id from t where mz_now() > mz_now()",
        "select count(*) as n, mz_now() as m from t group by mz_now()",
    ],
)
def test_other_uses_of_now_are_refused(sql: str) -> None:
    with pytest.raises(SqlError, match="mz_now") as caught:
        plan(sql)
    assert caught.value.sqlstate == "0A000"
