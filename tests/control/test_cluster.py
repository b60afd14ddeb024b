"""One cluster's state machine: what is held, what replicas are told, and in which order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from penstock.compute import DataflowDescription, IndexExport, IndexImport, ShardImport, ViewSink
from penstock.control.cluster import Cluster
from penstock.control.holds import HoldBook
from penstock.control.specs import ClusterId, ClusterSpec, Health, ReplicaId
from penstock.replica import compute_pb2 as pb
from penstock.runtime import DONE, Frontier, GlobalId, InternalError, Timestamp, VirtualClock

SCHEMA = pa.schema([("a", pa.int64())])
T1, V2, I3, V4 = (GlobalId(id_) for id_ in ("t1", "v2", "i3", "v4"))
R1, R2 = ReplicaId("r1"), ReplicaId("r2")


class Connection:
    """Takes note of what a replica is told."""

    online = True

    def __init__(self) -> None:
        self.sent: list[pb.Command] = []

    def send(self, command: pb.Command) -> None:
        self.sent.append(command)

    def compactions(self, id_: str) -> list[int]:
        commands = [c.allow_compaction for c in self.sent if c.WhichOneof("kind") == "allow_compaction"]
        return [command.frontier for command in commands if command.id == id_]


def view(id_: GlobalId, input_: GlobalId, as_of: int) -> DataflowDescription:
    imports = {input_: ShardImport("s", SCHEMA, True)}
    return DataflowDescription(id_, imports, (), (ViewSink(id_, input_, "s2", SCHEMA),), Timestamp(as_of))


def index(id_: GlobalId, input_: GlobalId, as_of: int) -> DataflowDescription:
    imports = {input_: ShardImport("s", SCHEMA, True)}
    return DataflowDescription(id_, imports, (), (IndexExport(id_, input_, (0,)),), Timestamp(as_of))


class Harness:
    def __init__(self, *replicas: ReplicaId) -> None:
        self.table = HoldBook(T1, Frontier(10))
        self.base = self.table.acquire()
        self.cluster = Cluster(ClusterSpec(ClusterId("c"), "c"), "txns", VirtualClock())
        self.replicas = {id_: Connection() for id_ in replicas}
        for id_, connection in self.replicas.items():
            self.cluster.add_replica(id_, connection)

    def create(self, description: DataflowDescription, upper: int = 0) -> None:
        holds = {T1: self.base.clone()}
        self.cluster.create(description, holds, Frontier(upper))

    def report(self, replica: ReplicaId, id_: str, **frontiers: int) -> None:
        reports = pb.FrontierReports(reports=[pb.Frontiers(id=id_, **frontiers)])
        self.cluster.responded(replica, pb.Response(frontiers=reports))

    def settle(self) -> Frontier:
        """Let the controller's own hold go far ahead: what is left is what the cluster needs."""
        self.base.downgrade(max(self.base.since, Frontier(1_000_000)))
        self.cluster.tick(lambda _: Frontier(1_000_000))
        return self.table.since


def test_a_view_holds_its_input_one_step_before_its_upper() -> None:
    harness = Harness(R1)
    harness.create(view(V2, T1, 10))
    assert harness.settle() == 10
    harness.report(R1, V2, write=50, output=60, input=80)
    assert harness.settle() == 49
    assert harness.replicas[R1].compactions(V2) == [49]
    harness.report(R1, V2, write=40)
    assert harness.settle() == 49


def test_a_view_that_was_written_before_holds_from_there() -> None:
    harness = Harness(R1)
    harness.create(view(V2, T1, 30), upper=31)
    harness.report(R1, V2, input=100)
    assert harness.settle() == 30


