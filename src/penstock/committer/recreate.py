"""A store whose tables come back: for the committer that runs by itself, and for no other.

A consensus store can be reset under a running ``persistd``: a table dropped, a fresh database restored in its place.
``persistd`` serves whatever store it is pointed at, so it creates the schema again (idempotent), says so with the whole
cause, and repeats the operation once. A committer inside a coordinator stands on `Consensus` as it is and reports the
missing table: to create it silently there would turn the loss of everything into an empty database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from penstock.committer import metrics
from penstock.committer.wire import cause_chain
from penstock.persist import SCAN_ALL, CasResult, SeqNo, Versioned
from penstock.persist.store import BatchingConsensus, SchemaMissing, SchemaOwner, StoreFailure

_log = structlog.get_logger("penstock.committer")

T = TypeVar("T")


class ResettableStore(BatchingConsensus, SchemaOwner, Protocol):
    """A store that tells that its tables are gone, and can create them."""


class RecreatingConsensus:
    """`store`, with its schema created again when it is found missing. Owns `store`.

    `on_reset` is called after each new creation: what was remembered of the old contents is void.
    """

    def __init__(self, store: ResettableStore, on_reset: Callable[[], None]) -> None:
        self._store = store
        self._on_reset = on_reset
        self._creations = 0
        self._creating = asyncio.Lock()

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        return await self._again(lambda: self._store.head(key, linearized=linearized))

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        return await self._again(lambda: self._store.compare_and_set(key, new))

    async def compare_and_set_many(self, changes: Sequence[tuple[str, Versioned]]) -> list[CasResult | StoreFailure]:
        before = self._creations
        results = await self._again(lambda: self._store.compare_and_set_many(changes))
        missed = [index for index, result in enumerate(results) if isinstance(result, SchemaMissing)]
        if missed:
            failure = results[missed[0]]
            assert isinstance(failure, SchemaMissing)
            await self._create(failure, before)
            again = await self._store.compare_and_set_many([changes[index] for index in missed])
            for index, result in zip(missed, again, strict=True):
                results[index] = result
        return results

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        return await self._again(lambda: self._store.scan(key, from_, limit))

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        return await self._again(lambda: self._store.truncate(key, seqno))

    async def list_keys(self) -> list[str]:
        return await self._again(self._store.list_keys)

    async def close(self) -> None:
        await self._store.close()

    async def _again(self, operation: Callable[[], Awaitable[T]]) -> T:
        before = self._creations
        try:
            return await operation()
        except SchemaMissing as error:
            await self._create(error, before)
        return await operation()

    async def _create(self, error: SchemaMissing, before: int) -> None:
        """Create the schema, unless somebody has since the operation that failed began."""
        async with self._creating:
            if self._creations != before:
                return
            _log.error(
                "the consensus store was reset: its tables are gone and are created again, empty",
                causes=cause_chain(error),
            )
            await self._store.ensure_schema()
            self._creations += 1
            metrics.SCHEMA_CREATED.inc()
            self._on_reset()
