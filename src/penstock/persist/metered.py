"""Stores that count: what each operation took, moved and cost. See `metrics`."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from penstock.persist.metrics import StoreMetrics, of_store
from penstock.persist.store import SCAN_ALL, Blob, CasResult, Consensus, SeqNo, Versioned
from penstock.runtime import Clock, Determinate, ExternalError

T = TypeVar("T")


async def _metered(clock: Clock, count: StoreMetrics, operation: Awaitable[T]) -> T:
    count.started.inc()
    began_s = clock.monotonic()
    try:
        return await operation
    except ExternalError as error:
        (count.determinate if isinstance(error, Determinate) else count.indeterminate).inc()
        raise
    finally:
        count.seconds.observe(clock.monotonic() - began_s)


class MeteredBlob:
    """A `Blob` in front of `inner`, which stays the caller's to close."""

    def __init__(self, inner: Blob, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock

    async def get(self, key: str) -> bytes | None:
        count = of_store("blob_get")
        data = await _metered(self._clock, count, self.inner.get(key))
        if data is not None:
            count.bytes.inc(len(data))
        return data

    async def set(self, key: str, value: bytes) -> None:
        count = of_store("blob_set")
        await _metered(self._clock, count, self.inner.set(key, value))
        count.bytes.inc(len(value))

    async def delete(self, key: str) -> int | None:
        count = of_store("blob_delete")
        size = await _metered(self._clock, count, self.inner.delete(key))
        count.bytes.inc(size or 0)
        return size

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        return await _metered(self._clock, of_store("blob_list"), self.inner.list_prefix(prefix))

    async def close(self) -> None:
        await self.inner.close()


class MeteredConsensus:
    """A `Consensus` in front of `inner`, which stays the caller's to close."""

    def __init__(self, inner: Consensus, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        count = of_store("consensus_head")
        found = await _metered(self._clock, count, self.inner.head(key, linearized=linearized))
        if found is not None:
            count.bytes.inc(len(found.data))
        return found

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        count = of_store("consensus_cas")
        result = await _metered(self._clock, count, self.inner.compare_and_set(key, new))
        count.bytes.inc(len(new.data))
        return result

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        count = of_store("consensus_scan")
        versions = await _metered(self._clock, count, self.inner.scan(key, from_, limit))
        count.bytes.inc(sum(len(version.data) for version in versions))
        return versions

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        return await _metered(self._clock, of_store("consensus_truncate"), self.inner.truncate(key, seqno))

    async def list_keys(self) -> list[str]:
        return await _metered(self._clock, of_store("consensus_list_keys"), self.inner.list_keys())

    async def close(self) -> None:
        await self.inner.close()
