"""What the adapter says to the controllers, and what it hears: plain values without behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

import pyarrow as pa

from penstock.runtime import DataError, Frontier, GlobalId, Timestamp, Updates

if TYPE_CHECKING:
    from penstock.persist import ShardId

ClusterId = NewType("ClusterId", str)
ReplicaId = NewType("ReplicaId", str)


@dataclass(frozen=True)
class CollectionSpec:
    """A collection with a durable shard.

    `schema`: its data columns. `is_table`: the shard is written through transactions and holds exactly these
    columns; otherwise it is the output of a sink and holds `compute.view_schema(schema)`, rows and errors
    side by side.
    """

    id: GlobalId
    shard: ShardId
    schema: pa.Schema
    is_table: bool


@dataclass(frozen=True)
class ReplicaSpec:
    """One replica of a cluster: a process that runs all of the cluster's dataflows."""

    id: ReplicaId
    name: str


@dataclass(frozen=True)
class ClusterSpec:
    """A cluster. Without replicas it is paused: dataflows wait, peeks wait."""

    id: ClusterId
    name: str
    replicas: tuple[ReplicaSpec, ...] = ()


@dataclass(frozen=True)
class Frontiers:
    """The collection can be read at every t with ``since <= t < upper``."""

    since: Frontier
    upper: Frontier


@dataclass(frozen=True)
class IndexRead:
    """Rows of an index of the peek's cluster; `keys`: only rows whose key columns equal one of these rows."""

    id: GlobalId
    keys: pa.RecordBatch | None = None


@dataclass(frozen=True)
class Comparison:
    """``column operator value``: `operator` is one of ``= <> < <= > >=``, `value` a scalar of the column's type."""

    column: str
    operator: str
    value: pa.Scalar


@dataclass(frozen=True)
class ShardRead:
    """Rows of a durable collection. `columns`: names of those that are needed; None: all. Rows that fail one of the
    `comparisons` may be left out.
    """

    shard: ShardId
    schema: pa.Schema
    is_table: bool
    columns: tuple[str, ...] | None = None
    comparisons: tuple[Comparison, ...] = ()


@dataclass(frozen=True)
class Constant:
    """Rows that travel with the peek: `data` is an Arrow IPC stream."""

    data: bytes


PeekInput = IndexRead | ShardRead | Constant


@dataclass(frozen=True)
class Peek:
    """A one-off read at `timestamp`.

    `query`: DataFusion SQL over tables named as in `inputs`, or None for the rows of the single input as they
    are. `max_result_bytes`: a larger answer is refused with SQLSTATE 53000 rather than filling the process.
    """

    timestamp: Timestamp
    query: str | None
    inputs: dict[str, PeekInput]
    max_result_bytes: int = 1 << 30


@dataclass(frozen=True)
class SubscribeEvent:
    """Everything that happened in ``[lower, upper)``: consolidated updates, or the error that ends the
    stream.
    """

    lower: Frontier
    upper: Frontier
    updates: Updates | DataError


class Health(enum.Enum):
    """How an object is doing on a replica."""

    RUNNING = "running"
    STALLED = "stalled"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class ObjectStatus:
    """`message` says what happened to the object, why, and what to do. `replica` is None where no replica is
    to blame.
    """

    id: GlobalId
    replica: ReplicaId | None
    health: Health
    message: str
    at: Timestamp
