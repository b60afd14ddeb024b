"""Parts in the blob store: upload, fetch with verification, a cache of decoded parts."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from penstock.persist import metrics
from penstock.persist.config import PersistConfig
from penstock.persist.errors import ClientClosed, CorruptBlobError
from penstock.persist.part_cache import Located, PartCache, cache_key
from penstock.persist.parts import (
    PartDamaged,
    copied,
    decode_inline,
    decode_object,
    encode_object,
    select_rows,
)
from penstock.persist.retry import patiently
from penstock.persist.schema import Migration, SchemaId, migration
from penstock.persist.state import HollowPart, InlinePart, Part
from penstock.persist.store import Blob, ShardId
from penstock.runtime import Clock, ExternalError, Updates, random_uuid

T = TypeVar("T")

_PIECE_BYTES_MIN = 8 * 1024 * 1024
"""Half a tenth of a second of encoding; smaller parts cost their readers more than they save their writer."""
_DECODED_PER_ENCODED = 4
"""Guess for parts that do not say how large they are in memory."""
_AT_ONCE_BYTES = 32 * 1024
"""Some hundred rows: a fraction of a millisecond."""
_THREADS = 4
_NICENESS = 10
_DELETES = 32
"""Blobs deleted at a time."""


class PartStore:
    """Moves updates between memory and blobs for one client. Encoding and decoding run in `threads`; what is decoded
    is kept in `cache`.
    """

    def __init__(
        self, blob: Blob, cache: PartCache, threads: ThreadPoolExecutor, clock: Clock, config: PersistConfig
    ) -> None:
        self.blob = blob
        self.cache = cache
        self.config = config
        self._threads = threads
        self._clock = clock
        self._closed = False

    async def upload(
        self, shard: ShardId, owner: str, updates: Updates, schema: SchemaId, *, part_bytes: int | None = None
    ) -> list[HollowPart]:
        """Store `updates` as parts of about `part_bytes` (None: the configured size) under ``shard/owner/``.

        `schema`: the number of their schema. Durable on return.

        On an error, what was stored before it is deleted as far as possible; a cancelled call leaves
        orphans to the sweep rather than prolong itself.
        """
        slices = list(enumerate(_slices(updates, part_bytes or self._piece_bytes(updates.nbytes))))
        written: dict[int, HollowPart] = {}
        try:
            for start in range(0, len(slices), self.config.uploads):
                async with asyncio.TaskGroup() as tasks:
                    for index, one in slices[start : start + self.config.uploads]:
                        tasks.create_task(self._upload_one(shard, owner, index, one, schema, written))
        except BaseExceptionGroup as failures:
            await self._discard(shard, list(written.values()))
            raise failures.exceptions[0] from failures
        return [written[index] for index, _ in slices]

    def _piece_bytes(self, nbytes: int) -> int:
        """Size of the parts of a write of `nbytes`: all processors encode one that is worth it."""
        at_once = max(1, min(self.config.uploads, nbytes // _PIECE_BYTES_MIN))
        return min(self.config.part_bytes, -(-nbytes // at_once))

    async def _upload_one(
        self,
        shard: ShardId,
        owner: str,
        index: int,
        updates: Updates,
        schema: SchemaId,
        written: dict[int, HollowPart],
    ) -> None:
        key = f"{owner}/{new_part_name(self._clock.now_ms(), index)}"
        stats_bytes = self.config.stats_bytes if updates.nbytes >= self.config.stats_from_bytes else 0
        data, part, kept = await self.run(lambda: self._encoded(updates, key, schema, stats_bytes))
        await self._patiently(lambda: self.blob.set(f"{shard}/{key}", data), f"write part {key} of {shard}")
        metrics.PART_BYTES.labels("written").inc(len(data))
        written[index] = part
        if kept is not None:
            self.cache.keep((shard, key, 0), kept)

    def _encoded(
        self, updates: Updates, key: str, schema: SchemaId, stats_bytes: int
    ) -> tuple[bytes, HollowPart, Updates | None]:
        """What goes into the blob, its description, and what is kept: who writes small parts mostly merges them soon.

        A copy is kept. The updates may be over memory of the caller's that he writes to once he has appended it.
        """
        data, part = encode_object(updates, key, schema, stats_bytes)
        return data, part, copied(updates) if self.cache.takes(updates.nbytes) else None

    async def fetch(
        self, shard: ShardId, located: Located, written: pa.Schema, wanted: pa.Schema, *, keep: bool = True
    ) -> Updates:
        """The updates of a part that was written with `written`, as rows of `wanted`. Raises
        `CorruptBlobError`.

        `keep`: in the cache, for whoever reads it next.
        """
        part = located[2]
        plan = migration(written, wanted)
        key = cache_key(shard, located)
        cached = self.cache.get(key)
        if cached is not None:
            return _migrated(cached, plan)
        if not isinstance(part, HollowPart):
            updates = decode_inline(part, written)
            if keep:
                self.cache.keep(key, updates)
            return _migrated(updates, plan)
        name = f"{shard}/{part.key}"
        data = await self._patiently(lambda: self.blob.get(name), f"read part {name}")
        if data is None:
            raise CorruptBlobError(shard, name, "it does not exist")
        metrics.PART_BYTES.labels("read").inc(len(data))
        try:
            updates = await self.run(lambda: decode_object(data, part, written, plan.read))
        except PartDamaged as error:
            raise CorruptBlobError(shard, name, str(error)) from error
        if plan.read is None and keep:
            self.cache.keep(key, updates)
        return updates.with_rows(plan.apply(updates.rows))

    async def delete(self, shard: ShardId, keys: Sequence[str]) -> None:
        """Delete blobs by their keys within `shard`; those that are gone already are fine."""
        for start in range(0, len(keys), _DELETES):
            some = keys[start : start + _DELETES]
            for outcome in await asyncio.gather(
                *(self._delete_one(f"{shard}/{key}") for key in some), return_exceptions=True
            ):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _delete_one(self, key: str) -> None:
        await self._patiently(lambda: self.blob.delete(key), f"delete {key}")

    async def _discard(self, shard: ShardId, parts: Sequence[HollowPart]) -> None:
        for part in parts:
            try:
                await self.blob.delete(f"{shard}/{part.key}")
            except ExternalError:
                return  # the error that led here matters more; the sweep finds the orphan

    def close(self) -> None:
        """Refuse further work, and let the threads end."""
        self._closed = True
        self._threads.shutdown(wait=False)

    async def run(self, operation: Callable[[], T], nbytes: int | None = None) -> T:
        """Run CPU-heavy `operation` in a thread. Raises `ClientClosed` after `close`.

        `nbytes`: what it works on, where that may be so little that handing it over takes longer than doing it.
        """
        if self._closed:
            raise ClientClosed("the persist client is closed")
        if nbytes is not None and nbytes <= _AT_ONCE_BYTES:
            return operation()
        return await asyncio.get_running_loop().run_in_executor(self._threads, operation)

    async def _patiently(self, operation: Callable[[], Awaitable[T]], what: str) -> T:
        return await patiently(operation, self._clock, self.config.store_retry_ms, what)


@dataclass(frozen=True, slots=True)
class PartStores:
    """One store and one cache, by three pools of threads: merges keep no part that somebody waits for from being
    encoded or decoded, and long merges keep no short ones waiting. Where processors are short, all merges stand back.
    """

    foreground: PartStore
    short_merges: PartStore
    merges: PartStore

    @staticmethod
    def open(blob: Blob, clock: Clock, config: PersistConfig) -> PartStores:
        cache = PartCache(config.cache_bytes)

        def store(name: str, threads: int, initializer: Callable[[], None] | None) -> PartStore:
            pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=initializer)
            return PartStore(blob, cache, pool, clock, config)

        return PartStores(
            store("persist", _THREADS, None),
            store("persist-short-merge", config.compaction_concurrency, _stand_back),
            store("persist-merge", config.compaction_concurrency, _stand_back),
        )

    def close(self) -> None:
        for store in (self.foreground, self.short_merges, self.merges):
            store.close()


def _stand_back() -> None:
    """Give this thread a tenth of what others get of a processor that both want. Elsewhere than on Linux niceness is
    the process's.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def memory_of(part: Part) -> int:
    """Bytes of the decoded `part`, by its own account or guessed."""
    if isinstance(part, HollowPart):
        return part.memory or _DECODED_PER_ENCODED * part.size
    return part.raw_size or len(part.data)


