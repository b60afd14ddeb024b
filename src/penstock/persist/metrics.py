"""What persist counts, over all shards of the process. Prometheus names begin with ``persist_``."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

COMMITS = Counter("persist_commits_total", "Attempts to commit a version of a shard's state.", ["outcome"])
"""`outcome`: committed, mismatch (somebody else was first), determinate, indeterminate."""

COMMIT_SECONDS = Histogram(
    "persist_commit_seconds",
    "From a command's start, waiting for its turn included, to its durable commit.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 10, 60),
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
"""`step`: compaction, rollup, collection. `outcome`: done, superseded (another process did it), failed."""

COMPACTED_ROWS = Counter("persist_compacted_rows_total", "Rows that compaction read.")

COLLECTED_BLOBS = Counter("persist_collected_blobs_total", "Blobs deleted because no version needs them any more.")

READERS_EXPIRED = Counter("persist_readers_expired_total", "Readers of this process that lost their lease.")
