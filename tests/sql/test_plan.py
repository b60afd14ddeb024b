"""Planning: names, refusals with positions, parameters, views, what a plan says about itself."""

from __future__ import annotations

import decimal

import pyarrow as pa
import pytest
from small_catalog import SESSION, SmallCatalog

from penstock.runtime import DataError, SqlError
from penstock.sql import Column, RelationDesc, check_names, explain, numeric, optimize, parse_one, plan_query
from penstock.sql import statements as st
from penstock.sql.types import BOOL, FLOAT8, INT4, INT8, JSONB, NUMERIC, TEXT, TIMESTAMP, UUID, VARCHAR

NUMBERS = [
    {"id": 1, "g": "a", "n": decimal.Decimal("1.25"), "f": 0.5, "big": 2**62},
    {"id": 2, "g": "a", "n": decimal.Decimal("2.50"), "f": 0.25, "big": 2**62},
    {"id": 3, "g": "b", "n": None, "f": None, "big": 2**62},
    {"id": 4, "g": None, "n": decimal.Decimal("-1.00"), "f": -1.0, "big": None},
]


def catalog() -> SmallCatalog:
    made = SmallCatalog()
    made.table(
        "t",
        RelationDesc.of(Column("id", INT4, False), ("g", TEXT), ("n", numeric(10, 2)), ("f", FLOAT8), ("big", INT8)),
        NUMBERS,
    )
    made.table("k", RelationDesc.of(("id", INT4), ("label", TEXT), ("at", TIMESTAMP)), [{"id": 1, "label": "x"}])
    made.table("Odd Name", RelationDesc.of(("Mixed Case", INT4)), [{"Mixed Case": 7}])
    made.table("typed", RelationDesc.of(("u", UUID), ("j", JSONB), ("v", VARCHAR), ("x", NUMERIC), ("b", BOOL)))
    return made


