"""Expressions mean what they mean in PostgreSQL: values, rounding, overflow, errors, one case at a time."""

from __future__ import annotations

import pytest
from postgres_answers import ANSWERS, DIFFERENT
from small_catalog import SESSION, SmallCatalog

from penstock.runtime import SqlError

CATALOG = SmallCatalog()


def _answer(expression: str) -> tuple[str | None] | str:
    try:
        return (CATALOG.value(f"({expression})::text", session=SESSION),)
    except SqlError as error:
        return f"{error.sqlstate} {error.message}"


@pytest.mark.parametrize("expression", ANSWERS)
def test_as_in_postgres(expression: str) -> None:
    assert _answer(expression) == ANSWERS[expression]


@pytest.mark.parametrize("expression", DIFFERENT)
def test_documented_differences(expression: str) -> None:
    assert _answer(expression) == DIFFERENT[expression]


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("1", "integer"),
        ("3000000000", "bigint"),
        ("9223372036854775808", "numeric(19,0)"),
        ("1.50", "numeric(3,2)"),
        ("'x'", "text"),
        ("null", "text"),
        ("1 + 1", "integer"),
        ("1 + 3000000000", "bigint"),
        ("1::smallint + 1::smallint", "smallint"),
        ("1 + 1.5", "numeric(3,1)"),
        ("1.5 * 2.25", "numeric(6,3)"),
        ("1.5 / 2", "numeric"),
        ("1::numeric + 1.5", "numeric"),
        ("1::real + 1::real", "real"),
        ("1::real + 1", "double precision"),
        ("1.5 + 1::float8", "double precision"),
        ("date '2020-01-01' + 1", "date"),
        ("date '2020-01-01' + interval '1 day'", "timestamp without time zone"),
        ("case when true then 1 else 2.5 end", "numeric(11,1)"),
        ("array[1, 2]", "integer[]"),
        ("mz_now()", "mz_timestamp"),
        ("1::uint4 + 1::uint4", "uint4"),
        ("1::uint4 + 1", "bigint"),
        ("extract(year from date '2020-01-01')", "numeric(10,0)"),
        ("'{}'::jsonb -> 'a'", "jsonb"),
        ("'{}'::jsonb ->> 'a'", "text"),
    ],
)
def test_types(expression: str, kind: str) -> None:
    assert str(CATALOG.plan(f"select {expression}").desc.columns[0].type) == kind


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("1, 'a', null", ["?column?"] * 3),
        ("1 as a, 2 as a", ["a", "a"]),
        ("count(*), sum(1), upper('x')", ["count", "sum", "upper"]),
        ("1::int, '1'::numeric(3), true", ["int4", "numeric", "bool"]),
        ("(select 5 as five), exists (select 1)", ["five", "exists"]),
        ("case when true then 1 end, coalesce(1, 2), -1, 1 + 1", ["case", "coalesce", "?column?", "?column?"]),
        ("extract(year from now()), current_date, now()", ["extract", "current_date", "now"]),
        ('array[1], interval \'1 day\', \'x\' as "Odd ""Name"""', ["array", "interval", 'Odd "Name"']),
        ("row_number() over (), 1 in (1), not true", ["row_number", "?column?", "?column?"]),
    ],
)
def test_result_names(select: str, names: list[str]) -> None:
    assert [column.name for column in CATALOG.plan(f"select {select}", session=SESSION).desc.columns] == names


def test_a_long_sum_plans_in_a_moment() -> None:
    # one function call per operator would double DataFusion's planning time with every term
    assert CATALOG.value(" + ".join(["1"] * 200)) == 200


def test_deep_nesting_is_refused_or_answered_but_does_not_end_the_process() -> None:
    assert _answer("(" * 50 + "1" + ")" * 50) == ("1",)
    assert _answer("(" * 5000 + "1" + ")" * 5000) in (("1",), "54001 statement is nested too deeply")


def test_values_of_the_session() -> None:
    row = CATALOG.rows("select current_user, current_database(), now(), current_date", session=SESSION)[0]
    assert row[:2] == ("me", "materialize")
    assert row[2].timestamp() == 1_600_000_000
    assert str(row[3]) == "2020-09-13"
    plan = CATALOG.plan("select now()", session=SESSION)
    assert plan.session_dependent
    assert not plan.temporal
