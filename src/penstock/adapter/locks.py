"""Write locks on tables: shared for blind inserts, exclusive for statements that read what they then write.

UPDATE and DELETE read at one time and write at a later one; the exclusive lock keeps every other write away from the
tables they read in between, which is what makes them serializable. Blind inserts do not read, so any number may go on
together. Waiters are served in order of arrival (no writer starves), and a wait that could never end is refused as a
deadlock when it begins.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from penstock.runtime import SqlError


@dataclass(eq=False)
class _Request:
    owner: Hashable
    exclusive: bool
    granted: asyncio.Future[None]


@dataclass(eq=False)
class _Lock:
    holders: dict[Hashable, bool] = field(default_factory=dict)
    """Owner -> holds it exclusively."""
    queue: list[_Request] = field(default_factory=list)

    def admits(self, owner: Hashable, exclusive: bool) -> bool:
        others = [held for holder, held in self.holders.items() if holder != owner]
        return not others if exclusive else not any(others)


class TableLocks:
    """All locks of one coordinator. Owners are sessions; used from one event loop."""

    def __init__(self) -> None:
        self._locks: dict[str, _Lock] = {}
        self._waiting: dict[Hashable, str] = {}
        """Owner -> the table whose lock it waits for; an owner waits for one thing at a time."""

    async def acquire(self, owner: Hashable, tables: Collection[str], *, exclusive: bool) -> None:
        """Hold the locks of all `tables` (ids), in one global order, until `release`.

        A shared lock that the owner already holds is raised to exclusive where asked for. Raises `SqlError` 40P01
        when waiting could never end; locks that were held before stay held. A cancelled call keeps no lock that it
        was the one to acquire.
        """
        fresh: list[str] = []
        try:
            for table in sorted(tables):
                held = self._locks.get(table, _Lock()).holders.get(owner)
                if held is None:
                    fresh.append(table)
                if held is None or (exclusive and not held):
                    await self._acquire_one(owner, table, exclusive)
        except BaseException:
            for table in fresh:
                self._release_one(owner, table)
            raise

    def release(self, owner: Hashable) -> None:
        """Let go of everything that `owner` holds. Idempotent."""
        for table in [table for table, lock in self._locks.items() if owner in lock.holders]:
            self._release_one(owner, table)

    def held(self, owner: Hashable) -> frozenset[str]:
        """The tables on which `owner` holds a lock."""
        return frozenset(table for table, lock in self._locks.items() if owner in lock.holders)

    async def _acquire_one(self, owner: Hashable, table: str, exclusive: bool) -> None:
        lock = self._locks.setdefault(table, _Lock())
        upgrade = owner in lock.holders
        if lock.admits(owner, exclusive) and (upgrade or not lock.queue):
            lock.holders[owner] = exclusive
            return
        self._refuse_deadlock(owner, table)
        request = _Request(owner, exclusive, asyncio.get_running_loop().create_future())
        # An upgrade goes first: whoever waits before it waits for its owner anyway.
        lock.queue.insert(0 if upgrade else len(lock.queue), request)
        self._waiting[owner] = table
        try:
            await request.granted
        except asyncio.CancelledError:
            if request in lock.queue:
                lock.queue.remove(request)
            elif not upgrade:
                lock.holders.pop(owner, None)
            self._grant(table)
            raise
        finally:
            del self._waiting[owner]

    def _refuse_deadlock(self, owner: Hashable, table: str) -> None:
        """Follow who waits for whom; meeting `owner` again means that nobody would ever go on."""
        lock = self._locks[table]
        pending = set(lock.holders) - {owner}
        if owner not in lock.holders:  # an upgrade does not stand in line
            pending |= {request.owner for request in lock.queue}
        seen: set[Hashable] = set()
        while pending:
            blocker = pending.pop()
            if blocker == owner:
                raise SqlError(
                    "deadlock detected",
                    sqlstate="40P01",
                    detail=f"Whoever holds the write lock on {table} waits for one that this transaction holds.",
                    hint="Roll back and run the transaction again.",
                )
            seen.add(blocker)
            if blocker in self._waiting:
                waited = self._locks[self._waiting[blocker]]
                ahead = itertools.takewhile(lambda request: request.owner != blocker, waited.queue)  # noqa: B023
                pending |= (set(waited.holders) | {request.owner for request in ahead}) - {blocker} - seen

    def _release_one(self, owner: Hashable, table: str) -> None:
        lock = self._locks.get(table)
        if lock is not None and lock.holders.pop(owner, None) is not None:
            self._grant(table)

    def _grant(self, table: str) -> None:
        lock = self._locks.get(table)
        if lock is None:
            return
        while lock.queue and lock.admits(lock.queue[0].owner, lock.queue[0].exclusive):
            request = lock.queue.pop(0)
            if not request.granted.done():
                lock.holders[request.owner] = request.exclusive
                request.granted.set_result(None)
        if not lock.holders and not lock.queue:
            del self._locks[table]
