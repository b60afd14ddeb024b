"""Controllers: what runs where, what must stay readable, and what to do when a process dies.

The room turns wishes of the adapter ("maintain this view on that cluster", "read this at t") into commands to
replicas and durable sinces of shards. Its contract upwards: whatever was created stays created until dropped,
however often replicas die; nothing that somebody holds is compacted; every frontier it reports is monotone.
All of it runs on one asyncio loop and keeps no durable state of its own but the critical sinces. It must not
know SQL text or sessions.
"""

from penstock.control.answers import PeekStream, SubscribeStream
from penstock.control.compute import ComputeController
from penstock.control.holds import HoldBook, ReadHold, SinceError
from penstock.control.orchestrator import Orchestrator, ProcessOrchestrator
from penstock.control.specs import (
    ClusterId,
    ClusterSpec,
    CollectionSpec,
    Comparison,
    Constant,
    Frontiers,
    Health,
    IndexRead,
    ObjectStatus,
    Peek,
    PeekInput,
    ReplicaId,
    ReplicaSpec,
    ShardRead,
    SubscribeEvent,
)
from penstock.control.storage import CoordinatorFenced, StorageController

__all__ = [
    "ClusterId",
    "ClusterSpec",
    "CollectionSpec",
    "Comparison",
    "ComputeController",
    "Constant",
    "CoordinatorFenced",
    "Frontiers",
    "Health",
    "HoldBook",
    "IndexRead",
    "ObjectStatus",
    "Orchestrator",
    "Peek",
    "PeekInput",
    "PeekStream",
    "ProcessOrchestrator",
    "ReadHold",
    "ReplicaId",
    "ReplicaSpec",
    "ShardRead",
    "SinceError",
    "StorageController",
    "SubscribeEvent",
    "SubscribeStream",
]