def inline_updates(part: InlinePart, written: pa.Schema, wanted: pa.Schema) -> Updates:
    """The updates of `part`, which was written with one schema, as rows of another."""
    return _migrated(decode_inline(part, written), migration(written, wanted))


def _migrated(updates: Updates, plan: Migration) -> Updates:
    rows = updates.rows if plan.read is None else select_rows(updates.rows, plan.read)
    return updates.with_rows(plan.apply(rows))


def new_part_name(now_ms: int, index: int) -> str:
    """``p<milliseconds><index>-<uuid>`` in fixed-width hex: sorts by age, which lets a sweep spare young
    parts.
    """
    return f"p{now_ms:012x}{index:04x}-{random_uuid().hex}"


def part_time_ms(name: str) -> int | None:
    """When the part called `name` (last segment of its key) was written, None when it is no part."""
    try:
        return int(name[1:13], 16) if name.startswith("p") else None
    except ValueError:
        return None


def age_ms(parts: Iterable[Part], now_ms: int) -> int:
    """How long ago the first blob of `parts` was written; 0 for none."""
    names = (part.key.rpartition("/")[2] for part in parts if isinstance(part, HollowPart))
    written = [time for time in map(part_time_ms, names) if time is not None]
    return now_ms - min(written, default=now_ms)


def _slices(updates: Updates, bytes_max: int) -> list[Updates]:
    """`updates` in consecutive pieces of about `bytes_max` in memory. No copy."""
    count = len(updates)
    pieces = max(1, -(-updates.nbytes // bytes_max))
    step = max(1, -(-count // pieces))
    if step >= count:
        return [updates]
    return [
        Updates(
            updates.rows.slice(start, step),
            updates.times[start : start + step],
            updates.diffs[start : start + step],
        )
        for start in range(0, count, step)
    ]
