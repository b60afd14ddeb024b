"""The end of a dataflow for code outside: a callback with consolidated changes per move of the frontier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from penstock.dataflow.graph import ERRORS_SCHEMA, Collection, Operator, Slices, Stash
from penstock.runtime import Frontier, Updates


class Sink(Operator):
    """Collects rows and errors of a collection and hands over what is closed.

    Subclasses implement `accept`, for data, and `passed`, for a frontier that moved without any.
    """

    def __init__(self, collection: Collection, name: str) -> None:
        super().__init__(collection.dataflow, name, collection.schema, [collection.operator])
        self._errors_port = self.listen_errors(collection.errors)
        self._oks = Stash()
        self._errs = Stash()

    def activate(self) -> Slices | None:
        for updates in self.ports[0].take():
            self._oks.push(updates)
        for errors in self._errors_port.take():
            self._errs.push(errors)
        frontier = self.ports[0].frontier
        if frontier <= self.frontier:
            return None
        if not self._oks.closed(frontier) and not self._errs.closed(frontier):
            self.passed(frontier)
            self.advance(frontier)
            return None
        return self._close(frontier)

    def _close(self, frontier: Frontier) -> Slices:
        yield from self.accept(self._oks.take_below(frontier), self._errs.take_below(frontier), frontier)
        self.advance(frontier)

    @abstractmethod
    def accept(self, oks: list[Updates], errs: list[Updates], frontier: Frontier) -> Slices:
        """All updates in ``[self.frontier, frontier)``, not consolidated; either list may be empty."""

    @abstractmethod
    def passed(self, frontier: Frontier) -> None:
        """There are no updates in ``[self.frontier, frontier)``."""


class Inspect(Sink):
    """Calls back with consolidated changes."""

    def __init__(self, collection: Collection, on_data: Callable[[Updates, Updates, Frontier], None]) -> None:
        super().__init__(collection, "inspect")
        self._on_data = on_data
        self._no_oks = Updates.empty(self.schema)
        self._no_errs = Updates.empty(ERRORS_SCHEMA)

    def accept(self, oks: list[Updates], errs: list[Updates], frontier: Frontier) -> Slices:
        rows = Updates.concat(oks).consolidate() if oks else self._no_oks
        errors = Updates.concat(errs).consolidate() if errs else self._no_errs
        self._on_data(rows, errors, frontier)
        yield

    def passed(self, frontier: Frontier) -> None:
        self._on_data(self._no_oks, self._no_errs, frontier)
