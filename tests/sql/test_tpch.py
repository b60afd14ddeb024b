"""All 22 TPC-H queries plan, become Substrait, and answer as DuckDB does (numbers to 1e-9)."""

from __future__ import annotations

import decimal
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalog import SmallCatalog

from bench.tpch import QUERIES
from penstock.sql import RelationDesc, optimize

GENERATOR = Path(sys.executable).with_name("tpchgen-cli")
TABLES = ("region", "nation", "supplier", "part", "partsupp", "customer", "orders", "lineitem")

pytestmark = pytest.mark.skipif(not GENERATOR.exists(), reason="the TPC-H generator is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, pa.Table]]:
    directory = tmp_path_factory.mktemp("tpch")
    command = [str(GENERATOR), "parquet", "-s", "0.01", f"--output-dir={directory}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    yield {name: _plain(pq.read_table(directory / f"{name}.parquet")) for name in TABLES}
    shutil.rmtree(directory)


def _plain(table: pa.Table) -> pa.Table:
    """String views as strings: that is the Arrow type of text."""
    kinds = [pa.string() if pa.types.is_string_view(field.type) else field.type for field in table.schema]
    return table.cast(pa.schema([f.with_type(k) for f, k in zip(table.schema, kinds, strict=True)]))


@pytest.fixture(scope="module")
def catalog(data: dict[str, pa.Table]) -> SmallCatalog:
    made = SmallCatalog()
    for name, table in data.items():
        made.table(name, RelationDesc.from_arrow(table.schema), table)
    return made


@pytest.mark.parametrize("name", QUERIES)
def test_as_in_duckdb(name: str, data: dict[str, pa.Table], catalog: SmallCatalog) -> None:
    plan = catalog.plan(QUERIES[name])
    schemas = {table: catalog.tables[item].schema for table, item in plan.inputs.items()}
    assert optimize(plan, schemas)
    connection = duckdb.connect()
    for table, contents in data.items():
        connection.register(table, contents)
    theirs = connection.execute(QUERIES[name]).fetchall()
    ours = catalog.rows(QUERIES[name])
    assert len(ours) == len(theirs)
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert all(map(_same, our_row, their_row)), (our_row, their_row)


def _same(ours: Any, theirs: Any) -> bool:
    numbers = (int, float, decimal.Decimal)
    if isinstance(ours, numbers) and isinstance(theirs, numbers):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)
