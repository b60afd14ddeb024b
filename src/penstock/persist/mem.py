"""Stores in memory: for tests, simulations and throw-away databases. Nothing survives the process.

Every operation takes effect in one step of the event loop, then lets others run, so that nobody starves.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left

from penstock.persist.store import (
    SCAN_ALL,
    CasResult,
    SeqNo,
    Versioned,
    check_version,
    truncated_beyond_head,
)


class MemBlob:
    """A `Blob` in a dictionary."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        value = self._objects.get(key)
        await asyncio.sleep(0)
        return value

    async def set(self, key: str, value: bytes) -> None:
        self._objects[key] = bytes(value)
        await asyncio.sleep(0)

    async def delete(self, key: str) -> int | None:
        value = self._objects.pop(key, None)
        await asyncio.sleep(0)
        return None if value is None else len(value)

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        found = sorted((key, len(value)) for key, value in self._objects.items() if key.startswith(prefix))
        await asyncio.sleep(0)
        return found

    async def close(self) -> None:
        """Nothing to release; the contents stay, so that a test can hand them to a second client."""


class MemConsensus:
    """A `Consensus` in a dictionary."""

    def __init__(self) -> None:
        self._logs: dict[str, list[Versioned]] = {}

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        log = self._logs.get(key)
        newest = log[-1] if log else None
        await asyncio.sleep(0)
        return newest

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        check_version(key, new)
        log = self._logs.get(key)
        head = log[-1].seqno if log else -1
        if new.seqno != head + 1:
            await asyncio.sleep(0)
            return CasResult.MISMATCH
        self._logs.setdefault(key, []).append(Versioned(new.seqno, bytes(new.data)))
        await asyncio.sleep(0)
        return CasResult.COMMITTED

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        log = self._logs.get(key, [])
        start = bisect_left(log, from_, key=lambda version: version.seqno)
        versions = log[start : start + limit]
        await asyncio.sleep(0)
        return versions

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        log = self._logs.get(key)
        if not log or seqno > log[-1].seqno:
            raise truncated_beyond_head(key, seqno, log[-1].seqno if log else None)
        removed = bisect_left(log, seqno, key=lambda version: version.seqno)
        del log[:removed]
        await asyncio.sleep(0)
        return removed

    async def list_keys(self) -> list[str]:
        return sorted(self._logs)

    async def close(self) -> None:
        """Nothing to release; the contents stay, so that a test can hand them to a second client."""
