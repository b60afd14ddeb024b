"""Sorted runs: immutable pieces of an arrangement.

A run holds updates sorted by the 64-bit hash of their key. Lookup is binary search on the hashes, vectorized
over the probes, with equality verified on the key columns. Because runs never change, a snapshot of an
arrangement is a tuple of runs, readable from any thread and by any number of joins while the arrangement goes
on.

Merging two runs happens in slices of bounded size. Opposite updates cancel there: only keys that have a
negative diff can hold anything to cancel, so only their rows are compared.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.runtime import Updates, hash_columns
from penstock.runtime.updates import concat_rows, consolidated_indices, rows_equal, take_rows

Indices = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

MERGE_SLICE_ROWS = 1 << 15
_CANCEL_ROWS_MIN = 1 << 14
"""In smaller merges opposite updates are left: looking for them costs more than carrying them on."""


_DIRECTORY_ROWS_MIN = 1 << 15
_DIRECTORY_PROBES_MIN = 64
_ROWS_PER_ENTRY = 4


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """`keys`: uint64[n] ascending, the key hashes; `rows`; `times`: uint64[n], or None: long complete;
    `diffs`: int64[n] or None: all one. Read-only."""

    keys: U64
    rows: pa.RecordBatch
    times: npt.NDArray[np.uint64] | None
    diffs: npt.NDArray[np.int64] | None
    _directory: list[npt.NDArray[np.uint32]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        return int(
            self.keys.nbytes
            + self.rows.nbytes
            + (0 if self.times is None else self.times.nbytes)
            + (0 if self.diffs is None else self.diffs.nbytes)
        )

    @staticmethod
    def build(updates: Updates, key: Sequence[int]) -> Run:
        """Sort `updates` by the hash of their `key` columns."""
        return Run.sort(hash_columns([updates.rows.column(i) for i in key], len(updates)), updates)

    @staticmethod
    def sort(hashes: U64, updates: Updates) -> Run:
        """Sort `updates` by `hashes`, one per update."""
        order = np.argsort(hashes)
        diffs = None if (updates.diffs == 1).all() else updates.diffs[order]
        return Run(hashes[order], take_rows(updates.rows, order), updates.times[order], diffs)

    def untimed(self) -> Run:
        """The same rows as contents of a time long complete."""
        return self if self.times is None else Run(self.keys, self.rows, None, self.diffs, self._directory)

    def diffs_at(self, indices: Indices) -> npt.NDArray[np.int64]:
        return np.ones(len(indices), np.int64) if self.diffs is None else self.diffs[indices]

    def all_diffs(self) -> npt.NDArray[np.int64]:
        return np.ones(len(self), np.int64) if self.diffs is None else self.diffs

    def filter(self, mask: npt.NDArray[np.bool_]) -> Run:
        """Only the updates where `mask` is true."""
        if mask.all():
            return self
        return self.take(np.flatnonzero(mask))

    def take(self, indices: Indices) -> Run:
        """The updates at `indices` (ascending)."""
        return Run(
            self.keys[indices],
            take_rows(self.rows, indices),
            None if self.times is None else self.times[indices],
            None if self.diffs is None else self.diffs[indices],
        )

    def slice(self, start: int, stop: int) -> Run:
        """The updates from `start` to `stop`, without copying."""
        return Run(
            self.keys[start:stop],
            self.rows.slice(start, stop - start),
            None if self.times is None else self.times[start:stop],
            None if self.diffs is None else self.diffs[start:stop],
        )


def ranges(run: Run, probes: U64) -> tuple[Indices, Indices]:
    """For each probed hash the half-open range of positions in `run` that have it."""
    count = len(run)
    if count < _DIRECTORY_ROWS_MIN or len(probes) * 16 > count or len(probes) < _DIRECTORY_PROBES_MIN:
        lows = np.searchsorted(run.keys, probes, side="left")
        highs = lows.copy()
        found = np.flatnonzero(run.keys[np.minimum(lows, count - 1)] == probes) if count else lows[:0]
        highs[found] = np.searchsorted(run.keys, probes[found], side="right")
        return lows, highs
    lows = _lower_bounds(run, probes)
    highs = lows.copy()
    found = np.flatnonzero(run.keys[np.minimum(lows, count - 1)] == probes)
    after = probes[found] + np.uint64(1)
    highs[found] = np.where(after == 0, count, _lower_bounds(run, after))
    return lows, highs


def _lower_bounds(run: Run, probes: U64) -> Indices:
    """The first position whose hash is not less, per probe, with a directory over the hashes' leading bits.

    Binary search in a large array waits for memory at every level, one probe after the other. Hashes are uniform, so a
    directory leaves a few levels, and each level is one vectorized step in which the loads overlap.
    """
    directory, shift = _directory(run)
    buckets = (probes >> shift).astype(np.int64)
    lows = directory[buckets].astype(np.int64)
    highs = directory[buckets + 1].astype(np.int64)
    keys = run.keys
    widest = int((highs - lows).max()) if len(lows) else 0
    last = len(run) - 1
    for _ in range(widest.bit_length()):
        middle = (lows + highs) >> 1
        below = (keys[np.minimum(middle, last)] < probes) & (lows < highs)
        lows = np.where(below, middle + 1, lows)
        highs = np.where(below, highs, middle)
    return lows


def with_directory(run: Run) -> Run:
    """`run` with its directory made now, so that the first lookup does not wait for it."""
    if len(run) >= _DIRECTORY_ROWS_MIN:
        _directory(run)
    return run


def _directory(run: Run) -> tuple[npt.NDArray[np.uint32], np.uint64]:
    bits = max((len(run) // _ROWS_PER_ENTRY).bit_length() - 1, 1)
    shift = np.uint64(64 - bits)
    if not run._directory:
        edges = np.arange(1 << bits, dtype=np.uint64) << shift
        positions = np.append(np.searchsorted(run.keys, edges), len(run))
        run._directory.append(positions.astype(np.uint32))
    return run._directory[0], shift


def expand(lows: Indices, counts: Indices, ends: Indices, start: int, stop: int) -> tuple[Indices, Indices]:
    """Pairs `start` to `stop` of the enumeration that gives probe i the positions ``lows[i] ..
    lows[i]+counts[i]``.

    `ends`: cumulative sum of `counts`. Returns (probe index, position) arrays of length ``stop - start``.
    """
    if start == 0 and stop == ends[-1]:
        probes = np.repeat(np.arange(len(counts)), counts)
    else:
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        window = np.minimum(ends[first : last + 1], stop) - np.maximum(
            ends[first : last + 1] - counts[first : last + 1], start
        )
        probes = np.repeat(np.arange(first, last + 1), window)
    positions = np.arange(start, stop) + (lows - (ends - counts))[probes]
    return probes, positions


def concat_runs(parts: Sequence[Run]) -> Run:
    """Runs whose hashes follow each other, as one."""
    if len(parts) == 1:
        return parts[0]
    plain = all(part.diffs is None for part in parts)
    timed = parts[0].times is not None
    return Run(
        np.concatenate([part.keys for part in parts]),
        concat_rows([part.rows for part in parts]),
        np.concatenate([part.times for part in parts if part.times is not None]) if timed else None,
        None if plain else np.concatenate([part.all_diffs() for part in parts]),
    )


def merge_slice(older: Run, newer: Run) -> Run:
    """Two runs as one, sorted and without what cancels out."""
    both = concat_runs([older, newer])
    order = np.argsort(both.keys, kind="stable")  # Timsort: linear on two sorted halves
    merged = Run(
        both.keys[order],
        take_rows(both.rows, order),
        None if both.times is None else both.times[order],
        None if both.diffs is None else both.diffs[order],
    )
    return cancel(merged) if len(merged) > _CANCEL_ROWS_MIN else merged


def cancel(run: Run) -> Run:
    """`run` with one update per (row, time) wherever a key has a negative diff."""
    if run.diffs is None:
        return run
    negative = run.diffs < 0
    if not negative.any():
        return run
    first = np.searchsorted(run.keys, run.keys[negative], side="left")
    last = np.searchsorted(run.keys, run.keys[negative], side="right")
    edges = np.zeros(len(run) + 1, dtype=np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, last, -1)
    suspect = np.cumsum(edges[:-1]) > 0
    inside = np.flatnonzero(suspect)
    # Without times the keys stand in: they are a function of the row, or a time of their own (temporal filters).
    times = (run.keys if run.times is None else run.times)[inside]
    kept, sums = consolidated_indices(take_rows(run.rows, inside), times, run.diffs[inside])
    diffs = run.diffs.copy()
    keep = ~suspect
    keep[inside[kept]] = True
    diffs[inside[kept]] = sums
    indices = np.flatnonzero(keep)
    diffs = diffs[indices]
    result = run.take(indices)
    return Run(result.keys, result.rows, result.times, None if (diffs == 1).all() else diffs)


def merge(older: Run, newer: Run) -> Generator[None, None, Run]:
    """Merge in slices of about `MERGE_SLICE_ROWS`; yields between them and returns the new run.

    A slice never divides the updates of one key hash, or opposite updates could miss each other.
    """
    large = older if len(older) >= len(newer) else newer
    cuts = np.unique(large.keys[MERGE_SLICE_ROWS::MERGE_SLICE_ROWS])
    older_cuts = [0, *np.searchsorted(older.keys, cuts).tolist(), len(older)]
    newer_cuts = [0, *np.searchsorted(newer.keys, cuts).tolist(), len(newer)]
    parts: list[Run] = []
    for i in range(len(cuts) + 1):
        parts.append(
            merge_slice(older.slice(older_cuts[i], older_cuts[i + 1]), newer.slice(newer_cuts[i], newer_cuts[i + 1]))
        )
        yield
    return with_directory(concat_runs(parts))


def same_rows(
    left: pa.RecordBatch,
    left_key: Sequence[int],
    left_at: Indices,
    right: pa.RecordBatch,
    right_key: Sequence[int],
    right_at: Indices,
) -> npt.NDArray[np.bool_]:
    """Pairwise equality of key columns (NULL equals NULL)."""
    return rows_equal(left.select(list(left_key)), left_at, right.select(list(right_key)), right_at)


def exact_hash(rows: pa.RecordBatch, key: Sequence[int]) -> bool:
    """Whether equal hashes imply equal keys: the hash is a bijection on one column of at most 64 bits without
    NULLs."""
    if len(key) == 0:
        return True
    return bijective([rows.schema.field(i).type for i in key]) and rows.column(key[0]).null_count == 0


def bijective(types: Sequence[pa.DataType]) -> bool:
    """Whether the hash of non-NULL values of these types determines them: one type of at most 64 bits."""
    if len(types) != 1:
        return False
    kind = types[0]
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_date(kind)
        or pa.types.is_time(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_floating(kind)
    )
