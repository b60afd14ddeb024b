"""pg_catalog as clients use it: psql's own queries, psql itself, psycopg, asyncpg, and single rules of the rewrite.

`psql_queries.json` holds what psql 15 sends for its backslash commands, with the result columns that a PostgreSQL
answers; the queries are about relation 20010, the table t of the example catalog.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.types import TypeInfo

from penstock.adapter.pg_catalog import answer, describe, is_catalog_query
from penstock.adapter.pg_catalog.relations import relation_table
from penstock.adapter.pg_catalog.shapes import shapes
from penstock.runtime import SqlError
from penstock.sql import parse
from penstock.sql.statements import Query
from tests.adapter.catalog_session import CatalogCoordinator, example_snapshot
from tests.server.fake_session import Serving

SNAPSHOT = example_snapshot()
RECORDED = json.loads((Path(__file__).parent / "psql_queries.json").read_text())
# PostgreSQL's types of these are not types here, or an expression keeps its column's narrower type
ALIKE = [{18, 19, 24, 25, 705, 1043, 2205, 2206}, {20, 21, 23, 26, 28, 705}, {1003, 1009, 1034}]


def _tree(sql: str) -> Any:
    (statement,) = parse(sql)
    assert isinstance(statement, Query)
    return statement.tree


def _rows(sql: str, *parameters: object) -> list[tuple[object, ...]]:
    _, table = answer(_tree(sql), SNAPSHOT, parameters)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.mark.parametrize("recorded", RECORDED, ids=[f"{n} {r['command']}" for n, r in enumerate(RECORDED)])
def test_every_query_of_psql_runs_with_the_columns_of_postgres(recorded: dict[str, Any]) -> None:
    tree = _tree(recorded["query"])
    assert is_catalog_query(tree)
    desc, _ = answer(tree, SNAPSHOT)
    assert [column.name for column in desc.columns] == recorded["names"]
    for column, expected in zip(desc.columns, recorded["types"], strict=True):
        got = column.type.oid
        assert got in (expected, 705) or any({got, expected} <= alike for alike in ALIKE), (column, expected)


def test_every_relation_can_be_read_whole() -> None:
    for name in shapes():
        table = relation_table(name, SNAPSHOT)
        desc, rows = answer(_tree(f"select * from {name}"), SNAPSHOT)
        assert desc.columns == tuple(
            c if c.nullable else type(c)(c.name, c.type) for c in shapes()[name].desc.columns
        ), name
        assert rows.num_rows == table.num_rows


@pytest.fixture(scope="module")
def live() -> Iterator[Serving]:
    with Serving(CatalogCoordinator()) as running:
        yield running


PSQL = {
    "\\d": [
        "public | mv   | materialized view | materialize",
        "public | t    | table",
        "public | v    | view",
        "(3 rows)",
    ],
    "\\d t": [
        'Table "public.t"',
        "a      | integer                  |           | not null |",
        "b      | text                     |           |          | 'x'",
        "c      | numeric(10,2)",
        "e      | text[]",
        "f      | character varying(7)",
        '"t_a" btree (a)',
        '"t_ab" btree (a, b)',
    ],
    "\\d+ t": ["the column"],
    "\\d+ v": ['View "public.v"', "SELECT a, b FROM materialize.public.t WHERE a > 1;"],
    "\\d mv": ['Materialized view "public.mv"', "n      | bigint", '"mv_b" btree (b)'],
    "\\d t_a": ['Index "public.t_a"', "a      | integer | yes  | a", 'btree, for table "public.t"'],
    "\\d other.t2": ['Table "other.t2"', "Odd Name | double precision"],
    "\\d nothere": ['Did not find any relation named "nothere".'],
    "\\dt": ["public | t    | table | materialize", "(1 row)"],
    "\\dt+": ["the table"],
    "\\dt *.t2": ["other  | t2"],
    "\\dv": ["public | v", "(1 row)"],
    "\\dm": ["public | mv", "(1 row)"],
    "\\di": ["public | mv_b | index | materialize | mv", "(3 rows)"],
    "\\dn": ["other            | materialize", "public           | materialize"],
    "\\du": ["materialize | Create role, Create DB"],
    "\\l": ["materialize | materialize | UTF8"],
    "\\dT": ["mz_catalog | uint8"],
    "\\df": ["(0 rows)"],
    "\\sv v": ["CREATE OR REPLACE VIEW public.v AS"],
}


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")
@pytest.mark.parametrize("command", PSQL)
def test_psql_shows_what_there_is(live: Serving, command: str) -> None:
    done = subprocess.run(["psql", "-X", live.dsn, "-c", command], capture_output=True, text=True, timeout=30)
    shown = done.stdout + done.stderr
    assert "ERROR" not in shown, shown
    for expected in PSQL[command]:
        assert expected in shown, shown


def test_psycopg_looks_up_types(live: Serving) -> None:
    with psycopg.connect(live.dsn, autocommit=True) as connection:
        info = TypeInfo.fetch(connection, "uint8")
        assert info is not None
        assert (info.oid, info.array_oid) == (16464, 16465)
        assert TypeInfo.fetch(connection, "hstore") is None


def test_asyncpg_introspects_arrays(live: Serving) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(host="127.0.0.1", port=live.port, user="u", database="d", ssl=False)
        sql = "select $1::int4[] as x, indkey, indrelid::regclass as t from pg_index where indexrelid = $2::oid"
        assert tuple(await connection.fetchrow(sql, [1, None], 20012)) == ([1, None], [1, 2], "t")
        assert await connection.fetch(
            "select oid from pg_type where oid = any($1::oid[]) order by 1", [23, 1007, 5]
        ) == [
            (23,),
            (1007,),
        ]
        await connection.set_type_codec("uint2", schema="mz_catalog", encoder=str, decoder=int)
        await connection.close()

    asyncio.run(main())


def test_parameters_are_typed_by_their_casts() -> None:
    tree = _tree("select relname from pg_class where oid = any($1::oid[]) and relname = $2 and relnatts = $3")
    kinds, desc = describe(tree, SNAPSHOT, [0, 0, 21])
    assert [str(kind) for kind in kinds] == ["oid[]", "text", "smallint"]
    assert [str(column.type) for column in desc.columns] == ["name"]
    _, table = answer(tree, SNAPSHOT, [[20010, 20013], "t", 6])
    assert table.to_pylist() == [{"relname": "t"}]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select 't'::regclass, 't'::regclass::oid, 'other.t2'::regclass", [("t", 20010, "other.t2")]),
        ("select 16::regtype, 'int4'::regtype::oid, to_regtype('nope')", [("boolean", 23, None)]),
        ("select to_regclass('nope'), to_regclass('public.\"t\"')", [(None, 20010)]),
        ("select relname from pg_class where oid = 'public.v'::regclass", [("v",)]),
        ("select attrelid::regclass from pg_attribute where attname = 'Odd Name'", [("other.t2",)]),
        ("select obj_description('t'::regclass, 'pg_class'), col_description('t'::regclass, 1)",
         [("the table", "the column")]),
        ("select current_schema(), current_schemas(false), pg_get_userbyid(20003)",
         [("public", ["public"], "materialize")]),
        ("select nspname from pg_namespace where nspname = any(current_schemas(false))", [("public",)]),
        ("select relname from pg_class where relname ~ '^t_' and relname !~ 'b$'", [("t_a",)]),
        ("select nspname from pg_namespace where nspname not like 'mz/_%' escape '/' and nspname like 'p%c'",
         [("public",)]),
        ("select exists (select 1 from pg_class where relname = 't'), not exists (select 1 from pg_policy)",
         [(True, True)]),
        ("select array(select attname from pg_attribute where attrelid = 20013 order by attnum desc)", [(["b", "a"],)]),
        ("select generate_subscripts(indkey, 1) as n from pg_index where indexrelid = 20012 order by 1", [(1,), (2,)]),
        ("select count(*) from pg_policy p, pg_class c", [(0,)]),
        ("select (select max(polname) from pg_policy) as x, (select count(*) from pg_policy) as n", [(None, 0)]),
        ("with c as (select oid, relname from pg_class) select relname from c where oid = 20010", [("t",)]),
        ("select format('%I.%s', nspname, 'x') from pg_namespace where nspname = 'public'", [("public.x",)]),
        ("select set_config('jit', 'off', false), current_setting('TimeZone'), current_setting('nope', true)",
         [("off", "UTC", None)]),
        ("select data_type from information_schema.columns where table_name = 't' and ordinal_position > 3",
         [("timestamp with time zone",), ("ARRAY",), ("character varying",)]),
        ("select table_name from information_schema.tables where table_schema = 'other'", [("t2",)]),
        ("select relname as a, relkind as a from pg_class where oid = 20010", [("t", "r")]),
        ("select has_table_privilege('t', 'select'), pg_table_is_visible(20016), pg_table_is_visible(5)",
         [(True, False, None)]),
        ("select indoption, indkey from pg_index where indexrelid = 20012", [("0 0", "1 2")]),
        ("select pg_get_indexdef(20012), pg_get_indexdef(20012, 2, true)",
         [("CREATE INDEX t_ab ON public.t USING btree (a, b)", "b")]),
    ],
)  # fmt: skip
def test_what_the_rewrite_makes_of(sql: str, expected: list[tuple[object, ...]]) -> None:
    assert is_catalog_query(_tree(sql))
    assert _rows(sql) == expected


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("select * from pg_class, pg_nope", "42P01"),
        ("select nope from pg_class", "42703"),
        ("select frobnicate(oid) from pg_class", "42883"),
        ("select 'nope'::regclass", "42P01"),
        ("select 'nope'::regtype", "42704"),
        ("select 'nope'::regnamespace from pg_class", "3F000"),
        ("select 'abs'::regproc::oid", "42883"),
        ("select set_config('timezone', 'UTC', false)", "0A000"),
        ("select current_setting('nope')", "42704"),
        ("select $1 from pg_class", "42P02"),
    ],
)
def test_what_does_not_exist_is_an_error_that_says_so(sql: str, sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        answer(_tree(sql), SNAPSHOT)
    assert caught.value.sqlstate == sqlstate


def test_ordinary_queries_are_left_to_the_planner() -> None:
    for sql in ("select 1", "select * from t", "select now()", "with pg_class as (select 1) select * from pg_class"):
        assert not is_catalog_query(_tree(sql)), sql
    for sql in ("select * from information_schema.tables", "select * from PG_CLASS", "select 't'::regclass"):
        assert is_catalog_query(_tree(sql)), sql


def test_relations_of_other_schemas_can_join_in() -> None:
    from penstock.adapter.system_relations import to_table

    clusters = to_table("mz_catalog.mz_clusters", [("c1", "quickstart", "r1", True, "100cc", 1)])
    sql = "select c.name, r.rolname from mz_catalog.mz_clusters c, pg_roles r"
    _, table = answer(_tree(sql), SNAPSHOT, tables={"mz_catalog.mz_clusters": clusters})
    assert table.to_pylist() == [{"name": "quickstart", "rolname": "materialize"}]
