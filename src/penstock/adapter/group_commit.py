"""Group commit: one task owns every append to the transactions shard and gives all waiting writes one time.

Per group: a fresh write time, the fence check (a coordinator that another has replaced must fail *before* it writes),
one atomic commit over all tables, then the oracle learns of it, then the waiters are answered. Never earlier: an
answer promises that the write is durable and that every later strict read sees it.

An empty group every `tick_s` closes the tables' times, so that views and readers move on when nobody writes.
Registering and forgetting tables goes through the same queue, so that no write can overtake the birth or death of
its table.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from penstock.adapter.oracle import TimestampOracle
from penstock.adapter.store_errors import client_error
from penstock.persist import ShardId
from penstock.runtime import Clock, ExternalError, Indeterminate, PenstockError, SqlError, Timestamp, Updates

_log = structlog.get_logger("penstock.group_commit")

QUEUE_BYTES = 256 << 20
"""Writers wait while more than this is queued."""
GROUP_BYTES = 64 << 20
"""A group takes no more writes once it is this big, so that small writes do not wait behind many large ones."""
ATTEMPTS = 100
"""Tries of one group against a transactions shard that keeps running ahead, before the coordinator gives up."""
RESOLVE_S = 30.0
"""How long the outcome of an interrupted commit is sought before its writers are told that it is unknown."""


class FencedError(PenstockError):
    """Another coordinator has taken over; this one must stop."""

    sqlstate = "57P02"


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """Changes to one table that have no time yet: `rows` and a diff for each (int64[n])."""

    rows: pa.RecordBatch
    diffs: npt.NDArray[np.int64]

    @staticmethod
    def insert(rows: pa.RecordBatch) -> Delta:
        return Delta(rows, np.ones(rows.num_rows, dtype=np.int64))

    @staticmethod
    def delete(rows: pa.RecordBatch) -> Delta:
        return Delta(rows, np.full(rows.num_rows, -1, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes) + self.diffs.nbytes


class TxnsLog(Protocol):
    """The part of `persist.TxnsWriter` that commits; tests inject conflicts and failures here."""

    async def commit_at(self, writes: dict[ShardId, list[Updates]], ts: Timestamp) -> object | None: ...
    async def register(self, shards: dict[ShardId, pa.Schema], ts: Timestamp) -> object | None: ...
    async def forget(self, shards: list[ShardId], ts: Timestamp) -> object | None: ...
    async def apply_le(self, ts: Timestamp) -> None: ...


@dataclass(eq=False)
class _Write:
    deltas: Mapping[ShardId, Sequence[Delta]]
    nbytes: int
    done: asyncio.Future[Timestamp]


@dataclass(eq=False)
class _Register:
    shards: dict[ShardId, pa.Schema]
    done: asyncio.Future[Timestamp]


@dataclass(eq=False)
class _Forget:
    shards: list[ShardId]
    done: asyncio.Future[Timestamp]


_Command = _Write | _Register | _Forget


@dataclass
class GroupCommitter:
    """Commits for all sessions of one coordinator. `run` is its task; the other methods are for sessions.

    `fence` raises `FencedError` when another coordinator has taken over. `on_commit(ts)` runs after each commit, on
    the task, before the waiters go on.
    """

    txns: TxnsLog
    oracle: TimestampOracle
    clock: Clock
    fence: Callable[[], Awaitable[None]]
    on_commit: Callable[[Timestamp], None] = lambda ts: None
    tick_s: float = 1.0
    commits: int = 0
    writes: int = 0
    _queue: deque[_Command] = field(default_factory=deque)
    _queued_bytes: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _room: asyncio.Condition = field(default_factory=asyncio.Condition)
    _known: set[ShardId] = field(default_factory=set)
    _stopped: BaseException | None = None
    _failing: bool = False

    async def write(self, deltas: Mapping[ShardId, Sequence[Delta]]) -> Timestamp:
        """Commit `deltas` atomically and return their time; durable and visible to strict reads on return.

        Raises `SqlError` when the write surely did not happen (53100 when the disk is full, 42P01 when a table is
        gone) and `SqlError` 08007 when its outcome cannot be learned. A cancelled call that was still queued did not
        happen; one that was under way is waited for, and its cancellation is raised after it is settled.
        """
        nbytes = sum(delta.nbytes for parts in deltas.values() for delta in parts)
        async with self._room:
            await self._room.wait_for(lambda: self._queued_bytes == 0 or self._queued_bytes + nbytes <= QUEUE_BYTES)
        write = _Write(deltas, nbytes, self._future())
        self._queued_bytes += nbytes
        return await self._submit(write)

    async def register(self, shards: dict[ShardId, pa.Schema]) -> Timestamp:
        """Make `shards` tables: empty below the time returned, readable and writable from it on."""
        return await self._submit(_Register(shards, self._future()))

    async def forget(self, shards: list[ShardId]) -> Timestamp:
        """End the life of tables. Writes that are queued behind it fail with 42P01."""
        return await self._submit(_Forget(shards, self._future()))

    async def run(self) -> None:
        """Commit groups until cancelled. Ends with the error when fenced or when an invariant is broken."""
        try:
            while True:
                await self._wait_for_work()
                await self._throttle()
                await self._commit_next()
        except BaseException as error:
            self._stopped = error
            for command in self._queue:
                _fail(command, _stopped_error(error))
            self._queue.clear()
            raise

    def known(self, shards: Mapping[ShardId, pa.Schema]) -> None:
        """Tables that were registered before this coordinator started."""
        self._known |= set(shards)

    @staticmethod
    def _future() -> asyncio.Future[Timestamp]:
        return asyncio.get_running_loop().create_future()

    async def _submit(self, command: _Command) -> Timestamp:
        if self._stopped is not None:
            raise _stopped_error(self._stopped)
        self._queue.append(command)
        self._wake.set()
        try:
            return await asyncio.shield(command.done)
        except asyncio.CancelledError:
            if command in self._queue:
                self._queue.remove(command)
                await self._took(command)
                raise
            await asyncio.wait([command.done])  # under way: it cannot be recalled, only awaited
            raise

    async def _wait_for_work(self) -> None:
        if self._queue:
            return
        self._wake.clear()
        try:
            async with asyncio.timeout(self.tick_s):
                await self._wake.wait()
        except TimeoutError:
            pass  # nothing to write: the empty commit is due

    async def _throttle(self) -> None:
        """Do not let write times run away from the clock; what arrives meanwhile joins the group."""
        ahead = self.oracle.ahead_of_clock_s()
        if ahead > 0:
            await self.clock.sleep(min(ahead, 1.0))

    async def _commit_next(self) -> None:
        """Take one command of its own kind, or as many writes as fit a group; carry it out and answer."""
        head = self._queue[0] if self._queue else None
        if isinstance(head, _Register | _Forget):
            self._queue.popleft()
            await self._attempt([head], lambda ts: self._alter(head, ts))
            return
        group: list[_Write] = []
        size = 0
        while self._queue and isinstance(self._queue[0], _Write) and (not group or size < GROUP_BYTES):
            write = self._queue.popleft()
            await self._took(write)
            assert isinstance(write, _Write)
            missing = set(write.deltas) - self._known
            if missing:
                _fail(write, _gone(missing))
                continue
            group.append(write)
            size += write.nbytes
        await self._attempt(group, lambda ts: self.txns.commit_at(_stamp(group, ts), ts))

    async def _alter(self, command: _Register | _Forget, ts: Timestamp) -> object | None:
        if isinstance(command, _Register):
            return await self.txns.register(command.shards, ts)
        return await self.txns.forget(command.shards, ts)

    def _settle(self, command: _Command, ts: Timestamp) -> None:
        if isinstance(command, _Register):
            self._known |= set(command.shards)
        elif isinstance(command, _Forget):
            self._known -= set(command.shards)
        if not command.done.done():
            command.done.set_result(ts)

    async def _attempt(
        self, group: Sequence[_Command], commit: Callable[[Timestamp], Awaitable[object | None]]
    ) -> None:
        """Commit at a fresh time, again when the shard is already past it, and answer everyone."""
        try:
            ts = await self._commit_at_fresh_time(commit)
        except FencedError as error:
            for command in group:
                _fail(command, _stopped_error(error))
            raise
        except (ExternalError, OSError) as error:
            self._report_failure(error, len(group))
            for command in group:
                _fail(command, client_error(error))
            if not group:
                await self.clock.sleep(min(self.tick_s, 0.2))  # a failing store is not hammered with empty commits
            return
        except BaseException as error:
            for command in group:
                _fail(command, _stopped_error(error))
            raise
        self._report_success(len(group))
        self.oracle.apply_write(ts)
        self.on_commit(ts)
        for command in group:
            self._settle(command, ts)
        await asyncio.sleep(0)  # the answers go out before this task does anything else
        if group:
            await self._apply(ts)

    async def _commit_at_fresh_time(self, commit: Callable[[Timestamp], Awaitable[object | None]]) -> Timestamp:
        for _ in range(ATTEMPTS):
            ts = self.oracle.write_ts().timestamp
            await self.fence()
            try:
                late = await commit(ts)
            except Indeterminate as error:
                late = await self._resolve(commit, ts, error)
            if late is None:
                return ts
            upper = getattr(late, "upper", ts)
            self.oracle.apply_write(Timestamp(max(int(upper) - 1, 0)))
        raise PenstockError(f"the transactions shard stayed ahead of {ATTEMPTS} write times in a row")

    async def _resolve(
        self, commit: Callable[[Timestamp], Awaitable[object | None]], ts: Timestamp, cause: Indeterminate
    ) -> object | None:
        """The commit at `ts` may or may not have happened. Trying again at the same time tells.

        Only this task appends to the shard (the fence check keeps it so), and never twice at one time. So "already
        past
        `ts`" can only mean that the first try got through.
        """
        deadline = self.clock.monotonic() + RESOLVE_S
        while True:
            try:
                await self.fence()
                await commit(ts)
                return None
            except (ExternalError, OSError) as error:
                if self.clock.monotonic() > deadline:
                    raise cause from error
                await self.clock.sleep(0.1)

    async def _apply(self, ts: Timestamp) -> None:
        """Move the committed rows into the tables' own shards. Readers also do; failing here costs only their time."""
        try:
            await self.txns.apply_le(ts)
        except (ExternalError, OSError) as error:
            _log.warning("applying a commit failed; readers and later commits do it", ts=ts, error=str(error))

    async def _took(self, command: _Command) -> None:
        if isinstance(command, _Write):
            self._queued_bytes -= command.nbytes
            async with self._room:
                self._room.notify_all()

    def _report_failure(self, error: BaseException, waiting: int) -> None:
        if not self._failing:
            _log.error("commits fail", error=repr(error), writes=waiting)
        self._failing = True

    def _report_success(self, count: int) -> None:
        if self._failing:
            _log.info("commits work again")
        self._failing = False
        self.commits += 1
        self.writes += count


