"""The correction buffer: what a shard still lacks to hold what it should hold.

A self-correcting sink knows two collections: the *desired* one, which its dataflow computes, and the
*persisted* one, which it reads back from the shard. Their difference, at the times from `since` on, is what
has to be written. The buffer stores that difference as a short list of consolidated runs of geometric sizes
(as in an LSM tree), so that inserting n updates in small batches costs O(n log n) in all, and what cancels
out does not stay.

Contract:

* An update leaves only by cancelling out: `insert` for the desired side, `remove` for the persisted side.
* `before(upper)` is consolidated, and all its times are in ``[since, upper)``.
* `since` never goes back; times before it count as `since`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.runtime import Frontier, Timestamp, Updates

_STAGED_ROWS_MAX = 4096
_RUN_RATIO = 3


class CorrectionBuffer:
    """desired - persisted, for rows of `schema`. For one thread at a time."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._since = Frontier(0)
        self._staged: list[Updates] = []
        self._staged_rows = 0
        self._runs: list[Updates] = []  # largest first, each consolidated; sizes at least _RUN_RATIO apart
        self._read: Updates | None = None  # the last answer of `before`, not part of a run

    def __len__(self) -> int:
        """Updates held; an upper bound of those that will be left once all has been consolidated."""
        return self._staged_rows + sum(map(len, self._runs)) + (len(self._read) if self._read else 0)

    def insert(self, desired: Updates) -> None:
        """The collection should have these, too."""
        if len(desired) == 0:
            return
        self._staged.append(desired)
        self._staged_rows += len(desired)
        if self._staged_rows > _STAGED_ROWS_MAX:
            self._add_run(self._take_staged())

    def remove(self, persisted: Updates) -> None:
        """The shard has these. Free of cost for the very object that `before` returned last."""
        if persisted is self._read:
            self._read = None
        else:
            self.insert(persisted.negate())

    def advance(self, since: Frontier) -> None:
        """From now on nothing is written before `since`."""
        self._since = max(self._since, since)

    def before(self, upper: Frontier) -> Updates:
        """All of the difference at times before `upper`."""
        if upper <= self._since:
            return Updates.empty(self._schema)
        everything = [*self._runs, *([self._read] if self._read else []), *self._staged]
        self._runs, self._read, self._staged, self._staged_rows = [], None, [], 0
        if not everything:
            return Updates.empty(self._schema)
        due, later = [], []
        for part in everything:
            if int(part.times.min()) >= upper:
                later.append(part)
            elif int(part.times.max()) < upper:
                due.append(part)
            else:
                mask = part.times < np.uint64(upper)
                due.append(part.filter(mask))
                later.append(part.filter(~mask))
        if later:
            self._add_run(Updates.concat(later).consolidate())
        if not due:
            return Updates.empty(self._schema)
        answer = Updates.concat(due).advance_to(Timestamp(self._since)).consolidate()
        self._read = answer if len(answer) else None
        return answer

    def _take_staged(self) -> Updates:
        taken, self._staged, self._staged_rows = self._staged, [], 0
        return Updates.concat(taken).advance_to(Timestamp(self._since)).consolidate()

    def _add_run(self, run: Updates) -> None:
        while self._runs and len(self._runs[-1]) < _RUN_RATIO * len(run):
            below = self._runs.pop()
            run = Updates.concat([below, run]).advance_to(Timestamp(self._since)).consolidate()
        if len(run):
            self._runs.append(run)