REFUSED = [
    # query, SQLSTATE, position, a part of the message
    ("select nope from t", "42703", 8, 'column "nope" does not exist'),
    ("select t.nope from t", "42703", 8, "column t.nope does not exist"),
    ("select x.id from t", "42P01", 8, 'missing FROM-clause entry for table "x"'),
    ("select id from nope", "42P01", 16, "nope"),
    ("select id from public.nope", "42P01", 16, "nope"),
    ("select id from t, k", "42702", 8, "ambiguous"),
    ("select 1 from t, t", "42712", 18, "specified more than once"),
    ("select nofun(id) from t", "42883", 8, "function nofun(integer) does not exist"),
    ("select upper(id) from t", "42883", 8, "function upper(integer) does not exist"),
    ("select id + g from t", "42883", 13, "operator does not exist: integer + text"),
    ("select 1 where g = 1", "42703", 16, '"g"'),
    ("select id from t where g = 1", "42883", 28, "text = integer"),
    ("select id from t where id", "42804", 24, "must be type boolean, not type integer"),
    ("select g, count(*) from t", "42803", 8, "must appear in the GROUP BY clause"),
    ("select id from t where count(*) > 1", "42803", 24, "not allowed in WHERE"),
    ("select sum(sum(id)) from t", "42803", 12, "nested"),
    ("select row_number() from t", "42809", 8, "OVER"),
    ("select id from t where row_number() over () = 1", "42P20", 24, "not allowed in WHERE"),
    ("select 'x'::int", "22P02", 8, 'invalid input syntax for type integer: "x"'),
    ("select id from t where id = 'x'", "22P02", 29, 'type integer: "x"'),
    ("select date '2020-02-30'", "22008", 13, "out of range"),
    ("select id from t union select g from t", "42804", None, "UNION types integer and text cannot be matched"),
    ("select id from t union select id, g from t", "42601", None, "same number of columns"),
    ("select id from t order by 2", "42P10", 27, "position 2 is not in select list"),
    ("select distinct id from t order by g", "42P10", 36, "must appear in select list"),
    ("select (select id, g from t)", "42601", None, "only one column"),
    ("select * ", "42601", 8, "no tables"),
    ("select coalesce(1, 'a'::text)", "42804", None, "COALESCE types integer and text cannot be matched"),
    ("select case when true then 1 else 'a' end", "22P02", 35, "integer"),
    ("select t.id from t x", "42P01", 8, 'invalid reference to FROM-clause entry for table "t"'),
    ("select * from t join k using (nope)", "42703", None, "does not exist in left table"),
    ("select * from (select 1) v(a, b)", "42P10", None, "has 1 columns available but 2"),
    ("with q as (select 1), q as (select 2) select 1", "42712", None, "more than once"),
    ("select id from t limit -1", "2201W", None, "must not be negative"),
    ("select count() from t", "42809", 8, "count(*)"),
    ("select id from t for update", "0A000", None, "FOR UPDATE"),
    ("select id from t tablesample system (1)", "0A000", None, "TABLESAMPLE"),
    ("select (id, g) not in (select id, g from t) from t", "0A000", None, "NOT IN with several columns"),
    ("select timestamptz '2020-01-01 00:00Z' at time zone 'Asia/Tokyo'", "0A000", None, "UTC"),
    ("select random(1)", "42883", 8, "random(integer)"),
    ("select median(id) from t", "42883", 8, "median"),
    ("select $0", "42P02", None, "parameter $0"),
    ("with recursive r(n) as (select 1 union all select 'x' || n from r) select n from r", "42804", None, "recursive"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sqlstate", "position", "part"), REFUSED)
def test_refusals_say_what_and_where(text: str, sqlstate: str, position: int | None, part: str) -> None:
    with pytest.raises(SqlError) as caught:
        catalog().plan(text)
    assert caught.value.sqlstate == sqlstate
    assert part in caught.value.message
    if position is not None:
        assert caught.value.position == position


def test_a_misspelt_column_gets_a_hint() -> None:
    with pytest.raises(SqlError) as caught:
        catalog().plan("select lable from k")
    assert caught.value.hint == 'Perhaps you meant to reference the column "k.label".'


def test_errors_in_data_have_postgres_codes() -> None:
    for text, sqlstate in [
        ("select id / 0 from t", "22012"),
        ("select n / 0 from t", "22012"),
        ("select f / 0 from t", "22012"),
        ("select big * 4 from t", "22003"),
        ("select (big * 4.0)::int from t", "22003"),
        ("select g::int from t", "22P02"),
        ("select (select id from t)", "21000"),
        ("select n::numeric(2, 2) from t", "22003"),
    ]:
        with pytest.raises(DataError) as caught:
            catalog().rows(text)
        assert caught.value.sqlstate == sqlstate, text


def test_a_failing_branch_that_is_not_taken_does_not_fail() -> None:
    assert catalog().rows("select case when id <> 0 then 4 / id end from t order by id") == [(4,), (2,), (1,), (1,)]


def test_names_with_capitals_and_spaces() -> None:
    made = catalog()
    assert made.rows('select "Mixed Case" from "Odd Name"') == [(7,)]
    assert made.rows('select o."Mixed Case" + 1 as "A b" from "Odd Name" as o') == [(8,)]
    with pytest.raises(SqlError, match="does not exist"):
        made.plan('select mixed from "Odd Name"')


def test_qualified_names() -> None:
    assert catalog().rows("select public.t.id, materialize.public.t.g from materialize.public.t where t.id = 1") == [
        (1, "a")
    ]


def test_aggregates_are_wide_and_exact() -> None:
    made = catalog()
    (row,) = made.rows("select sum(big), avg(big), sum(id), avg(id), sum(n), avg(n), avg(f), count(*), count(n) from t")
    assert row[0] == decimal.Decimal(3 * 2**62)
    assert row[1] == decimal.Decimal(2**62)
    assert row[2] == 10
    assert row[3] == decimal.Decimal("2.5")
    assert row[4] == decimal.Decimal("2.75")
    assert row[5] == decimal.Decimal("0.9166666666666667")
    assert row[6:] == (pytest.approx(-0.25 / 3), 4, 3)


def test_sums_over_different_casts_are_different_columns() -> None:
    # DataFusion leaves casts out of the names of its columns
    assert catalog().rows("select sum(id::bigint), sum(id), sum(id::numeric), count(id::text), count(id) from t") == [
        (10, 10, decimal.Decimal(10), 4, 4)
    ]
    assert len(catalog().rows("select id, id::bigint, id::text, count(*) from t group by 1, 2, 3")) == 4


def test_parameters_take_their_types_from_where_they_stand() -> None:
    made = catalog()
    plan = made.plan("select id from t where id = $1 and g = $2 and n > $3 limit $4")
    assert [str(kind) for kind in plan.parameters] == ["integer", "text", "numeric", "bigint"]
    assert made.rows("select id from t where id = $1 or g = $2 order by 1", ["3", "a"]) == [(1,), (2,), (3,)]
    assert made.rows("select $1", ["x"]) == [("x",)]
    assert made.rows("select $1::int + 1, '$1', $2", ["41", None]) == [(42, "$1", None)]


def test_declared_parameter_types_are_kept() -> None:
    plan = catalog().plan("select $1, $2 + 1", parameter_types=[INT8, None])
    assert [str(kind) for kind in plan.parameters] == ["bigint", "integer"]
    assert plan.desc.columns[0].type == INT8


def test_a_bad_parameter_is_refused() -> None:
    plan = catalog().plan("select id from t where id = $1")
    with pytest.raises(DataError) as caught:
        plan.bind(["x"])
    assert caught.value.sqlstate == "22P02"
    with pytest.raises(SqlError) as missing:
        plan.bind([])
    assert missing.value.sqlstate == "08P01"


def test_a_parameter_cannot_break_out_of_its_literal() -> None:
    evil = "x' union select g from t --"
    assert catalog().rows("select $1::text", [evil]) == [(evil,)]
    assert catalog().rows("select '$1' || $1", [evil]) == [("$1" + evil,)]


def test_views_are_written_out() -> None:
    made = catalog()
    made.view("create view v (a, b) as select id + 1, g as x from materialize.public.t")
    made.view("create view w as select a, count(*) as c from materialize.public.v group by a")
    plan = made.plan("select a, c from w where a > 2")
    assert dict(plan.inputs) == {"u1": "u1"}
    assert plan.uses == {made.items["w"].id}
    assert sorted(made.rows("select a, c from w where a > 2")) == [(3, 1), (4, 1), (5, 1)]
    assert [c.name for c in made.plan("select * from v").desc.columns] == ["a", "b"]


def test_a_with_entry_hides_a_table_and_is_seen_below() -> None:
    made = catalog()
    assert made.rows("with t as (select 42 as id) select id from t") == [(42,)]
    assert made.rows("with q as (select 1 as a) select (select a from q) + 1") == [(2,)]
    assert made.plan("with t as (select 42 as id) select id from t").inputs == {}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("select now()", "now"),
        ("select current_user", "current_user"),
        ("select random()", "random"),
        ("select gen_random_uuid()", "gen_random_uuid"),
    ],
)
def test_a_view_may_not_depend_on_session_or_chance(text: str, part: str) -> None:
    with pytest.raises(SqlError) as caught:
        catalog().plan(text, for_view=True)
    assert caught.value.sqlstate == "0A000"
    assert part in caught.value.message


