"""What persist counts, over all shards of the process. Prometheus names begin with ``persist_``, those of transactions
with ``txns_``.

Labels are operations and outcomes, never shards: a process may have a hundred thousand of those. Gauges over shards are
sums and worst cases, computed when somebody scrapes; `penstock inspect` has the single shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol
from weakref import WeakSet

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.persist.state import State

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 10, 60)
_LONG_SECONDS = (0.01, 0.1, 1, 10, 60, 600, 3600)

_CMD_STARTED = Counter("persist_cmd_started_total", "Commands on shards that were begun.", ["cmd"])
_CMD_SUCCEEDED = Counter("persist_cmd_succeeded_total", "Commands that were answered.", ["cmd"])
_CMD_MISMATCH = Counter("persist_cmd_cas_mismatch_total", "Attempts that lost a race against another process.", ["cmd"])
_CMD_FAILED = Counter("persist_cmd_failed_total", "Commands that ended with an error.", ["cmd"])
_CMD_FOUND_DONE = Counter(
    "persist_cmd_noop_total", "Commands whose attempt with an unknown outcome turned out to have taken effect.", ["cmd"]
)
_CMD_SECONDS = Histogram(
    "persist_cmd_seconds",
    "From a command's start, waiting for its turn included, to its durable commit.",
    ["cmd"],
    buckets=_SECONDS,
)


@dataclass(frozen=True, slots=True)
class CommandMetrics:
    """The metrics of one kind of command."""

    started: Counter
    succeeded: Counter
    mismatch: Counter
    failed: Counter
    found_done: Counter
    seconds: Histogram


@cache
def of_command(name: str) -> CommandMetrics:
    """`name`: one of the few that are written in the code."""
    return CommandMetrics(
        _CMD_STARTED.labels(name),
        _CMD_SUCCEEDED.labels(name),
        _CMD_MISMATCH.labels(name),
        _CMD_FAILED.labels(name),
        _CMD_FOUND_DONE.labels(name),
        _CMD_SECONDS.labels(name),
    )


_STORE_STARTED = Counter("persist_store_started_total", "Operations on the stores.", ["op"])
_STORE_FAILED = Counter("persist_store_failed_total", "Operations on the stores that failed.", ["op", "outcome"])
_STORE_BYTES = Counter("persist_store_bytes_total", "Bytes written to and read from the stores.", ["op"])
_STORE_SECONDS = Histogram("persist_store_seconds", "Duration of operations on the stores.", ["op"], buckets=_SECONDS)


@dataclass(frozen=True, slots=True)
class StoreMetrics:
    """The metrics of one operation on a store."""

    started: Counter
    determinate: Counter
    indeterminate: Counter
    bytes: Counter
    seconds: Histogram


@cache
def of_store(op: str) -> StoreMetrics:
    """`op`: ``blob_get``, ``consensus_scan``, and so on."""
    return StoreMetrics(
        _STORE_STARTED.labels(op),
        _STORE_FAILED.labels(op, "determinate"),
        _STORE_FAILED.labels(op, "indeterminate"),
        _STORE_BYTES.labels(op),
        _STORE_SECONDS.labels(op),
    )


STORE_RETRIES = Counter("persist_store_retries_total", "Store operations tried again after a failure.")

PART_BYTES = Counter("persist_part_bytes_total", "Encoded bytes of parts, by where they went or came from.", ["way"])
"""`way`: inline (into the state), written (to blobs), read (from blobs)."""

CACHE_REQUESTS = Counter("persist_part_cache_total", "Requests for decoded parts.", ["result"])
"""`result`: hit, miss."""

CACHE_BYTES = Gauge("persist_part_cache_bytes", "Memory of decoded parts that are kept.")

PUSHED_DIFFS = Counter("persist_pushed_diffs_total", "State diffs that arrived by push.", ["result"])
"""`result`: applied, known (already seen), gap (versions before it are missing, a fetch follows)."""

UPKEEP = Counter("persist_upkeep_total", "Steps of background upkeep.", ["step", "outcome"])
"""`step`: compaction, rollup, collection. `outcome`: requested, started, applied, superseded (another process did it),
unknown, failed, timed_out, damaged (an input could not be read and is left as it is).
"""

UPKEEP_WAITING = Gauge("persist_upkeep_waiting", "Shards whose upkeep waits for its turn.", ["step"])

UPKEEP_SECONDS = Histogram("persist_upkeep_seconds", "Duration of steps of upkeep.", ["step"], buckets=_LONG_SECONDS)

COMPACTED_ROWS = Counter("persist_compacted_rows_total", "Rows that compaction read.")

COMPACTION_MEMORY_EXCEEDED = Counter(
    "persist_compaction_memory_exceeded_total", "Times that two runs alone were larger than a compaction's memory."
)

COLLECTED_BLOBS = Counter("persist_collected_blobs_total", "Blobs deleted because no version needs them any more.")

COLLECTED_VERSIONS = Counter("persist_collected_versions_total", "Versions removed from consensus.")

SWEPT_BLOBS = Counter("persist_swept_blobs_total", "Blobs deleted because nothing ever came to refer to them.")

SWEEPS = Counter("persist_sweeps_total", "Shards that were swept.", ["outcome"])
"""`outcome`: done, failed."""

READ_PARTS = Counter("persist_read_parts_total", "Parts of snapshots, by what was done with them.", ["outcome"])
"""`outcome`: fetched, filtered (left out by their statistics), audited (left out, but read to be sure), counted (their
rows were asked for the number only, which the state has)."""

READ_PART_BYTES = Counter("persist_read_part_bytes_total", "Encoded bytes of parts of snapshots.", ["outcome"])

SPILLED_BYTES = Counter("persist_spilled_bytes_total", "Bytes of snapshots that were put on the disk to be sorted out.")

READERS_EXPIRED = Counter("persist_readers_expired_total", "Readers of this process that lost their lease.")

OBJECT_HEADS = Counter("persist_object_heads_total", "Heads asked of an object store that keeps consensus.", ["result"])
"""`result`: read (it had changed, or was not known), unchanged."""

TXNS = Counter("txns_ops_total", "Operations on the transaction log.", ["op", "outcome"])
"""`op`: register, forget, commit, apply, compact. `outcome`: done, too_late, failed."""

TXNS_SECONDS = Histogram("txns_op_seconds", "Duration of operations on the transaction log.", ["op"], buckets=_SECONDS)

TXNS_WRITES = Counter("txns_writes_total", "Writes to single shards that were committed.", ["way"])
"""`way`: inline (in the log itself), blob (the log points to it)."""

TXNS_UNAPPLIED_BYTES = Gauge("txns_unapplied_bytes", "Size of the writes that the log still holds.")


class _Watched(Protocol):
    def cached_states(self) -> list[State]: ...


class ShardGauges(Collector):
    """Sums and worst cases over the shards of all clients of the process."""

    def __init__(self) -> None:
        self._clients: WeakSet[_Watched] = WeakSet()

    def watch(self, client: _Watched) -> None:
        """Count the shards of `client` for as long as it lives."""
        self._clients.add(client)

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        states = [state for client in list(self._clients) for state in client.cached_states() if not state.tombstone]
        lags = [state.seqno - state.collected for state in states]
        holds = [state.seqno - state.seqno_since for state in states]
        yield _gauge("persist_shards", "Open shards.", len(states))
        yield _gauge("persist_batches", "Batches of all open shards.", sum(len(state.batches) for state in states))
        yield _gauge(
            "persist_batches_max", "Batches of one shard, at most.", max((len(s.batches) for s in states), default=0)
        )
        yield _gauge("persist_inline_bytes", "Updates kept in states.", sum(state.inline_bytes for state in states))
        yield _gauge("persist_live_diffs", "Versions not collected yet.", sum(lags))
        yield _gauge(
            "persist_live_diffs_max", "Versions of one shard not collected yet, at most.", max(lags, default=0)
        )
        yield _gauge("persist_held_versions_max", "How far a reader's hold is behind, at most.", max(holds, default=0))
        yield _gauge(
            "persist_readers", "Leased readers of all open shards.", sum(len(state.readers) for state in states)
        )


def _gauge(name: str, what: str, value: int) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value)


GAUGES = ShardGauges()
REGISTRY.register(GAUGES)
