"""The transaction log as an all-knowing observer sees it: which commit wrote what, and whether apply and tidy are just.

For a table it is the model of what readers see: the writes of all commits, whether they were applied or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from penstock.persist import ShardId
from penstock.persist.txn.rows import Ending, Registration, Write, decode
from sim.checkers.appends import Committed, Row
from sim.checkers.shard import Contents, ShardHistory
from sim.world import Process


@dataclass
class _Logged:
    write: Write
    process: str
    rows: Counter[Row]
    retracted: bool = False


class TxnsHistory:
    """`tables`: the observers of the tables' own shards, by id (created on demand)."""

    def __init__(
        self,
        log: ShardHistory,
        table: Callable[[ShardId], ShardHistory],
        violated: Callable[[str], None],
        reached: Callable[[str], None],
    ) -> None:
        self.log = log
        self.registered: dict[ShardId, int] = {}
        self.table = table
        self._violated = violated
        self._reached = reached
        self._writes: dict[ShardId, dict[int, _Logged]] = {}
        self._watched: set[ShardId] = set()
        log.on_append = self._appended

    @property
    def upper(self) -> int:
        return self.log.upper

    def at(self, shard: ShardId, as_of: int) -> Counter[Row]:
        """What a reader of the table sees at `as_of`."""
        total: Counter[Row] = Counter()
        for time, one in self._writes.get(shard, {}).items():
            if time <= as_of:
                total.update(one.rows)
        return Counter({row: count for row, count in total.items() if count})

    def between(self, shard: ShardId, first: int, end: int) -> Contents:
        return Counter(
            {
                (row, time): count
                for time, one in self._writes.get(shard, {}).items()
                if first <= time < end
                for row, count in one.rows.items()
                if count
            }
        )

    def _appended(self, process: Process, append: Committed) -> None:
        added = [(row, time) for time, row, diff in append.updates if diff > 0]
        gone = [(row, time) for time, row, diff in append.updates if diff < 0]
        for row, time in added:
            entry = decode(str(row[0]), row[1])  # type: ignore[arg-type]
            self._watch(entry.shard)
            if isinstance(entry, Registration):
                self.registered[entry.shard] = time
            elif isinstance(entry, Write):
                self._committed(process, entry, time)
        for row, _ in gone:
            entry = decode(str(row[0]), row[1])  # type: ignore[arg-type]
            if isinstance(entry, Registration):
                self.registered.pop(entry.shard, None)
            elif isinstance(entry, Write):
                self._tidied(process, entry)
            elif isinstance(entry, Ending) and self.table(entry.shard).upper <= entry.ts:
                self._violated(f"{process.name} tidied the end of {entry.shard} before it was there")
        pending = [time for writes in self._writes.values() for time, one in writes.items() if not one.retracted]
        if self.log.state.since > min(pending, default=self.log.state.since):
            self._violated(
                f"the since of the transaction log is {self.log.state.since}, a write at {min(pending)} is in it"
            )

    def _committed(self, process: Process, write: Write, time: int) -> None:
        table = self.table(write.shard)
        if write.shard not in self.registered:
            self._violated(f"{process.name} committed a write to {write.shard} at {time}, which is not registered")
        if write.ts != time:
            self._violated(f"{process.name} committed a write to {write.shard} at {time} that says {write.ts}")
        rows: Counter[Row] = Counter()
        for part in write.batch.parts:
            for row, at, count in table.decode(part):
                if at != time:
                    self._violated(f"{process.name} committed {row} of {write.shard} at {at} in a commit at {time}")
                rows[row] += count
        if write.ts in self._writes.setdefault(write.shard, {}):
            self._violated(f"{process.name} committed twice to {write.shard} at {write.ts}")
        self._writes[write.shard][write.ts] = _Logged(write, process.name, rows)

    def _tidied(self, process: Process, write: Write) -> None:
        logged = self._writes[write.shard][write.ts]
        if logged.retracted:
            self._violated(f"{process.name} tidied the write to {write.shard} at {write.ts} twice")
        if self.table(write.shard).upper <= write.ts:
            self._violated(f"{process.name} tidied the write to {write.shard} at {write.ts} before it was applied")
        logged.retracted = True
        if logged.process != process.name:
            self._reached("transaction tidied by another process")

    def _watch(self, shard: ShardId) -> None:
        if shard in self._watched:
            return
        self._watched.add(shard)
        table = self.table(shard)
        table.on_append = lambda process, append: self._applied(shard, process, append)
        table.protected = lambda key: any(
            key in one.write.batch.keys and table.upper <= one.write.ts for one in self._writes.get(shard, {}).values()
        )

    def _applied(self, shard: ShardId, process: Process, append: Committed) -> None:
        """Whatever is appended to a table is exactly what the log has for that time."""
        expected = self.between(shard, append.lower, append.upper)
        found: Contents = Counter()
        for time, row, count in append.updates:
            found[row, time] += count
        found = Counter({key: count for key, count in found.items() if count})
        if expected != found:
            self._violated(
                f"{process.name} applied to {shard} at [{append.lower}, {append.upper}) {dict(found)}, "
                f"the log has {dict(expected)}"
            )
        if append.updates and append.upper > self.upper:
            self._violated(f"{process.name} applied to {shard} up to {append.upper}, the log is at {self.upper}")
        for time, one in self._writes.get(shard, {}).items():
            if append.lower <= time < append.upper and one.process != process.name:
                self._reached("transaction applied by another process")
