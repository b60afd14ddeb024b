"""Read holds: promises that a collection stays readable at a time.

Whoever will read at `t` owns a hold at or before `t` until done (law 4). The since of a collection is the
least time anybody holds; it never goes back, and whatever compacts the collection (a durable shard, an index
in a replica) follows it and never leads. Holds are released by hand, not by the garbage collector, because
the order matters: first cancel the reader, then release. A hold that is collected while alive is released
then, and logged as the leak it is.

Contract of `HoldBook`:

* `since` is monotone: a hold can be taken only at or beyond it.
* Counts never go below zero; a released hold is inert.
* `on_change` is called with the book after each change of `since`, on the caller's stack; it must only take
  note.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from types import TracebackType

import structlog

from penstock.runtime import DONE, Frontier, GlobalId, InternalError, PenstockError

_log = structlog.get_logger("penstock.control.holds")


class SinceError(PenstockError):
    """A hold was asked for at a time that may be compacted already. `since`: the earliest that can be had."""

    def __init__(self, id_: GlobalId, at: Frontier, since: Frontier) -> None:
        super().__init__(f"{id_} cannot be held at {at}: it is readable from {since} on")
        self.id = id_
        self.since = since


class HoldBook:
    """All holds on one collection: a multiset of times with its minimum at hand."""

    def __init__(self, id_: GlobalId, since: Frontier, on_change: Callable[[HoldBook], None] | None = None) -> None:
        self.id = id_
        self._since = since
        self._counts: dict[Frontier, int] = {}
        self._heap: list[Frontier] = []
        self._on_change = on_change

    @property
    def since(self) -> Frontier:
        """The least time held, or the greatest least time there has been since; `DONE` once all holds are
        gone.
        """
        return self._since

    def acquire(self, at: Frontier | None = None) -> ReadHold:
        """A new hold at `at` (None: the earliest possible). Raises `SinceError` when `at` is before
        `since`.
        """
        at = self._since if at is None else at
        if at < self._since:
            raise SinceError(self.id, at, self._since)
        self._add(at)
        return ReadHold(self, at)

    def _add(self, at: Frontier) -> None:
        count = self._counts.get(at, 0)
        self._counts[at] = count + 1
        if count == 0:
            heapq.heappush(self._heap, at)
            if len(self._heap) > 2 * len(self._counts) + 64:  # mostly times that nobody holds any more
                self._heap = list(self._counts)
                heapq.heapify(self._heap)

    def _move(self, from_: Frontier, to: Frontier | None) -> None:
        """One hold goes from `from_` to `to`, or away."""
        if to is not None:
            self._add(to)
        count = self._counts[from_] - 1
        if count < 0:
            raise InternalError(f"hold on {self.id} at {from_} released twice")
        if count:
            self._counts[from_] = count
            return
        del self._counts[from_]
        self._advance()

    def _advance(self) -> None:
        while self._heap and self._heap[0] not in self._counts:
            heapq.heappop(self._heap)
        since = self._heap[0] if self._heap else DONE
        if since < self._since:
            raise InternalError(f"since of {self.id} would go back from {self._since} to {since}")
        if since != self._since:
            self._since = since
            if self._on_change is not None:
                self._on_change(self)


class ReadHold:
    """While it lives, the since of collection `id` does not pass `since`. A context manager that releases."""

    __slots__ = ("_at", "_book")

    def __init__(self, book: HoldBook, at: Frontier) -> None:
        self._book = book
        self._at: Frontier | None = at

    @property
    def id(self) -> GlobalId:
        return self._book.id

    @property
    def since(self) -> Frontier:
        """The time held; `DONE` once released."""
        return DONE if self._at is None else self._at

    def clone(self) -> ReadHold:
        """Another hold at the same time. Refused on a released hold."""
        if self._at is None:
            raise InternalError(f"a released hold on {self.id} was cloned")
        return self._book.acquire(self._at)

    def downgrade(self, to: Frontier) -> None:
        """Hold at `to` instead, which must not be earlier."""
        if self._at is None:
            raise InternalError(f"a released hold on {self.id} was moved to {to}")
        if to < self._at:
            raise InternalError(f"hold on {self.id} would go back from {self._at} to {to}")
        if to != self._at:
            from_, self._at = self._at, to
            self._book._move(from_, to)

    def release(self) -> None:
        """Give it up. May be called twice."""
        if self._at is not None:
            from_, self._at = self._at, None
            self._book._move(from_, None)

    def __enter__(self) -> ReadHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if self._at is not None and not sys.is_finalizing():
            _log.warning("a read hold leaked and is released now", id=self.id, since=self._at)
            self.release()

    def __repr__(self) -> str:
        return f"ReadHold({self.id} at {'released' if self._at is None else self._at})"
