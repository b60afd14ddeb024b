"""The cache of heads: monotonic and bounded."""

from penstock.committer import ShardCache
from penstock.persist import SeqNo, Versioned


def version(seqno: int, size: int = 1) -> Versioned:
    return Versioned(SeqNo(seqno), b"x" * size)


def test_entries_never_go_back() -> None:
    cache = ShardCache()
    cache.insert("s", version(5))
    cache.insert("s", version(4))
    cache.insert("s", Versioned(SeqNo(5), b"other"))
    assert cache.get("s") == version(5)
    cache.insert("s", version(6, 3))
    assert cache.get("s") == version(6, 3)
    assert (len(cache), cache.nbytes) == (1, 3)


def test_the_least_recently_used_entry_is_evicted() -> None:
    cache = ShardCache(shards_max=2)
    cache.insert("a", version(1))
    cache.insert("b", version(1))
    assert cache.get("a") is not None
    cache.insert("c", version(1))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None


def test_bytes_are_bounded_even_against_one_large_entry() -> None:
    cache = ShardCache(bytes_max=10)
    cache.insert("a", version(1, 6))
    cache.insert("b", version(1, 6))
    assert cache.get("a") is None
    assert cache.nbytes == 6
    cache.insert("c", version(1, 11))
    assert cache.get("c") is None
    assert (len(cache), cache.nbytes) == (0, 0)
