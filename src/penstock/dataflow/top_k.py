"""Top k per group, and min and max: boundary moves only.

The state is an ordered arrangement of the input. When a group changes, its first rows are read before and
after, and the difference is sent. A bundle with several times in one group is handled in rounds, the r-th
time of every group in round r: groups do not depend on each other, so as many times as one group has are as
many rounds as it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.arrangement import Trace
from penstock.dataflow.graph import ERRORS_SCHEMA, Collection, Operator, Slices, StatefulOperator, pieces
from penstock.dataflow.groups import group_rows
from penstock.dataflow.order import SortKey, check_orderable
from penstock.dataflow.ordered import ALL_ROWS, Head, build, heads, merge_in_slices, merge_ordered
from penstock.dataflow.reduce import describe_key
from penstock.dataflow.run import U64, Indices, Run
from penstock.runtime import Frontier, Updates
from penstock.runtime.updates import concat_rows, take_rows

_PIECE_ROWS = 1 << 19
_GROUPS_PER_SLICE = 1 << 15
_ROWS_PER_READ = 1 << 16

Times = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """`rows`: the result of some groups; `wrong`: rows among them that occur a negative number of times."""

    rows: Head
    wrong: Head


@dataclass(frozen=True, slots=True, eq=False)
class _Touched:
    """Groups that change, each at one of `times`."""

    hashes: U64
    keys: pa.RecordBatch
    times: Times

    @property
    def count(self) -> int:
        return len(self.hashes)

    def slice(self, start: int, stop: int) -> _Touched:
        return _Touched(self.hashes[start:stop], self.keys.slice(start, stop - start), self.times[start:stop])

    def same_as(self, other: _Touched) -> bool:
        """Whether these are the same groups in the same order."""
        return np.array_equal(self.hashes, other.hashes) and self.keys.equals(other.keys)


class _Part:
    """Some updates and their groups."""

    def __init__(self, updates: Updates, group: list[int]) -> None:
        keys = updates.rows.select(group)
        self.updates = updates
        self.groups = group_rows(keys)
        self.touched = _Touched(
            self.groups.hashes, take_rows(keys, self.groups.firsts), updates.times[self.groups.firsts]
        )


def _together(parts: list[_Part]) -> _Touched:
    """The groups of all parts, each once."""
    if len(parts) == 1:
        return parts[0].touched
    keys = concat_rows([part.touched.keys for part in parts])
    times = np.concatenate([part.touched.times for part in parts])
    groups = group_rows(keys, np.concatenate([part.touched.hashes for part in parts]))
    return _Touched(groups.hashes, take_rows(keys, groups.firsts), times[groups.firsts])


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
        self._depth = 0
        self._wasted = 0
        self._last_read: tuple[tuple[Run, ...], _Touched, _Window] | None = None
        self.trace = Trace(
            merge_at_once=lambda older, newer: merge_ordered(older, newer, self._order),
            merge_in_slices=lambda older, newer: merge_in_slices(older, newer, self._order),
        )

    def close(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        updates = Updates.concat(bundle)
        rounds = _rounds(group_rows(updates.rows.select(self._group)).codes, updates.times)
        for rows in rounds:
            yield from self._round(updates if len(rounds) == 1 else updates.take(rows))

    def _round(self, updates: Updates) -> Slices:
        """Handle updates of which those of one group are all at one time."""
        parts = [_Part(part, self._group) for part in pieces([updates], _PIECE_ROWS)]
        yield
        touched = _together(parts)
        slices = [
            touched.slice(start, start + _GROUPS_PER_SLICE) for start in range(0, touched.count, _GROUPS_PER_SLICE)
        ]
        before: list[_Window] = []
        for some in slices:
            before.append(self._read(some))
            yield
        for part in parts:
            hashes = part.groups.hashes[part.groups.codes]
            self.trace.insert(build(hashes, part.updates.rows, part.updates.diffs, self._order))
            yield
        for some, old in zip(slices, before, strict=True):
            self._send_changes(old, self._read(some), some.times)
            yield
        if self.trace.wants_merge:
            self.dataflow.want_maintenance(self)

    def _read(self, some: _Touched) -> _Window:
        """The present windows of some groups."""
        known = self._last_read
        if known is not None and known[0] is self.trace.runs and some.same_as(known[1]):
            return known[2]
        ask = min(self._depth * 2, _ROWS_PER_READ // max(len(some.hashes), 1))
        head = heads(self.trace.runs, self._group, self._order, some.hashes, some.keys, self._last, ask=ask)
        self._depth = head.depth
        # Cancelled rows at the head are read again and again; when that has cost as much as merging would, merge.
        self._wasted += max(head.depth - self._last, 0) if self._last < ALL_ROWS else 0
        if self._wasted > self.trace.rows:
            self._wasted = 0
            self.trace.merge_fully()
        window = self._window(head)
        self._last_read = (self.trace.runs, some, window)
        return window

    def maintain(self) -> bool:
        return self.trace.merge_some()

    def _window(self, head: Head) -> _Window:
        """The part of each head that is the result."""
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
        return _Window(Head(take_rows(head.rows, kept), head.groups[kept], inside[kept]), wrong)

    def _send_changes(self, before: _Window, after: _Window, times: Times) -> None:
        old, new = (Updates(head.rows, times[head.groups], head.counts) for head in (before.rows, after.rows))
        old = old.negate()
        parts = [part for part in (old, new) if len(part)]
        if parts:
            self.send(Updates.concat(parts).consolidate())
        for window, sign in ((before, -1), (after, 1)):
            if len(window.wrong.counts):
                self._send_failures(window.wrong, times, sign)

    def _send_failures(self, wrong: Head, times: Times, sign: int) -> None:
        groups = wrong.rows.select(self._group)
        first = np.unique(wrong.groups, return_index=True)[1]  # one error per group
        texts = [f"{self._kind}: a negative number of rows for key {describe_key(groups, int(i))}" for i in first]
        rows = pa.RecordBatch.from_arrays(
            [pa.array(["XX000"] * len(first), pa.string()), pa.array(texts, pa.string())],
            schema=ERRORS_SCHEMA,
        )
        self.send_errors(Updates(rows, times[wrong.groups[first]], np.full(len(first), sign, np.int64)))


def _rounds(codes: Indices, times: Times) -> list[Indices]:
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
