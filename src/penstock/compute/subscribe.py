"""The sink of a SUBSCRIBE: cuts what a dataflow computes into contiguous batches for one reader.

Each batch holds everything in ``[lower, upper)``, consolidated, and begins where the one before it ended. An
error in the collection has a time: everything before that time is still sent, then the error, and nothing
after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penstock.runtime import DataError, Frontier, Timestamp, Updates
from penstock.storage import first_error


@dataclass(frozen=True)
class SubscribeBatch:
    """`updates`: all at times in ``[lower, upper)``, or the error at `lower` that ends the stream."""

    lower: Frontier
    upper: Frontier
    updates: Updates | DataError


class SubscribeFeed:
    """Feeds `emit` from a dataflow's inspection. Runs on the worker thread."""

    def __init__(self, as_of: Timestamp, *, with_snapshot: bool, emit: Callable[[SubscribeBatch], None]) -> None:
        """`with_snapshot`: the contents at `as_of` are sent first, at `as_of`; else only what changes after
        it.
        """
        self._as_of, self._with_snapshot, self._emit = as_of, with_snapshot, emit
        self._begin = self._lower = Frontier(as_of)
        self._failed = False

    def on_data(self, oks: Updates, errs: Updates, frontier: Frontier) -> None:
        """What the dataflow computed before `frontier` since the last call."""
        if self._failed or frontier <= self._lower:
            return
        lower, self._lower = self._lower, frontier
        added = errs.filter(errs.diffs > 0)
        upper = frontier
        if len(added):
            upper = Frontier(int(added.times.min()))
            oks = oks.filter(oks.times < np.uint64(upper))
        if not self._with_snapshot and lower == self._begin:
            oks = oks.filter(oks.times > np.uint64(self._as_of))
        if upper > lower:
            self._emit(SubscribeBatch(lower, upper, oks))
        if len(added):
            self._failed = True
            self._emit(SubscribeBatch(upper, Frontier(upper + 1), first_error(added)))
