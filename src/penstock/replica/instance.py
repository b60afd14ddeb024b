"""What a replica runs, and how commands change it.

One `Instance` lives as long as the process; sessions come and go. Commands are handled one at a time, in order.
During the initialization of a session they are collected; on `InitializationComplete` what runs is reconciled with
what was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pyarrow as pa
import structlog

from penstock.compute import DataflowDescription
from penstock.compute.subscribe import SubscribeBatch
from penstock.dataflow import Dataflow, IndexTrace, Worker
from penstock.persist import PersistClient, ShardId
from penstock.replica import compute_pb2 as pb
from penstock.replica.flow import Flow, FlowDropped
from penstock.replica.outbox import Outbox
from penstock.replica.peeks import PeekServer, encode_error
from penstock.replica.reconciliation import Running, Wanted, kept
from penstock.replica.shards import Shards
from penstock.replica.wire import updates_to_ipc
from penstock.runtime import (
    DONE,
    Clock,
    DataError,
    Frontier,
    GlobalId,
    InternalError,
    SqlError,
    TaskOwner,
    Timestamp,
)

_log = structlog.get_logger("penstock.replica.instance")


class Instance:
    """Dataflows by id, and the session that is told about them. Belongs to one event loop."""

    def __init__(
        self,
        client: PersistClient,
        worker: Worker,
        clock: Clock,
        process: bytes,
        configure: Callable[[pb.Configure], None],
    ) -> None:
        """`process`: differs for each start of the replica. `configure`: carries out new settings."""
        self._configure = configure
        self._client, self._worker, self._clock, self._process = client, worker, clock, process
        self._flows: dict[GlobalId, Flow] = {}
        self._flow_of: dict[GlobalId, Flow] = {}
        self._shards: Shards | None = None
        self._tasks = TaskOwner("instance")
        self._outbox: Outbox | None = None
        self._peeks: PeekServer | None = None
        self._nonce = b""
        self._pending: list[pb.Command] | None = None
        self._changed = asyncio.Event()  # set and replaced whenever exports come or go
        self._rebuilding = asyncio.Lock()

    @property
    def shards(self) -> Shards:
        if self._shards is None:
            raise SqlError("the replica has not been told what instance it is", sqlstate="57P03")
        return self._shards

    async def begin_session(self, nonce: bytes) -> Outbox:
        """A controller has connected: it is sent everything from now on, and whoever was before is not."""
        await self.end_session(self._outbox)
        self._outbox = Outbox()
        self._peeks = PeekServer(self, self._outbox.send)
        self._nonce = nonce
        self._pending = []
        return self._outbox

    async def end_session(self, outbox: Outbox | None) -> None:
        """The controller of this `outbox` is gone. What runs goes on."""
        if outbox is None or outbox is not self._outbox:
            return
        outbox.close()
        self._outbox = None
        peeks, self._peeks = self._peeks, None
        if peeks is not None:
            await peeks.close()

    async def handle(self, command: pb.Command) -> None:
        """Carry out one command of the present session. What fails about one object is reported as its status."""
        if self._pending is None:
            await self._apply(command)
        elif command.WhichOneof("kind") == "initialization_complete":
            pending, self._pending = self._pending, None
            await self._reconcile(pending)
        else:
            self._pending.append(command)

    async def close(self) -> None:
        """End everything. Nothing is reported any more."""
        await self.end_session(self._outbox)
        await self._tasks.close()
        await asyncio.gather(*(flow.drop(self._worker) for flow in self._flows.values()))

    def dataflow_failed(self, dataflow: Dataflow, error: BaseException) -> None:
        """The worker has frozen a graph."""
        for flow in self._flows.values():
            if flow.owns(dataflow):
                flow.failed(f"dataflow {flow.id} cannot go on: {error}")

    async def read_index(self, id_: GlobalId, at: Timestamp, keys: pa.RecordBatch | None) -> pa.RecordBatch:
        """See `PeekSources`."""
        flow = await self._flow_with_output_past(id_, Frontier(at))
        trace = flow.index(id_)
        if trace is None:
            raise SqlError(f"{id_} is not an index of this replica", sqlstate="42704")
        rows, errors = await asyncio.to_thread(trace.read, at, keys)
        if errors.num_rows:
            raise DataError(errors.column(1)[0].as_py(), sqlstate=errors.column(0)[0].as_py())
        return rows

    # From flows

    def flow_moved(self, flow: Flow, export: GlobalId) -> None:
        if self._outbox is not None and self._pending is None and self._flow_of.get(export) is flow:
            output = flow.outputs[export]
            self._outbox.frontiers(export, write=flow.write_frontier(export), input=flow.input, output=output)

    def flow_status(self, flow: Flow, *, stalled: bool, message: str) -> None:
        for export in flow.outputs:
            self._send(pb.Response(status=pb.Status(id=export, stalled=stalled, message=message)))

    def flow_broken(self, flow: Flow, message: str) -> None:
        self.flow_status(flow, stalled=True, message=f"{message}; the dataflow starts again")
        self._tasks.spawn(self._rebuild(flow), f"rebuild-{flow.id}")

    def subscribe_batch(self, id_: GlobalId, batch: SubscribeBatch) -> None:
        message = pb.SubscribeBatch(id=id_, lower=batch.lower, upper=batch.upper)
        if isinstance(batch.updates, DataError):
            message.error.CopyFrom(encode_error(batch.updates, definite=True))
        else:
            message.updates_ipc = updates_to_ipc(batch.updates)
        self._send(pb.Response(subscribe_batch=message))

    # Commands

    async def _apply(self, command: pb.Command) -> None:
        match command.WhichOneof("kind"):
            case "create_instance":
                self._create_instance(ShardId(command.create_instance.txns_shard))
            case "configure":
                self._configure(command.configure)
            case "create_dataflow":
                async with self._rebuilding:
                    await self._create(command.create_dataflow)
            case "schedule":
                if flow := self._flows.get(GlobalId(command.schedule.id)):
                    flow.start()
            case "allow_writes":
                id_ = GlobalId(command.allow_writes.id)
                if flow := self._flow_of.get(id_):
                    flow.allow_writes(id_)
            case "allow_compaction":
                await self._compact(command.allow_compaction)
            case "peek" if self._peeks is not None:
                self._peeks.start(command.peek)
            case "cancel_peek" if self._peeks is not None:
                self._peeks.cancel(command.cancel_peek.uuid)
            case "peek_credit" if self._peeks is not None:
                self._peeks.grant(command.peek_credit)
            case other:
                _log.warning("command ignored", kind=other)

    async def _reconcile(self, commands: list[pb.Command]) -> None:
        """Keep what runs and is wanted, drop what is not, then carry out the rest of `commands`."""
        creates = [c.create_dataflow for c in commands if c.WhichOneof("kind") == "create_dataflow"]
        wanted = [Wanted(create.id, create.description, Frontier(create.as_of)) for create in creates]
        instances = [c.create_instance for c in commands if c.WhichOneof("kind") == "create_instance"]
        same_instance = self._shards is not None and all(
            instance.txns_shard == self._shards.txns_shard for instance in instances
        )
        async with self._rebuilding:
            running: dict[str, Running] = {
                id_: flow.running() for id_, flow in self._flows.items() if flow.error is None
            }
            keep = kept(running, wanted) if same_instance else set()
            dropped = [flow for flow in reversed(self._flows.values()) if flow.id not in keep]
            for flow in dropped:
                await self._forget(flow)  # in silence: this controller may have created another one by its name
        _log.info("reconciled", kept=len(keep), dropped=len(dropped), wanted=len(wanted))
        for command in commands:
            create = command.create_dataflow if command.WhichOneof("kind") == "create_dataflow" else None
            if create is not None and create.id in keep:
                flow = self._flows[GlobalId(create.id)]
                for export in flow.outputs:
                    flow.compact(self._worker, export, Frontier(create.as_of))
                    self.flow_moved(flow, export)
                if flow.trouble:
                    self.flow_status(flow, stalled=True, message=flow.trouble)
            else:
                await self._apply(command)
        self._send(pb.Response(ready=pb.Ready(nonce=self._nonce, process=self._process)))

    def _create_instance(self, txns_shard: ShardId) -> None:
        if self._shards is None or self._shards.txns_shard != txns_shard:
            self._shards = Shards(self._client, txns_shard, self._clock, self._tasks)

    async def _create(self, create: pb.CreateDataflow) -> None:
        try:
            description = DataflowDescription.decode(create.description)
        except msgspec.ValidationError as error:
            message = f"the replica cannot decode dataflow {create.id}: {error}"
            for export in create.exports:
                self._send(pb.Response(status=pb.Status(id=export, stalled=True, message=message)))
            return
        description = msgspec.structs.replace(description, as_of=Timestamp(create.as_of))
        if description.id in self._flows:
            raise InternalError(f"dataflow {description.id} was created twice")
        await self._build(Flow(description, create.description, self.shards, self, self._clock))

    async def _build(self, flow: Flow) -> None:
        """Make the graph of a flow and make it known, also when that fails: it can be dropped then."""
        self._flows[flow.id] = flow
        for export in flow.outputs:
            self._flow_of[export] = flow
            if self._outbox is not None:
                self._outbox.forget(export)
        indexes: dict[GlobalId, IndexTrace] = {}
        try:
            for index in flow.imported_indexes:
                owner = self._flow_of.get(index)
                trace = owner.index(index) if owner is not None else None
                if trace is None:
                    raise InternalError(f"dataflow {flow.id} imports index {index}, which does not run")
                indexes[index] = trace
            await flow.build(self._worker, indexes)
        except Exception as error:  # whatever a plan provokes must not end the replica
            _log.error("dataflow not built", id=flow.id, exc_info=error)
            flow.failed(f"dataflow {flow.id} cannot be built: {error}")
        self._tell_changed()
        for export in flow.outputs:
            self.flow_moved(flow, export)

    async def _compact(self, compaction: pb.AllowCompaction) -> None:
        id_, frontier = GlobalId(compaction.id), Frontier(compaction.frontier)
        flow = self._flow_of.get(id_)
        if flow is None:
            return
        flow.compact(self._worker, id_, frontier)
        if all(frontier == DONE for frontier in flow.compacted.values()):
            async with self._rebuilding:
                await self._forget(flow)
            if self._outbox is not None:
                for export in flow.outputs:
                    self._outbox.frontiers(export, write=DONE, input=DONE, output=DONE)

    async def _forget(self, flow: Flow) -> None:
        del self._flows[flow.id]
        for export in flow.outputs:
            del self._flow_of[export]
        self._tell_changed()
        await flow.drop(self._worker)

    async def _rebuild(self, broken: Flow) -> None:
        """Begin a flow anew from as far back as anybody may read it, and everything that imports its indexes."""
        async with self._rebuilding:
            stale = [broken]
            for flow in self._flows.values():
                if any(index in old.outputs for old in stale for index in flow.imported_indexes):
                    stale.append(flow)
            if self._flows.get(broken.id) is not broken:
                return
            for flow in reversed(stale):
                await flow.drop(self._worker)
            for flow in stale:
                as_of = Timestamp(min(flow.compacted.values()))
                description = msgspec.structs.replace(flow.description, as_of=as_of)
                fresh = Flow(description, flow.encoded, self.shards, self, self._clock)
                fresh.compacted = flow.compacted
                await self._build(fresh)
                fresh.start()
                for id_ in flow.writable:
                    fresh.allow_writes(id_)

    async def _flow_with_output_past(self, id_: GlobalId, at: Frontier) -> Flow:
        """The flow that exports `id_`, once it is complete at `at`; waits through rebuilds."""
        while True:
            flow, changed = self._flow_of.get(id_), self._changed
            if flow is None:
                raise SqlError(f"index {id_} does not run on this replica", sqlstate="42704")
            try:
                await flow.wait_past(id_, at)
                return flow
            except FlowDropped:  # for good, or to be built anew
                if self._flow_of.get(id_) is flow:
                    await changed.wait()

    def _tell_changed(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _send(self, response: pb.Response) -> None:
        """To the controller, unless it has not said yet what it knows of."""
        if self._outbox is not None and self._pending is None:
            self._outbox.send(response)
