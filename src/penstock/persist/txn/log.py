"""The transaction log as one process sees it: a subscription to the txns shard, folded into what it means.

For every registered shard it answers which writes may not be in the shard itself yet, and it hands each
write on to whoever follows that shard. All of a moment's answers belong to one `progress`: everything below
it has been seen.

Two facts make reading from the log and from the shards add up, without a row lost or doubled:

* An entry is retracted only after its write was applied. So every write that the log does not hold (any
  more) is in the shard's own contents, as seen by anyone who looks after the log did.
* A shard's own upper moves only past writes that were applied. So a write is in the contents exactly if it
  is below the upper of the very version that was read.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog

from penstock.persist.client import PersistClient
from penstock.persist.errors import ClientClosed, ReaderExpired
from penstock.persist.listen import Listen, ListenEvent
from penstock.persist.read import ReadHandle
from penstock.persist.shard import Shard
from penstock.persist.state import State
from penstock.persist.store import ShardId
from penstock.persist.txn.rows import TXNS_SCHEMA, Ending, Entry, Registration, Write, decode
from penstock.runtime import (
    ExternalError,
    Frontier,
    InternalError,
    PenstockError,
    TaskOwner,
    Timestamp,
    Updates,
    step_back,
)

_log = structlog.get_logger("penstock.txn")

_RETRY_S = 1.0
_IDLE_WAKES = 64
_IDLE_PACE_S = 0.01
"""At most so many idle followers per so long are told of progress: at 15 microseconds each, a tenth of a core."""


class Follower(Protocol):
    """Hears what happens to one shard, in the order of times, before `progress` passes it. Must not block."""

    def wrote(self, write: Write) -> None: ...
    def registered(self, ts: Timestamp) -> None: ...
    def forgotten(self) -> None: ...
    def log_failed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Idle:
    """A follower that waits for progress beyond `frontier`."""

    frontier: Frontier
    news: asyncio.Future[None]


_Ticket = tuple[Timestamp, int, asyncio.Future[None]]


class TxnsLog:
    """See the module. Belongs to one event loop; `close` ends the subscription.

    `progress`: all entries at times below it are accounted for; it is the logical upper of all registered
    shards.

    A commit costs what the shards that it touches cost, however many others are followed: their followers hear of it
    at once, those of other shards in turn, a bounded number per moment. With few followers that is at once as well;
    with a thousand each is told of progress several times a second, however many commits there were.
    """

    def __init__(self, reader: ReadHandle, listen: Listen) -> None:
        self.progress = Frontier(0)
        self.registrations: dict[ShardId, Registration] = {}
        self.endings: dict[bytes, Ending] = {}
        """By payload: shards that are not registered any more and whose own uppers may not show it yet."""
        self.unapplied_bytes = 0
        self._reader = reader
        self._listen = listen
        self._first = listen.frontier
        """The progress that the whole snapshot has; its earlier events are pieces of it, and all at one time."""
        self._writes: dict[ShardId, dict[bytes, Write]] = {}
        self._retired: dict[ShardId, Timestamp] = {}
        self._ahead: list[Updates] = []
        """What came before its time: what belongs to it may be missing."""
        self._pending: dict[tuple[str, bytes], tuple[int, bool]] = {}
        """Row -> (sum of its diffs, whether one was positive) among events whose times are not closed yet."""
        self._followers: dict[ShardId, WeakKeyDictionary[Follower, None]] = {}
        """As a set that keeps its order."""
        self._waiting: list[_Ticket] = []
        """A heap: who waits for a time to be passed."""
        self._tickets = count()
        self._idle: dict[Follower, _Idle] = {}
        """Who waits for any progress; whoever waits longest comes first."""
        self._involved: dict[Follower, None] = {}
        self._telling: asyncio.Task[None] | None = None
        self._failure: PenstockError | None = None
        self._tasks = TaskOwner("txns-log", self._failed)

    @staticmethod
    async def open(client: PersistClient, txns_shard: ShardId, *, purpose: str) -> TxnsLog:
        """Subscribe, and return once everything that is in the log now has been seen."""
        reader = await client.open_reader(txns_shard, TXNS_SCHEMA, purpose=purpose)
        upper = reader.upper
        log = TxnsLog(reader, await reader.subscribe(step_back(upper)))
        log._tasks.spawn(log._follow_shard(), str(txns_shard))
        if upper > 0:
            try:
                await log.wait_past(step_back(upper))
            except BaseException:
                await log.close()
                raise
        return log

    @property
    def failed(self) -> bool:
        """Whether the subscription has ended (closed, or its lease was lost); a new log must be opened."""
        return self._failure is not None

    def check(self) -> None:
        """Raises what ended the subscription, if it has ended."""
        if self._failure is not None:
            raise self._failure

    async def wait_past(self, ts: Timestamp) -> None:
        """Return when ``progress > ts``. Raises what ended the subscription. Cancellable."""
        while self.progress <= ts:
            self.check()
            ticket = self._queue_up(ts)
            try:
                await ticket[2]
            except asyncio.CancelledError:
                self._give_up(ticket)
                raise

    async def wait_past_or(self, ts: Timestamp, shard: Shard, enough: Callable[[State], bool]) -> None:
        """Return when ``progress > ts``, or once a version of `shard` is `enough`, whatever becomes of the log.

        Raises what ended the subscription. Cancellable.
        """
        ticket = self._queue_up(ts)
        news = ticket[2]

        def look_again(told: asyncio.Future[None]) -> None:
            if not told.cancelled():
                told.exception()  # it is `check` that raises
                shard.look_again()

        news.add_done_callback(look_again)
        try:
            state = await shard.wait_until(lambda state: enough(state) or self.progress > ts or self.failed)
        finally:
            self._give_up(ticket)
            news.cancel()
        if not enough(state) and self.progress <= ts:
            self.check()

    def _queue_up(self, ts: Timestamp) -> _Ticket:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = (ts, next(self._tickets), news)
        heapq.heappush(self._waiting, ticket)
        return ticket

    def _give_up(self, ticket: _Ticket) -> None:
        if ticket in self._waiting:  # else it has been told, and its time has come
            self._waiting.remove(ticket)
            heapq.heapify(self._waiting)

    async def wait_for_progress(self, follower: Follower, frontier: Frontier) -> None:
        """Return when there is progress beyond `frontier`: at once when the shard of `follower` is involved, else soon.

        Raises what ended the subscription. Cancellable.
        """
        self.check()
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle[follower] = _Idle(frontier, news)
        try:
            await news
        finally:
            if (known := self._idle.get(follower)) is not None and known.news is news:
                del self._idle[follower]

    def settled(self, shard: ShardId) -> Frontier:
        """Every write below this is in the shard itself; every later one that the log does not hold as well.

        Whoever reads the shard must see it at least at this upper.
        """
        registration = self.registrations.get(shard)
        registered = registration.ts if registration is not None else -1
        return Frontier(max(self._retired.get(shard, -1), registered) + 1)

    def unapplied(self, shard: ShardId) -> list[Write]:
        """The writes that were not retracted yet, by time. They may be in the shard or not."""
        return sorted(self._writes.get(shard, {}).values(), key=lambda write: write.ts)

    def unapplied_le(self, ts: Timestamp) -> dict[ShardId, list[Write]]:
        """`unapplied` of all shards, up to and including `ts`."""
        found = {shard: [write for write in self.unapplied(shard) if write.ts <= ts] for shard in list(self._writes)}
        return {shard: writes for shard, writes in found.items() if writes}

    def holds(self, entry: Entry) -> bool:
        """Whether the log contains `entry` now."""
        if isinstance(entry, Write):
            return entry.payload in self._writes.get(entry.shard, {})
        if isinstance(entry, Ending):
            return entry.payload in self.endings
        registration = self.registrations.get(entry.shard)
        return registration is not None and registration.payload == entry.payload

    def follow(self, shard: ShardId, follower: Follower) -> None:
        """Tell `follower` of everything that happens to `shard` from now on, for as long as anybody else
        keeps it.
        """
        self._followers.setdefault(shard, WeakKeyDictionary())[follower] = None

    def unfollow(self, shard: ShardId, follower: Follower) -> None:
        """End a `follow`; more than once is harmless."""
        followers = self._followers.get(shard)
        if followers is not None:
            followers.pop(follower, None)
            if not followers:
                del self._followers[shard]

    async def close(self) -> None:
        """End the subscription; whoever waits gets `InternalError`. May be called twice."""
        await self._tasks.close()
        self._fail(InternalError("the transaction log was closed"))
        await self._listen.aclose()
        await self._reader.lease.expire_best_effort()

    async def _follow_shard(self) -> None:
        while True:
            try:
                event = await anext(self._listen)
            except ExternalError as error:
                _log.warning("cannot read the transaction log; trying on", error=error.message)
                await self._reader.lease.shard.clock.sleep(_RETRY_S)
                continue
            except (ClientClosed, ReaderExpired) as error:
                self._fail(error)
                return
            self._take(event)

    def _take(self, event: ListenEvent) -> None:
        arrived, self._ahead = [*self._ahead, *event.updates], []
        for updates in arrived:
            due = updates.times < event.progress
            self._collect(updates.filter(due))
            if not due.all():
                self._ahead.append(updates.filter(~due))
        if event.progress > self.progress and event.progress >= self._first:
            if self._pending:
                self._close_times()
            self.progress = event.progress
            self._wake()

    def _wake(self) -> None:
        """Tell those who wait for this progress, those whose shards are involved, and some of the others."""
        while self._waiting and self._waiting[0][0] < self.progress:
            _, _, news = heapq.heappop(self._waiting)
            if not news.done():
                news.set_result(None)
        for follower in self._involved:
            self._tell(follower)
        self._involved.clear()
        if self._idle and (self._telling is None or self._telling.done()):
            self._telling = self._tasks.spawn(self._tell_idle(), "progress")

    async def _tell_idle(self) -> None:
        """In turn, and no faster than the pace."""
        while behind := self._behind(_IDLE_WAKES):
            for follower in behind:
                self._tell(follower)
            await self._reader.lease.shard.clock.sleep(_IDLE_PACE_S)

    def _behind(self, most: int) -> list[Follower]:
        """Those who have waited longest for what is there by now: they precede all who wait for what is not."""
        return [
            follower
            for follower, idle in islice(self._idle.items(), most)
            if idle.frontier < self.progress and not idle.news.done()
        ]

    def _tell(self, follower: Follower) -> None:
        idle = self._idle.pop(follower, None)
        if idle is not None and not idle.news.done():
            idle.news.set_result(None)

    def _collect(self, updates: Updates) -> None:
        # One step per shard and commit, not per row of a table: there is nothing to vectorize.
        shards, payloads = (column.to_pylist() for column in updates.rows.columns)
        for shard, payload, diff in zip(shards, payloads, updates.diffs.tolist(), strict=True):
            total, positive = self._pending.get((shard, payload), (0, False))
            self._pending[shard, payload] = (total + diff, positive or diff > 0)

    def _close_times(self) -> None:
        """Fold in all updates below the new progress: what was added first, by time, then what was retracted.

        A row that came and went in between counts as both, so that followers do not miss it.
        """
        rows = [(decode(*row), total, positive) for row, (total, positive) in self._pending.items()]
        self._pending.clear()
        rows.sort(key=lambda row: (row[0].ts, row[1] > 0))  # a registration that stays follows those it replaced
        for entry, total, positive in rows:
            known = self.holds(entry)
            if known + total not in (0, 1):
                raise InternalError(
                    f"transaction log row of {entry.shard} at {entry.ts} would occur {known + total} times"
                )
            if positive and not known:
                self._add(entry)
        for entry, _, _ in (row for row in rows if row[1] < 0 or (row[1] == 0 and row[2])):
            self._retract(entry)

    def _add(self, entry: Entry) -> None:
        followers = list(self._followers.get(entry.shard, ()))
        if isinstance(entry, Registration):
            before = self.registrations.get(entry.shard)
            self.registrations[entry.shard] = entry
            if before is not None and before.ts == entry.ts:
                return  # only its schema is another one
            self._involved.update(dict.fromkeys(followers))
            for follower in followers:
                follower.registered(entry.ts)
            return
        if isinstance(entry, Ending):
            self.endings[entry.payload] = entry
            return
        self._writes.setdefault(entry.shard, {})[entry.payload] = entry
        self.unapplied_bytes += len(entry.payload)
        self._involved.update(dict.fromkeys(followers))
        for follower in followers:
            follower.wrote(entry)

    def _retract(self, entry: Entry) -> None:
        if isinstance(entry, Registration):
            if self.holds(entry):
                del self.registrations[entry.shard]
                for follower in list(self._followers.get(entry.shard, ())):
                    self._involved[follower] = None
                    follower.forgotten()
            return
        if isinstance(entry, Ending):
            del self.endings[entry.payload]
            return
        writes = self._writes[entry.shard]
        del writes[entry.payload]
        self.unapplied_bytes -= len(entry.payload)
        if not writes:
            del self._writes[entry.shard]
        self._retired[entry.shard] = max(entry.ts, self._retired.get(entry.shard, entry.ts))

    def _failed(self, _: str, error: BaseException) -> None:
        self._fail(
            error if isinstance(error, PenstockError) else InternalError(f"reading the transaction log: {error!r}")
        )

    def _fail(self, error: PenstockError) -> None:
        if self._failure is None:
            self._failure = error
            for news in [*(news for _, _, news in self._waiting), *(idle.news for idle in self._idle.values())]:
                if not news.done():
                    news.set_exception(error)
            self._waiting.clear()
            for follower in [follower for followers in self._followers.values() for follower in followers]:
                follower.log_failed()
