"""From Substrait to the IR: shapes that are recognised, types that agree with DataFusion, what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest
from datafusion import SessionConfig, SessionContext
from datafusion.substrait import Producer

from penstock.compute import decode, encode, explain, from_substrait
from penstock.compute.ir import Rel, TopK, inputs_of
from penstock.runtime import SqlError

SCHEMAS = {
    "t": pa.schema(
        [
            ("a", pa.int64()),
            ("b", pa.int32()),
            ("s", pa.string()),
            ("d", pa.decimal128(10, 2)),
            ("ts", pa.timestamp("us")),
            ("dt", pa.date32()),
            ("f", pa.float64()),
            ("u", pa.uint64()),
            ("bo", pa.bool_()),
        ]
    ),
    "r": pa.schema([("a", pa.int64()), ("s", pa.string())]),
}


def context() -> SessionContext:
    made = SessionContext(SessionConfig().with_target_partitions(1))
    for name, schema in SCHEMAS.items():
        empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        made.register_record_batches(name, [[empty]])
    return made


def lower(sql: str) -> Rel:
    made = context()
    plan = Producer.to_substrait_plan(made.sql(sql).optimized_logical_plan(), made).encode()
    rel = from_substrait(plan, {name: (f"u{i}", schema) for i, (name, schema) in enumerate(SCHEMAS.items())})
    assert decode(encode(rel)) == rel
    expected = made.sql(sql).schema()
    plain = [pa.string() if pa.types.is_large_string(kind) else kind for kind in expected.types]
    assert list(rel.types) == plain, f"{rel.types} where DataFusion says {expected.types}"
    assert rel.schema.names == expected.names
    return rel


def nodes(rel: Rel) -> list[Rel]:
    return [rel, *(node for child in inputs_of(rel) for node in nodes(child))]


@pytest.mark.parametrize(
    "sql",
    [
        "select a + 1 as x, d * 2 as y, s || 'x' as z from t where a > 3 and s like 'x%y'",
        "select sum(a) as a, sum(u) as u, sum(d) as d, sum(f) as f, avg(a) as aa, avg(d) as ad, count(*) as c from t",
        "select s, min(ts) as x, max(dt) as y, count(distinct a) as z, bool_and(bo) as v from t group by s",
        "select stddev(f) as x, var_pop(f) as y, string_agg(s, ',' order by s) as z, array_agg(a) as w from t",
        "select t.a, r.s from t left join r on t.a = r.a and t.b > 3",
        "select t.a, r.s from t right join r on t.a = r.a",
        "select t.a, r.s from t full join r on t.a = r.a and t.s < r.s",
        "select a from t where exists (select 1 from r where r.a = t.a) and a not in (select a from r)",
        "select a from t union all select a from r",
        "select a from t union select a from r",
        "select a from t except select a from r",
        "select a from t intersect select a from r",
        "select a, (select max(s) from r) as m from t where a > (select min(a) from r)",
        "select distinct on (a) a, s from t order by a, s desc",
        "select a from t order by s desc, a limit 3 offset 2",
        "select a, s, count(*) as c from t group by rollup (a, s)",
        "select a, rank() over (partition by s order by a) as x, sum(a) over (partition by s) as y from t",
        "select case a when 1 then 'x' when 2 then 'y' else s end as x, coalesce(a, b) as y, nullif(a, 1) as z from t",
        "select date_trunc('month', ts) as x, extract(year from dt) as y, ts + interval '1 day' as z from t",
        "select 1 as x, 2.5 as y, 'z' as z, null as n, date '2020-01-01' as d, true as b",
        "select a from t where a in (select a from r where r.s <> t.s) or b = 1",
        "select * from (values (1, 'a'), (2, null)) as v(x, y)",
        "select count(*) as c from t, r",
    ],
)
def test_plans_have_datafusions_types_and_survive_encoding(sql: str) -> None:
    assert "Get" in explain(lower(sql)) or "Constant" in explain(lower(sql))


def test_row_number_up_to_k_becomes_top_k() -> None:
    rel = lower(
        "select a, s from (select a, s, row_number() over (partition by s order by a) as rn from t) x where rn <= 2"
    )
    tops = [node for node in nodes(rel) if isinstance(node, TopK)]
    assert [(top.limit, len(top.group)) for top in tops] == [(2, 1)]
    assert "Window" not in explain(rel)


def test_the_number_itself_is_computed_over_the_kept_rows_only() -> None:
    rel = lower("select * from (select a, row_number() over (order by a) as rn from t) x where rn < 4")
    assert [node.limit for node in nodes(rel) if isinstance(node, TopK)] == [3]
    assert "Window" in explain(rel)


def test_limit_of_limit_is_one_top_k() -> None:
    rel = lower("select a from (select a from t order by a limit 10) x limit 3 offset 8")
    tops = [node for node in nodes(rel) if isinstance(node, TopK)]
    assert [(top.limit, top.offset) for top in tops] == [(2, 8)]


def test_columns_that_nobody_reads_are_dropped_below_joins() -> None:
    rel = lower("select count(*) as c from t join r on t.a = r.a where t.s = 'x'")
    join = next(node for node in nodes(rel) if type(node).__name__ == "Join")
    assert [child.arity for child in inputs_of(join)] == [1, 1]


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("select random() as x from t", "random"),
        ("select approx_distinct(a) as x from t", "approx_distinct"),
        ("select last_value(a order by b) as x from t", "last_value"),
    ],
)
def test_what_cannot_be_maintained_is_refused_by_name(sql: str, word: str) -> None:
    with pytest.raises(SqlError, match=word) as caught:
        lower(sql)
    assert caught.value.sqlstate == "0A000"


def test_garbage_is_an_error_and_not_a_crash() -> None:
    for data in (b"", b"garbage", b"\xff" * 100):
        with pytest.raises(SqlError):
            from_substrait(data, {})
