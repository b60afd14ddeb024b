"""One cluster: its dataflows, what its replicas have reported, and what all of that holds readable.

This is the state machine between the adapter's wishes and the replicas: no I/O, every method runs to its end at once
on the event loop. Commands go to the history and to all connections; responses come from any of them.

What is held, per dataflow (see also law 5):

* its *inputs* at the since of its outputs: an index is readable from there on, and a new replica must be able to
  compute it from there; a view must be able to resume one step before its shard's upper;
* its *durable inputs once more per replica*, at what that replica has not read yet. Those outlive the dataflow until
  the replica has confirmed that it is gone: a replica that still builds what was dropped meanwhile must find its
  inputs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import structlog

from penstock.compute import DataflowDescription, IndexExport, IndexImport, ViewSink
from penstock.control.answers import PeekStream, SubscribeStream
from penstock.control.history import CommandHistory
from penstock.control.holds import HoldBook, ReadHold
from penstock.control.replica_connection import ReplicaConnection
from penstock.control.specs import ClusterSpec, Frontiers, Health, ObjectStatus, ReplicaId
from penstock.replica import compute_pb2 as pb
from penstock.runtime import DONE, Clock, Frontier, GlobalId, InternalError, SqlError, Timestamp, join, meet, step_back

_log = structlog.get_logger("penstock.control.cluster")

INDEX_RETAIN_MS = 1_000
_ZERO = Frontier(0)


class ExportKind(enum.Enum):
    INDEX = "index"
    VIEW = "view"
    SUBSCRIBE = "subscribe"


@dataclass
class Reported:
    """The last frontiers of one export on one replica."""

    write: Frontier = _ZERO
    input: Frontier = _ZERO
    output: Frontier = _ZERO


@dataclass(eq=False)
class Export:
    """Something a dataflow makes. `upper`: the greatest write frontier any replica has reported, at least the
    as-of.
    """

    id: GlobalId
    flow: Flow
    kind: ExportKind
    book: HoldBook
    implied: ReadHold
    upper: Frontier
    commanded: Frontier
    """How far the replicas were told to compact."""
    replicas: dict[ReplicaId, Reported] = field(default_factory=dict)
    stream: SubscribeStream | None = None


@dataclass(eq=False)
class Flow:
    """One dataflow. `replica_holds`: per replica, on its durable inputs."""

    description: DataflowDescription
    input_holds: dict[GlobalId, ReadHold]
    exports: dict[GlobalId, Export] = field(default_factory=dict)
    replica_holds: dict[ReplicaId, dict[GlobalId, ReadHold]] = field(default_factory=dict)

    @property
    def id(self) -> GlobalId:
        return self.description.id

    @property
    def since(self) -> Frontier:
        return meet(*(export.book.since for export in self.exports.values()))


class Cluster:
    """See the module."""

    def __init__(self, spec: ClusterSpec, txns_shard: str, clock: Clock, *, bypass_committer: bool = False) -> None:
        self.spec = spec
        self.history = CommandHistory(pb.CreateInstance(txns_shard=txns_shard))
        self.history.record(_configuration(bypass_committer))
        self.replicas: dict[ReplicaId, ReplicaConnection] = {}
        self.flows: dict[GlobalId, Flow] = {}
        self.exports: dict[GlobalId, Export] = {}
        self._dropped: list[Flow] = []
        self._peeks: dict[bytes, PeekStream] = {}
        self._statuses: dict[tuple[GlobalId, ReplicaId | None], ObjectStatus] = {}
        self._clock = clock
        self._changed: set[Export] = set()

    # What the controller asks

    def configure(self, *, bypass_committer: bool) -> None:
        """Settings of the replicas, those to come included."""
        self._tell(_configuration(bypass_committer))

    def create(
        self, description: DataflowDescription, holds: dict[GlobalId, ReadHold], durable_upper: Frontier
    ) -> Flow:
        """Run a dataflow; takes `holds` over, one per input. `durable_upper`: of the shard of its view, if it has
        one.
        """
        as_of = Frontier(description.as_of)
        for input_ in inputs_of(description):
            if input_ not in holds or holds[input_].since > as_of:
                held = holds[input_].since if input_ in holds else "nothing"
                raise InternalError(f"dataflow {description.id} as of {as_of} holds {held} of its input {input_}")
        flow = Flow(description, holds)
        for replica in self.replicas:
            self._hold_for(replica, flow)
        for hold in holds.values():
            hold.downgrade(as_of)
        for sink in description.exports:
            self._add_export(flow, sink, as_of, durable_upper)
        self.flows[flow.id] = flow
        self._tell(
            pb.Command(
                create_dataflow=pb.CreateDataflow(
                    id=flow.id,
                    description=msgspec.structs.replace(description, as_of=Timestamp(0)).encode(),
                    as_of=as_of,
                    exports=list(flow.exports),
                )
            )
        )
        self._tell(pb.Command(schedule=pb.Schedule(id=flow.id)))
        for export in flow.exports.values():
            if export.kind is ExportKind.VIEW:
                self._tell(pb.Command(allow_writes=pb.AllowWrites(id=export.id)))
        return flow

    def drop(self, ids: Iterable[GlobalId]) -> None:
        """End exports. Whoever still holds one keeps it until done."""
        for id_ in ids:
            export = self.exports[id_]
            export.implied.release()
            for key in [key for key in self._statuses if key[0] == id_]:
                del self._statuses[key]
        self.settle()

    def peek(self, stream: PeekStream, command: pb.Peek) -> None:
        self._peeks[stream.uuid] = stream
        self._tell(pb.Command(peek=command))

    def cancel_peek(self, stream: PeekStream) -> None:
        """Forget a peek; replicas that may still be at it are told."""
        if self._peeks.pop(stream.uuid, None) is not None:
            self._tell(pb.Command(cancel_peek=pb.CancelPeek(uuid=stream.uuid)))

    def grant_chunk(self, stream: PeekStream, replica: ReplicaId) -> None:
        if connection := self.replicas.get(replica):
            connection.send(pb.Command(peek_credit=pb.PeekCredit(uuid=stream.uuid, chunks=1)))

    def initialization_complete(self) -> None:
        self._tell(pb.Command(initialization_complete=pb.InitializationComplete()))

    def add_replica(self, replica: ReplicaId, connection: ReplicaConnection) -> None:
        """The connection will ask for a `replay` by itself."""
        for flow in self.flows.values():
            self._hold_for(replica, flow)
        self.replicas[replica] = connection

    def remove_replica(self, replica: ReplicaId) -> None:
        """Its process is gone: nothing is held for it any more."""
        self.replicas.pop(replica, None)
        for stream in list(self._peeks.values()):
            stream.lost(replica)
        for flow in [*self.flows.values(), *self._dropped]:
            self._release_for(replica, flow)
        for export in self.exports.values():
            export.replicas.pop(replica, None)
        for key in [key for key in self._statuses if key[1] == replica]:
            del self._statuses[key]

    def fail_answers(self, error: SqlError) -> None:
        """The cluster goes: nobody will answer."""
        for peek in list(self._peeks.values()):
            peek.fail(error)
        for export in list(self.exports.values()):
            if export.stream is not None:
                export.stream.fail(error)

    def release_all(self) -> None:
        """This process ends: nothing is held here any more. The durable sinces stay where they are."""
        flows = [*self.flows.values(), *self._dropped]
        for flow in flows:
            for replica in list(flow.replica_holds):
                self._release_for(replica, flow)
            for hold in flow.input_holds.values():
                hold.release()
            for export in flow.exports.values():
                export.implied.release()

    def tick(self, input_upper: Callable[[GlobalId], Frontier]) -> None:
        """Once a second: indexes of a cluster without replicas must not hold their inputs for ever."""
        if not self.replicas:
            for export in self.exports.values():
                if export.kind is ExportKind.INDEX:
                    uppers = (input_upper(input_) for input_ in inputs_of(export.flow.description))
                    self._advance(export, meet(*uppers, default=Frontier(0)))
        self.settle()

    def settle(self) -> None:
        """Tell replicas how far exports may be compacted, and move the holds on inputs behind them."""
        while self._changed:  # an input's hold may be on an export of this cluster
            export = self._changed.pop()
            since = export.book.since
            if since <= export.commanded:
                continue
            export.commanded = since
            self._tell(pb.Command(allow_compaction=pb.AllowCompaction(id=export.id, frontier=since)))
            flow = export.flow
            if flow.since == DONE:
                self._remove(flow)
            else:
                for hold in flow.input_holds.values():
                    hold.downgrade(max(hold.since, flow.since))

    def frontiers(self, id_: GlobalId) -> Frontiers:
        export = self.exports[id_]
        return Frontiers(export.book.since, export.upper)

    def hydrated(self, id_: GlobalId) -> bool:
        export = self.exports[id_]
        as_of = export.flow.description.as_of
        return not self.replicas or any(reported.output > as_of for reported in export.replicas.values())

    def statuses(self) -> list[ObjectStatus]:
        return list(self._statuses.values())

    # What connections report (ReplicaEvents)

    def replay(self) -> list[pb.Command]:
        return self.history.replay()

    def connected(self, replica: ReplicaId) -> None:
        """What is not in the history is not in the replica any more."""
        for flow in self._dropped:
            self._release_for(replica, flow)
        self._dropped = [flow for flow in self._dropped if flow.replica_holds]

    def disconnected(self, replica: ReplicaId) -> None:
        for stream in self._peeks.values():
            stream.lost(replica)

    def responded(self, replica: ReplicaId, response: pb.Response) -> None:
        match response.WhichOneof("kind"):
            case "frontiers":
                for report in response.frontiers.reports:
                    self._frontiers_reported(replica, report)
            case "peek_rows":
                rows = response.peek_rows
                if stream := self._peeks.get(rows.uuid):
                    stream.rows(replica, rows.ipc)
            case "peek_end":
                self._peek_ended(replica, response.peek_end)
            case "subscribe_batch":
                export = self.exports.get(GlobalId(response.subscribe_batch.id))
                if export is not None and export.stream is not None:
                    export.stream.batch(response.subscribe_batch)
                    self._advance(export, export.stream.emitted)
            case "status":
                self._status_reported(replica, response.status)
            case other:
                _log.error("unknown response", replica=replica, kind=other)

    def _frontiers_reported(self, replica: ReplicaId, report: pb.Frontiers) -> None:
        export = self.exports.get(GlobalId(report.id))
        if export is None:
            self._gone(replica, report)
            return
        reported = export.replicas.setdefault(replica, Reported())
        if report.HasField("output"):
            reported.output = join(reported.output, Frontier(report.output))
        if report.HasField("write"):
            reported.write = join(reported.write, Frontier(report.write))
            if export.kind is not ExportKind.SUBSCRIBE:
                self._advance(export, reported.write)
        if report.HasField("input") and report.input > reported.input:
            reported.input = Frontier(report.input)
            # Reading on from a frontier needs the time before it.
            need = Frontier(step_back(reported.input))
            for hold in export.flow.replica_holds.get(replica, {}).values():
                if hold.since < need:
                    hold.downgrade(need)

    def _gone(self, replica: ReplicaId, report: pb.Frontiers) -> None:
        """A replica has dropped what was dropped here."""
        if report.write != DONE or report.input != DONE:
            return
        for flow in self._dropped:
            if report.id in flow.exports:
                self._release_for(replica, flow)
        self._dropped = [flow for flow in self._dropped if flow.replica_holds]

    def _peek_ended(self, replica: ReplicaId, end: pb.PeekEnd) -> None:
        stream = self._peeks.get(end.uuid)
        if stream is None:
            return
        others = any(
            connection.online and id_ != replica and id_ not in stream.refused_by()
            for id_, connection in self.replicas.items()
        )
        if stream.ended(replica, end, others):
            self._peeks.pop(end.uuid)
            cancel = pb.Command(cancel_peek=pb.CancelPeek(uuid=end.uuid))
            self.history.record(cancel)
            for id_, connection in self.replicas.items():
                if id_ != replica:
                    connection.send(cancel)

    def _status_reported(self, replica: ReplicaId, status: pb.Status) -> None:
        id_ = GlobalId(status.id)
        if id_ not in self.exports:
            return
        health = Health.STALLED if status.stalled else Health.RUNNING
        known = self._statuses.get((id_, replica))
        if health is not (Health.RUNNING if known is None else known.health):
            report = _log.warning if status.stalled else _log.info
            report(f"object {health.value}", id=id_, replica=replica, message=status.message)
        self._statuses[id_, replica] = ObjectStatus(id_, replica, health, status.message, self._clock.now_ms())

    # Holds

    def _add_export(self, flow: Flow, sink: object, as_of: Frontier, durable_upper: Frontier) -> None:
        kind = ExportKind.SUBSCRIBE
        if isinstance(sink, IndexExport):
            kind = ExportKind.INDEX
        elif isinstance(sink, ViewSink):
            kind = ExportKind.VIEW
        id_ = GlobalId(sink.id)  # type: ignore[attr-defined]
        if id_ in self.exports:
            raise InternalError(f"{id_} was created twice in cluster {self.spec.id}")
        book = HoldBook(id_, as_of, lambda _: self._changed.add(export))
        export = Export(id_, flow, kind, book, book.acquire(), as_of, as_of)
        flow.exports[id_] = self.exports[id_] = export
        if kind is ExportKind.VIEW:
            self._advance(export, durable_upper)

    def _advance(self, export: Export, upper: Frontier) -> None:
        """The upper moves; what the export itself needs held follows."""
        if upper <= export.upper:
            return
        export.upper = upper
        if export.implied.since == DONE:
            return
        if export.kind is ExportKind.INDEX:
            if upper == DONE:
                return  # finished: kept whole
            since = Frontier(max(upper - INDEX_RETAIN_MS, 0))
        else:
            since = Frontier(step_back(upper))
        if since > export.implied.since:
            export.implied.downgrade(since)

    def _hold_for(self, replica: ReplicaId, flow: Flow) -> None:
        flow.replica_holds[replica] = {
            id_: flow.input_holds[id_].clone() for id_, durable in inputs_of(flow.description).items() if durable
        }

    def _release_for(self, replica: ReplicaId, flow: Flow) -> None:
        for hold in flow.replica_holds.pop(replica, {}).values():
            hold.release()

    def _remove(self, flow: Flow) -> None:
        """All its exports are dropped and the replicas were told so."""
        del self.flows[flow.id]
        for id_ in flow.exports:
            del self.exports[id_]
        for hold in flow.input_holds.values():
            hold.release()
        if flow.replica_holds:
            self._dropped.append(flow)

    def _tell(self, command: pb.Command) -> None:
        self.history.record(command)
        for connection in self.replicas.values():
            connection.send(command)


def _configuration(bypass_committer: bool) -> pb.Command:
    return pb.Command(configure=pb.Configure(bypass_committer=bypass_committer))


def inputs_of(description: DataflowDescription) -> dict[GlobalId, bool]:
    """The collections that a dataflow reads and somebody must hold for it: durable ones (True) and indexes
    (False).
    """
    return {
        import_.index if isinstance(import_, IndexImport) else name: not isinstance(import_, IndexImport)
        for name, import_ in description.imports.items()
    }
