"""A durable shard as the input of a dataflow.

A `ShardSource` is a task beside the worker: it subscribes to a shard at the dataflow's as-of and feeds an
`InputHandle` with exact times, pausing while the worker has not taken what was sent.

Contract:

* The frontier stands at the as-of before anything was read: who writes back into a shard that it also reads relies on
  tight frontiers, and the subscription blocks until there is something to read.
* It passes a time only when every update at that time was fed, exactly once.
* A transient failure of a store is reported and tried again for ever; the frontier stays. Where it is not known how
  much of an unfinished time was fed, the source is *broken*: only the dataflow as a whole can begin anew.
* A definite failure (a damaged part, an as-of below the since) is reported and freezes the source: it never ends by
  itself, because ending looks like progress.
* The reader's since follows the frontier, so that the shard may be compacted behind the source but not before it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

import pyarrow as pa
import structlog

from penstock.dataflow import InputHandle
from penstock.persist import Filter, ListenEvent, ReaderExpired
from penstock.runtime import (
    Clock,
    ExternalError,
    Frontier,
    PenstockError,
    Timestamp,
    Updates,
    step_back,
)
from penstock.storage.row_or_error import split_shard_updates

_log = structlog.get_logger("penstock.storage.source")

_RETRY_SECONDS_MAX = 5.0


class ShardReader(Protocol):
    """A reader of persist, plain or through transactions, as sources and peeks use it."""

    @property
    def since(self) -> Frontier: ...
    def snapshot(
        self, as_of: Timestamp, *, columns: Sequence[str] | None = None, filter_: Filter | None = None
    ) -> AsyncIterator[Updates]: ...
    async def subscribe(self, as_of: Timestamp) -> AsyncIterator[ListenEvent]: ...
    async def listen(self, as_of: Timestamp) -> AsyncIterator[ListenEvent]: ...
    async def downgrade_since(self, since: Frontier) -> None: ...
    async def expire(self) -> None: ...


class SourceReports(Protocol):
    """Who hears of a source's fate. Called on the source's event loop; must not block."""

    def source_frontier(self, name: str, frontier: Frontier) -> None:
        """Nothing below `frontier` will be read from the shard again."""
        ...

    def source_stalled(self, name: str, message: str) -> None:
        """The frontier stays where it is. Transient trouble is followed by `source_running`."""
        ...

    def source_running(self, name: str) -> None: ...

    def source_broken(self, name: str, message: str) -> None:
        """The source has ended half-way through a time; the dataflow must be built anew."""
        ...


class ShardSource:
    """Feeds one shard into one dataflow input; `run` is its life."""

    def __init__(
        self,
        name: str,
        open_reader: Callable[[], Awaitable[ShardReader]],
        schema: pa.Schema,
        *,
        has_errors: bool,
        as_of: Timestamp,
        until: Frontier,
        feed: InputHandle,
        reports: SourceReports,
        clock: Clock,
    ) -> None:
        """`name`: the collection, for messages. `schema`: its data columns. `has_errors`: the shard holds
        `view_schema(schema)` rather than `schema`. `until`: the source is complete there.
        """
        self._name, self._schema, self._has_errors = name, schema, has_errors
        self._open_reader = open_reader
        self._as_of, self._until = as_of, until
        self._feed, self._reports, self._clock = feed, reports, clock
        self._frontier = Frontier(as_of)
        self._reader: ShardReader | None = None
        self._stalled = False
        self._events: AsyncIterator[ListenEvent] | None = None
        self._snapshot_read = False
        self._fed_ahead = False  # whether updates at or beyond the frontier were fed

    @property
    def frontier(self) -> Frontier:
        """Everything below it was fed."""
        return self._frontier

    async def run(self) -> None:
        """Feed until `until` is reached or the shard is closed, or for ever when a definite error has frozen
        it.

        Raises nothing but cancellation: trouble is reported.
        """
        self._feed.advance_to(self._frontier)
        self._reports.source_frontier(self._name, self._frontier)
        try:
            await self._keep_reading()
        finally:
            if self._reader is not None:
                with suppress(ExternalError):  # the lease ends by itself
                    await self._reader.expire()

    async def _keep_reading(self) -> None:
        retry_seconds = 0.1
        while self._frontier < self._until:
            before = self._frontier
            try:
                await self._read()
                return
            except ReaderExpired as error:
                self._reader = self._events = None
                problem = error.message
            except ExternalError as error:
                problem = error.message
                if not self._snapshot_read:
                    self._events = None
            except PenstockError as error:
                self._reports.source_stalled(self._name, f"{self._name} cannot be read further: {error.message}")
                _log.error("a source is frozen", source=self._name, error=error.message)
                return
            if self._events is None and self._fed_ahead:
                self._reports.source_broken(self._name, f"reading {self._name} was interrupted: {problem}")
                return
            self._stalled = True
            self._reports.source_stalled(self._name, f"reading {self._name} is interrupted: {problem}")
            retry_seconds = 0.1 if self._frontier > before else min(retry_seconds * 2, _RETRY_SECONDS_MAX)
            await self._clock.sleep(retry_seconds)

    async def _read(self) -> None:
        """Read on, with a new subscription where there is none, until the source is complete."""
        if self._events is None:
            if self._reader is None:
                self._reader = await self._open_reader()
            if self._snapshot_read:
                self._events = await self._reader.listen(step_back(self._frontier))
            else:
                self._events = await self._reader.subscribe(self._as_of)
        while self._frontier < self._until:
            try:
                event = await anext(self._events)
            except StopAsyncIteration:
                return
            await self._feed_event(event.updates, event.progress)

    async def _feed_event(self, parts: list[Updates], progress: Frontier) -> None:
        for part in parts:
            await self._feed.wait_for_room()
            self._fed_ahead = True
            if self._has_errors:
                rows, errors = split_shard_updates(part, self._schema)
                self._feed.send_errors(errors)
                self._feed.send(rows)
            else:
                self._feed.send(part)
        if progress <= self._frontier:
            return
        self._frontier, self._fed_ahead, self._snapshot_read = progress, False, True
        self._feed.advance_to(progress)
        self._reports.source_frontier(self._name, progress)
        if self._stalled:
            self._stalled = False
            self._reports.source_running(self._name)
