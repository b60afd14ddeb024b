"""Consolidated snapshots within a bound of memory: each row comes once, with its number of occurrences.

What fits into memory is consolidated there. Beyond that rows are distributed over files by their hashes, so that
equal rows meet in one file, and each file is taken by itself, distributed once more if it is still too large. Each
level divides by 16 and costs one pass over what is left; the shard itself is read once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from penstock.persist.config import PersistConfig
from penstock.persist.partstore import PartStore
from penstock.persist.spill import DEPTH_MAX, SpilledPartitions
from penstock.runtime import Updates

A = TypeVar("A")
T = TypeVar("T")

_CHUNK_ROWS = 64 * 1024
_ROWS_MIN = 16
"""Fewer rows stay together, however large they are: files would not make them smaller."""


class Contents(Protocol):
    """A snapshot that is not consolidated."""

    def __aiter__(self) -> AsyncIterator[Updates]: ...
    async def aclose(self) -> None: ...


class SnapshotCursor:
    """An async iterator of consolidated updates, some ten thousand rows at a time, in no order.

    No row comes twice, in whatever chunks. Memory is bounded by a few times `snapshot_memory_bytes`. Any error is its
    last answer. `aclose` releases what an unfinished one holds; so does reading to the end.
    """

    def __init__(self, snapshot: Contents, parts: PartStore) -> None:
        self._snapshot = snapshot
        self._parts = parts
        self._config: PersistConfig = parts.config
        self._chunks = self._consolidated(aiter(snapshot), 0)

    def __aiter__(self) -> SnapshotCursor:
        return self

    async def __anext__(self) -> Updates:
        try:
            return await anext(self._chunks)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop, give the lease back, remove the files. May be called twice."""
        await self._chunks.aclose()
        await self._snapshot.aclose()

    async def _consolidated(self, source: AsyncIterator[Updates], depth: int) -> AsyncGenerator[Updates, None]:
        gathered: list[Updates] = []
        gathered_bytes = 0
        async for updates in source:
            gathered.append(updates)
            gathered_bytes += updates.nbytes
            if gathered_bytes <= self._config.snapshot_memory_bytes:
                continue
            merged = await self._run(_consolidate, gathered)
            gathered, gathered_bytes = [merged], merged.nbytes
            too_large = gathered_bytes > self._config.snapshot_memory_bytes // 2
            if too_large and len(merged) > _ROWS_MIN and depth < DEPTH_MAX:
                async for chunk in self._spilled(merged, source, depth):
                    yield chunk
                return
        if gathered:
            merged = await self._run(_consolidate, gathered)
            gathered.clear()
            for start in range(0, len(merged), _CHUNK_ROWS):
                yield merged.slice(start, min(start + _CHUNK_ROWS, len(merged)))

    async def _spilled(self, first: Updates, rest: AsyncIterator[Updates], depth: int) -> AsyncGenerator[Updates, None]:
        """`first` and the `rest` by way of files."""
        partitions = SpilledPartitions(first.schema, depth, self._config.spill_directory)
        try:
            await self._run(partitions.add, first)
            del first
            async for updates in rest:
                await self._run(partitions.add, updates)
            for number in range(partitions.count):
                async for chunk in self._consolidated(self._read(partitions, number), depth + 1):
                    yield chunk
        finally:
            partitions.close()

    async def _read(self, partitions: SpilledPartitions, number: int) -> AsyncGenerator[Updates, None]:
        batches = await self._run(partitions.read, number)
        while (updates := await self._parts.run(partial(next, batches, None))) is not None:
            yield updates

    async def _run(self, function: Callable[[A], T], argument: A) -> T:
        return await self._parts.run(partial(function, argument))


def _consolidate(parts: Sequence[Updates]) -> Updates:
    return Updates.concat(parts).consolidate()
