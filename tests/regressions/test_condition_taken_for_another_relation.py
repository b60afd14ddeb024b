"""What a WHERE clause says of its own relation is not taken for a condition on another one, or on other columns."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from penstock.adapter.key_lookups import Lookup
from penstock.runtime import GlobalId
from penstock.sql import QueryPlan, parse
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.statements import Query
from penstock.sql.types import INT4, TEXT, Column, RelationDesc

ITEM = CatalogItem(
    GlobalId("u1"), ItemKind.TABLE, ("d", "s", "t"), RelationDesc((Column("k", INT4), Column("s", TEXT)))
)


def lookup(sql: str, *inputs: str, parameters: Sequence[object] = ()) -> Lookup | None:
    (statement,) = parse(sql)
    assert isinstance(statement, Query)
    plan = SimpleNamespace(uses=set(inputs), inputs={name: name for name in inputs})
    return Lookup.of_query(cast(QueryPlan, plan), statement.tree, parameters)


def test_a_plain_condition_fixes_the_key() -> None:
    for sql in ["SELECT * FROM t WHERE k = 1", "SELECT s FROM d.s.t AS x WHERE x.K = 1 AND (s > 'a' OR k = 2)"]:
        found = lookup(sql, "u1")
        assert found is not None
        keys = found.keys(ITEM, [0])
        assert keys is not None
        assert keys.to_pylist() == [{"k": 1}]


@pytest.mark.parametrize(
    ("sql", "inputs"),
    [
        ("SELECT * FROM t WHERE k = 1 AND EXISTS (SELECT 1 FROM t AS y WHERE y.k = t.k + 1)", ["u1"]),
        ("SELECT * FROM t WHERE k = 1 AND NOT EXISTS (SELECT 1 FROM y WHERE y.s = t.s)", ["u1", "u2"]),
        ("SELECT * FROM t WHERE k = 1 AND s = ANY(ARRAY(SELECT s FROM t))", ["u1"]),
        ("SELECT (SELECT max(k) FROM t) FROM t WHERE k = 1", ["u1"]),
        ("SELECT * FROM t AS x(s, k) WHERE k = 1", ["u1"]),
        ("SELECT * FROM t AS x LEFT JOIN t AS y ON x.k = y.k WHERE k = 1", ["u1"]),
        ("SELECT * FROM t WHERE k = 1 UNION ALL SELECT * FROM t", ["u1"]),
        ("WITH t AS (SELECT * FROM t) SELECT * FROM t WHERE k = 1", ["u1"]),
    ],
)
def test_a_statement_with_more_than_that_is_not(sql: str, inputs: list[str]) -> None:
    assert lookup(sql, *inputs) is None


@pytest.mark.parametrize(
    ("cast", "value"),
    [("char", "bb"), ("varchar(1)", "bb"), ("char(1)[]", ["bb"]), ("name", "b" * 70)],
)
def test_a_parameter_that_is_cut_is_not_taken_as_it_was_sent(cast: str, value: object) -> None:
    right = f"ANY($1::{cast})" if isinstance(value, list) else f"$1::{cast}"
    found = lookup(f"SELECT * FROM t WHERE s = {right}", "u1", parameters=[value])
    assert found is not None
    assert found.keys(ITEM, [1]) is None