def test_temporal_filters_stand_with_mz_now_on_the_left() -> None:
    made = catalog()
    plan = made.plan("select id from k where at + interval '1 day' >= mz_now()", for_view=True)
    assert plan.temporal
    assert "(mz_now() <= CAST(" in plan.datafusion_sql
    assert made.rows("select mz_now()", mz_now=17) == [(17,)]


def test_optimize_gives_substrait_and_refuses_what_it_cannot_plan() -> None:
    made = catalog()
    schemas = {item.id: item.desc.arrow for item in made.items.values() if item.desc is not None}
    plan = made.plan("select g, sum(n) as s, avg(n / 7) from t where id % 2 = 1 group by g")
    encoded = optimize(plan, {name: schemas[name] for name in plan.inputs})
    assert b"ps_numeric_div" in encoded
    assert "Aggregate" in explain(plan, {name: schemas[name] for name in plan.inputs})
    with pytest.raises(SqlError) as caught:
        optimize(made.plan("select unnest(array[1]), exists (select 1) group by 1"), {})
    assert caught.value.sqlstate in ("0A000", "42601")


def test_types_that_share_an_arrow_type_survive() -> None:
    desc = catalog().plan("select u, j, v, x, b from typed").desc
    assert [str(column.type) for column in desc.columns] == ["uuid", "jsonb", "character varying", "numeric", "boolean"]
    assert RelationDesc.from_arrow(desc.arrow) == desc


