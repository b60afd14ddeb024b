"""What a committer and its clients count. One process hosts one of each, so the metrics are the process's."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from penstock.committer.tally import OperationTallies

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_SIZES = (1, 2, 4, 8, 16, 32, 64)

OPERATIONS = ("compare_and_set", "head", "scan", "truncate", "list_keys")

RPC = OperationTallies((*OPERATIONS, "unknown"), _SECONDS)
REGISTRY.register(RPC)
BACKING_SECONDS = Histogram(
    "committer_backing_duration_seconds", "Time per call of the store, a batch being one", ["op"], buckets=_SECONDS
)
CONNECTIONS = Gauge("committer_connections", "Streams of operations that stand")
REFUSED = Counter("committer_refused", "What was turned away before it reached the store", ["reason"])
BATCH_SIZE = Histogram("committer_batch_size", "Compare-and-sets per call of the store", buckets=_SIZES)
BATCH_SECONDS = Histogram("committer_batch_duration_seconds", "Time of a batch in the store", buckets=_SECONDS)
BATCH_SPLITS = Counter("committer_batch_splits", "Batches halved because the store could not serialize them")
QUEUED = Gauge("committer_queued", "Compare-and-sets that wait or are on their way to the store")
QUEUE_WAITS = Counter("committer_queue_waits", "Compare-and-sets that had to wait for room in the queue")
SCHEMA_CREATED = Counter("committer_schema_recreated", "Times the store was found reset and its tables created")
CACHE_HITS = Counter("committer_cache_hits", "Heads answered from the cache")
CACHE_MISSES = Counter("committer_cache_misses", "Heads that may be stale but were not cached")
CACHED_SHARDS = Gauge("committer_cached_shards", "Shards whose head is cached")
CAS_REFUSED = Counter("committer_cas_behind_cache", "Compare-and-sets refused without asking the store")
REFRESH_SECONDS = Histogram(
    "committer_cas_refresh_lag_seconds", "From a mismatch to the refreshed head", buckets=_SECONDS
)

PUBSUB_CONNECTIONS = Gauge("pubsub_server_connections", "Connected pub-sub clients")
PUBSUB_FORWARDED = Counter("pubsub_server_diffs_forwarded", "Diffs queued to clients")
PUBSUB_DROPPED = Counter("pubsub_server_diffs_dropped", "Diffs dropped because a client does not keep up")
PUBSUB_CLIENT_DROPPED = Counter("pubsub_client_diffs_dropped", "Diffs dropped because the server does not keep up")
PUBSUB_CLIENT_CONNECTS = Counter("pubsub_client_connects", "Connections made to the pub-sub server")
