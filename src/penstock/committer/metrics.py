"""What a committer and its clients count. One process hosts one of each, so the metrics are the process's."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

RPC_TOTAL = Counter("committer_rpc", "Calls answered by the committer", ["op", "result"])
RPC_SECONDS = Histogram("committer_rpc_duration_seconds", "Time per call", ["op"], buckets=_SECONDS)
BACKING_SECONDS = Histogram(
    "committer_backing_duration_seconds", "Time per call in the store alone", ["op"], buckets=_SECONDS
)
INFLIGHT = Gauge("committer_inflight_rpcs_by_op", "Calls being answered", ["op"])
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
