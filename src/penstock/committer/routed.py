"""Consensus by one of two ways, changed at run time: through the committer, or straight to the store.

Both ways lead to one store, so each operation may take either and nothing above can tell. What a committer remembers
grows old while others write past it; that costs it a read or a refused compare-and-set, never a wrong answer (see
`penstock.committer.in_process`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from penstock.persist import SCAN_ALL, CasResult, Consensus, SeqNo, Versioned, open_existing_consensus
from penstock.persist.url import masked
from penstock.runtime import TaskOwner

_log = structlog.get_logger("penstock.committer")

_WITNESS_ATTEMPTS = 10


class WrongStore(ValueError):
    """The URL leads to another store than the committer does; to write there would split the environment in two."""


class _Direct:
    """The store itself, and how many operations are on their way to it."""

    def __init__(self, store: Consensus) -> None:
        self.store = store
        self.users = 0


class RoutedConsensus:
    """A `Consensus` that goes through `committer`, which stays the caller's to close, or directly to the store.

    Operations take the way that holds when they begin. The direct way has connections only while it is used: they are
    closed when the last operation on them has ended. Belongs to one event loop. Errors and cancellation are those of
    the way that was taken.
    """

    def __init__(
        self, committer: Consensus, url: str | None, *, open_: Callable[[str], Consensus] = open_existing_consensus
    ) -> None:
        """`url`: of the store that the committer serves; None or empty when this process does not know it."""
        self._committer = committer
        self._url = url
        self._open = open_
        self._direct: _Direct | None = None
        self._retired: set[_Direct] = set()
        """Direct ways that were left, with operations on them."""
        self._closing: set[asyncio.Task[None]] = set()
        self._tasks = TaskOwner("routed-consensus")

    @property
    def uses_committer(self) -> bool:
        return self._direct is None

    def use_committer(self) -> None:
        """From now on through the committer."""
        direct, self._direct = self._direct, None
        if direct is not None:
            _log.info("consensus goes through the committer")
            self._retired.add(direct)
            self._close_unused(direct)

    def use_store(self) -> None:
        """From now on straight to the store. Raises `ValueError` without a URL that can work, `ExternalError` when it
        cannot be opened; the way stays what it was then.
        """
        if self._direct is None:
            self._direct = _Direct(self._opened())
            _log.info("consensus goes directly to the store", url=masked(self._url or ""))

    async def check_store(self, witness: str) -> None:
        """Return when the direct way leads to the committer's store: when both know the newest version of the key
        `witness`, which must have been written.

        Raises `WrongStore` when it does not, `ValueError` without a URL that can work, and `ExternalError` when either
        way fails. Changes nothing.
        """
        store = self._opened()
        try:
            for _ in range(_WITNESS_ATTEMPTS):
                head = await self._committer.head(witness)
                if head is None:
                    raise WrongStore(f"the committer knows nothing of {witness}")
                found = await store.scan(witness, head.seqno, 1)
                if found == [head]:
                    return
                if not found or found[0].seqno == head.seqno:
                    break
                # A newer one only: the version was truncated between the two looks.
            raise WrongStore(f"{masked(self._url or '')} is not the store that the committer serves")
        finally:
            await store.close()

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        with self._way() as store:
            return await store.head(key, linearized=linearized)

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        with self._way() as store:
            return await store.compare_and_set(key, new)

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        with self._way() as store:
            return await store.scan(key, from_, limit)

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        with self._way() as store:
            return await store.truncate(key, seqno)

    async def list_keys(self) -> list[str]:
        with self._way() as store:
            return await store.list_keys()

    async def close(self) -> None:
        """Close the direct way, if it is open; its operations are finished. No other call may follow."""
        ways, self._retired = list(self._retired), set()
        if self._direct is not None:
            ways.append(self._direct)
        await asyncio.gather(*self._closing, *(way.store.close() for way in ways))
        await self._tasks.close()

    def _opened(self) -> Consensus:
        if not self._url:
            raise ValueError("this process was not told where the consensus store is")
        return self._open(self._url)

    @contextmanager
    def _way(self) -> Iterator[Consensus]:
        direct = self._direct
        if direct is None:
            yield self._committer
            return
        direct.users += 1
        try:
            yield direct.store
        finally:
            direct.users -= 1
            self._close_unused(direct)

    def _close_unused(self, direct: _Direct) -> None:
        if direct in self._retired and not direct.users:
            self._retired.discard(direct)
            closing = self._tasks.spawn(direct.store.close(), "close the direct way")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
