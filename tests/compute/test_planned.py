"""From SQL as a client writes it to a maintained view: it must equal a one-off run of the same planned query."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tpch_data
from planned import desc_of, plan
from test_render import SCHEMAS, make_history
from test_tpch import ROUNDS, Database
from view_oracle import View, rows_of, table_at

from bench.tpch import QUERIES
from penstock.compute import execute
from penstock.compute.ir import Call, Project
from penstock.runtime import GlobalId, SqlError, Timestamp, Updates
from penstock.sql import QueryPlan


def ad_hoc(planned: QueryPlan, tables: dict[GlobalId, pa.Table], now: int) -> Counter[tuple[Any, ...]] | SqlError:
    inputs = {name: tables[id_] for name, id_ in planned.inputs.items()}
    counted: Counter[tuple[Any, ...]] = Counter()
    try:
        for batch in execute(planned.datafusion_sql, inputs, Timestamp(now)):
            counted.update(rows_of(batch))
    except SqlError as error:
        return error
    return counted


@pytest.mark.skipif(not tpch_data.available(), reason="the TPC-H generator is not installed")
@pytest.mark.parametrize("name", QUERIES)
def test_tpch_as_a_client_writes_it(name: str) -> None:
    database = Database(tpch_data.load(), seed=int(name[1:]))
    planned, rel = plan(QUERIES[name], {table: desc_of(rows.schema) for table, rows in database.all.items()})
    ids = {table: GlobalId(f"u{i}") for i, table in enumerate(database.all)}
    schemas = {ids[table]: desc_of(rows.schema).arrow for table, rows in database.all.items()}
    view = View(rel, schemas)
    for table, contents in database.tables().items():
        view.send(ids[table], Updates.at(contents.to_batches()[0], Timestamp(0)))
    for time in range(1, ROUNDS):
        view.advance(time)
        tables = {ids[table]: contents for table, contents in database.tables().items()}
        want = ad_hoc(planned, tables, time)
        assert not view.errors_at(time - 1)
        assert view.at(time - 1) == want
        for table, updates in database.change(0.05, time).items():
            view.send(ids[table], updates)


CLIENT_QUERIES = [
    "select a + b as x, a - 1 as y, a * b as z, -a as w from t",
    "select a / b as x from t where b is not null",
    "select a % b as x from t",
    "select a * 4611686018427387904 as x from t where a < 2",
    "select a * 4611686018427387904 as x from t",
    "select (a * 1000000000)::int as x from t",
    "select ('1' || length(s)::text)::bigint as x from t",
    "select s::bigint as x from t",
    "select a::text || s as x, d::text as y, f::int as z from t",
    "select sum(a) as x, avg(a) as y, sum(d) as z, avg(d) as u, avg(f) as v, count(*) as w from t",
    "select a, sum(b) as x, avg(b) as y, round(stddev(b), 9) as z, count(distinct s) as u from t group by a",
    "select a, string_agg(s, ',' order by s) as x, array_agg(b order by b) as y from t group by a",
    "select d / (a - 2) as x from t where a <> 2",
    "select d / (a - 2) as x from t",
    "select t.a, r.c from t left join r on t.a = r.a and t.s = r.s where coalesce(r.c, 1) < 4",
    "select a from t where a not in (select c from r where s = 'x')",
    "select a, (select max(c) from r where r.a = t.a) as m from t",
    "select a, row_number() over (partition by a order by b, s, d, f) as n from t",
    "select * from (select a, b, row_number() over (partition by a order by b, s, d, f) as n from t) x where n <= 2",
    "select dt + interval '1 month' as x, date_trunc('month', dt) as y, extract(year from dt) as z from r",
    "select case when b <> 0 then a / b end as x, nullif(a, b) as y, greatest(a, b) as z from t",
    "select a from t except select c from r",
    "select distinct on (a) a, b, s from t order by a, b, s, d, f",
    "select upper(s) as u, length(s) as l, substring(s, 2) as p, trim(s) as q, position('x' in s) as r from t",
    "select a from t order by b desc, a, s, d, f limit 3",
]


@pytest.mark.parametrize("sql", CLIENT_QUERIES)
def test_a_view_answers_and_fails_as_the_query_does(sql: str) -> None:
    planned, rel = plan(sql, {name: desc_of(schema) for name, schema in SCHEMAS.items()})
    assert list(rel.types) == list(planned.desc.arrow.types)
    ids = {name: GlobalId(f"u{i}") for i, name in enumerate(SCHEMAS)}
    schemas = {ids[name]: desc_of(schema).arrow for name, schema in SCHEMAS.items()}
    history = make_history(4)
    view = View(rel, schemas)
    for name, updates in history:
        view.send(ids[name], updates)
    view.advance(8)
    outcomes = set()
    for time in range(8):
        tables = {
            ids[name]: table_at(schema, history, name, time).cast(schemas[ids[name]])
            for name, schema in SCHEMAS.items()
        }
        want = ad_hoc(planned, tables, time)
        errors = view.errors_at(time)
        if isinstance(want, SqlError):
            assert want.sqlstate in {sqlstate for sqlstate, _ in errors}, f"at {time}: {want!r}, the view: {errors}"
            outcomes.add(want.sqlstate)
        else:
            assert not errors, f"at {time}: {errors}, DataFusion answers {want}"
            assert view.at(time) == want, f"at {time}: missing {want - view.at(time)} surplus {view.at(time) - want}"
            outcomes.add("rows" if want else "none")
    assert outcomes != {"none"}, "nothing was compared"


def test_checked_bigint_arithmetic_is_one_kernel() -> None:
    _, rel = plan("select a + b * 2 as x from t", {name: desc_of(schema) for name, schema in SCHEMAS.items()})
    assert isinstance(rel, Project)
    (expr,) = rel.exprs
    assert isinstance(expr, Call)
    assert (expr.name, [type(arg).__name__ for arg in expr.args]) == ("checked_add", ["Column", "Call"])


def test_times_compare_with_the_clock() -> None:
    tables = {"t": desc_of(pa.schema([("id", pa.int64()), ("ts", pa.timestamp("us", "UTC"))]))}
    _, rel = plan("select id from t where mz_now() <= ts + interval '10 milliseconds'", tables)
    view = View(rel, {GlobalId("u0"): tables["t"].arrow})
    batch = pa.RecordBatch.from_arrays(
        [pa.array([1, 2, 3]), pa.array(np.array([20_000, 30_500, 0]), pa.timestamp("us", "UTC"))],
        schema=tables["t"].arrow,
    )
    view.send("u0", Updates.at(batch, Timestamp(5)))
    view.advance(100)
    assert {now: sorted(key for (key,) in view.at(now)) for now in (10, 11, 30, 31, 40, 41)} == {
        10: [1, 2, 3],
        11: [1, 2],
        30: [1, 2],
        31: [2],
        40: [2],
        41: [],
    }
