"""One-off queries: results, streams, limits, and what failures look like."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from penstock.compute import query
from penstock.runtime import SqlError, Timestamp

TABLE = pa.table({"a": list(range(1000)), "s": ["x"] * 1000})
NOW = Timestamp(5)


def stream() -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(TABLE.schema, iter(TABLE.to_batches(max_chunksize=100)))


def rows(sql: str, source: query.Input) -> list[dict[str, object]]:
    return pa.Table.from_batches(list(query.execute(sql, {"t": source}, NOW))).to_pylist()


@pytest.mark.parametrize(
    "sql",
    [
        "select a, s from t where a > 50 and a % 2 = 0 order by a",
        "select s, count(*) as n from t group by s",
        "select x.a from t x join t y on x.a = y.a + 1 order by x.a",
    ],
)
def test_a_stream_answers_like_a_table(sql: str) -> None:
    assert rows(sql, stream()) == rows(sql, TABLE) != []


def test_nan_is_the_greatest_in_a_stream_as_in_a_table() -> None:
    table = pa.table({"f": [0.5, float("nan"), 2.0, None]})
    reader = pa.RecordBatchReader.from_batches(table.schema, iter(table.to_batches()))
    sql = "select count(*) as n from t where f > 1"
    assert rows(sql, reader) == rows(sql, table) == [{"n": 2}]


def test_an_empty_table_is_a_table() -> None:
    assert rows("select count(*) as n from t", TABLE.slice(0, 0)) == [{"n": 0}]


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("select 1 / (a - 5) from t", "22012"),
        ("select cast(s as int) from t", "22P02"),
        ("select arrow_cast(a, 'Int8') from t", "22003"),
        ("select (select a from t) from t", "21000"),
        ("select substr(s, 1, -1) from t", "22011"),
        ("select sqrt(-1.0 * a - 1) from t", "2201F"),
        ("select a from nosuch", "42601"),  # planned SQL has no unknown names; this is a statement that was not planned
        ("select s ~ '[' from t", "2201B"),
    ],
)
def test_failures_have_a_sqlstate(sql: str, sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        rows(sql, TABLE)
    assert caught.value.sqlstate == sqlstate


def test_a_result_beyond_the_limit_is_an_error_and_not_cut() -> None:
    with pytest.raises(SqlError) as caught:
        list(query.execute("select * from t", {"t": TABLE}, NOW, result_bytes_max=1000))
    assert caught.value.sqlstate == "53000"


def test_cancelling_ends_an_endless_query_between_batches() -> None:
    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            yield TABLE.to_batches()[0]

    reader = pa.RecordBatchReader.from_batches(TABLE.schema, endless())
    asked = iter([False, False, False, True])
    answers = query.execute("select a from t", {"t": reader}, NOW, cancelled=lambda: next(asked))
    for _ in range(3):
        assert next(answers).num_rows
    with pytest.raises(SqlError) as caught:
        next(answers)
    assert caught.value.sqlstate == "57014"


def test_mz_now_is_the_time_of_the_query() -> None:
    assert rows("select mz_now() as n, count(*) as c from t group by 1", TABLE) == [{"n": 5, "c": 1000}]


def test_results_are_conformed_to_the_given_schema() -> None:
    schema = pa.schema([pa.field("n", pa.int32())])
    batches = list(query.execute("select a from t where a < 3", {"t": TABLE}, NOW, schema=schema))
    assert all(batch.schema == schema for batch in batches)
    assert pa.Table.from_batches(batches).to_pydict() == {"n": [0, 1, 2]}
