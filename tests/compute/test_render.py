"""Every kind of query, against DataFusion at every time of a history with retractions, duplicates and
NULLs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from view_oracle import History, check

from penstock.runtime import Updates

SCHEMAS = {
    "t": pa.schema(
        [("a", pa.int64()), ("b", pa.int64()), ("s", pa.string()), ("d", pa.decimal128(10, 2)), ("f", pa.float64())]
    ),
    "r": pa.schema([("a", pa.int64()), ("c", pa.int64()), ("s", pa.string()), ("dt", pa.date32())]),
}


def make_history(seed: int, *, times: int = 6, rows: int = 12) -> History:
    """Random inserts, each perhaps retracted later."""
    rng = np.random.default_rng(seed)
    history: list[tuple[str, Updates]] = []
    for name, schema in SCHEMAS.items():
        for time in range(1, times + 1):
            batch = random_rows(rng, schema, int(rng.integers(0, rows)))
            history.append((name, Updates(batch, _full(batch, time), np.ones(batch.num_rows, np.int64))))
            gone = np.flatnonzero(rng.random(batch.num_rows) < 0.6)
            when = rng.integers(time, times + 1, len(gone)).astype(np.uint64)
            for moment in np.unique(when):
                rows_gone = batch.take(pa.array(gone[when == moment]))
                history.append(
                    (name, Updates(rows_gone, _full(rows_gone, int(moment)), -np.ones(rows_gone.num_rows, np.int64)))
                )
    return history


def _full(batch: pa.RecordBatch, time: int) -> np.ndarray:
    return np.full(batch.num_rows, time, np.uint64)


def random_rows(rng: np.random.Generator, schema: pa.Schema, count: int) -> pa.RecordBatch:
    columns = []
    for field in schema:
        mask = rng.random(count) < 0.15
        small = rng.integers(0, 5, count)
        if pa.types.is_integer(field.type):
            columns.append(pa.array(small, field.type, mask=mask))
        elif pa.types.is_string(field.type):
            columns.append(
                pa.array([None if m else "xyz"[v % 3] * (1 + v // 3) for v, m in zip(small, mask, strict=True)])
            )
        elif pa.types.is_decimal(field.type):
            columns.append(pa.array(small, pa.int64(), mask=mask).cast(pa.decimal128(19, 0)).cast(field.type))
        elif pa.types.is_floating(field.type):
            columns.append(pa.array(small / 4, field.type, mask=mask))
        else:
            columns.append(pa.array(small.astype(np.int32), pa.int32(), mask=mask).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


QUERIES = [
    "select a + b as x, s from t where a > 1 and s like 'x%'",
    "select a, case when b > 2 then s when b is null then 'none' end as x from t where a is not null or b = 3",
    "select t.a, t.s, r.c from t join r on t.a = r.a",
    "select t.a, r.c from t join r on t.a = r.a and t.b < r.c",
    "select t.a, r.c from t join r on t.a = r.a and t.s = r.s where t.b + r.c > 3",
    "select t.a, t.b, r.c from t left join r on t.a = r.a",
    "select t.a, t.b, r.c from t left join r on t.a = r.a and t.b < r.c",
    "select t.a, r.c, r.s from t right join r on t.a = r.a",
    "select t.a, t.b, r.c from t full join r on t.a = r.a and t.s = r.s",
    "select t.a, t.b, r.c from t full join r on t.a = r.a and t.b > r.c",
    "select t.a, r.c from t, r where t.a < r.a",
    "select a, s from t where exists (select 1 from r where r.a = t.a)",
    "select a, s from t where exists (select 1 from r where r.a = t.a and r.c <> t.b)",
    "select a, s from t where not exists (select 1 from r where r.a = t.a and r.c < t.b)",
    "select a, s from t where a in (select c from r where r.s = 'x')",
    "select a, b from t where exists (select 1 from r where r.a = t.a) or b = 2",
    "select a, s from t where a not in (select c from r where r.c > 2)",
    "select a, s from t where a not in (select c from r)",
    "select a, s from t where b > 1 and a not in (select c from r where r.s = 'x') and a not in (select a from r)",
    "select a from t where a > (select min(a) from r where a not in (select b from t where s = 'x'))",
    "select a, count(*) as n, count(b) as nb, sum(b) as sb, avg(b) as ab, min(s) as lo, max(s) as hi from t group by a",
    "select s, sum(d) as sd, avg(d) as ad, min(d) as lo, max(f) as hi, sum(f) as sf, avg(f) as af from t group by s",
    "select s, stddev(f) as x, var_pop(f) as y, stddev_pop(b) as z from t group by s",
    "select count(*) as n, sum(a) as sa, avg(d) as ad, min(s) as lo from t",
    "select count(*) as n, sum(a) as sa from t where a > 100",
    "select a, count(distinct b) as n, sum(distinct b) as sb, count(distinct s) as ns, count(*) as c from t group by a",
    "select count(distinct b) as n, avg(distinct b) as ab from t",
    "select a, count(*) filter (where b > 2) as n, sum(b) filter (where s = 'x') as sb from t group by a",
    "select a, sum(b) as sb from t group by a having count(*) > 1 and sum(b) > 2",
    "select distinct a, s from t",
    "select distinct a from t where b > 1",
    "select a, s from t union all select c, s from r",
    "select a, s from t union select c, s from r",
    "select a, s from t except select c, s from r",
    "select a, s from t intersect select c, s from r",
    "select a, b, s, d, f from t order by b desc, a, s, d, f limit 4",
    "select a, b, s, d, f from t order by b, a desc nulls last, s, d, f limit 3 offset 2",
    "select a, b, s, d, f from (select *, row_number() over (partition by a order by b, s, d, f) as rn from t) x"
    " where rn <= 2",
    "select * from (select a, b, s, d, f, row_number() over (partition by a order by b desc, s, d, f) as rn from t) x"
    " where rn < 3",
    "select distinct on (a) a, b, s from t order by a, b desc, s",
    "select a, (select max(c) from r) as m from t where b > (select min(a) from r)",
    "select a, (select c from r where c = 4 and a = 1 limit 1) as m from t",
    "select a, s, count(*) as n, grouping(a) as g from t group by rollup (a, s)",
    "select a, s, sum(b) as n from t group by grouping sets ((a), (s), ())",
    "select a, string_agg(s, ',' order by s) as x from t group by a",
    "select a, array_agg(b order by b nulls first) as x from t group by a",
    "select string_agg(s, '-' order by s) as x, count(*) as n from t",
    "select a, b, rank() over (partition by a order by b) as x, dense_rank() over (order by b) as y from t",
    "select a, b, sum(b) over (partition by a) as x, count(*) over () as y from t",
    "select a, b, sum(b) over (partition by a order by b) as x from t",
    "select a, b, s, d, f, lag(b) over (partition by a order by b, s, d, f) as x from t",
    "select x.a, y.a as b from t x join t y on x.b = y.a",
    "select x.n, count(*) as m from (select a, count(*) as n from t group by a) x group by x.n",
    "select 1 as x, 'y' as y",
    "select * from (values (1, 'x'), (2, null), (1, 'x')) v(a, b)",
    "select v.b, t.a from t join (values (1, 'x'), (2, 'y')) v(a, b) on t.a = v.a",
    "select count(*) as n from t, r",
    "select a from t where false",
    "select extract(year from dt) as y, date_trunc('month', dt) as m, count(*) as n from r group by 1, 2",
    "select upper(s) as u, length(s) as n, substr(s, 2, 1) as p, s || '!' as q, reverse(s) as r from t",
    "select d * d as x, d + 1 as y, d / 3 as z, -d as w, cast(d as double) as v, abs(d - 2) as u from t",
    "select coalesce(a, b, 0) as x, nullif(a, b) as y, a is distinct from b as z, a in (1, 2, null) as w from t",
]


@pytest.mark.parametrize("sql", QUERIES)
def test_a_view_is_its_query_at_every_time(sql: str) -> None:
    check(sql, SCHEMAS, make_history(1), steps=[2, 3, 4, 5, 6])


@pytest.mark.parametrize("sql", QUERIES)
def test_many_times_at_once_are_each_exact(sql: str) -> None:
    check(sql, SCHEMAS, make_history(2))
