"""Ordered arrangements: rows sorted by (group hash, order, whole row), read from the head of each group.

The first k rows of a group are found by taking a few rows from the head of the group's range in every run and
merging them, so that neither an insertion nor a retraction touches the rest of a large group. Where rows
taken from a run do not reach its end of the group, the last of them bounds what is known; a group that does
not have k rows up to its bound is asked again for more. Every run holds a row at most once, with its
multiplicity.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.order import SortKey, cheap_words, less, sort_rows
from penstock.dataflow.run import (
    MERGE_SLICE_ROWS,
    U64,
    Indices,
    Run,
    concat_runs,
    exact_hash,
    expand,
    ranges,
    same_rows,
)
from penstock.runtime.updates import concat_rows, take_rows

Diffs = npt.NDArray[np.int64]

ALL_ROWS = 1 << 62
_SLACK_ROWS = 6
"""Rows asked for beyond k at first: retractions that were not merged yet hide that many without a second
look."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """First rows of some groups: `rows`, in order; `groups`: the number of each row's group; `counts`: multiplicities.

    `depth`: how many rows had to be seen for one group, at most.
    """

    rows: pa.RecordBatch
    groups: Indices
    counts: Diffs
    depth: int = 0


def build(hashes: U64, rows: pa.RecordBatch, diffs: Diffs, order: Sequence[SortKey]) -> Run:
    """A run of `rows`, equal ones added up, those with a zero sum left out. `hashes`: of each row's group."""
    permutation, starts = sort_rows(hashes, rows, order)
    diffs = diffs[permutation]
    if not starts.all():
        firsts = np.flatnonzero(starts)
        diffs = np.add.reduceat(diffs, firsts)
        permutation = permutation[firsts]
    if not diffs.all():
        permutation, diffs = permutation[diffs != 0], diffs[diffs != 0]
    ones = bool((diffs == 1).all())
    return Run(hashes[permutation], take_rows(rows, permutation), None, None if ones else diffs)


def merge_ordered(older: Run, newer: Run, order: Sequence[SortKey]) -> Run:
    """Two runs as one, at once."""
    both = concat_runs([older, newer])
    return build(both.keys, both.rows, both.all_diffs(), order)


def merge_in_slices(older: Run, newer: Run, order: Sequence[SortKey]) -> Generator[None, None, Run]:
    """The same in slices of about `MERGE_SLICE_ROWS` rows, yielding between them.

    Slices are cut at rows of the larger run; rows that tie with a cut in the words that compare across
    batches stay together.
    """
    large = older if len(older) >= len(newer) else newer
    cuts = np.arange(MERGE_SLICE_ROWS, len(large), MERGE_SLICE_ROWS)
    targets = [large.keys[cuts], *cheap_words(take_rows(large.rows, cuts), order)[0]]
    older_cuts = [0, *_bisect(older, targets, order).tolist(), len(older)]
    newer_cuts = [0, *_bisect(newer, targets, order).tolist(), len(newer)]
    parts: list[Run] = []
    for i in range(len(cuts) + 1):
        mine = older.slice(older_cuts[i], older_cuts[i + 1])
        theirs = newer.slice(newer_cuts[i], newer_cuts[i + 1])
        if len(mine) and len(theirs):
            parts.append(merge_ordered(mine, theirs, order))
        else:
            parts.append(mine if len(mine) else theirs)
        yield
    return concat_runs(parts)


