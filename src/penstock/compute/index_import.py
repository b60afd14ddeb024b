"""Importing an index: what it holds at the as-of, then every later change, with exact times.

Both dataflows run on one worker thread; the index calls the listener before it compacts, so that no time is
lost.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.dataflow import IndexTrace, InputHandle, NotReadable
from penstock.runtime import Frontier, Timestamp


def feed_from_index(trace: IndexTrace, handle: InputHandle, as_of: Timestamp) -> Callable[[], None]:
    """A function that begins to send the contents of `trace` from `as_of` on to `handle`; on the worker
    thread.

    Raises `NotReadable` when the index cannot be read at `as_of` any more.
    """
    if trace.since > as_of:
        raise NotReadable(trace.name, as_of, trace.since, trace.upper)
    read_below = Frontier(0)
    stops: list[Callable[[], None]] = []

    def advance(upper: Frontier) -> None:
        nonlocal read_below
        if handle.abandoned:
            for stop in stops:
                stop()
            return
        if upper <= as_of:
            return
        if read_below <= as_of:
            rows, errors = trace.read_updates(as_of)
            handle.send(rows)
            handle.send_errors(errors)
            read_below = Frontier(as_of + 1)
        rows, errors = trace.updates_from(read_below)
        handle.send(rows)
        handle.send_errors(errors)
        read_below = max(read_below, upper)
        handle.advance_to(upper)

    def begin() -> None:
        stops.append(trace.on_advance(advance))
        advance(trace.upper)

    return begin
