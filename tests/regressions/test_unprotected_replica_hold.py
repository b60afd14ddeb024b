"""A dropped dataflow keeps its durable inputs readable until each replica has let go of it.

Elsewhere a cancelled peek or a dropped dataflow released the global hold while a disconnecting replica still had the
dataflow before it: the input was compacted, and the replica died on "cannot serve the requested as-of".
"""

from __future__ import annotations

import pyarrow as pa

from penstock.compute import DataflowDescription, ShardImport, ViewSink
from penstock.control import ClusterId, ClusterSpec, HoldBook, ReplicaId
from penstock.control.cluster import Cluster
from penstock.replica import compute_pb2 as pb
from penstock.runtime import DONE, Frontier, GlobalId, Timestamp, VirtualClock

SCHEMA = pa.schema([("a", pa.int64())])
TABLE, VIEW = GlobalId("u1"), GlobalId("u2")
LEFT, RIGHT = ReplicaId("r1"), ReplicaId("r2")


class Connection:
    online = True

    def send(self, command: pb.Command) -> None:
        pass


def test_the_input_is_held_until_every_replica_has_let_go() -> None:
    table = HoldBook(TABLE, Frontier(10))
    base = table.acquire()
    cluster = Cluster(ClusterSpec(ClusterId("c1"), "test"), "txns", VirtualClock())
    for replica in (LEFT, RIGHT):
        cluster.add_replica(replica, Connection())
    sink = ViewSink(VIEW, TABLE, "s2", SCHEMA)
    description = DataflowDescription(VIEW, {TABLE: ShardImport("s1", SCHEMA, True)}, (), (sink,), Timestamp(10))
    cluster.create(description, {TABLE: base.clone()}, Frontier(0))
    base.downgrade(Frontier(500))

    cluster.drop([VIEW])
    assert table.since == 10, "neither replica has confirmed"

    gone = pb.FrontierReports(reports=[pb.Frontiers(id=VIEW, write=DONE, input=DONE, output=DONE)])
    cluster.responded(RIGHT, pb.Response(frontiers=gone))
    cluster.disconnected(LEFT)
    assert table.since == 10, "the left replica may still be about to build it"

    cluster.connected(LEFT)
    assert table.since == 500, "it was told anew, without the dataflow"
    base.release()
