"""The newest version of each shard that a committer has seen.

A stale or missing entry costs a read of the store. An entry is never newer than the store: it holds only
what the store answered or committed.
"""

from __future__ import annotations

from collections import OrderedDict

from penstock.persist import Versioned


class ShardCache:
    """Newest `Versioned` per key, monotonic, bounded; the least recently used entry goes first.

    Bounds: `shards_max` entries, and `bytes_max` of data together (one entry may exceed it alone and is then
    not kept).
    """

    def __init__(self, shards_max: int = 10_000, bytes_max: int = 64 << 20) -> None:
        self._shards_max = shards_max
        self._bytes_max = bytes_max
        self._entries: OrderedDict[str, Versioned] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Versioned | None:
        version = self._entries.get(key)
        if version is not None:
            self._entries.move_to_end(key)
        return version

    def is_behind(self, key: str, seqno: int) -> bool:
        """Whether a version `seqno` of `key` is surely there already, so that setting it must mismatch."""
        version = self._entries.get(key)
        return version is not None and 0 <= seqno <= version.seqno

    def forget(self, key: str) -> None:
        """Drop the entry of `key`: the store has shown that it is not there."""
        version = self._entries.pop(key, None)
        if version is not None:
            self.nbytes -= len(version.data)

    def clear(self) -> None:
        """Drop everything: the store was reset."""
        self._entries.clear()
        self.nbytes = 0

    def insert(self, key: str, version: Versioned) -> None:
        """Remember `version`; ignored when the entry is as new. The entry counts as used."""
        known = self._entries.get(key)
        if known is not None and known.seqno >= version.seqno:
            self._entries.move_to_end(key)
            return
        if known is not None:
            self.nbytes -= len(known.data)
        self._entries[key] = version
        self._entries.move_to_end(key)
        self.nbytes += len(version.data)
        while len(self._entries) > self._shards_max or self.nbytes > self._bytes_max:
            _, evicted = self._entries.popitem(last=False)
            self.nbytes -= len(evicted.data)
