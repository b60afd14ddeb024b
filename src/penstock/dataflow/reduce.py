"""Reduce with additive aggregates, and distinct: one accumulator per key, folded in place.

A bundle may span many times. Its updates are first summed per (key, time); prefix sums along each key's times
on top of the stored accumulator give the totals before and after each time at once, and where they differ the
old result is retracted and the new one sent. The result is the same as going time by time.

A bundle of many rows is summed in pieces first: sums of sums are sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.accumulators import Accumulators
from penstock.dataflow.aggregates import Accumulation, LimbId
from penstock.dataflow.graph import ERRORS_SCHEMA, Operator, Slices, StatefulOperator, pieces
from penstock.dataflow.groups import Groups, group_rows
from penstock.dataflow.run import U64, Indices
from penstock.runtime import DONE, Frontier, Updates
from penstock.runtime.updates import concat_rows, take_rows

Limb = npt.NDArray[np.int64]
Times = npt.NDArray[np.uint64]

PIECE_ROWS = 1 << 19
EAGER_ROWS = 1 << 20
"""So many waiting rows are summed before their times are closed."""
_GROUPS_PER_SLICE = 1 << 18
GROUP_ROWS_MAX = 1 << 29
"""With more rows a limb of a sum might overflow: such a group is an error. Counting rows has no such limit."""
_COUNT: LimbId = "rows"


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Limb sums per (key, time): `keys`: one row per sum; `limbs`: arrays of the same length by limb id."""

    keys: pa.RecordBatch
    hashes: npt.NDArray[np.uint64]
    times: Times
    limbs: dict[LimbId, Limb]


