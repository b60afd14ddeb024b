"""Counts of the committer's operations that cost next to nothing to keep.

A compare-and-set touches seven numbers. prometheus_client's own objects take a lock for each, some ten microseconds per
operation together, which would be a fifth of what the committer spends on it. These are plain numbers, changed on the
event loop and read by whoever scrapes; a scrape may see an operation half counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """One kind of operation."""

    __slots__ = ("_bounds", "counts", "in_flight", "results", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.in_flight = 0
        self.results: dict[str, int] = {}
        self.counts = [0] * (len(bounds) + 1)
        """Operations per bucket of time; the last one has no bound."""
        self.seconds = 0.0

    def ended(self, result: str, seconds: float) -> None:
        """One that was in flight is answered."""
        self.in_flight -= 1
        self.results[result] = self.results.get(result, 0) + 1
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.seconds += seconds


class OperationTallies(Collector):
    """`of[op]`: the tally of each operation, collected as the metrics that docs/operations.md names."""

    def __init__(self, operations: Sequence[str], bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.of = {op: Tally(bounds) for op in operations}

    def collect(self) -> Iterator[Metric]:
        total = CounterMetricFamily("committer_rpc", "Operations answered by the committer", labels=["op", "result"])
        times = HistogramMetricFamily("committer_rpc_duration_seconds", "Time per operation", labels=["op"])
        by_op = GaugeMetricFamily("committer_inflight_rpcs_by_op", "Operations being answered, by kind", labels=["op"])
        for op, tally in self.of.items():
            for result, count in list(tally.results.items()):
                total.add_metric([op, result], count)
            counts, below, buckets = list(tally.counts), 0, []
            for bound, count in zip([*map(str, self._bounds), "+Inf"], counts, strict=True):
                below += count
                buckets.append((bound, below))
            times.add_metric([op], buckets, tally.seconds)
            by_op.add_metric([op], tally.in_flight)
        in_flight = sum(tally.in_flight for tally in self.of.values())
        yield total
        yield times
        yield by_op
        yield GaugeMetricFamily("committer_inflight_rpcs", "Operations being answered", in_flight)
