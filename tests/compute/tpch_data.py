"""TPC-H data for tests: made once per test run by the generator from its package."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TABLES = ("region", "nation", "supplier", "part", "partsupp", "customer", "orders", "lineitem")


@functools.cache
def load(scale: str = "0.01") -> dict[str, pa.Table]:
    """All tables at a scale factor, with plain strings and nullable columns."""
    generator = Path(sys.executable).with_name("tpchgen-cli")
    directory = Path(tempfile.mkdtemp(prefix="tpch-"))
    try:
        subprocess.run(
            [str(generator), "parquet", "-s", scale, f"--output-dir={directory}"],
            check=True,
            capture_output=True,
            timeout=120,
        )
        return {name: _plain(pq.read_table(directory / f"{name}.parquet")) for name in TABLES}
    finally:
        shutil.rmtree(directory)


def _plain(table: pa.Table) -> pa.Table:
    fields = [
        pa.field(field.name, pa.string() if pa.types.is_string_view(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields)).combine_chunks()


def available() -> bool:
    """Whether the generator is installed."""
    return Path(sys.executable).with_name("tpchgen-cli").exists()
