"""What the parser understands, refuses and how it says so."""

from __future__ import annotations

import pytest

from penstock.runtime import SqlError
from penstock.sql import parse, parse_one
from penstock.sql import statements as st
from penstock.sql.types import INT4, SqlType, numeric

UNDERSTOOD = {
    "select 1": st.Query,
    "VALUES (1, 2), (3, 4)": st.Query,
    "TABLE t": st.Query,
    "(select 1) union all select 2": st.Query,
    "with x as (select 1 as a) select a from x": st.Query,
    "with recursive x(n) as (select 1 union all select n + 1 from x where n < 5) select * from x": st.Query,
    "select distinct on (a) a, row_number() over (partition by b order by c) from t": st.Query,
    "select a from t group by grouping sets ((a), ())": st.Query,
    "insert into t values (1, 'a')": st.Insert,
    "insert into t (a) select 1 returning a": st.Insert,
    "insert into t default values": st.Insert,
    "update t as x set a = a + 1, b = default where x.a in (1, 2)": st.Update,
    "delete from t using u where t.a = u.a": st.Delete,
    "copy t (a, b) from stdin with (format csv, header)": st.CopyFrom,
    "copy t to stdout": st.CopyTo,
    "copy (subscribe t) to stdout": st.CopyTo,
    "create table if not exists a.t (a int not null default 1 + 2, b varchar(3))": st.CreateTable,
    "create or replace view v (a) as select 1": st.CreateView,
    "create materialized view v in cluster c as select 1": st.CreateMaterializedView,
    "create index i in cluster c on t (a, lower(b))": st.CreateIndex,
    "create default index on t": st.CreateIndex,
    "create cluster c (size = '1', replication factor = 2)": st.CreateCluster,
    "create cluster replica c.r2 size '1'": st.CreateClusterReplica,
    "create schema s": st.CreateSchema,
    "create database d": st.CreateDatabase,
    "create role r": st.CreateRole,
    "drop table if exists a, b.c cascade": st.Drop,
    "drop cluster replica c.r1": st.Drop,
    "alter materialized view v rename to w": st.Rename,
    "alter cluster c set (replication factor 0)": st.AlterCluster,
    "comment on column t.a is 'x'": st.Comment,
    "explain select 1": st.Explain,
    "explain optimized plan as text for materialized view v": st.Explain,
    "explain timestamp for select 1": st.Explain,
    "subscribe to t": st.Subscribe,
    "declare c cursor for subscribe (select 1) with (snapshot = false)": st.Declare,
    "fetch 10 from c": st.Fetch,
    "close c": st.CloseCursor,
    "show create materialized view v": st.ShowCreate,
    "show columns from t": st.ShowObjects,
    "show cluster replicas": st.ShowObjects,
    "show timezone": st.ShowVariable,
    "show all": st.ShowVariable,
    "set session search_path to a, b": st.SetVariable,
    "alter system set max_tables = 5": st.SetVariable,
    "alter system reset all": st.ResetVariable,
    "reset search_path": st.ResetVariable,
    "set transaction read only": st.SetTransaction,
    "begin isolation level strict serializable, read write": st.Begin,
    "start transaction": st.Begin,
    "end": st.Commit,
    "abort work": st.Rollback,
    "prepare p (int) as insert into t values ($1)": st.Prepare,
    "execute p (1)": st.Execute,
    "deallocate prepare p": st.Deallocate,
    "discard all": st.Discard,
}


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_kind(text: str) -> None:
    statement = parse_one(text)
    assert type(statement) is UNDERSTOOD[text]
    assert statement.position == 1
    assert not statement.sql or statement.sql.startswith(text.split()[0])


