"""One dataflow of a replica, with the tasks around it: sources that feed it, sinks that take from it.

The graph runs on the worker thread; everything here runs on the event loop. What the graph reports (a frontier, a
batch of a subscription) is posted to the loop and takes effect there, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

import structlog

from penstock.compute import DataflowDescription, IndexExport, IndexImport, ShardImport, SubscribeSink, ViewSink
from penstock.compute.render import OnData, RenderedDataflow, render
from penstock.compute.subscribe import SubscribeBatch, SubscribeFeed
from penstock.compute.view_sink import ViewWriter
from penstock.dataflow import Dataflow, IndexTrace, Worker
from penstock.persist import ShardId
from penstock.replica.reconciliation import Running
from penstock.replica.shards import Shards
from penstock.runtime import DONE, Clock, Frontier, GlobalId, TaskOwner, Updates, meet
from penstock.storage import ShardReader, ShardSource

_log = structlog.get_logger("penstock.replica.flow")


class FlowDropped(Exception):
    """The flow that was waited for is gone."""


class FlowReports(Protocol):
    """Who hears of a dataflow. Called on the event loop; must not block."""

    def flow_moved(self, flow: Flow, export: GlobalId) -> None:
        """Some frontier of `export` has moved."""
        ...

    def flow_status(self, flow: Flow, *, stalled: bool, message: str) -> None: ...

    def flow_broken(self, flow: Flow, message: str) -> None:
        """It cannot go on from where it is, but may be built anew."""
        ...

    def subscribe_batch(self, id_: GlobalId, batch: SubscribeBatch) -> None: ...


class Flow:
    """A dataflow from its creation to its drop: `build`, `start`, `drop`."""

    def __init__(
        self, description: DataflowDescription, encoded: bytes, shards: Shards, reports: FlowReports, clock: Clock
    ) -> None:
        """`encoded`: the description's bytes with a zero as-of."""
        self.description = description
        self.encoded = encoded
        as_of = Frontier(description.as_of)
        self.compacted = {export.id: as_of for export in description.exports}
        self.outputs = {export.id: Frontier(0) for export in description.exports}
        self.written: dict[GlobalId, Frontier] = {}
        self.scheduled = False
        self.writable: set[GlobalId] = set()
        self.error: str | None = None
        self.trouble = ""
        self._shards, self._reports, self._clock = shards, reports, clock
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskOwner(f"flow-{description.id}", self._task_failed)
        self._rendered: RenderedDataflow | None = None
        self._writers: dict[GlobalId, ViewWriter] = {}
        self._sources: dict[GlobalId, Frontier] = {}
        self._waiters: dict[GlobalId, list[tuple[Frontier, asyncio.Future[None]]]] = {}
        self._dropped = False

    @property
    def id(self) -> GlobalId:
        return self.description.id

    @property
    def imported_indexes(self) -> list[GlobalId]:
        return [i.index for i in self.description.imports.values() if isinstance(i, IndexImport)]

    @property
    def input(self) -> Frontier:
        """Nothing below it will be read from a shard again."""
        return meet(*self._sources.values())

    def write_frontier(self, id_: GlobalId) -> Frontier:
        """Of a view: durable up to. Of anything else: computed up to."""
        return self.written.get(id_, Frontier(0)) if id_ in self._writers else self.outputs[id_]

    def owns(self, dataflow: Dataflow) -> bool:
        return self._rendered is not None and self._rendered.dataflow is dataflow

    def running(self) -> Running:
        """What reconciliation must know."""
        return Running(
            self.encoded,
            max(self.compacted.values(), default=Frontier(0)),
            tuple(self.compacted),
            tuple(self.imported_indexes),
            any(isinstance(export, SubscribeSink) for export in self.description.exports),
        )

    async def build(self, worker: Worker, indexes: Mapping[GlobalId, IndexTrace]) -> None:
        """Make the graph. `indexes`: traces of the imported ones. Raises what rendering raises."""
        sinks = {
            export.id: self._sink(export) for export in self.description.exports if not isinstance(export, IndexExport)
        }
        for name, import_ in self.description.imports.items():
            if isinstance(import_, ShardImport):
                self._sources[name] = Frontier(self.description.as_of)

        def graph() -> RenderedDataflow:
            rendered = render(self.description, worker, indexes=indexes, sinks=sinks)
            for id_, trace in rendered.indexes.items():
                trace.on_advance(partial(self._post, self._computed, id_))
            return rendered

        self._rendered = await asyncio.wrap_future(worker.call(graph))

    def start(self) -> None:
        """Begin to read and write. Once."""
        if self.scheduled or self._rendered is None:
            return
        self.scheduled = True
        for name, import_ in self.description.imports.items():
            if isinstance(import_, ShardImport):
                self._tasks.spawn(self._source(name, import_).run(), f"source-{name}")
        for id_, writer in self._writers.items():
            self._tasks.spawn(writer.run(), f"view-{id_}")

    def allow_writes(self, id_: GlobalId) -> None:
        """View `id_` may write its shard."""
        if writer := self._writers.get(id_):
            self.writable.add(id_)
            writer.allow_writes()

    def compact(self, worker: Worker, id_: GlobalId, frontier: Frontier) -> None:
        """Nobody outside reads export `id_` below `frontier`."""
        if frontier <= self.compacted[id_]:
            return
        self.compacted[id_] = frontier
        trace = self.index(id_)
        if trace is not None and frontier < DONE:
            worker.call(lambda: trace.allow_compaction(frontier))

    def index(self, id_: GlobalId) -> IndexTrace | None:
        """The trace of an exported index, once built."""
        return self._rendered.indexes.get(id_) if self._rendered is not None else None

    async def wait_past(self, id_: GlobalId, frontier: Frontier) -> None:
        """Wait until the output of export `id_` is beyond `frontier`. Raises `FlowDropped` when the flow is
        dropped.
        """
        if self._dropped:
            raise FlowDropped
        if self.outputs[id_] > frontier:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.setdefault(id_, []).append((frontier, waiter))
        await waiter

    def failed(self, message: str) -> None:
        """The graph is frozen: what it has read stays held, nothing moves."""
        self.error = message
        self._status(message)

    async def drop(self, worker: Worker) -> None:
        """End its tasks, then the graph. Nothing is reported any more."""
        self._dropped = True
        await self._tasks.close()
        for waiters in self._waiters.values():
            for _, waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(FlowDropped())
        rendered, self._rendered = self._rendered, None
        if rendered is not None:
            await asyncio.wrap_future(worker.call(lambda: worker.drop(rendered.dataflow)))

    # From sources

    def source_frontier(self, name: str, frontier: Frontier) -> None:
        self._sources[GlobalId(name)] = frontier
        for export in self.outputs:
            self._reports.flow_moved(self, export)

    def source_stalled(self, name: str, message: str) -> None:
        self._status(message)

    def source_running(self, name: str) -> None:
        self._status("")

    def source_broken(self, name: str, message: str) -> None:
        self._reports.flow_broken(self, message)

    # From the graph, by way of the loop

    def _computed(self, id_: GlobalId, frontier: Frontier) -> None:
        if self._dropped or frontier <= self.outputs[id_]:
            return
        self.outputs[id_] = frontier
        if waiters := self._waiters.get(id_):
            self._waiters[id_] = [(at, waiter) for at, waiter in waiters if at >= frontier and not waiter.done()]
            for at, waiter in waiters:
                if at < frontier and not waiter.done():
                    waiter.set_result(None)
        self._reports.flow_moved(self, id_)

    def _batch(self, id_: GlobalId, batch: SubscribeBatch) -> None:
        if not self._dropped:
            self._reports.subscribe_batch(id_, batch)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """From the worker thread to the loop."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            assert self._loop.is_closed()  # the process ends

    def _status(self, trouble: str) -> None:
        """What keeps the flow from going on, or nothing."""
        self.trouble = trouble
        self._reports.flow_status(self, stalled=bool(trouble), message=trouble)

    def _sink(self, export: ViewSink | SubscribeSink) -> OnData:
        """What the graph shall call with the results of `export`, on the worker thread."""
        id_ = export.id
        match export:
            case ViewSink():
                shard = ShardId(export.shard)
                purpose = f"view {id_}"
                writer = ViewWriter(
                    id_,
                    export.schema,
                    lambda: self._shards.open_view_writer(shard, export.schema, purpose),
                    lambda: self._shards.open_view_reader(shard, export.schema, purpose),
                    as_of=self.description.as_of,
                    reports=_ViewReports(self, id_),
                    clock=self._clock,
                )
                self._writers[id_] = writer

                def to_view(oks: Updates, errs: Updates, frontier: Frontier) -> None:
                    writer.on_data(oks, errs, frontier)
                    self._post(self._computed, id_, frontier)

                return to_view
            case SubscribeSink():
                feed = SubscribeFeed(
                    self.description.as_of,
                    with_snapshot=export.with_snapshot,
                    emit=lambda batch: self._post(self._batch, id_, batch),
                )

                def to_subscriber(oks: Updates, errs: Updates, frontier: Frontier) -> None:
                    feed.on_data(oks, errs, frontier)
                    self._post(self._computed, id_, frontier)

                return to_subscriber

    def _source(self, name: GlobalId, import_: ShardImport) -> ShardSource:
        assert self._rendered is not None
        shard = ShardId(import_.shard)

        def open_reader() -> Awaitable[ShardReader]:
            return self._shards.open_reader(
                shard, import_.schema, is_table=import_.txns, purpose=f"source {name} of {self.id}"
            )

        return ShardSource(
            name,
            open_reader,
            import_.schema,
            has_errors=not import_.txns,
            as_of=self.description.as_of,
            until=self.description.until,
            feed=self._rendered.inputs[name],
            reports=self,
            clock=self._clock,
        )

    def _task_failed(self, task: str, error: BaseException) -> None:
        self.failed(f"a task of dataflow {self.id} failed: {error!r}")


class _ViewReports:
    """Passes a view writer's reports on."""

    def __init__(self, flow: Flow, id_: GlobalId) -> None:
        self._flow, self._id = flow, id_

    def sink_written(self, written: Frontier) -> None:
        self._flow.written[self._id] = written
        self._flow._reports.flow_moved(self._flow, self._id)

    def sink_stalled(self, message: str) -> None:
        self._flow._status(message)

    def sink_running(self) -> None:
        self._flow._status("")
