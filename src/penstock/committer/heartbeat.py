"""The committer's heartbeat: one line of log that sums up an interval, for places without Prometheus."""

from __future__ import annotations

import structlog
from prometheus_client.registry import Collector

from penstock.committer import metrics
from penstock.runtime import Clock

_log = structlog.get_logger("penstock.committer")

_Sample = tuple[str, tuple[tuple[str, str], ...]]


async def beat_for_ever(interval_s: float, clock: Clock) -> None:
    """Log a line every `interval_s` seconds until cancelled."""
    before = _Counts.now()
    while True:
        await clock.sleep(interval_s)
        after = _Counts.now()
        _log.info("heartbeat", interval_s=interval_s, **summary(before, after))
        before = after


class _Counts:
    """The values of the committer's metrics at a moment."""

    _METRICS: tuple[Collector, ...] = (
        metrics.RPC,
        metrics.BACKING_SECONDS,
        metrics.CACHE_HITS,
        metrics.CACHE_MISSES,
        metrics.CACHED_SHARDS,
        metrics.CAS_REFUSED,
        metrics.REFRESH_SECONDS,
        metrics.BATCH_SIZE,
        metrics.QUEUED,
        metrics.CONNECTIONS,
        metrics.REFUSED,
    )

    def __init__(self, values: dict[_Sample, float]) -> None:
        self._values = values

    @classmethod
    def now(cls) -> _Counts:
        samples = (sample for metric in cls._METRICS for family in metric.collect() for sample in family.samples)
        return cls({(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples})

    def get(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that have `labels`."""
        wanted = set(labels.items())
        return sum(value for (named, have), value in self._values.items() if named == name and wanted <= set(have))


def summary(before: _Counts, after: _Counts) -> dict[str, object]:
    """What happened between two moments. Times in milliseconds, means over the interval."""

    def grown(name: str, **labels: str) -> float:
        return after.get(name, **labels) - before.get(name, **labels)

    def mean_ms(name: str, **labels: str) -> float:
        count = grown(f"{name}_count", **labels)
        return round(1000 * grown(f"{name}_sum", **labels) / count, 2) if count else 0.0

    operations = {}
    for op in metrics.OPERATIONS:
        count = int(grown("committer_rpc_duration_seconds_count", op=op))
        if count:
            operations[op] = {
                "count": count,
                "mean_ms": mean_ms("committer_rpc_duration_seconds", op=op),
                "store_ms": mean_ms("committer_backing_duration_seconds", op=op),
            }
    hits, misses = grown("committer_cache_hits_total"), grown("committer_cache_misses_total")
    batches = grown("committer_batch_size_count")
    return {
        "operations": operations,
        "compare_and_set": {
            result: int(grown("committer_rpc_total", op="compare_and_set", result=result))
            for result in ("committed", "mismatch", "determinate", "indeterminate")
        },
        "refused_behind_cache": int(grown("committer_cas_behind_cache_total")),
        "hit_rate": round(hits / (hits + misses), 3) if hits + misses else None,
        "cached_shards": int(after.get("committer_cached_shards")),
        "in_flight": int(after.get("committer_inflight_rpcs")),
        "queued": int(after.get("committer_queued")),
        "batch_size": round(grown("committer_batch_size_sum") / batches, 1) if batches else None,
        "refresh_lag_ms": mean_ms("committer_cas_refresh_lag_seconds"),
        "connections": int(after.get("committer_connections")),
        "refused": int(grown("committer_refused_total")),
    }
