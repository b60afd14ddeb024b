"""Decoded parts in memory, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias

from penstock.persist import metrics
from penstock.persist.parts import buffer_bytes
from penstock.persist.state import HollowPart, LinkedBatch, Part
from penstock.persist.store import ShardId
from penstock.runtime import Updates

_PART_BYTES_MAX = 4 * 1024 * 1024
_OBJECT_BYTES = 1024

CacheKey: TypeAlias = tuple[ShardId, int | str, int]

Located: TypeAlias = tuple[int, int, Part]
"""(batch id, index in the batch, part)."""


def cache_key(shard: ShardId, located: Located) -> CacheKey:
    """Blobs have names of their own; parts in the state have a place in a batch."""
    batch_id, index, part = located
    return (shard, part.key, 0) if isinstance(part, HollowPart) else (shard, batch_id, index)


class PartCache:
    """Parts as they were written, up to `bytes_max` in all, large ones not at all. For all shards of a client."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._parts: OrderedDict[CacheKey, Updates] = OrderedDict()
        self._bytes = 0

    def get(self, key: CacheKey) -> Updates | None:
        cached = self._parts.get(key)
        metrics.CACHE_REQUESTS.labels("miss" if cached is None else "hit").inc()
        if cached is not None:
            self._parts.move_to_end(key)
        return cached

    def takes(self, nbytes: int) -> bool:
        """Whether a part of that size is kept."""
        return nbytes <= min(_PART_BYTES_MAX, self._bytes_max)

    def keep(self, key: CacheKey, updates: Updates) -> None:
        """Keep a decoded part, unless it is too large."""
        size = _size(updates)
        if not self.takes(size) or key in self._parts:
            return
        self._parts[key] = updates
        self._bytes += size
        while self._bytes > self._bytes_max:
            _, evicted = self._parts.popitem(last=False)
            self._bytes -= _size(evicted)
        metrics.CACHE_BYTES.set(self._bytes)

    def forget(self, shard: ShardId, batches: Iterable[LinkedBatch]) -> None:
        """Make room where `batches` were kept: others took their place. Who still reads them fetches them anew."""
        for batch in batches:
            for index, part in enumerate(batch.parts):
                gone = self._parts.pop(cache_key(shard, (batch.id, index, part)), None)
                self._bytes -= 0 if gone is None else _size(gone)
        metrics.CACHE_BYTES.set(self._bytes)


def _size(updates: Updates) -> int:
    """What a part costs: its buffers and, for small parts more than these, the objects around them."""
    return buffer_bytes(updates) + _OBJECT_BYTES * (1 + updates.rows.num_columns)
