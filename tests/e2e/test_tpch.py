"""TPC-H through SQL: every query once, ten of them as views.

The views stay equal to DuckDB's answers under random inserts and deletes in all tables.
"""

from __future__ import annotations

import math
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.tpch import QUERIES
from tools.serving import Server, copy_in, serving

pytestmark = pytest.mark.xdist_group("tpch")

TABLES = {
    "region": "r_regionkey bigint, r_name text, r_comment text",
    "nation": "n_nationkey bigint, n_name text, n_regionkey bigint, n_comment text",
    "supplier": "s_suppkey bigint, s_name text, s_address text, s_nationkey bigint, s_phone text,"
    " s_acctbal numeric(15,2), s_comment text",
    "customer": "c_custkey bigint, c_name text, c_address text, c_nationkey bigint, c_phone text,"
    " c_acctbal numeric(15,2), c_mktsegment text, c_comment text",
    "part": "p_partkey bigint, p_name text, p_mfgr text, p_brand text, p_type text, p_size integer, p_container text,"
    " p_retailprice numeric(15,2), p_comment text",
    "partsupp": "ps_partkey bigint, ps_suppkey bigint, ps_availqty integer, ps_supplycost numeric(15,2),"
    " ps_comment text",
    "orders": "o_orderkey bigint, o_custkey bigint, o_orderstatus text, o_totalprice numeric(15,2), o_orderdate date,"
    " o_orderpriority text, o_clerk text, o_shippriority integer, o_comment text",
    "lineitem": "l_orderkey bigint, l_partkey bigint, l_suppkey bigint, l_linenumber integer, l_quantity numeric(15,2),"
    " l_extendedprice numeric(15,2), l_discount numeric(15,2), l_tax numeric(15,2), l_returnflag text,"
    " l_linestatus text, l_shipdate date, l_commitdate date, l_receiptdate date, l_shipinstruct text, l_shipmode text,"
    " l_comment text",
}
KEYS = {
    "region": "r_regionkey",
    "nation": "n_nationkey",
    "supplier": "s_suppkey",
    "customer": "c_custkey",
    "part": "p_partkey",
    "partsupp": "ps_partkey",
    "orders": "o_orderkey",
    "lineitem": "l_orderkey",
}
MAINTAINED = ["q01", "q03", "q04", "q05", "q06", "q10", "q12", "q14", "q18", "q19"]
HELD_BACK = 5  # every fifth row of each table is not loaded at first: it is what is inserted later


class Loaded:
    """A server and a DuckDB with the same tables; `later`: rows of each table that are not loaded yet."""

    def __init__(self, server: Server, data: Path) -> None:
        self.server = server
        self.second = duckdb.connect()
        self.later: dict[str, pa.Table] = {}
        with server.connect() as connection:
            for name, columns in TABLES.items():
                whole = without_views(pq.read_table(data / f"{name}.parquet"))
                held = pa.array([i % HELD_BACK == 0 and whole.num_rows > 100 for i in range(whole.num_rows)])
                first = whole.filter(pa.array([not h for h in held.to_pylist()]))
                self.later[name] = whole.filter(held)
                connection.execute(f"CREATE TABLE {name} ({columns})")
                assert copy_in(connection, name, first) == first.num_rows
                self.second.register("arrow_input", first)
                self.second.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow_input")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("tpch")
    generator = shutil.which("tpchgen-cli", path=str(Path(sys.executable).parent)) or "tpchgen-cli"
    subprocess.run([generator, "parquet", "-s", "0.01", "--output-dir", str(folder / "data")], check=True)
    with serving(folder) as server:
        yield Loaded(server, folder / "data")


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_a_one_off_select_answers_like_duckdb(loaded: Loaded, name: str) -> None:
    with loaded.server.connect() as connection:
        ours = connection.execute(QUERIES[name]).fetchall()
    assert_equal(ours, loaded.second.sql(QUERIES[name]).fetchall())


def test_views_stay_equal_under_random_inserts_and_deletes(loaded: Loaded) -> None:
    dice = random.Random(22)
    with loaded.server.connect() as connection:
        for name in MAINTAINED:
            connection.execute(f"CREATE MATERIALIZED VIEW {name} AS {QUERIES[name]}")
        for _ in range(4):
            for table in TABLES:
                change(loaded, connection, table, dice)
            for name in MAINTAINED:
                ours = connection.execute(f"SELECT * FROM {name}").fetchall()
                assert_equal(ours, loaded.second.sql(QUERIES[name]).fetchall(), name)


def without_views(table: pa.Table) -> pa.Table:
    """Arrow's kernels that this test needs know plain strings only."""
    fields = [pa.field(f.name, pa.string() if f.type == pa.string_view() else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))


def change(loaded: Loaded, connection: psycopg.Connection, table: str, dice: random.Random) -> None:
    """Delete the rows of some keys and insert some of the rows that were held back, in both databases."""
    key = KEYS[table]
    keys = sorted(row[0] for row in loaded.second.sql(f"SELECT DISTINCT {key} FROM {table}").fetchall())
    share = 0.01 if len(keys) > 100 else 0.0  # deleting a region empties half of the answers
    gone = dice.sample(keys, int(len(keys) * share))
    if gone:
        condition = f"{key} IN ({', '.join(map(str, gone))})"
        connection.execute(f"DELETE FROM {table} WHERE {condition}")
        loaded.second.execute(f"DELETE FROM {table} WHERE {condition}")
    later = loaded.later[table]
    count = min(later.num_rows, dice.randrange(1, 400))
    if count:
        copy_in(connection, table, later.slice(0, count))
        loaded.second.register("arrow_input", later.slice(0, count))
        loaded.second.execute(f"INSERT INTO {table} SELECT * FROM arrow_input")
        loaded.later[table] = later.slice(count)


def assert_equal(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]], name: str = "") -> None:
    """Equal as multisets; numbers to 1e-9 relative."""
    assert len(ours) == len(theirs), f"{name}: {len(ours)} rows where DuckDB has {len(theirs)}"
    for mine, other in zip(sorted(ours, key=rank), sorted(theirs, key=rank), strict=True):
        for a, b in zip(mine, other, strict=True):
            if isinstance(a, int | float | Decimal) and isinstance(b, int | float | Decimal):
                assert math.isclose(a, b, rel_tol=1e-9), f"{name}: {mine} where DuckDB has {other}"
            else:
                assert a == b, f"{name}: {mine} where DuckDB has {other}"


def rank(row: tuple[Any, ...]) -> list[str]:
    """Sorts equal rows alike on both sides although their numbers have different types and last digits."""
    return [f"{float(v):.6e}" if isinstance(v, int | float | Decimal) else str(v) for v in row]
