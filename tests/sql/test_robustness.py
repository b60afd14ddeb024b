"""Text from strangers: whatever it is, it gets an answer or an error of ours, soon."""

from __future__ import annotations

import contextlib
import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from small_catalog import SmallCatalog

from penstock.runtime import DataError, SqlError
from penstock.sql import RelationDesc, parse
from penstock.sql import literals as lit
from penstock.sql import statements as st
from penstock.sql.functions import KERNELS
from penstock.sql.plan import substitute
from penstock.sql.types import INT4, TEXT

CATALOG = SmallCatalog()
CATALOG.table("t", RelationDesc.of(("a", INT4), ("b", TEXT)), [{"a": 1, "b": "x"}])

WORD_LIST = (
    "select from where group by order limit a b t 1 2.5 'x' null true ( ) , * + - / = <> < and or not in is like"
    " between case when then else end cast as int :: [ ] array any all exists union except with distinct on join"
    ' left using sum count over partition interval date extract $1 ; . " -- /* values insert into update set delete'
    " create table view drop show begin copy subscribe explain fetch"
)
WORDS = WORD_LIST.split()


@settings(max_examples=400, deadline=None)
@given(some.lists(some.sampled_from(WORDS), max_size=14))
def test_any_sequence_of_words(words: list[str]) -> None:
    _try(" ".join(words))


@settings(max_examples=200, deadline=None)
@given(some.text(max_size=40))
def test_any_text(text: str) -> None:
    _try(text)
    _try(f"select {text} from t")


def _try(text: str) -> None:
    """Parse and plan; only errors of ours may come out, with a position inside the text or just behind it."""
    refusal = _refusal(text)
    if refusal is not None:
        assert refusal.sqlstate != "XX000", refusal
        assert refusal.position is None or 1 <= refusal.position <= len(text) + 2


def _refusal(text: str) -> SqlError | None:
    try:
        for statement in parse(text):
            if isinstance(statement, st.Query):
                CATALOG.plan(statement.sql)
    except SqlError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("opening", "inside", "closing"),
    [
        ("array[", "1", "]"),
        ("struct(", "1", ")"),
        ("abs(", "1", ")"),
        ("case when true then ", "1", " end"),
        ("case when ", "true", " then true end"),
        ("coalesce(1, ", "1", ")"),
        ("cast(", "1", " as int)"),
        ("(", "1", ")"),
        ("- ", "1", ""),
        ("not ", "true", ""),
        ("(select ", "1", ")"),
        ("1 in (select ", "1", ")"),
    ],
)
@pytest.mark.parametrize("depth", [7, 40, 3000])
@pytest.mark.timeout(30)
def test_nesting_is_planned_or_refused_without_delay(opening: str, inside: str, closing: str, depth: int) -> None:
    text = f"select {opening * depth}{inside}{closing * depth}"
    refusal = _refusal(text)
    if refusal is None:
        CATALOG.rows(text)
    else:
        assert refusal.sqlstate in ("54001", "0A000", "42804", "42601", "42883")


def test_a_chain_of_else_if_is_not_nested() -> None:
    text = "".join(f"case when a = {i} then {i} else " for i in range(60)) + "-1" + " end" * 60
    assert CATALOG.rows(f"select {text} from t") == [(1,)]


def test_long_lists_and_long_conditions() -> None:
    listed = ", ".join(map(str, range(3000)))
    assert CATALOG.rows(f"select a in ({listed}) from t") == [(True,)]
    either = " or ".join(f"a = {i}" for i in range(300))
    assert CATALOG.rows(f"select a from t where {either}") == [(1,)]
    assert len(CATALOG.rows("values " + ", ".join(f"({i})" for i in range(2000)))) == 2000


@pytest.mark.parametrize(
    ("expression", "sqlstate"),
    [
        ("0E", "42601"),
        ("1e", "42601"),
        ("9" * 5000, "22003"),
        ("1e99999", "22003"),
        (f"'{'9' * 5000}'::int", "22003"),
        (f"'{'9' * 5000}'::numeric", "22003"),
        ("'1e999999999'::numeric", "22003"),
        ("'1e999999999'::jsonb", "22003"),
        ("'\u0661'::int", "22P02"),
        ("'\u0661'::numeric", "22P02"),
        ("'\u0662020-01-01'::date", "22007"),
        ("repeat('x', 1)::int", "22P02"),
        ("interval '999999999999 years'", "22008"),
        ("('999999999' || '999999999999 hours')::interval", "22008"),
        ("date '999999-01-01'", "22008"),
    ],
    ids=lambda text: text[:30],
)
def test_numbers_beyond_all_measure(expression: str, sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        CATALOG.rows(f"select {expression}")
    assert caught.value.sqlstate == sqlstate


def test_tiny_numbers_round_to_zero() -> None:
    assert CATALOG.rows("select 1e-99999 = 0, '1e-999999999'::numeric = 0") == [(True, True)]


def test_parameters_are_replaced_only_outside_quotes() -> None:
    assert substitute("""SELECT $1, '$1 it''s $2', "$1", $2""", ["A", "B"]) == """SELECT A, '$1 it''s $2', "$1", B"""


@settings(max_examples=300, deadline=None)
@given(some.text(max_size=20))
def test_readers_of_text_take_or_refuse(text: str) -> None:
    readers = [
        lit.read_boolean, lit.read_numeric, lit.read_date, lit.read_time, lit.read_interval, lit.read_uuid,
        lit.read_jsonb, lit.read_bytea, lit.read_array, lambda t: lit.read_timestamp(t, zoned=True),
        lambda t: lit.read_integer(t, "integer"), lambda t: lit.read_float(t, "real"),
    ]  # fmt: skip
    for read in readers:
        with contextlib.suppress(DataError):  # anything else is a failure
            read(text)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_take_empty_null_and_sliced_columns(name: str) -> None:
    kernel = KERNELS[name]
    for column in (0, 3):
        made = kernel.function(*(pa.nulls(column, kind) for kind in kernel.arguments))
        assert made.type == kernel.result
        assert made.null_count == len(made) == column
    # a slice of nulls and values keeps them apart
    samples = [_sample(kind) for kind in kernel.arguments]
    if all(sample is not None for sample in samples):
        whole = [pa.array([None, s, None, s], kind) for s, kind in zip(samples, kernel.arguments, strict=True)]
        try:
            full = kernel.function(*whole)
        except DataError:
            return
        for start, stop in itertools.combinations(range(5), 2):
            part = kernel.function(*(column.slice(start, stop - start) for column in whole))
            assert part.to_pylist() == full.slice(start, stop - start).to_pylist()


def _sample(kind: pa.DataType) -> object:
    if pa.types.is_string(kind):
        return "1"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return 1
    if pa.types.is_binary(kind):
        return b"1"
    if pa.types.is_list(kind):
        return ["1"]
    if pa.types.is_interval(kind):
        return (1, 2, 3_000)
    if pa.types.is_decimal(kind):
        return 1
    return 1 if pa.types.is_temporal(kind) else None
