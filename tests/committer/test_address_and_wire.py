"""Which addresses are allowed, and how errors travel."""

import pytest

from penstock.committer import AddressError, InvalidRequest, check_address, wire
from penstock.committer import committer_pb2 as pb
from penstock.persist import StoreFull
from penstock.runtime import Determinate, Indeterminate


@pytest.mark.parametrize(
    "address", ["unix:/a/b", "unix:///a/b", "127.0.0.1:1", "127.9.9.9:1", "localhost:0", "[::1]:80"]
)
def test_local_addresses_are_allowed(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:1",
        "[::]:1",
        "10.0.0.1:1",
        "example.com:1",
        ":1",
        "unix:",
        "unix:/" + "x" * 120,
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:70000",
        "",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(AddressError):
        check_address(address)


def test_each_kind_of_error_arrives_as_what_it_was() -> None:
    for error, kind in [
        (Determinate("conflict"), Determinate),
        (Indeterminate("timeout"), Indeterminate),
        (StoreFull("disk full"), StoreFull),
        (InvalidRequest("bad"), InvalidRequest),
        (RuntimeError("a bug"), Indeterminate),
    ]:
        received = wire.from_error(wire.to_error(error), "trying")
        assert type(received) is kind
        assert str(error) in str(received)


def test_an_unknown_determinacy_is_indeterminate() -> None:
    for determinacy in (0, 99):
        error = pb.Error(causes=["new kind"])
        error.determinacy = determinacy  # type: ignore[assignment]
        assert type(wire.from_error(error, "trying")) is Indeterminate
    assert type(wire.from_error(pb.Error(), "trying")) is Indeterminate


def test_the_whole_chain_of_causes_travels() -> None:
    class DatabaseError(Exception):
        sqlstate = "40001"

    def fail() -> None:
        try:
            try:
                raise DatabaseError("could not serialize access")
            except DatabaseError as error:
                raise OSError("query failed") from error
        except OSError as error:
            raise Determinate("db error") from error

    with pytest.raises(Determinate) as caught:
        fail()
    message = str(wire.from_error(wire.to_error(caught.value), "setting s1"))
    assert "setting s1" in message
    assert "db error" in message
    assert "query failed" in message
    assert "could not serialize access" in message
    assert "40001" in message


def test_a_circle_of_causes_ends() -> None:
    first, second = Indeterminate("first"), Indeterminate("second")
    first.__cause__, second.__cause__ = second, first
    assert wire.cause_chain(first) == ["first", "second"]


@pytest.mark.parametrize("key", ["", "k" * 513, "é" * 300])
def test_keys_outside_the_limits_are_refused(key: str) -> None:
    with pytest.raises(InvalidRequest):
        wire.check_key(key)