def _stamp(group: Sequence[_Write], ts: Timestamp) -> dict[ShardId, list[Updates]]:
    """The writes of a group at its time, one batch per table where they are small."""
    by_shard: dict[ShardId, list[Delta]] = {}
    for write in group:
        for shard, deltas in write.deltas.items():
            by_shard.setdefault(shard, []).extend(deltas)
    stamped: dict[ShardId, list[Updates]] = {}
    for shard, deltas in by_shard.items():
        updates = [Updates(d.rows, np.full(len(d.diffs), ts, dtype=np.uint64), d.diffs) for d in deltas]
        stamped[shard] = [Updates.concat(updates)] if sum(d.nbytes for d in deltas) < GROUP_BYTES else updates
    return stamped


def _fail(command: _Command, error: BaseException) -> None:
    if not command.done.done():
        command.done.set_exception(error)
        command.done.exception()  # its waiter may be gone; asyncio must not complain about that


def _gone(shards: set[ShardId]) -> SqlError:
    return SqlError(
        "a table that this transaction wrote to was dropped", sqlstate="42P01", detail=", ".join(sorted(shards))
    )


def _stopped_error(error: BaseException) -> SqlError:
    if isinstance(error, FencedError):
        return SqlError(error.message, sqlstate=error.sqlstate, hint="Connect to the coordinator that took over.")
    return SqlError("the server is shutting down", sqlstate="57P01")
