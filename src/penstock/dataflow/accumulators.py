"""State of reductions: one row of 64-bit integers (limbs) per key, added to in place.

Everything a reduction keeps is linear in its input, so a change is an addition. A key has a *slot*, a
position in the limb arrays, for as long as it lives; an index of sorted (hash, slot) runs finds it. Runs
merge by moving 12 bytes per key, never the limbs. Key columns are kept only where equal hashes do not imply
equal keys. Slots whose limbs are all zero are dead; when they are the majority the state is rebuilt without
them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.run import Indices, bijective
from penstock.runtime.updates import concat_rows, rows_equal, take_rows

U64 = npt.NDArray[np.uint64]
Limb = npt.NDArray[np.int64]

_GROWTH = 4
_DEAD_SLOTS_MIN = 1 << 16


class Accumulators:
    """Limbs by key. `width`: number of limbs to begin with; `widen` adds more. `schema`: of the key columns."""

    def __init__(self, width: int, schema: pa.Schema) -> None:
        self._limbs: list[Limb] = [np.zeros(16, np.int64) for _ in range(width)]
        self._count = 0
        self._dead = 0
        self._index: list[tuple[U64, npt.NDArray[np.uint32]]] = []
        # Without NULLs the hash of one narrow column is the key: nothing to store. `_inexact`: a NULL is
        # held.
        self._keep_keys = not (len(schema) == 0 or (bijective(schema.types) and not schema.field(0).nullable))
        self._inexact = False
        self._chunks: list[pa.RecordBatch] = []  # key columns by slot
        self._starts: list[int] = []  # first slot of each chunk

    @property
    def width(self) -> int:
        return len(self._limbs)

    @property
    def slots(self) -> int:
        """Keys held, dead ones included."""
        return self._count

    @property
    def nbytes(self) -> int:
        return (
            sum(limb.nbytes for limb in self._limbs)
            + sum(hashes.nbytes + slots.nbytes for hashes, slots in self._index)
            + sum(chunk.nbytes for chunk in self._chunks)
        )

    def widen(self, count: int) -> None:
        """Add `count` limbs, zero for every key."""
        capacity = len(self._limbs[0])
        self._limbs.extend(np.zeros(capacity, np.int64) for _ in range(count))

    def find(self, hashes: U64, keys: pa.RecordBatch, *, exact: bool) -> Indices:
        """The slot of each of n different keys, -1 for those not held."""
        exact = exact and not self._inexact
        slots = np.full(len(hashes), -1, np.int64)
        open_ = np.arange(len(hashes))  # keys still looked for
        for run_hashes, run_slots in self._index:
            if len(open_) == 0:
                break
            at = np.searchsorted(run_hashes, hashes[open_])
            # Different keys with one hash lie side by side: step on until the key or the end of the hash.
            seeking = np.arange(len(open_))
            while len(seeking):
                inside = at[seeking] < len(run_hashes)
                seeking = seeking[inside]
                seeking = seeking[run_hashes[at[seeking]] == hashes[open_[seeking]]]
                found = run_slots[at[seeking]].astype(np.int64)
                if exact:
                    slots[open_[seeking]] = found
                    break
                same = self._keys_equal(found, keys, open_[seeking])
                slots[open_[seeking[same]]] = found[same]
                seeking = seeking[~same]
                at[seeking] += 1
            open_ = open_[slots[open_] < 0]
        return slots

    def read(self, slots: Indices) -> list[Limb]:
        """The limbs at `slots`; zeros where the slot is -1."""
        if len(slots) and int(slots.min()) < 0:
            missing = slots < 0
            safe = np.where(missing, 0, slots)
            result = [limb[safe] for limb in self._limbs]
            for values in result:
                values[missing] = 0
            return result
        return [limb[slots] for limb in self._limbs]

    def write(self, slots: Indices, hashes: U64, keys: pa.RecordBatch, values: list[Limb], *, exact: bool) -> None:
        """Put `values` at `slots` of n different keys; a key with slot -1 gets one, unless its limbs are all
        zero."""
        assert len(values) == self.width
        held = slots >= 0
        zero = ~np.logical_or.reduce([limb != 0 for limb in values])
        if held.all():
            self._overwrite(slots, values, zero)
        else:
            self._overwrite(slots[held], [limb[held] for limb in values], zero[held])
            new = np.flatnonzero(~held & ~zero)
            if len(new):
                self._append(hashes[new], take_rows(keys, new), [limb[new] for limb in values], exact=exact)
        if self._dead > _DEAD_SLOTS_MIN and self._dead * 2 > self._count:
            self._rebuild()

    def _overwrite(self, slots: Indices, values: list[Limb], zero: npt.NDArray[np.bool_]) -> None:
        was_zero = ~np.logical_or.reduce([limb[slots] != 0 for limb in self._limbs])
        self._dead += int(zero.sum()) - int(was_zero.sum())
        for limb, new in zip(self._limbs, values, strict=True):
            limb[slots] = new

    def _append(self, hashes: U64, keys: pa.RecordBatch, values: list[Limb], *, exact: bool) -> None:
        start, count = self._count, len(hashes)
        if start + count > len(self._limbs[0]):
            capacity = max(start + count, len(self._limbs[0]) * 3 // 2)
            for i, limb in enumerate(self._limbs):
                grown = np.zeros(capacity, np.int64)
                grown[:start] = limb[:start]
                self._limbs[i] = grown
        for limb, new in zip(self._limbs, values, strict=True):
            limb[start : start + count] = new
        self._count += count
        self._inexact |= not exact
        if self._keep_keys:
            self._append_keys(keys)
        order = np.argsort(hashes)
        self._index.append((hashes[order], (order + start).astype(np.uint32)))
        self._merge_index()

    def _merge_index(self) -> None:
        index = self._index
        while len(index) > 1 and len(index[-2][0]) < _GROWTH * len(index[-1][0]):
            hashes = np.concatenate([index[-2][0], index[-1][0]])
            slots = np.concatenate([index[-2][1], index[-1][1]])
            order = np.argsort(hashes, kind="stable")
            index[-2:] = [(hashes[order], slots[order])]

    def _append_keys(self, keys: pa.RecordBatch) -> None:
        self._starts.append(self._count - keys.num_rows)
        self._chunks.append(keys)
        while len(self._chunks) > 1 and self._chunks[-2].num_rows < _GROWTH * self._chunks[-1].num_rows:
            self._chunks[-2:] = [concat_rows(self._chunks[-2:])]
            del self._starts[-1]

    def _keys_equal(self, slots: Indices, keys: pa.RecordBatch, at: Indices) -> npt.NDArray[np.bool_]:
        """Whether the key in each slot is the row of `keys` at the same place of `at`."""
        equal = np.zeros(len(slots), dtype=bool)
        if len(slots) == 0:
            return equal
        assert self._keep_keys
        chunks = np.searchsorted(np.array(self._starts), slots, side="right") - 1
        for chunk in np.unique(chunks):
            here = np.flatnonzero(chunks == chunk)
            equal[here] = rows_equal(self._chunks[chunk], slots[here] - self._starts[chunk], keys, at[here])
        return equal

    def _rebuild(self) -> None:
        """Leave out the dead slots. Linear in all slots, paid for by as many deaths."""
        count = self._count
        live = np.logical_or.reduce([limb[:count] != 0 for limb in self._limbs])
        kept = np.flatnonzero(live)
        renumbered = np.cumsum(live) - 1
        self._limbs = [limb[kept] if len(kept) else np.zeros(16, np.int64) for limb in self._limbs]
        if self._keep_keys:
            keys = take_rows(concat_rows(self._chunks), kept)
            self._chunks, self._starts = ([keys], [0]) if len(kept) else ([], [])
        merged_hashes = np.concatenate([hashes for hashes, _ in self._index])
        merged_slots = np.concatenate([slots for _, slots in self._index])
        alive = live[merged_slots]
        order = np.argsort(merged_hashes[alive], kind="stable")
        slots = renumbered[merged_slots[alive][order]].astype(np.uint32)
        self._index = [(merged_hashes[alive][order], slots)] if len(kept) else []
        self._count, self._dead = len(kept), 0
