"""The sink of a materialized view: makes a shard hold what a dataflow computes, racing copies of itself.

Every replica of a cluster runs the same dataflow and each has a sink that writes the same shard. None of them
is special:

* The sink knows a prefix of the shard, up to its frontier `written`, and the difference between what the
  dataflow wants and that prefix (`CorrectionBuffer`).
* When the dataflow's frontier is beyond `written`, it appends the difference before that frontier with one
  compare-and-append from `written`. Success: the appended updates are subtracted and `written` moves.
  Mismatch: somebody else wrote; the sink reads what, subtracts that, moves `written`, and goes on from there.
  So each lost race leads to progress, and whatever is in the shard, right or wrong, the next append corrects
  it.
* Outcomes nobody knows need no care: `written` has not moved, and the next append from it either succeeds or
  finds out.

Nothing is kept outside the shard, so a crash at any line loses nothing: the next sink reads the shard back at
its as-of. In the steady state of a single writer the shard is never read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import pyarrow as pa

from penstock.compute.correction import CorrectionBuffer
from penstock.persist import Mismatch, ReaderExpired, ReadHandle, WriteHandle
from penstock.runtime import (
    DONE,
    Clock,
    ExternalError,
    Frontier,
    InternalError,
    PenstockError,
    Timestamp,
    Updates,
    step_back,
)
from penstock.storage import errors_to_shard, rows_to_shard, view_schema

_RETRY_SECONDS_MAX = 5.0
_DOWNGRADE_EVERY_SECONDS = 5.0
_INLINE_ROWS_MAX = 20_000


class SinkReports(Protocol):
    """Who hears of a sink's fate. Called on the sink's event loop; must not block."""

    def sink_written(self, written: Frontier) -> None:
        """The shard is complete up to `written`."""
        ...

    def sink_stalled(self, message: str) -> None:
        """Nothing is written for now. Transient trouble is followed by `sink_running`."""
        ...

    def sink_running(self) -> None: ...


class ViewWriter:
    """Writes one view. The worker thread calls `on_data`; `run` is a task on an event loop."""

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        open_writer: Callable[[], Awaitable[WriteHandle]],
        open_reader: Callable[[], Awaitable[ReadHandle]],
        *,
        as_of: Timestamp,
        reports: SinkReports,
        clock: Clock,
    ) -> None:
        """`schema`: the view's data columns; writer and reader are of a shard with `view_schema(schema)`.
        `as_of`: the dataflow's; at earlier times nothing is known of what the view should hold.
        """
        self._name, self._schema, self._as_of = name, schema, as_of
        self._open_writer, self._open_reader = open_writer, open_reader
        self._reports, self._clock = reports, clock
        self._loop = asyncio.get_running_loop()
        self._arrived: list[Updates] = []
        self._desired_frontier = Frontier(0)
        self._moved = asyncio.Event()
        self._writable = asyncio.Event()
        self._buffer = CorrectionBuffer(view_schema(schema))
        self._written = Frontier(0)
        self._reader: ReadHandle | None = None
        self._downgraded_at = clock.monotonic()

    def on_data(self, oks: Updates, errs: Updates, frontier: Frontier) -> None:
        """What the dataflow computed before `frontier` since the last call. Thread-safe, does not block."""
        changes = []
        if len(oks):
            changes.append(rows_to_shard(oks, self._schema))
        if len(errs):
            changes.append(errors_to_shard(errs, self._schema))
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._take, changes, frontier)

    def allow_writes(self) -> None:
        """Until this is called the sink only follows what others write. Irrevocable."""
        self._writable.set()

    async def run(self) -> None:
        """Keep the shard up to date until the view is complete, or cancelled.

        Raises nothing but cancellation: trouble is reported, and all but definite errors are retried for
        ever.
        """
        retry_seconds = 0.1
        stalled = False
        writer: WriteHandle | None = None
        try:
            while self._written < DONE:
                try:
                    if writer is None:
                        writer = await self._start()
                    await self._step(writer)
                    retry_seconds = 0.1
                    if stalled:
                        stalled = False
                        self._reports.sink_running()
                    continue
                except ReaderExpired:
                    self._reader = None
                    continue
                except ExternalError as error:
                    self._reports.sink_stalled(f"writing {self._name} is interrupted: {error}")
                except PenstockError as error:
                    self._reports.sink_stalled(f"{self._name} cannot be written any further: {error.message}")
                    return
                stalled = True
                await self._clock.sleep(retry_seconds)
                retry_seconds = min(retry_seconds * 2, _RETRY_SECONDS_MAX)
        finally:
            for handle in (writer, self._reader):
                if handle is not None:
                    with suppress(ExternalError):  # leases end by themselves
                        await handle.expire()

    def _take(self, changes: list[Updates], frontier: Frontier) -> None:
        self._arrived += changes
        self._desired_frontier = max(self._desired_frontier, frontier)
        self._moved.set()

    async def _start(self) -> WriteHandle:
        """Open the shard and subtract what it holds."""
        writer = await self._open_writer()
        try:
            await self._ensure_reader()
            upper = await writer.fetch_recent_upper()
            if upper > self._written:
                await self._read_up_to(upper)
            self._reports.sink_written(self._written)
        except BaseException:
            with suppress(ExternalError):
                await writer.expire()
            raise
        return writer

    async def _step(self, writer: WriteHandle) -> None:
        """Wait for something to write and write it, or learn why not."""
        # Not up to the as-of alone: a shard that ends there could be read by nobody, not even by a sink that
        # starts.
        while self._desired_frontier <= max(self._written, self._as_of):
            self._moved.clear()
            await self._moved.wait()
        if not self._writable.is_set():
            await self._follow(writer)
            return
        lower, upper = self._written, self._desired_frontier
        correction = await self._correction(lower, upper)
        result = await writer.compare_and_append(correction, lower, upper)
        if isinstance(result, Mismatch):
            await self._read_up_to(result.current_upper)
        else:
            self._buffer.remove(correction)
            self._moved_to(upper)
            await self._downgrade()

    async def _follow(self, writer: WriteHandle) -> None:
        """Wait until somebody else has written, or writes are allowed."""
        others = asyncio.ensure_future(writer.wait_for_upper_past(self._written))
        allowed = asyncio.ensure_future(self._writable.wait())
        try:
            await asyncio.wait((others, allowed), return_when=asyncio.FIRST_COMPLETED)
            if others.done():
                await self._read_up_to(others.result())
        finally:
            for task in (others, allowed):
                task.cancel()
            await asyncio.gather(others, allowed, return_exceptions=True)

    async def _correction(self, lower: Frontier, upper: Frontier) -> Updates:
        arrived, self._arrived = self._arrived, []

        def compute() -> Updates:
            for changes in arrived:
                self._buffer.insert(changes)
            self._buffer.advance(lower)
            return self._buffer.before(upper)

        return await self._off_loop(len(self._buffer) + sum(map(len, arrived)), compute)

    async def _read_up_to(self, upper: Frontier) -> None:
        """Subtract what others wrote in ``[written, upper)``."""
        if upper < self._written:
            raise InternalError(f"upper of {self._name} went back from {self._written} to {upper}")
        if upper == self._written:
            return
        reader = await self._ensure_reader()
        if self._written == 0:
            # Where the shard ends before the as-of, its last contents are what it holds at the as-of.
            from_ = Timestamp(min(max(int(self._as_of), int(reader.since)), step_back(upper)))
            events = await reader.subscribe(from_)
        else:
            events = await reader.listen(step_back(self._written))
        whole: list[Updates] = []
        async for event in events:
            whole += event.updates
            if event.progress >= upper:
                break
        else:
            raise InternalError(f"the shard of {self._name} ended before its upper {upper}")
        await self._off_loop(sum(map(len, whole)), lambda: self._subtract(whole))
        self._moved_to(event.progress)
        await self._downgrade()

    async def _ensure_reader(self) -> ReadHandle:
        """The reader that keeps what follows `written` readable; a new one if its lease was lost."""
        if self._reader is None:
            self._reader = await self._open_reader()
            if 0 < self._written <= self._reader.since:
                raise InternalError(
                    f"the shard of {self._name} was compacted to {self._reader.since}, "
                    f"beyond {self._written} that this replica has written; restart the replica"
                )
        return self._reader

    def _subtract(self, persisted: list[Updates]) -> None:
        for updates in persisted:
            self._buffer.remove(updates)

    def _moved_to(self, written: Frontier) -> None:
        self._written = written
        self._reports.sink_written(written)

    async def _downgrade(self) -> None:
        """Let the shard be compacted behind what this sink would have to read after a lost race."""
        now = self._clock.monotonic()
        if now - self._downgraded_at >= _DOWNGRADE_EVERY_SECONDS:
            self._downgraded_at = now
            reader = await self._ensure_reader()
            await reader.downgrade_since(Frontier(step_back(self._written)))

    async def _off_loop(self, rows: int, work: Callable[[], Updates | None]) -> Updates:
        """Do heavy `work` on a thread, so that frontiers and peeks are not held up by a hydration."""
        result = work() if rows <= _INLINE_ROWS_MAX else await asyncio.to_thread(work)
        return result if result is not None else Updates.empty(self._schema)