def test_each_replica_holds_what_it_has_not_read() -> None:
    harness = Harness(R1, R2)
    harness.create(view(V2, T1, 10))
    harness.report(R1, V2, write=90, output=90, input=90)
    assert harness.settle() == 10  # r2 has not said anything yet
    harness.report(R2, V2, input=21)
    assert harness.settle() == 20
    harness.report(R2, V2, input=200)
    assert harness.settle() == 89
    harness.cluster.remove_replica(R2)
    assert harness.settle() == 89


def test_unprotected_replica_hold() -> None:
    """A dropped dataflow keeps its input held until each replica has confirmed, or was told anew."""
    harness = Harness(R1, R2)
    harness.create(view(V2, T1, 10))
    harness.cluster.drop([V2])
    assert harness.replicas[R1].compactions(V2) == [DONE]
    assert harness.settle() == 10
    harness.cluster.disconnected(R1)
    harness.report(R2, V2, write=DONE, input=DONE, output=DONE)
    assert harness.settle() == 10
    assert [c.WhichOneof("kind") for c in harness.cluster.replay()] == ["create_instance", "configure"]
    harness.cluster.connected(R1)
    assert harness.settle() == 1_000_000


def test_an_index_retains_a_second_and_whatever_is_held() -> None:
    harness = Harness(R1)
    harness.create(index(I3, T1, 10))
    harness.report(R1, I3, write=5000, output=5000, input=5000)
    assert harness.settle() == 4000
    hold = harness.cluster.exports[I3].book.acquire()
    harness.report(R1, I3, write=9000, output=9000, input=9000)
    assert harness.settle() == 4000
    hold.release()
    assert harness.settle() == 8000
    assert harness.replicas[R1].compactions(I3) == [4000, 8000]


def test_an_index_stays_while_a_view_reads_it() -> None:
    harness = Harness(R1)
    harness.create(index(I3, T1, 10))
    imports = {T1: IndexImport(I3, T1, SCHEMA)}
    description = DataflowDescription(V4, imports, (), (ViewSink(V4, T1, "s4", SCHEMA),), Timestamp(20))
    harness.cluster.create(description, {I3: harness.cluster.exports[I3].book.acquire(Frontier(20))}, Frontier(0))
    harness.report(R1, I3, write=90_000, input=90_000)
    assert harness.settle() == 20
    harness.report(R1, V4, write=50_000)
    assert harness.settle() == 49_999
    harness.cluster.drop([I3])
    assert harness.replicas[R1].compactions(I3)[-1] == 49_999
    harness.cluster.drop([V4])
    assert harness.replicas[R1].compactions(I3)[-1] == DONE
    assert not harness.cluster.flows


def test_indexes_of_a_paused_cluster_follow_their_inputs() -> None:
    harness = Harness()
    harness.create(index(I3, T1, 10))
    assert harness.settle() == 999_000


def test_a_view_of_a_paused_cluster_does_not() -> None:
    harness = Harness()
    harness.create(view(V2, T1, 10))
    assert harness.settle() == 10


def test_holds_must_reach_back_to_the_as_of() -> None:
    harness = Harness(R1)
    late = harness.table.acquire(Frontier(30))
    with pytest.raises(InternalError, match="holds 30"):
        harness.cluster.create(view(V2, T1, 20), {T1: late}, Frontier(0))
    with pytest.raises(InternalError, match="holds nothing"):
        harness.cluster.create(view(V2, T1, 20), {}, Frontier(0))
    late.release()


def test_hydration_and_statuses() -> None:
    harness = Harness(R1)
    harness.create(view(V2, T1, 10))
    assert not harness.cluster.hydrated(V2)
    harness.report(R1, V2, output=11)
    assert harness.cluster.hydrated(V2)
    stalled = pb.Response(status=pb.Status(id=V2, stalled=True, message="why"))
    harness.cluster.responded(R1, stalled)
    (status,) = harness.cluster.statuses()
    assert (status.health, status.message, status.replica) == (Health.STALLED, "why", R1)
    harness.cluster.drop([V2])
    harness.cluster.responded(R1, stalled)
    assert harness.cluster.statuses() == []
