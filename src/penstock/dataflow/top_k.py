"""Top k per group, and min and max: boundary moves only.

The state is an ordered arrangement of the input. When a group changes, its first rows are read before and
after, and the difference is sent. A bundle with several times in one group is handled in rounds, the r-th
time of every group in round r: groups do not depend on each other, so as many times as one group has are as
many rounds as it takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.arrangement import Trace
from penstock.dataflow.graph import ERRORS_SCHEMA, Collection, Operator, Slices, StatefulOperator
from penstock.dataflow.groups import group_rows
from penstock.dataflow.order import SortKey, check_orderable
from penstock.dataflow.ordered import ALL_ROWS, Head, build, heads, merge_in_slices, merge_ordered
from penstock.dataflow.reduce import describe_key
from penstock.dataflow.run import Indices
from penstock.runtime import Frontier, Updates
from penstock.runtime.updates import take_rows


class TopK(StatefulOperator):
    """Sends, per group, the rows number `offset` to ``offset + limit`` in order, with multiplicities."""

    def __init__(
        self,
        source: Operator,
        group: Sequence[int],
        order: Sequence[SortKey],
        limit: int | None,
        offset: int,
        name: str,
    ) -> None:
        super().__init__(source.dataflow, name, source.schema, [source])
        check_orderable(source.schema, order)
        self._kind = name
        self._group = list(group)
        self._order = tuple(order)
        self._offset = offset
        self._last = ALL_ROWS if limit is None else offset + limit
        self.trace = Trace(
            merge_at_once=lambda older, newer: merge_ordered(older, newer, self._order),
            merge_in_slices=lambda older, newer: merge_in_slices(older, newer, self._order),
        )

    def close(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        updates = Updates.concat(bundle)
        groups = group_rows(updates.rows.select(self._group))
        for rows in _rounds(groups.codes, updates.times):
            touched, codes = np.unique(groups.codes[rows], return_inverse=True)
            times = np.zeros(len(touched), np.uint64)
            times[codes] = updates.times[rows]
            hashes = groups.hashes[touched]
            keys = take_rows(updates.rows, groups.firsts[touched]).select(self._group)
            before = self._window(heads(self.trace.runs, self._group, self._order, hashes, keys, self._last))
            if self.trace.insert(build(hashes[codes], take_rows(updates.rows, rows), updates.diffs[rows], self._order)):
                self.dataflow.want_maintenance(self)
            after = self._window(heads(self.trace.runs, self._group, self._order, hashes, keys, self._last))
            self._send_changes(before, after, times)
            yield

    def maintain(self) -> bool:
        return self.trace.merge_some()

    def _window(self, head: Head) -> tuple[Head, Head]:
        """The rows from `offset` on and before the last, and the rows whose multiplicity is negative."""
        counts = np.maximum(head.counts, 0)
        ends = np.cumsum(counts)
        starts = np.flatnonzero(np.append(True, head.groups[1:] != head.groups[:-1]))[: len(ends)]
        sizes = np.diff(np.append(starts, len(ends)))
        ends = ends - np.repeat((ends - counts)[starts], sizes)
        # what lies beyond the last row may or may not have been read: replicas would differ in reporting it
        negative = np.flatnonzero((head.counts < 0) & (ends < self._last))
        inside = np.minimum(ends, self._last) - np.maximum(ends - counts, self._offset)
        kept = np.flatnonzero(inside > 0)
        wrong = Head(take_rows(head.rows, negative), head.groups[negative], head.counts[negative])
        return Head(take_rows(head.rows, kept), head.groups[kept], inside[kept]), wrong

    def _send_changes(self, before: tuple[Head, Head], after: tuple[Head, Head], times: npt.NDArray[np.uint64]) -> None:
        old, new = (Updates(head.rows, times[head.groups], head.counts) for head in (before[0], after[0]))
        old = old.negate()
        parts = [part for part in (old, new) if len(part)]
        if parts:
            self.send(Updates.concat(parts).consolidate())
        for (_, wrong), sign in ((before, -1), (after, 1)):
            if len(wrong.counts):
                self._send_failures(wrong, times, sign)

    def _send_failures(self, wrong: Head, times: npt.NDArray[np.uint64], sign: int) -> None:
        groups = wrong.rows.select(self._group)
        first = np.unique(wrong.groups, return_index=True)[1]  # one error per group
        texts = [f"{self._kind}: a negative number of rows for key {describe_key(groups, int(i))}" for i in first]
        rows = pa.RecordBatch.from_arrays(
            [pa.array(["XX000"] * len(first), pa.string()), pa.array(texts, pa.string())],
            schema=ERRORS_SCHEMA,
        )
        self.send_errors(Updates(rows, times[wrong.groups[first]], np.full(len(first), sign, np.int64)))


def _rounds(codes: Indices, times: npt.NDArray[np.uint64]) -> list[Indices]:
    """Rows by the rank of their time among the times of their group."""
    if len(times) == 0 or (times == times[0]).all():
        return [np.arange(len(times))]
    order = np.lexsort((times, codes))
    new_group = np.append(True, codes[order][1:] != codes[order][:-1])
    new_time = np.append(True, times[order][1:] != times[order][:-1]) | new_group
    cells = np.cumsum(new_time) - 1
    ranks = cells - cells[new_group][np.cumsum(new_group) - 1]
    by_rank = np.argsort(ranks, kind="stable")
    cuts = np.searchsorted(ranks[by_rank], np.arange(1, int(ranks.max()) + 1))
    return [order[part] for part in np.split(by_rank, cuts)]


def top_k(
    collection: Collection, group: list[int], order: list[SortKey], limit: int | None, offset: int = 0
) -> Collection:
    """Per group the rows from number `offset` on, at most `limit` (None: all), in `order`, ties broken by the
    whole row.

    Raises `ValueError` when a sort column's type has no order.
    """
    if (limit is not None and limit < 0) or offset < 0:
        raise ValueError(f"limit {limit} offset {offset}")
    operator = TopK(collection.operator, group, order, limit, offset, "top-k")
    return Collection.of(operator, collection, fallible=True)