class Reduce(StatefulOperator):
    """Rows: the key columns, then one column per aggregate."""

    def __init__(self, source: Operator, key: Sequence[int], aggregates: list[Accumulation], name: str) -> None:
        key_fields = [source.schema.field(i) for i in key]
        self._key_schema = pa.schema(key_fields)
        schema = pa.schema([*key_fields, *(aggregate.field for aggregate in aggregates)])
        super().__init__(source.dataflow, name, schema, [source])
        self._kind = name
        self._key = list(key)
        self._aggregates = aggregates
        self._limb_ids: list[LimbId] = [_COUNT]
        self.state = Accumulators(1, self._key_schema)
        self._early: list[Sums] = []  # of updates whose times are not closed

    def activate(self) -> Slices | None:
        port = self.ports[0]
        for updates in port.take():
            self.stash.push(updates)
        frontier = port.frontier
        if self.stash.rows < EAGER_ROWS:
            if frontier <= self.frontier:
                return None
            if not self.stash.closed(frontier) and not any((part.times < frontier).any() for part in self._early):
                self.advance(frontier)
                return None
        return self._work(frontier)

    def _work(self, frontier: Frontier) -> Slices:
        if self.stash.rows >= EAGER_ROWS:
            # Sums are smaller than what they sum: a snapshot is folded while it arrives, not held until it is whole.
            for updates in pieces(self.stash.take_below(DONE), PIECE_ROWS):
                self._early.append(self._sum(updates))
                yield
            if sum(len(part.times) for part in self._early) > 2 * EAGER_ROWS:
                self._early = [self._combine(self._early)]
                yield
        if frontier > self.frontier:
            sums, self._early = _split(self._early, frontier)
            yield from self._close(sums, self.stash.take_below(frontier))
            self.advance(frontier)

    def close(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        return self._close([], bundle)

    def _close(self, sums: list[Sums], bundle: list[Updates]) -> Slices:
        for updates in pieces(bundle, PIECE_ROWS):
            sums.append(self._sum(updates))
            yield
        if sums:
            whole = self._combine(sums)
            yield from self._apply(whole, group_rows(whole.keys, whole.hashes))

    def _sum(self, updates: Updates) -> Sums:
        keys = updates.rows.select(self._key)
        limbs: dict[LimbId, Limb] = {_COUNT: updates.diffs}
        for aggregate in self._aggregates:
            limbs.update(aggregate.limbs(updates.rows, updates.diffs))
        return _summed(keys, group_rows(keys), updates.times, limbs)

    def _combine(self, sums: list[Sums]) -> Sums:
        """All sums as one per (key, time)."""
        if len(sums) == 1:
            return sums[0]
        ids = dict.fromkeys(limb for part in sums for limb in part.limbs)
        keys = concat_rows([part.keys for part in sums])
        limbs = {
            limb: np.concatenate(
                [part.limbs[limb] if limb in part.limbs else np.zeros(len(part.times), np.int64) for part in sums]
            )
            for limb in ids
        }
        hashes = np.concatenate([part.hashes for part in sums])
        times = np.concatenate([part.times for part in sums])
        return _summed(keys, group_rows(keys, hashes), times, limbs)

    def _apply(self, sums: Sums, groups: Groups) -> Slices:
        """Fold `sums` into the state and send what changes, some groups at a time."""
        for limb in sums.limbs:
            if limb not in self._limb_ids:
                self._limb_ids.append(limb)
                self.state.widen(1)
        many_times = groups.count < len(sums.times)
        order = np.lexsort((sums.times, groups.codes)) if many_times else groups.firsts
        codes = groups.codes[order] if many_times else np.arange(groups.count)
        for start in range(0, groups.count, _GROUPS_PER_SLICE):
            stop = min(start + _GROUPS_PER_SLICE, groups.count)
            first, last = np.searchsorted(codes, [start, stop]) if many_times else (start, stop)
            self._fold(
                sums, order[first:last], codes[first:last] - start, groups.hashes[start:stop], exact=groups.exact
            )
            yield

    def _fold(self, sums: Sums, order: Indices, codes: Indices, hashes: U64, *, exact: bool) -> None:
        """The same for the sums at `order`, sorted by group and time; `codes`: their groups, numbered from zero."""
        count = len(order)
        many_times = len(hashes) < count
        keys = take_rows(sums.keys, order)
        times = sums.times[order]
        zero = np.zeros(count, np.int64)
        deltas = [sums.limbs[limb][order] if limb in sums.limbs else zero for limb in self._limb_ids]
        if many_times:
            lasts = np.flatnonzero(np.append(codes[1:] != codes[:-1], True))
            starts = np.append(0, lasts[:-1] + 1)
        else:
            lasts = starts = codes
        group_keys = take_rows(keys, lasts) if many_times else keys
        slots = self.state.find(hashes, group_keys, exact=exact)
        base = self.state.read(slots)
        before: list[Limb] = []
        after: list[Limb] = []
        for stored, delta in zip(base, deltas, strict=True):
            if many_times:
                running = np.cumsum(delta)
                total = running - (running - delta)[starts][codes] + stored[codes]
            else:
                total = stored + delta
            after.append(total)
            before.append(total - delta)
        self.state.write(slots, hashes, group_keys, [total[lasts] for total in after], exact=exact)
        self._send_changes(keys, times, before, after)

    def _send_changes(self, keys: pa.RecordBatch, times: Times, before: list[Limb], after: list[Limb]) -> None:
        if self._aggregates:
            changed = np.logical_or.reduce([old != new for old, new in zip(before, after, strict=True)])
        else:  # distinct: only crossings of zero count
            changed = np.sign(before[0]) != np.sign(after[0])
        old_there = changed & (before[0] != 0)
        new_there = changed & (after[0] != 0)
        old_at, new_at = np.flatnonzero(old_there), np.flatnonzero(new_there)
        if len(old_at) + len(new_at) == 0:
            return
        limbs = {
            limb: np.concatenate([old[old_at], new[new_at]])
            for limb, old, new in zip(self._limb_ids, before, after, strict=True)
        }
        at = np.concatenate([old_at, new_at])
        diffs = np.repeat(np.array([-1, 1]), [len(old_at), len(new_at)])
        keys, times = take_rows(keys, at), times[at]
        counts = limbs[_COUNT]
        columns = list(keys.columns)
        failed = counts < 0
        messages: list[tuple[Limb | npt.NDArray[np.bool_], str, str]] = []
        if failed.any():
            messages.append((failed, "XX000", "a negative number of rows"))
        if len(limbs) > 1 and (crowded := (counts > GROUP_ROWS_MAX) & ~failed).any():
            messages.append((crowded, "54000", f"more than {GROUP_ROWS_MAX} rows"))
            failed = failed | crowded
        for aggregate in self._aggregates:
            values, wrong = aggregate.results(limbs, counts)
            columns.append(values)
            if wrong is not None and (wrong & ~failed).any():
                messages.append((wrong & ~failed, "22003", f"{aggregate.field.name} out of range"))
                failed = failed | wrong
        schema = self.schema
        rows = pa.RecordBatch.from_arrays(columns, schema=schema) if columns else keys
        oks = Updates(rows, times, diffs)
        if messages:
            for mask, sqlstate, what in messages:
                self._send_failures(keys, times, diffs, np.flatnonzero(mask), sqlstate, what)
            oks = oks.filter(~failed)
        self.send(oks)

    def _send_failures(
        self, keys: pa.RecordBatch, times: Times, diffs: Limb, at: Indices, sqlstate: str, what: str
    ) -> None:
        texts = [f"{self._kind}: {what} for key {describe_key(keys, int(i))}" for i in at]  # rare: a loop is fine
        errors = pa.RecordBatch.from_arrays(
            [pa.array([sqlstate] * len(at), pa.string()), pa.array(texts, pa.string())], schema=ERRORS_SCHEMA
        )
        self.send_errors(Updates(errors, times[at], diffs[at]))


def describe_key(keys: pa.RecordBatch, at: int) -> str:
    """One row for an error message: ``(a=1, b=x)``; the same for equal rows."""
    values = (f"{name}={keys.column(i)[at].as_py()}" for i, name in enumerate(keys.schema.names))
    return f"({', '.join(values)})"


def _split(sums: list[Sums], frontier: Frontier) -> tuple[list[Sums], list[Sums]]:
    """The sums at times below `frontier` and the others."""
    below: list[Sums] = []
    beyond: list[Sums] = []
    for part in sums:
        closed = part.times < np.uint64(frontier)
        for mask, side in ((closed, below), (~closed, beyond)):
            if mask.all():
                side.append(part)
            elif mask.any():
                at = np.flatnonzero(mask)
                limbs = {limb: values[at] for limb, values in part.limbs.items()}
                side.append(Sums(take_rows(part.keys, at), part.hashes[at], part.times[at], limbs))
    return below, beyond


def _summed(keys: pa.RecordBatch, groups: Groups, times: Times, limbs: dict[LimbId, Limb]) -> Sums:
    """Limbs added up per (group, time)."""
    codes, firsts, hashes = groups.codes, groups.firsts, groups.hashes
    count = groups.count
    if not (times == times[0]).all():
        distinct, ranks = np.unique(times, return_inverse=True)
        cells, at, codes = np.unique(codes * len(distinct) + ranks, return_index=True, return_inverse=True)
        hashes = hashes[cells // len(distinct)]
        firsts, count = at, len(cells)
    if count == len(times):  # every row is a group of its own
        return Sums(
            take_rows(keys, firsts),
            hashes,
            times[firsts],
            {limb: values[firsts] for limb, values in limbs.items()},
        )
    totals: dict[LimbId, Limb] = {}
    done: dict[int, Limb] = {}  # limbs that are one array (counts of a column without NULLs) are added up once
    for limb, values in limbs.items():
        total = done.get(id(values))
        if total is None:
            total = done[id(values)] = np.zeros(count, np.int64)
            np.add.at(total, codes, values)
        totals[limb] = total
    return Sums(take_rows(keys, firsts), hashes, times[firsts], totals)
