"""What every blob store must do, whatever it is made of."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import Blob

MANY = 120
"""More than one page of the listing of the S3 that tests use (`tests/servers.py`)."""

ODD = ["s1/w/b c%/…", "s1/%2F", "s1/=25", "s1/.hidden", "s1/a+b&c=d?e#f", "s1/~tilde", "s1/quo\"te'", "s1/ü/日本"]


async def conforms(blob: Blob) -> None:
    """The contract of `Blob`, on an empty store."""
    assert await blob.get("s1/a") is None
    assert await blob.delete("s1/a") is None
    assert await blob.list_prefix("") == []
    assert await blob.list_prefix("nothing/") == []
    await blob.set("s1/a", b"one")
    assert await blob.get("s1/a") == b"one"
    assert await blob.get("s1") is None, "a prefix is not an object"
    await blob.set("s1/a", b"other")
    assert await blob.get("s1/a") == b"other", "the last value counts"
    await blob.set("s1/empty", b"")
    assert await blob.get("s1/empty") == b""
    assert await blob.delete("s1/empty") == 0
    assert await blob.delete("s1/empty") is None
    assert await blob.delete("s1/a") == 5
    assert await blob.get("s1/a") is None
    await blob.set("s1/a", b"again")
    assert await blob.get("s1/a") == b"again", "a key may be used again"
    big = bytes(range(256)) * 4096
    await blob.set("s10/a", big)
    assert await blob.get("s10/a") == big
    assert await blob.delete("s10/a") == len(big)


async def lists_by_prefix(blob: Blob) -> None:
    """A prefix is a string, not a folder: it may end within a segment. Names come back as they were given."""
    for key in [*ODD, "s1/a", "s10/a", "s1/w/x", "S1/a"]:
        await blob.set(key, key.encode())
    for key in ODD:
        assert await blob.get(key) == key.encode()
    everything = sorted((key, len(key.encode())) for key in [*ODD, "s1/a", "s10/a", "s1/w/x", "S1/a"])
    assert await blob.list_prefix("") == everything
    prefixes = [
        "s",
        "s1",
        "s1/",
        "s1/w",
        "s1/w/",
        "s1/w/b ",
        "s1/%",
        "s1/%2",
        "s1/=",
        "s1/.",
        "s10",
        "s1/ü",
        "S1",
        "x",
        "s1/a/",
    ]
    for prefix in prefixes:
        expected = [(key, size) for key, size in everything if key.startswith(prefix)]
        assert await blob.list_prefix(prefix) == expected, prefix
    for key in ODD:
        assert await blob.delete(key) == len(key.encode())
    assert [key for key, _ in await blob.list_prefix("s1/")] == ["s1/a", "s1/w/x"]


async def lists_many(blob: Blob) -> None:
    """A listing is whole, however many pages it takes."""
    keys = [f"many/{number:04}" for number in range(MANY)]
    await asyncio.gather(*(blob.set(key, b"x" * (number % 7)) for number, key in enumerate(keys)))
    assert await blob.list_prefix("many/") == [(key, number % 7) for number, key in enumerate(keys)]
    assert len(await blob.list_prefix("many/00")) == 100
    sizes = await asyncio.gather(*(blob.delete(key) for key in keys))
    assert sizes == [number % 7 for number in range(MANY)]
    assert await blob.list_prefix("many/") == []


async def replaces_whole(blob: Blob) -> None:
    """Readers next to a writer see one value or the other, never a mixture and never nothing."""
    values = [bytes([number]) * 50_000 for number in range(8)]
    await blob.set("k/x", values[0])

    async def read() -> None:
        for _ in range(10):
            seen = await blob.get("k/x")
            assert seen in values

    await asyncio.gather(read(), read(), *(blob.set("k/x", value) for value in values))


async def agrees_between_handles(first: Blob, second: Blob, elsewhere: Blob) -> None:
    """Two handles on one location see each other at once; another location sees nothing."""
    await first.set("s/a", b"x")
    assert await second.get("s/a") == b"x"
    await second.set("s/a", b"xyz")
    assert await first.get("s/a") == b"xyz"
    assert await first.list_prefix("s/") == await second.list_prefix("s/") == [("s/a", 3)]
    assert await elsewhere.get("s/a") is None
    assert await elsewhere.list_prefix("") == []
    assert await first.delete("s/a") == 3
    assert await second.get("s/a") is None
    await second.set("s/stays", b"1")


async def refuses_when_closed(blob: Blob) -> None:
    """A closed store says so; nothing hangs."""
    await blob.close()
    with pytest.raises(Exception, match=r"closed|shutdown"):
        await blob.get("s/a")


CASES = [conforms, lists_by_prefix, lists_many, replaces_whole]
