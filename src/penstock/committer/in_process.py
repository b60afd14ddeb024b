"""The committer as the process that hosts it sees it: the store itself with a cache of heads before it.

A direct call, never a loopback connection: a call over the network to a server on the same event loop can
wait for itself. The gRPC service (`penstock.committer.server`) stands on the same object, so that local and
remote callers share its cache.

Is a cached head right? Heads only grow, and an entry is something the store said, so a cached head may be
old, never wrong. Two uses bear an old head and may ask with ``linearized=False``: the base of a
compare-and-set, which the store checks, and a reader that polls for progress, which sees it later.
Everything else (a fresh upper, opening a handle, the catalog, an election record) asks with
``linearized=True`` and always reaches the store: another committer, or a process that writes to the store
directly, can exist next to this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from penstock.committer import metrics
from penstock.committer.cache import ShardCache
from penstock.persist import SCAN_ALL, CasResult, Consensus, SeqNo, Versioned
from penstock.runtime import Clock, ExternalError, SystemClock, TaskOwner

_log = structlog.get_logger("penstock.committer")

REFRESHES_MAX = 64
"""Background reads after mismatches, at once. Beyond that a mismatch leaves the cache old, which costs a
read later.
"""


class InProcessConsensus:
    """A `Consensus` that answers stale-tolerant heads from memory. Owns `backing`: `close` closes it.

    Errors are `backing`'s. Belongs to one event loop. Cancelling a call leaves it done or not done, as
    `backing` does.
    """

    def __init__(self, backing: Consensus, *, cache: ShardCache | None = None, clock: Clock | None = None) -> None:
        self._backing = backing
        self._cache = cache if cache is not None else ShardCache()
        self._clock = clock if clock is not None else SystemClock()
        self._tasks = TaskOwner("committer")
        self._refreshing: set[str] = set()

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        """The newest version; with ``linearized=False`` possibly an older one, without asking the store."""
        if not linearized:
            cached = self._cache.get(key)
            if cached is not None:
                metrics.CACHE_HITS.inc()
                return cached
            metrics.CACHE_MISSES.inc()
        with self._timed("head"):
            version = await self._backing.head(key, linearized=True)
        if version is not None:
            self._remember(key, version)
        return version

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        """Commit `new` iff the head is ``new.seqno - 1``.

        One that is already known to be behind is refused without a round trip. A mismatch does not say what
        the head is, so a background read refreshes the cache for the caller's next attempt.
        """
        cached = self._cache.get(key)
        if cached is not None and 0 <= new.seqno <= cached.seqno:
            metrics.CAS_REFUSED.inc()
            return CasResult.MISMATCH
        with self._timed("compare_and_set"):
            result = await self._backing.compare_and_set(key, new)
        if result is CasResult.COMMITTED:
            self._remember(key, new)
        else:
            self._refresh(key)
        return result

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        with self._timed("scan"):
            versions = await self._backing.scan(key, from_, limit)
        if versions:
            self._remember(key, versions[-1])
        return versions

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        with self._timed("truncate"):
            return await self._backing.truncate(key, seqno)

    async def list_keys(self) -> list[str]:
        with self._timed("list_keys"):
            return await self._backing.list_keys()

    async def close(self) -> None:
        await self._tasks.close()
        await self._backing.close()

    def _remember(self, key: str, version: Versioned) -> None:
        self._cache.insert(key, version)
        metrics.CACHED_SHARDS.set(len(self._cache))

    def _refresh(self, key: str) -> None:
        if key in self._refreshing or len(self._refreshing) >= REFRESHES_MAX:
            return
        self._refreshing.add(key)
        self._tasks.spawn(self._refresh_head(key), f"refresh {key}")

    async def _refresh_head(self, key: str) -> None:
        started = self._clock.monotonic()
        try:
            await self.head(key)
        except ExternalError as error:
            _log.debug("could not refresh the head of a shard", shard=key, error=str(error))
        finally:
            self._refreshing.discard(key)
        metrics.REFRESH_SECONDS.observe(self._clock.monotonic() - started)

    @contextmanager
    def _timed(self, op: str) -> Iterator[None]:
        started = self._clock.monotonic()
        try:
            yield
        finally:
            _BACKING[op].observe(self._clock.monotonic() - started)


_BACKING = {
    op: metrics.BACKING_SECONDS.labels(op) for op in ("head", "compare_and_set", "scan", "truncate", "list_keys")
}
