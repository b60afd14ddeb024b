"""What one transaction of a session has done and holds: reads at one time, writes that wait for the commit, cursors.

A transaction either reads or writes. Reading and then writing at a later time would let two transactions each miss
what the other wrote, so the second kind of statement is refused with a message that says so. UPDATE and DELETE read
and write in one: they hold the exclusive lock of their tables until the transaction ends.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from penstock.adapter.cursors import Cursor
from penstock.adapter.group_commit import Delta
from penstock.control import ReadHold
from penstock.runtime import GlobalId, SqlError, Timestamp

WRITE_BYTES_MAX = 1 << 30
"""Uncommitted rows that one transaction may keep in memory."""


class Mode(enum.Enum):
    """What a transaction has turned out to be."""

    OPEN = "open"
    READ = "read"
    WRITE = "write"


@dataclass(eq=False)
class Transaction:
    """`explicit`: inside BEGIN. `read_only`: BEGIN READ ONLY. `timestamp`: that of all its reads, once chosen."""

    explicit: bool
    read_only: bool = False
    failed: bool = False
    mode: Mode = Mode.OPEN
    timestamp: Timestamp | None = None
    holds: dict[GlobalId, ReadHold] = field(default_factory=dict)
    writes: dict[GlobalId, list[Delta]] = field(default_factory=dict)
    cursors: dict[str, Cursor] = field(default_factory=dict)
    _write_bytes: int = 0

    def begin_read(self) -> None:
        """The next statement reads collections. Raises `SqlError` 25000 after a write in the same block."""
        if self.explicit and self.mode is Mode.WRITE:
            raise SqlError(
                "transaction in write-only mode",
                sqlstate="25000",
                detail="A transaction that has written cannot read: its writes get their time only when it commits.",
                hint="Commit first, or read in a transaction of its own.",
            )
        if self.explicit:
            self.mode = Mode.READ

    def begin_write(self, what: str) -> None:
        """The next statement (`what`: INSERT, ...) writes. Raises `SqlError` 25006 after a read in the same block."""
        if self.read_only:
            raise SqlError(f"cannot execute {what} in a read-only transaction", sqlstate="25006")
        if self.explicit and self.mode is Mode.READ:
            raise SqlError(
                "transaction in read-only mode",
                sqlstate="25006",
                detail="A transaction that has read cannot write: what it read may have changed when it commits.",
                hint="Commit first, or write in a transaction of its own.",
            )
        if self.explicit:
            self.mode = Mode.WRITE

    def refuse_block(self, what: str) -> None:
        """`what` commits by itself and cannot be undone. Raises `SqlError` 25001 inside BEGIN."""
        if self.explicit:
            raise SqlError(
                f"{what} cannot run inside a transaction block",
                sqlstate="25001",
                hint="Run it outside BEGIN; many drivers begin transactions by themselves unless autocommit is on.",
            )

    def add(self, table: GlobalId, deltas: list[Delta]) -> None:
        """Buffer changes. Raises `SqlError` 53200 when a transaction writes too much."""
        self._write_bytes = sum(delta.nbytes for parts in self.writes.values() for delta in parts)
        self.reserve(sum(delta.nbytes for delta in deltas))
        self.writes.setdefault(table, []).extend(delta for delta in deltas if len(delta.diffs))

    def reserve(self, nbytes: int) -> None:
        """Count `nbytes` that are on their way into the transaction. Raises `SqlError` 53200 when they are too many."""
        self._write_bytes += nbytes
        if self._write_bytes > WRITE_BYTES_MAX:
            raise SqlError(
                f"the transaction has more than {WRITE_BYTES_MAX >> 20} MiB of uncommitted rows",
                sqlstate="53200",
                hint="Commit more often, or load with several COPY commands.",
            )

    def take_writes(self) -> dict[GlobalId, list[Delta]]:
        """The buffered changes, which are no longer buffered."""
        taken, self.writes, self._write_bytes = self.writes, {}, 0
        return taken

    async def release(self) -> None:
        """Give up everything: cursors first (cancel before release), then holds. Idempotent."""
        cursors, self.cursors = list(self.cursors.values()), {}
        for cursor in cursors:
            await cursor.close()
        holds, self.holds = self.holds, {}
        for hold in holds.values():
            hold.release()
        self.take_writes()
