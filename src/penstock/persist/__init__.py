"""Durable, versioned, multi-writer shards over a blob store and a compare-and-set store.

The room owns everything that is stored for longer than a process lives: the two kinds of store, the state
of a shard and its durable formats, the handles that write and read, and the upkeep behind them. It promises
the rooms above that a shard is *definite* (all readers see the same contents at each time in ``[since,
upper)``), that an acknowledged append is durable and there exactly once, and that nothing a live reader
needs is taken away. It knows nothing of SQL or dataflows.
"""

from penstock.persist.changelog import Change, Changelog, VersionConflict
from penstock.persist.client import PersistClient
from penstock.persist.config import PersistConfig
from penstock.persist.cursor import SnapshotCursor
from penstock.persist.errors import (
    BatchTooOld,
    ClientClosed,
    CorruptBlobError,
    CorruptStateError,
    Fenced,
    InvalidUsage,
    LeaseLost,
    Mismatch,
    ReaderExpired,
    SchemaMismatch,
    SinceError,
    StatisticsViolated,
)
from penstock.persist.file import FileBlob
from penstock.persist.filter import And, Compare, Filter, IsNull, Not, Opaque, Operator, Or, columns_of, matching
from penstock.persist.leased_part import LeasedPart, LeasedStep
from penstock.persist.listen import Listen, ListenEvent
from penstock.persist.location import open_blob, open_blob_when_ready, open_consensus, open_existing_consensus
from penstock.persist.mem import MemBlob, MemConsensus
from penstock.persist.pubsub import LocalPubSub, PubSub
from penstock.persist.read import ReadHandle
from penstock.persist.schema import Evolved, ExpectationMismatch, Incompatible, SchemaId, SchemaVersion
from penstock.persist.since import SinceHandle
from penstock.persist.snapshot import Snapshot, SnapshotStatistics
from penstock.persist.sqlite import SqliteConsensus
from penstock.persist.store import (
    BATCH_MAX,
    SCAN_ALL,
    BatchingConsensus,
    Blob,
    CasResult,
    Consensus,
    SchemaMissing,
    SchemaOwner,
    SeqNo,
    ShardId,
    StoreFailure,
    StoreFull,
    StoreRefused,
    StoreUnusable,
    Versioned,
    new_shard_id,
)
from penstock.persist.sweeper import Sweeper
from penstock.persist.unreliable import UnreliableBlob, UnreliableConsensus
from penstock.persist.url import masked
from penstock.persist.write import Batch, WriteHandle

__all__ = [
    "BATCH_MAX",
    "SCAN_ALL",
    "And",
    "Batch",
    "BatchTooOld",
    "BatchingConsensus",
    "Blob",
    "CasResult",
    "Change",
    "Changelog",
    "ClientClosed",
    "Compare",
    "Consensus",
    "CorruptBlobError",
    "CorruptStateError",
    "Evolved",
    "ExpectationMismatch",
    "Fenced",
    "FileBlob",
    "Filter",
    "Incompatible",
    "InvalidUsage",
    "IsNull",
    "LeaseLost",
    "LeasedPart",
    "LeasedStep",
    "Listen",
    "ListenEvent",
    "LocalPubSub",
    "MemBlob",
    "MemConsensus",
    "Mismatch",
    "Not",
    "Opaque",
    "Operator",
    "Or",
    "PersistClient",
    "PersistConfig",
    "PubSub",
    "ReadHandle",
    "ReaderExpired",
    "SchemaId",
    "SchemaMismatch",
    "SchemaMissing",
    "SchemaOwner",
    "SchemaVersion",
    "SeqNo",
    "ShardId",
    "SinceError",
    "SinceHandle",
    "Snapshot",
    "SnapshotCursor",
    "SnapshotStatistics",
    "SqliteConsensus",
    "StatisticsViolated",
    "StoreFailure",
    "StoreFull",
    "StoreRefused",
    "StoreUnusable",
    "Sweeper",
    "UnreliableBlob",
    "UnreliableConsensus",
    "VersionConflict",
    "Versioned",
    "WriteHandle",
    "columns_of",
    "masked",
    "matching",
    "new_shard_id",
    "open_blob",
    "open_blob_when_ready",
    "open_consensus",
    "open_existing_consensus",
]