def test_repeated_names_are_refused_in_relations_only() -> None:
    plan = catalog().plan("select id, id from t")
    assert [column.name for column in plan.desc.columns] == ["id", "id"]
    with pytest.raises(SqlError) as caught:
        check_names(plan.desc)
    assert caught.value.sqlstate == "42701"


def test_view_columns_can_be_named() -> None:
    statement = parse_one("create view v (a) as select id, g from t")
    assert isinstance(statement, st.CreateView)
    plan = plan_query(statement.query, catalog(), columns=["a"])
    assert [column.name for column in plan.desc.columns] == ["a", "g"]
    with pytest.raises(SqlError) as caught:
        plan_query(statement.query, catalog(), columns=["a", "b", "c"])
    assert caught.value.sqlstate == "42P10"


def test_columns_known_not_to_be_null() -> None:
    made = catalog()
    plan = made.plan("select t.id, k.id, t.id + 1, count(*) over (), g from t left join k on k.id = t.id")
    assert [column.nullable for column in plan.desc.columns] == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("text", "nullable"),
    [
        ("select id from t", [False]),
        ("select id, count(*) from t group by rollup (id)", [True, False]),
        ("select id, count(*) from t group by grouping sets ((id), ())", [True, False]),
        ("select id from (select id from t) a right join k using (id)", [True]),
        ("select a.id from t a right join k on a.id = k.id", [True]),
        ("select id from (t a join t b using (id)) full join k using (id)", [True]),
        ("select x.id, y.id from t x left join t y on x.id = y.id", [False, True]),
        ("select (select id from t limit 1), max(id), coalesce(g, 'x') from t group by g", [True, True, False]),
        ("select id from t union all select null", [True]),
        ("select regexp_match('a', 'b'), nullif(1, 1), '{}'::jsonb -> 'a'", [True, True, True]),
        ("select case when id = 1 then 1 end, lag(id) over () from t", [True, True]),
    ],
)
def test_nothing_that_may_be_null_is_said_not_to_be(text: str, nullable: list[bool]) -> None:
    assert [column.nullable for column in catalog().plan(text).desc.columns] == nullable


def test_regclass_names_an_oid() -> None:
    made = catalog()
    assert made.value("'t'::regclass") == made.items["t"].oid
    with pytest.raises(SqlError) as caught:
        made.plan("select 'nope'::regclass")
    assert caught.value.sqlstate == "42P01"


def test_session_values_are_folded_in() -> None:
    plan = catalog().plan("select id from t where now() > timestamp '2020-01-01'", session=SESSION)
    assert "now" not in plan.datafusion_sql
    assert plan.session_dependent


def test_the_result_type_is_what_datafusion_computes() -> None:
    made = catalog()
    schemas = {item.id: item.desc.arrow for item in made.items.values() if item.desc is not None}
    for text in [
        "select id + 1, n * 2, n * n, n / 3, -n, round(n, 1), f * 2, big + 1, sum(id) over (), avg(n) over () from t",
        "select count(*), sum(big), avg(f), min(n), string_agg(g, ','), stddev(id) from t group by g",
        "select u, j ->> 'a', upper(v), length(v), x + 1, not b, array[1, 2], date '2020-01-01' + 1 from typed",
    ]:
        plan = made.plan(text)
        from penstock.sql import planning_context

        ctx = planning_context({name: schemas[name] for name in plan.inputs})
        computed = ctx.sql(plan.datafusion_sql).schema()
        for column, field in zip(plan.desc.columns, computed, strict=True):
            assert column.type.arrow == field.type, (column, field)
    assert isinstance(computed, pa.Schema)
