"""Times and frontiers.

Every time in Penstock is a `Timestamp`: unsigned milliseconds since the epoch. Times are totally ordered, so an
antichain holds at most one of them; a `Frontier` is that time, or `DONE` for the empty antichain ("no time can
still appear"). Writing `DONE` as the greatest integer keeps every rule plain arithmetic: ``meet`` is ``min``,
``join`` is ``max``, and "time t is complete" is ``t < frontier``.
"""

from __future__ import annotations

from typing import NewType

Timestamp = NewType("Timestamp", int)
"""Milliseconds since the epoch, in ``[0, 2**63 - 1)``."""

Frontier = NewType("Frontier", int)
"""Times not at or beyond it are complete. ``DONE``: all times are."""

MIN_TIME = Timestamp(0)
DONE = Frontier(2**63 - 1)


def meet(*frontiers: Frontier, default: Frontier = DONE) -> Frontier:
    """The earliest of some frontiers: what all of them have passed. `default` when there are none."""
    return min(frontiers, default=default)


def join(*frontiers: Frontier, default: Frontier = Frontier(0)) -> Frontier:
    """The latest of some frontiers. `default` when there are none."""
    return max(frontiers, default=default)


def step_back(frontier: Frontier) -> Timestamp:
    """The newest complete time below `frontier`: ``frontier - 1``, never below zero.

    For `DONE` the answer is the greatest time there is: everything is complete.
    """
    return Timestamp(max(int(frontier) - 1, 0))