REFUSED = [
    # text, SQLSTATE, position, a part of the message
    ("selec 1", "42601", 1, 'at or near "selec"'),
    ("select 1 +", "42601", None, "syntax error"),
    ("select a, from t", "42601", 11, 'at or near "from"'),
    ("select 1 fro m x", "42601", 14, 'at or near "m"'),
    ("select 'abc", "42601", 12, "unterminated quoted string"),
    ("create", "42601", 7, "end of input"),
    ("insert into t", "42601", 14, "end of input"),
    ("insert into t values (1, 2), (3)", "42601", 31, "same length"),
    ("create table t (a int, a text)", "42701", 24, "specified more than once"),
    ("create table t (a int primary key)", "0A000", 23, "PRIMARY KEY"),
    ("create table t (a int references u (b))", "0A000", 23, "REFERENCES"),
    ("create table t (a foo)", "42704", 19, 'type "foo" does not exist'),
    ("create table t (a json)", "42704", 19, "json"),
    ("create table t (a serial)", "0A000", 19, "serial"),
    ("create table t (a numeric(39))", "22023", 19, "precision"),
    ("create temporary table t (a int)", "0A000", 8, "TEMPORARY"),
    ("create function f() returns int", "0A000", 8, "FUNCTION"),
    ("create view v as select 1 as of 5", "0A000", 18, "AS OF"),
    ("grant select on t to u", "0A000", 1, "GRANT"),
    ("truncate t", "0A000", 1, "TRUNCATE"),
    ("alter table t add column a int", "0A000", 15, "ADD"),
    ("insert into t values (1) on conflict do nothing", "0A000", 26, "ON CONFLICT"),
    ("update t set a = 1 from u", "0A000", 20, "FROM"),
    ("copy t from '/etc/passwd'", "0A000", 13, "file"),
    ("copy t from stdin (format parquet)", "22023", 27, "parquet"),
    ("copy t to stdout (format binary, header)", "42601", 18, "BINARY"),
    ("copy t from stdin (format csv, delimiter 'xx')", "0A000", None, "single one-byte"),
    ("subscribe select 1", "42601", 11, "select"),
    ("subscribe t envelope upsert (key (a))", "0A000", 13, "ENVELOPE"),
    ("explain analyze select 1", "0A000", 9, "ANALYZE"),
    ("rollback to savepoint x", "0A000", 10, "savepoint"),
    ("begin; selec", "42601", 8, "selec"),
    ("select 1 where x = /* never closed", "42601", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sqlstate", "position", "part"), REFUSED)
def test_refusal_names_what_and_where(text: str, sqlstate: str, position: int | None, part: str) -> None:
    with pytest.raises(SqlError) as caught:
        parse(text)
    assert caught.value.sqlstate == sqlstate
    assert part in caught.value.message
    if position is not None:
        assert caught.value.position == position


def test_several_statements_keep_their_own_text_and_position() -> None:
    statements = parse("begin; select 1 ;; -- done\n insert into t values (1);")
    assert [s.sql for s in statements] == ["begin", "select 1", "insert into t values (1)"]
    assert [s.position for s in statements] == [1, 8, 29]
    assert parse("") == parse(" ; -- nothing\n;") == []


def test_literal_rows_are_cells() -> None:
    insert = parse_one("insert into t values (1, -2.5, 'it''s', null, true, default, $3)")
    assert isinstance(insert, st.Insert)
    assert insert.source is None
    assert insert.rows is not None
    assert [(cell.kind.value, cell.text) for cell in insert.rows[0]] == [
        ("number", "1"), ("number", "-2.5"), ("string", "it's"), ("null", "null"), ("boolean", "true"),
        ("default", "default"), ("parameter", "3"),
    ]  # fmt: skip
    computed = parse_one("insert into t values (1 + 1)")
    assert isinstance(computed, st.Insert)
    assert computed.rows is None
    assert computed.source is not None


def test_a_bulk_insert_has_one_cell_per_value() -> None:
    text = "insert into t values " + ", ".join(f"({i}, 'v{i}')" for i in range(1000))
    insert = parse_one(text)
    assert isinstance(insert, st.Insert)
    assert insert.rows is not None
    assert len(insert.rows) == 1000
    assert insert.rows[999][1] == st.Cell(st.CellKind.STRING, "v999", len(text) - 6)


def test_as_of_and_up_to() -> None:
    query = parse_one("select a as b from t limit 1 as of at least 5")
    assert isinstance(query, st.Query)
    assert query.as_of is not None
    assert query.as_of.at_least
    assert query.as_of.expression.sql() == "5"
    subscribe = parse_one("subscribe (select 1) with (progress, snapshot = off) as of 3 up to 9")
    assert isinstance(subscribe, st.Subscribe)
    assert (subscribe.progress, subscribe.snapshot) == (True, False)
    assert subscribe.up_to is not None
    assert subscribe.up_to.sql() == "9"


def test_column_definitions() -> None:
    table = parse_one('create table t (id int not null, "N" numeric(10, 2) default 1 + 2, v varchar(3) null)')
    assert isinstance(table, st.CreateTable)
    assert [(c.name.last, c.type, c.nullable, c.default_sql) for c in table.columns] == [
        ("id", INT4, False, None),
        ("N", numeric(10, 2), True, "1 + 2"),
        ("v", SqlType("character varying", 1043, 7), True, None),
    ]


def test_copy_options_in_both_spellings() -> None:
    new = parse_one("copy t from stdin with (format csv, delimiter ';', null 'x', header true)")
    old = parse_one("copy t from stdin csv delimiter ';' null 'x' header")
    assert isinstance(new, st.CopyFrom)
    assert isinstance(old, st.CopyFrom)
    assert new.options == old.options == st.CopyOptions(st.CopyFormat.CSV, ";", "x", True, '"', '"')


def test_names_fold_unless_quoted() -> None:
    statement = parse_one('drop table Db.Sch."Tab""le"')
    assert isinstance(statement, st.Drop)
    assert statement.names[0].parts == ("db", "sch", 'Tab"le')
    assert str(statement.names[0]) == 'db.sch."Tab""le"'


def test_variables() -> None:
    one = parse_one("set transaction_isolation = strict serializable")
    assert isinstance(one, st.SetVariable)
    assert one.values == ("strict serializable",)
    zone = parse_one("set local time zone 'UTC'")
    assert isinstance(zone, st.SetVariable)
    assert (zone.scope, zone.name, zone.values) == (st.VariableScope.LOCAL, "timezone", ("UTC",))
    default = parse_one("set x to default")
    assert isinstance(default, st.SetVariable)
    assert default.values is None


def test_fetch_counts_and_timeout() -> None:
    for text, count, timeout in [
        ("fetch c", 1, None),
        ("fetch all from c", None, None),
        ("fetch forward 5 in c with (timeout = '1s')", 5, "1s"),
    ]:
        fetch = parse_one(text)
        assert isinstance(fetch, st.Fetch)
        assert (fetch.name, fetch.count, fetch.timeout) == ("c", count, timeout)


@pytest.mark.parametrize(
    "text",
    [
        "insert into t values ($1,$2)",
        "select * from t where id = $1 and k in ($2,$3)",
        "select '$1,$2', $1,$2, \"$3,$4\" from t -- $1,$2",
        "select $$a,$1,$2$$, $1,$2",
        "select $x$ $1,$2 $x$, $1::int,$2",
    ],
)
def test_parameters_without_spaces_between_them(text: str) -> None:
    """``$1,$2`` is no dollar quote: and what follows keeps its position."""
    parse(text)
    with pytest.raises(SqlError) as caught:
        parse(text + "\n) oops")
    assert caught.value.position == len(text) + 2
