"""Settings of a persist client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PersistConfig:
    """Times in milliseconds, sizes in bytes.

    * `inline_bytes`: a part whose encoding is at most this lives in the state instead of a blob.
    * `inline_total_bytes`: once the state of a shard holds this much, further parts go to blobs.
    * `part_bytes`: target size of a part in memory, before encoding.
    * `stats_bytes`: statistics of one part in the state, at most; 0 for none. `stats_from_bytes`: smaller
      parts (in memory) have none: they would cost a twentieth of an append, and compaction soon makes them larger.
      `stats_audit_percent`: of the parts
      that a filter discards by their statistics, so many in a hundred are read all the same, to be sure.
    * `prefetch_bytes`: decoded parts that one snapshot fetches ahead of its reader; one part at least.
    * `snapshot_memory_bytes`: decoded updates that a snapshot cursor holds before it puts them on the disk, in
      `spill_directory` (None: where the system has its temporary files).
    * `uploads`: parts encoded and uploaded at a time by one write.
    * `compaction_fan_in`: so many batches of one size class become one of the next.
    * `compaction_small_bytes`: batches that have at most this in memory are merged in one go, and their output may stay
      in the state. Merges of so much, of 32 times as much and of more do not wait for one another.
      `compaction_concurrency`: compactions of each size at a time, and threads for those that are not small.
      `compaction_claim_rows`: a small one of fewer rows is not claimed; it costs less to do twice.
    * `compaction_memory_bytes`: memory of one compaction, its copies of decoded updates included; two parts are
      held even where they are larger. Those of the two larger sizes may each take it, as many as there are at a time.
      `compaction_timeout_ms`: a compaction is given up after this, or a second for each MiB of input, whichever is
      longer.
    * `rollup_every`: versions between full states.
    * `collect_versions`: versions that one step of garbage collection goes through, where rollups allow.
      `upkeep_concurrency`: rollups, and likewise collections, at a time. `upkeep_timeout_ms`: limit of one such step.
    * `poll_min_ms`, `poll_max_ms`: pause between looks for new versions; doubles from the first to the
      second while nothing happens. With a pub-sub every pause is `poll_max_ms`.
    * `reader_lease_ms`: a reader that does not renew for so long expires. `writer_lease_ms`: how long a
      writer's newest token is kept; half of it bounds how long an append with an unknown outcome is
      pursued.
    * `hold_versions`: a reader's hold moves along with the commits of its process when it is so many
      versions behind.
    * `downgrade_ms`: a listen makes its since durable this often at most.
    * `store_retry_ms`: how long an operation on a failing store is retried before its error is raised.
    * `cache_bytes`: decoded parts kept in memory.
    * `maintenance`: whether this client compacts, rolls up and collects garbage.
    * `link_ms`: a stored batch can be appended for so long; clocks must agree to within it. `sweep`: whether blobs
      that crashes left behind are deleted; they are by whoever owns the transactions, once older than twice `link_ms`.
      `sweep_pause_ms`: between one shard and the next.
    """

    inline_bytes: int = 32 * 1024
    inline_total_bytes: int = 1024 * 1024
    part_bytes: int = 32 * 1024 * 1024
    stats_bytes: int = 1024
    stats_from_bytes: int = 256 * 1024
    stats_audit_percent: int = 0
    prefetch_bytes: int = 128 * 1024 * 1024
    snapshot_memory_bytes: int = 256 * 1024 * 1024
    spill_directory: str | None = None
    uploads: int = 3
    compaction_fan_in: int = 8
    compaction_small_bytes: int = 1024 * 1024
    compaction_concurrency: int = 2
    compaction_claim_rows: int = 1024
    compaction_memory_bytes: int = 256 * 1024 * 1024
    compaction_timeout_ms: int = 90 * 1000
    rollup_every: int = 128
    collect_versions: int = 4096
    upkeep_concurrency: int = 8
    upkeep_timeout_ms: int = 5 * 60 * 1000
    poll_min_ms: int = 25
    poll_max_ms: int = 1000
    reader_lease_ms: int = 15 * 60 * 1000
    writer_lease_ms: int = 60 * 60 * 1000
    hold_versions: int = 64
    downgrade_ms: int = 30 * 1000
    store_retry_ms: int = 10 * 60 * 1000
    cache_bytes: int = 64 * 1024 * 1024
    maintenance: bool = True
    link_ms: int = 12 * 60 * 60 * 1000
    sweep: bool = True
    sweep_pause_ms: int = 60 * 1000
