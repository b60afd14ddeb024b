"""Settings of a persist client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PersistConfig:
    """Times in milliseconds, sizes in bytes.

    * `inline_bytes`: a part whose encoding is at most this lives in the state instead of a blob.
    * `inline_total_bytes`: once the state of a shard holds this much, further parts go to blobs.
    * `part_bytes`: target size of a part in memory, before encoding.
    * `uploads`: parts encoded and uploaded at a time by one write.
    * `compaction_fan_in`: so many batches of one size class become one of the next.
    * `compaction_memory_bytes`: encoded input that one compaction pass holds in memory.
    * `rollup_every`: versions between full states.
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
    """

    inline_bytes: int = 32 * 1024
    inline_total_bytes: int = 1024 * 1024
    part_bytes: int = 32 * 1024 * 1024
    uploads: int = 3
    compaction_fan_in: int = 8
    compaction_memory_bytes: int = 64 * 1024 * 1024
    rollup_every: int = 128
    poll_min_ms: int = 25
    poll_max_ms: int = 1000
    reader_lease_ms: int = 15 * 60 * 1000
    writer_lease_ms: int = 60 * 60 * 1000
    hold_versions: int = 64
    downgrade_ms: int = 30 * 1000
    store_retry_ms: int = 10 * 60 * 1000
    cache_bytes: int = 64 * 1024 * 1024
    maintenance: bool = True
