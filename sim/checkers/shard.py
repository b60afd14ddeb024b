"""One shard as an all-knowing observer sees it: every version, every blob, at the moment they change.

`ShardHistory` follows the log of a shard at the store and asserts, with each effect, what must hold at all times:
frontiers do not go back, no live hold is passed, no referenced blob is missing, compaction keeps the contents. It also
is the model that reads are compared with: all updates ever committed, at their own times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from penstock.persist import ShardId, Versioned
from penstock.persist.parts import decode_inline, decode_object
from penstock.persist.schema import decode_schema
from penstock.persist.state import Diff, HollowPart, InlinePart, LinkedBatch, Part, State, apply, decode_diff
from sim.checkers.appends import Committed, Row, Update, as_row
from sim.stores import ObjectStore
from sim.world import Process

Contents = Counter[tuple[Row, int]]
"""(row, time) -> sum of diffs."""


@dataclass
class Owner:
    """Who registered a reader or writer."""

    process: Process


class ShardHistory:
    """See the module. `violated(message)` and `reached(path)` are the world's."""

    def __init__(
        self, shard: ShardId, objects: ObjectStore, violated: Callable[[str], None], reached: Callable[[str], None]
    ) -> None:
        self.shard = shard
        self.state = State()
        self.committed: list[Committed] = []
        self.oldest = 0
        self.lost_keys: set[str] = set()
        """Rollups that the run took away on purpose."""
        self.rolled_up = -1
        """Seqno of the rollup that the newest version added, -1 when it added none."""
        self.opaque_owners: dict[int, str] = {}
        self.on_append: Callable[[Process, Committed], None] = lambda process, append: None
        self.protected: Callable[[str], bool] = lambda key: False
        """Whether somebody outside of the state needs a blob."""
        self._objects = objects
        self._violated = violated
        self._reached = reached
        self._contents: dict[int, Contents] = {}
        self._by_time: dict[int, Counter[Row]] = {}
        self._dropped: dict[str, int] = {}
        self._linked: set[str] = set()
        self._collectors: dict[str, Process] = {}
        """Who has deleted something and not recorded it as collected yet."""
        self._owners: dict[str, Process] = {}
        self._reigned: dict[str, set[int]] = {}
        """Opaques that each critical reader has had."""

    # The model

    @property
    def upper(self) -> int:
        return self.state.upper

    def at(self, as_of: int) -> Counter[Row]:
        """The contents at `as_of`."""
        total: Counter[Row] = Counter()
        for time, rows in self._by_time.items():
            if time <= as_of:
                total.update(rows)
        return Counter({row: count for row, count in total.items() if count})

    def between(self, first: int, end: int) -> Contents:
        """All updates at times in ``[first, end)``, summed."""
        return Counter(
            {
                (row, time): count
                for time, rows in self._by_time.items()
                if first <= time < end
                for row, count in rows.items()
                if count
            }
        )

    def recently_dropped(self) -> set[str]:
        """Keys that the newest version does not refer to, but diffs that are still there name."""
        return {key for key, seqno in self._dropped.items() if seqno >= self.oldest}

    # What happens at the stores

    def commit(self, process: Process, version: Versioned) -> None:
        before, diff = self.state, decode_diff(self.shard, version.data)
        state = apply(before, diff)
        self.state = state
        if state.upper < before.upper or state.since < before.since or state.walltime_ms <= before.walltime_ms:
            self._wrong(diff, f"goes back: {before.upper}, {before.since}, {before.walltime_ms}")
        if before.tombstone:
            self._wrong(diff, "changes a finalized shard")
        if diff.tombstone:
            self._dropped.update(dict.fromkeys(before.keys(), diff.seqno))
            return
        self._check_since(diff, state)
        self._check_entries(process, before, diff)
        self._check_criticals(process, before, diff)
        if diff.append is not None or diff.upper is not None:
            self._appended(process, before, diff)
        if diff.replace is not None:
            self._replaced(before, diff)
        if diff.collected is not None:
            self._collected(process)
        if diff.rollups:
            self._check_anchor(f"version {diff.seqno} changed what is listed")
        for key in diff.removed_rollups:
            self._dropped[key] = diff.seqno
        self.rolled_up = -1
        for seqno, rollup in diff.rollups.items():
            if rollup is not None:
                self.rolled_up = seqno
                self._must_exist(diff, rollup.key, rollup.size)
        if diff.rollup and diff.rollup not in {rollup.key for rollup in state.rollups.values()}:
            self._wrong(diff, f"names the rollup {diff.rollup}, which it does not list")

    def deleted(self, process: Process, key: str) -> None:
        """The blob `key` (without the shard) is gone."""
        if key in self.lost_keys:
            return
        if key in self._dropped:
            self._collectors[process.name] = process
        if key in self.state.keys():  # noqa: SIM118
            self._violated(f"{self.shard}: {process.name} deleted {key}, which version {self.state.seqno} refers to")
        elif self._dropped.get(key, -1) > self.state.seqno_since:
            self._violated(
                f"{self.shard}: {process.name} deleted {key}, which versions before {self._dropped[key]} refer to; "
                f"{self.state.seqno_since} is held"
            )
        elif self.protected(key):
            self._violated(f"{self.shard}: {process.name} deleted {key}, which a committed transaction refers to")
        if key.startswith("compaction/") and key not in self._linked:
            self._reached("compaction result not applicable")

    def truncated(self, seqno: int) -> None:
        self.oldest = max(self.oldest, seqno)
        state = self.state
        if state.tombstone:
            return
        usable = [r for at, r in state.rollups.items() if at >= self.oldest - 1 and self._exists(r.key)]
        if not usable:
            self._violated(f"{self.shard}: truncated to {seqno}, but no full state leads there: {state.rollups}")
        self._check_anchor(f"truncated to {seqno}")

    # Checks

    def _check_anchor(self, when: str) -> None:
        """Once anything was collected, the oldest version has a full state no later than itself."""
        listed = sorted(self.state.rollups)
        if self.oldest > 0 and not (listed and listed[0] <= self.oldest) and not self.lost_keys:
            self._violated(f"{self.shard}: {when}, rollups {listed} are all later than version {self.oldest}")

    def _wrong(self, diff: Diff, what: str) -> None:
        self._violated(f"{self.shard}: version {diff.seqno} {what}; {diff}")

    def _check_since(self, diff: Diff, state: State) -> None:
        holds = state.readers_since()
        if holds is not None and diff.since is not None and diff.since > holds:
            self._wrong(diff, f"raises the since to {diff.since}, past a hold at {holds}")
        moved = [*diff.readers.values(), *diff.criticals.values()]
        if diff.since is not None and not any(entry is not None for entry in moved):
            self._wrong(diff, f"raises the since to {diff.since} though nobody gave anything up")

    def _check_entries(self, process: Process, before: State, diff: Diff) -> None:
        """Readers and writers are removed by their own process, or when their lease has lapsed."""
        decided_ms = max(process.clock.now_ms(), diff.walltime_ms)  # its clock may have been set back since
        for kind, changes, entries in (
            ("reader", diff.readers, before.readers),
            ("writer", diff.writers, before.writers),
        ):
            for name, entry in changes.items():
                known = entries.get(name)
                owner = self._owners.setdefault(name, process)
                if entry is not None or known is None or owner is process:
                    continue
                if known.heartbeat_ms + known.lease_ms >= decided_ms:
                    self._wrong(diff, f"expires {kind} {name} of {owner.name} before its lease has lapsed")
                if kind == "reader" and owner.frozen:
                    self._reached("lease expired under a pause")
                elif kind == "reader" and owner.alive:
                    self._reached("lease of a running process expired")
        for name, reader in diff.readers.items():
            known_reader = before.readers.get(name)
            if reader is None or known_reader is None:
                continue
            if reader.since < known_reader.since or reader.hold < known_reader.hold:
                self._wrong(diff, f"moves reader {name} back from {known_reader}")

    def _check_criticals(self, process: Process, before: State, diff: Diff) -> None:
        for name, critical in diff.criticals.items():
            known = before.criticals.get(name)
            if critical is None:
                self._wrong(diff, f"removes the critical reader {name}")
            elif known is not None:
                owner = self.opaque_owners.get(critical.opaque)
                if critical.since < known.since:
                    self._wrong(diff, f"moves the critical reader {name} back from {known.since}")
                reigned = self._reigned.setdefault(name, {known.opaque})
                if critical.opaque != known.opaque and critical.opaque in reigned:
                    self._wrong(diff, f"gives the critical reader {name} to {critical.opaque}, which was fenced before")
                reigned.add(critical.opaque)
                if owner is not None and owner != process.name:
                    self._wrong(diff, f"by {process.name} moves the critical reader {name}, which {owner} has fenced")

    def _appended(self, process: Process, before: State, diff: Diff) -> None:
        upper = before.upper if diff.upper is None else diff.upper
        updates: list[Update] = []
        if diff.append is not None:
            if diff.append.lower != before.upper:
                self._wrong(diff, f"appends at {diff.append.lower}, the upper is {before.upper}")
            contents = self._read(diff, diff.append)
            self._contents[diff.append.id] = contents
            for (row, time), count in contents.items():
                updates.append((time, row, count))
                self._by_time.setdefault(time, Counter())[row] += count
                if not before.upper <= time < upper:
                    self._wrong(diff, f"appends {row} at {time}, outside [{before.upper}, {upper})")
        append = Committed(diff.seqno, process.name, before.upper, upper, tuple(updates))
        self.committed.append(append)
        self.on_append(process, append)

    def _replaced(self, before: State, diff: Diff) -> None:
        assert diff.replace is not None
        ids, batch, removed = diff.replace.ids, diff.replace.batch, diff.replace.removed
        if batch.since > before.since:
            self._wrong(diff, f"compacts to {batch.since}, beyond the since {before.since}")
        expected: Contents = Counter()
        for one in ids:
            for (row, time), count in self._contents.pop(one).items():
                expected[row, max(time, batch.since)] += count
        found = self._read(diff, batch)
        self._contents[batch.id] = found
        difference = _difference(expected, found)
        if difference:
            self._wrong(diff, f"compacts {ids} to other contents: {difference}")
        inputs = [one for one in before.batches if one.id in ids]
        if any(one.inline_bytes for one in inputs) and batch.keys:
            self._reached("inline drained to blobs")
        for key in removed:
            self._dropped[key] = diff.seqno

    def _collected(self, process: Process) -> None:
        self._collectors.pop(process.name, None)
        crashed = [name for name, other in self._collectors.items() if not other.alive]
        for name in crashed:
            del self._collectors[name]
            self._reached("collection crashed midway, finished by another")

    def _read(self, diff: Diff, batch: LinkedBatch) -> Contents:
        contents: Contents = Counter()
        for part in batch.parts:
            if isinstance(part, HollowPart) and not self._must_exist(diff, part.key, part.size):
                continue
            for row, time, count in self.decode(part):
                contents[row, time] += count
        return contents

    def decode(self, part: Part) -> Iterable[tuple[Row, int, int]]:
        """(row, time, diff) of each update of `part`."""
        schema = decode_schema(self.state.schemas[part.schema])
        if isinstance(part, InlinePart):
            updates = decode_inline(part, schema)
        else:
            updates = decode_object(self._objects.objects[f"{self.shard}/{part.key}"], part, schema)
        columns = [column.to_pylist() for column in updates.rows.columns]
        return zip(map(as_row, zip(*columns, strict=True)), updates.times.tolist(), updates.diffs.tolist(), strict=True)

    def _exists(self, key: str) -> bool:
        return f"{self.shard}/{key}" in self._objects.objects

    def _must_exist(self, diff: Diff, key: str, size: int) -> bool:
        self._linked.add(key)
        data = self._objects.objects.get(f"{self.shard}/{key}")
        if data is None:
            self._wrong(diff, f"refers to {key}, which does not exist")
        elif len(data) != size:
            self._wrong(diff, f"refers to {key} as of {size} bytes; it has {len(data)}")
        return data is not None


def _difference(expected: Contents, found: Contents) -> dict[tuple[Row, int], tuple[int, int]]:
    return {key: (expected[key], found[key]) for key in expected.keys() | found.keys() if expected[key] != found[key]}
