"""Consensus in one SQLite file: the embedded default.

* Durable: WAL with ``synchronous=FULL``; ``NORMAL`` may lose the newest commits on a power failure.
* One writer thread with group commit: it drains its queue into one transaction, so that concurrent callers
  share one fsync. Reads run on a second connection in a second thread and never wait for a writer.
* Another process may use the same file: every guard is evaluated by SQLite inside the transaction, nothing
  is cached but the immutable number of a key.

One B-tree holds all versions: its integer primary key is ``number of the key * 2**40 + seqno``, which makes
an append one insertion and a scan one range. "x is the head" is checked as "x is present and x + 1 is not":
versions are contiguous and the head is never removed.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from penstock.persist.store import (
    SCAN_ALL,
    SEQNO_END,
    CasResult,
    SeqNo,
    StoreFull,
    StoreUnusable,
    Versioned,
    check_version,
    truncated_beyond_head,
)
from penstock.runtime import Determinate, ExternalError, Indeterminate

T = TypeVar("T")

_GROUP_MAX = 256
_BUSY_TIMEOUT_MS = 10_000
_OPEN_ATTEMPTS = 20
_OPEN_PAUSE_S = 0.05
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS versions (position INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""
_NOT_DONE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_TOOBIG}
_UNUSABLE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
}


class SqliteConsensus:
    """A `Consensus` in the SQLite file at `path`, created when absent (its directory must exist)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._numbers: dict[str, int] = {}
        self._uncommitted_numbers: dict[str, int] = {}
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._writing = self._open_connection()
        self._reading = self._open_connection()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")
        self._writer = threading.Thread(target=self._write_loop, name="sqlite-writer", daemon=True)
        self._writer.start()

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        return await self._read(lambda: self._head(self._reading, key), f"read the head of {key}")

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        return await self._read(lambda: self._scan(key, from_, limit), f"scan {key}")

    async def list_keys(self) -> list[str]:
        return await self._read(
            lambda: [key for (key,) in self._reading.execute("SELECT key FROM keys ORDER BY key")],
            "list the keys",
        )

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        check_version(key, new)
        return await self._write(lambda: self._cas(key, new), f"write version {new.seqno} of {key}")

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        return await self._write(lambda: self._truncate(key, seqno), f"truncate {key} to {seqno}")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._reader.shutdown, True)
        self._reading.close()
        self._writing.close()

    def _open_connection(self) -> sqlite3.Connection:
        """Connect and create the tables. Processes that create one file at once get in each other's way: try again."""
        for attempt in range(_OPEN_ATTEMPTS):
            try:
                connection = self._connect()
                connection.executescript(_SCHEMA)
                return connection
            except sqlite3.Error as error:
                failure = _classify(error, f"open {self._path}", began=False)
                if isinstance(failure, StoreUnusable) or attempt == _OPEN_ATTEMPTS - 1:
                    raise failure from error
                time.sleep(_OPEN_PAUSE_S)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=32)
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=FAST")  # ON, the default of some builds, writes each deleted page anew
        return connection

    # Reading: one thread, one connection, each statement its own snapshot of the newest commit.

    async def _read(self, operation: Callable[[], T], what: str) -> T:
        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, operation)
        except sqlite3.Error as error:
            raise _classify(error, f"{what} in {self._path}", began=False) from error

    def _head(self, connection: sqlite3.Connection, key: str) -> Versioned | None:
        number = self._number(connection, key)
        if number is None:
            return None
        base = number * SEQNO_END
        row = connection.execute(
            "SELECT position, data FROM versions WHERE position >= ? AND position < ? ORDER BY position DESC LIMIT 1",
            (base, base + SEQNO_END),
        ).fetchone()
        return None if row is None else Versioned(SeqNo(row[0] - base), row[1])

    def _scan(self, key: str, from_: SeqNo, limit: int) -> list[Versioned]:
        number = self._number(self._reading, key)
        if number is None:
            return []
        base = number * SEQNO_END
        rows = self._reading.execute(
            "SELECT position, data FROM versions WHERE position >= ? AND position < ? ORDER BY position LIMIT ?",
            (base + max(from_, 0), base + SEQNO_END, limit),
        )
        return [Versioned(SeqNo(position - base), data) for position, data in rows]

    def _number(self, connection: sqlite3.Connection, key: str) -> int | None:
        number = self._numbers.get(key)
        if number is None:
            row = connection.execute("SELECT number FROM keys WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            number = int(row[0])
            # The number of an uncommitted insertion may still change.
            known = self._uncommitted_numbers if connection.in_transaction else self._numbers
            known[key] = number
        return number

    # Writing: callers queue, the writer thread commits as many as have gathered.

    async def _write(self, operation: Callable[[], T], what: str) -> T:
        self._check_open()
        loop = asyncio.get_running_loop()
        write = _Write(operation, f"{what} in {self._path}", loop, loop.create_future())
        self._queue.put(write)
        result: T = await write.future
        return result

    def _check_open(self) -> None:
        if self._closed:
            raise Determinate(f"the consensus store {self._path} is closed")

    def _write_loop(self) -> None:
        ending = False
        while not ending:
            group: list[_Write] = []
            write = self._queue.get()
            while True:
                if write is None:
                    ending = True
                    break
                group.append(write)
                if len(group) == _GROUP_MAX:
                    break
                try:
                    write = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)
                _deliver(group)

    def _commit(self, group: list[_Write]) -> None:
        """One transaction for `group`. When it fails without effect, each member is tried on its own."""
        connection = self._writing
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in group:
                write.run()
            committing = True
            connection.execute("COMMIT")
            self._numbers.update(self._uncommitted_numbers)
        except sqlite3.Error as error:
            rolled_back = self._roll_back()
            failure = _classify(error, group[0].what, began=committing or not rolled_back)
            if len(group) > 1 and isinstance(failure, Determinate):
                for write in group:
                    self._commit([write])
                return
            for write in group:
                write.result, write.error = (
                    None,
                    _classify(error, write.what, began=committing or not rolled_back),
                )
        finally:
            self._uncommitted_numbers.clear()

    def _roll_back(self) -> bool:
        try:
            if self._writing.in_transaction:
                self._writing.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return not self._writing.in_transaction

    def _cas(self, key: str, new: Versioned) -> CasResult:
        connection = self._writing
        number = self._number(connection, key)
        if new.seqno == 0:
            if number is None:
                number = connection.execute("INSERT INTO keys (key) VALUES (?)", (key,)).lastrowid
                assert number is not None
            elif self._head(connection, key) is not None:
                return CasResult.MISMATCH
            connection.execute("INSERT INTO versions VALUES (?, ?)", (number * SEQNO_END, new.data))
            return CasResult.COMMITTED
        if number is None:
            return CasResult.MISMATCH
        position = number * SEQNO_END + new.seqno
        inserted = connection.execute(
            "INSERT OR IGNORE INTO versions "
            "SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM versions WHERE position = ?1 - 1)",
            (position, new.data),
        ).rowcount
        return CasResult.COMMITTED if inserted == 1 else CasResult.MISMATCH

    def _truncate(self, key: str, seqno: SeqNo) -> int:
        head = self._head(self._writing, key)
        number = self._number(self._writing, key)
        if head is None or number is None or seqno > head.seqno:
            raise truncated_beyond_head(key, seqno, None if head is None else head.seqno)
        base = number * SEQNO_END
        return self._writing.execute(
            "DELETE FROM versions WHERE position >= ? AND position < ?", (base, base + max(seqno, 0))
        ).rowcount


class _Write:
    """One queued operation and, after its transaction, its outcome."""

    def __init__(
        self,
        operation: Callable[[], Any],
        what: str,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
    ) -> None:
        self.operation = operation
        self.what = what
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: ExternalError | None = None

    def run(self) -> None:
        """Run inside the transaction. A refusal is this member's own outcome and never fails its
        neighbours.
        """
        self.result, self.error = None, None
        try:
            self.result = self.operation()
        except ExternalError as error:
            self.error = error


def _deliver(group: list[_Write]) -> None:
    """Resolve the futures, with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in group:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, writes)
        except RuntimeError:
            continue  # that loop has ended: nobody is left to be told


def _resolve(writes: list[_Write]) -> None:
    for write in writes:
        if write.future.done():
            continue
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.result)


def _classify(error: sqlite3.Error, what: str, *, began: bool) -> ExternalError:
    """`began`: whether the failing statement was one that may have made the transaction durable."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"cannot {what}: {error}; make room on its disk and try again")
    if code in _UNUSABLE:
        return StoreUnusable(f"cannot {what}: {error}; check the file and its directory")
    if code in _NOT_DONE or not began:
        return Determinate(f"cannot {what}: {error}")
    return Indeterminate(f"cannot {what}: {error}")
