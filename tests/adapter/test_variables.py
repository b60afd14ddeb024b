"""Session variables: canonical forms, refusals with their SQLSTATE, and what a transaction takes back."""

from __future__ import annotations

import pytest

from penstock.adapter.timestamps import Isolation
from penstock.adapter.variables import SessionVariables, bytes_of, duration_ms
from penstock.runtime import SqlError


@pytest.mark.parametrize(
    ("name", "value", "canonical"),
    [
        ("statement_timeout", "1500", "1500 ms"),
        ("statement_timeout", "2min", "120 s"),
        ("statement_timeout", "0", "0 s"),
        ("timezone", "utc", "UTC"),
        ("TIME ZONE", "Etc/UTC", "UTC"),
        ("datestyle", "iso, mdy", "ISO, MDY"),
        ("client_encoding", "utf-8", "UTF8"),
        ("transaction_isolation", "READ COMMITTED", "serializable"),
        ("extra_float_digits", "3", "3"),
        ("default_transaction_read_only", "true", "on"),
    ],
)
def test_values_get_their_canonical_form(name: str, value: str, canonical: str) -> None:
    variables = SessionVariables({})
    variables.set(name, value)
    assert variables[name] == canonical


@pytest.mark.parametrize(
    ("name", "value", "sqlstate"),
    [
        ("no_such_thing", "1", "42704"),
        ("server_version", "17", "55P02"),
        ("timezone", "Europe/Berlin", "22023"),
        ("extra_float_digits", "4", "22023"),
        ("statement_timeout", "soon", "22023"),
        ("client_encoding", "latin1", "22023"),
        ("transaction_isolation", "snapshot", "22023"),
    ],
)
def test_refusals(name: str, value: str, sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        SessionVariables({}).set(name, value)
    assert caught.value.sqlstate == sqlstate


def test_a_failed_transaction_takes_changes_back_and_local_ones_always_end() -> None:
    variables = SessionVariables({"application_name": "psql"})
    variables.begin()
    variables.set("application_name", "changed")
    variables.set("cluster", "other", local=True)
    assert (variables["application_name"], variables["cluster"]) == ("changed", "other")
    variables.end(committed=False)
    assert (variables["application_name"], variables["cluster"]) == ("psql", "quickstart")
    variables.begin()
    variables.set("application_name", "kept")
    variables.set("cluster", "other", local=True)
    variables.end(committed=True)
    assert (variables["application_name"], variables["cluster"]) == ("kept", "quickstart")
    variables.reset("application_name")
    assert variables["application_name"] == "psql"


def test_what_the_session_reads_from_them() -> None:
    variables = SessionVariables({"search_path": '"Odd", public'})
    assert variables.search_path == ["Odd", "public"]
    assert variables.isolation is Isolation.STRICT_SERIALIZABLE
    assert variables.statement_timeout_s is None
    variables.set("statement_timeout", "1min")
    assert variables.statement_timeout_s == 60
    variables.set("max_result_size", "1 kB")
    assert variables.max_result_bytes == 1024
    assert "server_version" in variables.reported()


def test_units() -> None:
    assert [duration_ms(text) for text in ("250", "1.5 s", "2h", "x", "")] == [250, 1500, 7_200_000, None, None]
    assert [bytes_of(text) for text in ("1GB", "512 kB", "17", "x")] == [1 << 30, 512 << 10, 17, None]
