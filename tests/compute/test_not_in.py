"""NOT IN against its definition, NULLs on both sides, plain and correlated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datafusion.substrait import Producer
from view_oracle import View, context, lower

from penstock.runtime import SqlError, Timestamp, Updates
from penstock.sql.null_aware import mark_null_aware

SCHEMAS = {
    "t": pa.schema([("a", pa.int64()), ("g", pa.int64())]),
    "r": pa.schema([("a", pa.int64()), ("g", pa.int64())]),
}
Row = tuple[int | None, int | None]


def not_in(value: int | None, candidates: list[int | None]) -> bool:
    """SQL's NOT IN, true only."""
    if not candidates:
        return True
    return value is not None and None not in candidates and value not in candidates


@pytest.mark.parametrize("correlated", [False, True])
def test_every_step_of_a_history_with_nulls(correlated: bool) -> None:
    sql = "select a, g from t where a not in (select a from r" + (" where r.g = t.g)" if correlated else ")")
    view = View(lower(sql, SCHEMAS), SCHEMAS)
    rng = np.random.default_rng(3)
    present: dict[str, list[Row]] = {"t": [], "r": []}
    seen = set()
    for time in range(1, 60):
        for name, rows in present.items():
            if rows and rng.random() < 0.55:
                row, diff = rows.pop(int(rng.integers(len(rows)))), -1
            else:
                row = tuple(None if rng.random() < 0.2 else int(rng.integers(0, 3)) for _ in range(2))
                diff = 1
                rows.append(row)
            batch = pa.RecordBatch.from_arrays([pa.array([value], pa.int64()) for value in row], schema=SCHEMAS[name])
            view.send(name, Updates.at(batch, Timestamp(time), diff))
        view.advance(time + 1)
        want: list[Any] = [
            (a, g)
            for a, g in present["t"]
            if not_in(a, [x for x, h in present["r"] if not correlated or (h is not None and h == g)])
        ]
        key = lambda row: tuple((value is None, value or 0) for value in row)  # noqa: E731
        assert sorted(view.at(time).elements(), key=key) == sorted(want, key=key), f"at {time}: {present}"
        seen.add(bool(want))
    assert seen == {True, False}


def test_a_text_that_looks_like_a_join_cannot_fool_the_match() -> None:
    planned = context({name: pa.Table.from_batches([], schema=schema) for name, schema in SCHEMAS.items()})
    sql = "select a, 'x\n  LeftAnti Join: y null_aware' as s from t where a not in (select a from r)"
    optimized = planned.sql(sql).optimized_logical_plan()
    with pytest.raises(SqlError) as caught:
        mark_null_aware(optimized, Producer.to_substrait_plan(optimized, planned).encode())
    assert caught.value.sqlstate == "0A000"


def test_not_exists_is_not_marked() -> None:
    planned = context({name: pa.Table.from_batches([], schema=schema) for name, schema in SCHEMAS.items()})
    optimized = planned.sql(
        "select a from t where not exists (select 1 from r where r.a = t.a)"
    ).optimized_logical_plan()
    plan = Producer.to_substrait_plan(optimized, planned).encode()
    assert mark_null_aware(optimized, plan) == plan
