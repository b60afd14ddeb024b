"""The committer as the process that hosts it sees it: the store itself with a cache of heads and a queue before it.

A direct call, never a loopback connection: a call over the network to a server on the same event loop can
wait for itself. The gRPC service (`penstock.committer.server`) stands on the same object, so that local and
remote callers share its cache and its batches.

Is a cached head right? Heads only grow, and an entry is something the store said, so a cached head may be
old, never wrong. Two uses bear an old head and may ask with ``linearized=False``: the base of a
compare-and-set, which the store checks, and a reader that polls for progress, which sees it later (the head that a
new subscriber of pub-sub is greeted with is one). Everything else (a fresh upper, opening a handle, the catalog, an
election record) asks with ``linearized=True`` and always reaches the store: another committer, or a process that
writes to the store directly, can exist next to this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from penstock.committer import metrics
from penstock.committer.cache import ShardCache
from penstock.committer.coalesce import BATCHES_MAX, Change, Coalescer, Settle
from penstock.persist import SCAN_ALL, CasResult, Consensus, SeqNo, Versioned
from penstock.persist.store import BatchingConsensus, check_version
from penstock.runtime import Clock, ExternalError, SystemClock, TaskOwner

_log = structlog.get_logger("penstock.committer")

REFRESHES_MAX = 64
"""Background reads after mismatches, at once. Beyond that a mismatch leaves the cache old, which costs a
read later.
"""


class InProcessConsensus:
    """A `Consensus` that answers stale-tolerant heads from memory and sends compare-and-sets in batches.

    Owns `backing`: `close` closes it. Batches go to a `BatchingConsensus`; other stores get each call as it comes (they
    are in this process and gather their calls themselves).

    Errors are `backing`'s. Belongs to one event loop. Cancelling a call leaves it done or not done, as
    `backing` does.
    """

    def __init__(
        self,
        backing: Consensus,
        *,
        cache: ShardCache | None = None,
        clock: Clock | None = None,
        batches_max: int = BATCHES_MAX,
    ) -> None:
        self._backing = backing
        self._cache = cache if cache is not None else ShardCache()
        self._clock = clock if clock is not None else SystemClock()
        self._tasks = TaskOwner("committer")
        self._refreshing: set[str] = set()
        self._closed = False
        metrics.CACHED_SHARDS.set_function(lambda: len(self._cache))
        self._coalescer: Coalescer | None = None
        if isinstance(backing, BatchingConsensus):
            self._coalescer = Coalescer(backing, self._cache, self._decided, self._clock, batches_max=batches_max)

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        """The newest version; with ``linearized=False`` possibly an older one, without asking the store."""
        known = self._cache.get(key)
        if not linearized:
            if known is not None:
                metrics.CACHE_HITS.inc()
                return known
            metrics.CACHE_MISSES.inc()
        with self._timed("head"):
            version = await self._backing.head(key, linearized=True)
        if known is not None and (version is None or version.seqno < known.seqno):
            # No race explains this: the store was reset or put back. A cache that went on to refuse would be alone
            # in its world.
            _log.error("the store has lost versions", shard=key, known=known.seqno, head=version and version.seqno)
            self._cache.forget(key)
        if version is not None:
            self._remember(key, version)
        return version

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        """Commit `new` iff the head is ``new.seqno - 1``.

        One that is already known to be behind is refused without a round trip. A mismatch does not say what
        the head is, so a background read refreshes the cache for the caller's next attempt.
        """
        check_version(key, new)
        if self._cache.is_behind(key, new.seqno):
            metrics.CAS_REFUSED.inc()
            return CasResult.MISMATCH
        if self._coalescer is not None:
            return await self._coalescer.compare_and_set(key, new)
        with self._timed("compare_and_set"):
            result = await self._backing.compare_and_set(key, new)
        self._decided(key, new, result)
        return result

    @property
    def coalesces(self) -> bool:
        """Whether the store takes batches, and `room` and `offer` may be used."""
        return self._coalescer is not None

    async def room(self) -> None:
        """Return when the queue of compare-and-sets has room."""
        assert self._coalescer is not None, "this store gathers its calls itself"
        await self._coalescer.room()

    def called_by(self, processes: int) -> None:
        """See `Coalescer.called_by`."""
        if self._coalescer is not None:
            self._coalescer.called_by(processes)

    def offer(self, key: str, new: Versioned, settle: Settle) -> Change | None:
        """`compare_and_set` without a task: `settle` gets the result or the error, perhaps before this returns (None).

        Raises `Determinate` for a version that no store can hold. For callers with many at a time, who ask for `room`
        first; what is returned can be withdrawn.
        """
        assert self._coalescer is not None, "this store gathers its calls itself"
        check_version(key, new)
        if self._cache.is_behind(key, new.seqno):
            metrics.CAS_REFUSED.inc()
            settle(CasResult.MISMATCH)
            return None
        return self._coalescer.offer(key, new, settle)

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

    def forget_all(self) -> None:
        """Empty the cache: the store was reset under it."""
        self._cache.clear()

    async def close(self) -> None:
        """Refuse what waits, finish what is on its way to the store, close the store."""
        self._closed = True
        if self._coalescer is not None:
            await self._coalescer.close()
        await self._tasks.close()
        await self._backing.close()

    def _decided(self, key: str, new: Versioned, result: CasResult) -> None:
        if result is CasResult.COMMITTED:
            self._remember(key, new)
        else:
            self._refresh(key)

    def _remember(self, key: str, version: Versioned) -> None:
        self._cache.insert(key, version)

    def _refresh(self, key: str) -> None:
        if self._closed or key in self._refreshing or len(self._refreshing) >= REFRESHES_MAX:
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


_BACKING = {op: metrics.BACKING_SECONDS.labels(op) for op in metrics.OPERATIONS}
