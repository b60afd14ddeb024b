"""What a replica must be told to be up to date: the commands of a cluster so far, kept reduced.

A replica that connects, for the first time or again, is sent `replay()`. Instead of keeping every command and
reducing the list now and then, the history is reduced as commands come in: its size follows what exists, not
what happened.

Contract of `replay`:

* Each dataflow appears with the as-of that its exports may be compacted to by now: a new replica does not
  recompute history that nobody can read, and a running dataflow is never asked for times it has compacted
  away.
* Of the settings only the last ones appear, before everything that they may change.
* Dropped dataflows, cancelled and answered peeks do not appear.
* Dataflows keep the order of their creation: an index comes before those who import it.
* Peeks come before compactions, so that compacting cannot overtake a read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.replica import compute_pb2 as pb
from penstock.runtime import DONE, Frontier, InternalError, meet


@dataclass
class _Flow:
    create: pb.CreateDataflow
    frontiers: dict[str, Frontier]
    """Per export: how far it may be compacted; at least the as-of."""
    scheduled: bool = False
    writable: list[str] = field(default_factory=list)


class CommandHistory:
    """The reduced commands of one cluster. Not for concurrent use."""

    def __init__(self, instance: pb.CreateInstance) -> None:
        self._instance = instance
        self._configure: pb.Configure | None = None
        self._flows: dict[str, _Flow] = {}
        self._flow_of: dict[str, str] = {}
        self._peeks: dict[bytes, pb.Peek] = {}
        self._initialized = False

    def __len__(self) -> int:
        """Live dataflows and peeks."""
        return len(self._flows) + len(self._peeks)

    def record(self, command: pb.Command) -> None:
        """Take note of a command that is sent. Commands about unknown ids change nothing."""
        match command.WhichOneof("kind"):
            case "configure":
                self._configure = command.configure
            case "create_dataflow":
                self._create(command.create_dataflow)
            case "schedule":
                if flow := self._flows.get(command.schedule.id):
                    flow.scheduled = True
            case "allow_writes":
                id_ = command.allow_writes.id
                if (owner := self._flow_of.get(id_)) and id_ not in self._flows[owner].writable:
                    self._flows[owner].writable.append(id_)
            case "allow_compaction":
                self._compact(command.allow_compaction)
            case "peek":
                self._peeks[command.peek.uuid] = command.peek
            case "cancel_peek":
                self.forget_peek(command.cancel_peek.uuid)
            case "initialization_complete":
                self._initialized = True
            case "peek_credit":
                pass  # a replayed peek starts with its initial credit
            case other:
                raise InternalError(f"command {other} does not belong into a history")

    def forget_peek(self, uuid: bytes) -> None:
        """The peek is answered or cancelled."""
        self._peeks.pop(uuid, None)

    def replay(self) -> list[pb.Command]:
        """The commands after Hello that bring a replica up to date."""
        flows = self._flows.values()
        commands = [pb.Command(create_instance=self._instance)]
        if self._configure is not None:
            commands.append(pb.Command(configure=self._configure))
        for flow in flows:
            create = pb.CreateDataflow()
            create.CopyFrom(flow.create)
            create.as_of = self._as_of(flow)
            commands.append(pb.Command(create_dataflow=create))
        commands += [pb.Command(schedule=pb.Schedule(id=flow.create.id)) for flow in flows if flow.scheduled]
        commands += [pb.Command(peek=peek) for peek in self._peeks.values()]
        commands += [
            pb.Command(allow_compaction=pb.AllowCompaction(id=id_, frontier=frontier))
            for flow in flows
            for id_, frontier in flow.frontiers.items()
            if frontier > self._as_of(flow)
        ]
        if self._initialized:
            commands.append(pb.Command(initialization_complete=pb.InitializationComplete()))
        commands += [pb.Command(allow_writes=pb.AllowWrites(id=id_)) for flow in flows for id_ in flow.writable]
        return commands

    def _create(self, create: pb.CreateDataflow) -> None:
        if create.id in self._flows:
            raise InternalError(f"dataflow {create.id} was created twice")
        as_of = Frontier(create.as_of)
        self._flows[create.id] = _Flow(create, dict.fromkeys(create.exports, as_of))
        for export in create.exports:
            self._flow_of[export] = create.id

    def _compact(self, compaction: pb.AllowCompaction) -> None:
        owner = self._flow_of.get(compaction.id)
        if owner is None:
            return
        flow = self._flows[owner]
        flow.frontiers[compaction.id] = max(flow.frontiers[compaction.id], Frontier(compaction.frontier))
        if self._as_of(flow) == DONE:
            del self._flows[owner]
            for export in flow.create.exports:
                del self._flow_of[export]

    def _as_of(self, flow: _Flow) -> Frontier:
        return meet(*flow.frontiers.values())
