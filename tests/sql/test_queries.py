"""Queries answer as PostgreSQL 15 does: names, rows and SQLSTATEs, recorded in `postgres_queries.json`.

Rows are compared as multisets, and in order where the query ends with ``--o`` (its ORDER BY is total). Numbers are
compared to nine digits: numeric and double precision are computed with other algorithms here.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_catalog import SmallCatalog

from penstock.runtime import SqlError
from penstock.sql import Column, RelationDesc, numeric
from penstock.sql.types import BOOL, DATE, FLOAT8, INT4, INT8, TEXT, TIMESTAMP, VARCHAR

RECORDED = json.loads((Path(__file__).parent / "postgres_queries.json").read_text())


def _catalog() -> SmallCatalog:
    made = SmallCatalog()
    desc = RelationDesc.of(
        Column("id", INT4, False), ("g", TEXT), ("i", INT4), ("l", INT8), ("n", numeric(10, 2)), ("f", FLOAT8),
        ("s", TEXT), ("d", DATE), ("ts", TIMESTAMP), ("b", BOOL), ("c", VARCHAR),
    )  # fmt: skip
    rows = [dict(row) for row in RECORDED["e"]]
    for row in rows:
        row["n"] = None if row["n"] is None else decimal.Decimal(row["n"])
        row["d"] = None if row["d"] is None else dt.date.fromisoformat(row["d"])
        row["ts"] = None if row["ts"] is None else dt.datetime.fromisoformat(row["ts"])
    made.table("e", desc, rows)
    made.table("h", RelationDesc.of(("id", INT4), ("g", TEXT), ("v", INT4)), RECORDED["h"])
    return made


CATALOG = _catalog()


def _plain(value: Any) -> Any:
    """A value as the recording holds it."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float | decimal.Decimal):
        return float(value)
    if isinstance(value, list):
        return ["list", [_plain(item) for item in value]]
    if type(value).__name__ == "MonthDayNano":
        return ["iv", value[0] * 30 * 86400 + value[1] * 86400 + value[2] / 1e9]
    return str(value)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def _key(row: list[Any]) -> list[tuple[bool, str]]:
    return [(value is None, str(round(value, 6)) if isinstance(value, float) else str(value)) for value in row]


@pytest.mark.parametrize("query", RECORDED["answers"])
def test_as_in_postgres(query: str) -> None:
    expected = RECORDED["answers"][query]
    if isinstance(expected, str):
        with pytest.raises(SqlError) as caught:
            CATALOG.rows(query)
        assert caught.value.sqlstate == expected
        return
    names, theirs = expected
    assert [column.name for column in CATALOG.plan(query).desc.columns] == names
    ours = [[_plain(value) for value in row] for row in CATALOG.rows(query)]
    if not query.endswith("--o"):
        ours, theirs = sorted(ours, key=_key), sorted(theirs, key=_key)
    assert len(ours) == len(theirs), (ours, theirs)
    assert all(map(_same, ours, theirs)), (ours, theirs)