def _bisect(run: Run, targets: list[U64], order: Sequence[SortKey]) -> Indices:
    """For each target (words of hash and order) the first position whose words are not less; all targets at
    once."""
    count = len(targets[0])
    lows = np.zeros(count, np.int64)
    highs = np.full(count, len(run), np.int64)
    while (open_ := lows < highs).any():
        middle = np.where(open_, (lows + highs) // 2, 0)
        words = [run.keys[middle], *cheap_words(take_rows(run.rows, middle), order)[0]]
        below = less(words, targets)
        lows = np.where(open_ & below, middle + 1, lows)
        highs = np.where(open_ & ~below, middle, highs)
    return lows


def heads(
    runs: Sequence[Run],
    key: Sequence[int],
    order: Sequence[SortKey],
    hashes: U64,
    keys: pa.RecordBatch,
    count: int,
    *,
    ask: int = 0,
) -> Head:
    """The first `count` rows (with multiplicity) of each of n different groups, and perhaps some after them.

    `hashes`, `keys`: of the groups. `ask`: rows to read from each run at first, if more than usual. Rows with a
    negative sum are included as they are.
    """
    runs = [run for run in runs if len(run)]
    bounds = [ranges(run, hashes) for run in runs]
    open_ = np.arange(len(hashes))
    ask = max(ask, min(count, ALL_ROWS) + _SLACK_ROWS)
    found: list[Head] = []
    while len(open_) and runs:
        head, complete = _candidates(runs, bounds, key, order, keys, open_, ask, count)
        found.append(head)
        open_ = open_[~complete]
        ask *= 4
    if not found:
        empty = np.empty(0, np.int64)
        schema = runs[0].rows.schema if runs else keys.schema
        return Head(pa.RecordBatch.from_pylist([], schema=schema), empty, empty)
    if len(found) == 1:
        return found[0]
    return Head(
        concat_rows([head.rows for head in found]),
        np.concatenate([head.groups for head in found]),
        np.concatenate([head.counts for head in found]),
        max(head.depth for head in found),
    )


def _candidates(
    runs: Sequence[Run],
    bounds: Sequence[tuple[Indices, Indices]],
    key: Sequence[int],
    order: Sequence[SortKey],
    keys: pa.RecordBatch,
    asked: Indices,
    ask: int,
    count: int,
) -> tuple[Head, npt.NDArray[np.bool_]]:
    """At most `ask` rows per run and asked group, merged: the head of the groups for which they suffice.

    The second value tells for which of `asked` they do.
    """
    parts: list[pa.RecordBatch] = []
    groups: list[Indices] = []
    diffs: list[Diffs] = []
    bounding: list[npt.NDArray[np.bool_]] = []  # the last row taken where more were left
    key_columns = range(keys.num_columns)
    for run, (lows, highs) in zip(runs, bounds, strict=True):
        left = highs[asked] - lows[asked]
        taken = np.minimum(left, ask)
        ends = np.cumsum(taken)
        if ends[-1] == 0:
            continue
        at, positions = expand(lows[asked], taken, ends, 0, int(ends[-1]))
        is_bound = np.zeros(len(at), dtype=bool)
        is_bound[ends[taken < left] - 1] = True
        rows = take_rows(run.rows, positions)
        group = asked[at]
        run_diffs = run.diffs_at(positions)
        if not exact_hash(rows, key) or not exact_hash(keys, key_columns):
            same = same_rows(rows, key, np.arange(len(at)), keys, key_columns, group)
            # a row of another group with this hash counts for nothing, but it still bounds what was seen
            run_diffs = np.where(same, run_diffs, 0)
        parts.append(rows)
        groups.append(group)
        diffs.append(run_diffs)
        bounding.append(is_bound)
    if not parts:
        empty = np.empty(0, np.int64)
        return Head(take_rows(runs[0].rows, empty), empty, empty), np.ones(len(asked), dtype=bool)
    rows = concat_rows(parts)
    group = np.concatenate(groups)
    permutation, starts = sort_rows(group.astype(np.uint64), rows, order)
    firsts = np.flatnonzero(starts)
    counts = np.add.reduceat(np.concatenate(diffs)[permutation], firsts)
    bound = np.logical_or.reduceat(np.concatenate(bounding)[permutation], firsts)
    group = group[permutation[firsts]]
    # per group: everything up to and including its first bounding row is known
    group_starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    sizes = np.diff(np.append(group_starts, len(group)))
    bounds_before = np.cumsum(bound) - bound
    known = bounds_before == np.repeat(bounds_before[group_starts], sizes)
    total = np.add.reduceat(np.where(known & (counts > 0), counts, 0), group_starts)
    bounded = np.logical_or.reduceat(bound, group_starts)
    sufficient = ~bounded | (total >= count)
    keep = np.repeat(sufficient, sizes) & known & (counts != 0)
    complete = np.ones(len(asked), dtype=bool)
    complete[np.isin(asked, group[group_starts[~sufficient]])] = False
    kept = np.flatnonzero(keep)
    # rows that had to be seen: those before the last of the first `count`, cancelled ones included
    seen = np.cumsum(np.where(keep, np.maximum(counts, 0), 0))
    needed = seen - np.repeat((seen - np.maximum(counts * keep, 0))[group_starts], sizes) < count
    depth = int(np.add.reduceat(needed, group_starts).max()) + 1
    return Head(take_rows(rows, permutation[firsts[kept]]), group[kept], counts[kept], depth), complete
