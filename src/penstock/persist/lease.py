"""What one leased reader of this process keeps from being forgotten or deleted.

Two things keep what a reader needs. Its *since* (durable) keeps the shard from forgetting detail at and
after a time. Its *hold* (durable) keeps garbage collection from deleting blobs that some version refers to:
while parts of version v are being fetched, v is leased, and the hold never passes the oldest leased
version. A lease is always taken before the since may move on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import structlog

from penstock.persist import commands, metrics
from penstock.persist.errors import ReaderExpired, SinceError
from penstock.persist.shard import Shard
from penstock.persist.state import Reader, State
from penstock.persist.store import SeqNo, ShardId
from penstock.runtime import DONE, Frontier, PenstockError, Timestamp

_log = structlog.get_logger("penstock.persist")

_EXPIRE_TIMEOUT_S = 2.0


class Pin:
    """Names what a snapshot or a listen needs, without keeping that object alive.

    `follows`: the reader's since moves along with it.
    """

    def __init__(self, follows: bool) -> None:
        self.follows = follows


class ReaderLease:
    """The reader `reader_id` of one shard: its since, its hold, and who needs them (a `LocalReader`)."""

    def __init__(self, shard: Shard, reader_id: str, entry: Reader, *, on_expire: Callable[[str], None]) -> None:
        self.shard = shard
        self.reader_id = reader_id
        self._last_since = Frontier(entry.since)
        self._requested = Frontier(entry.since)
        self._given_up = Frontier(entry.since)
        self._pins: dict[Pin, Frontier] = {}
        self._leases: Counter[int] = Counter()
        self._on_expire = on_expire
        self._renewing: asyncio.Task[None] | None = None
        self._renewed_ms = entry.heartbeat_ms
        self._expired = False
        self._lost = False
        shard.readers[reader_id] = self

    @property
    def id(self) -> ShardId:
        return self.shard.id

    @property
    def since(self) -> Frontier:
        """The durable since, as far as this process knows; `DONE` when the shard is finalized."""
        if self.shard.state.tombstone:
            return DONE
        entry = self.shard.state.readers.get(self.reader_id)
        if entry is not None:
            self._last_since = Frontier(entry.since)
        return self._last_since

    @property
    def readable_since(self) -> Frontier:
        """Reads at or after it are possible: what was given up counts, even where that is not durable yet."""
        return max(self.since, self._given_up)

    # For the handle and its reads

    def check_live(self, state: State) -> None:
        """Raises `ReaderExpired` when `state` does not know this reader any more."""
        if self._expired or (self.reader_id not in state.readers and not state.tombstone):
            raise ReaderExpired(self.id, self.reader_id)

    def check_readable(self, as_of: Timestamp) -> None:
        """Raises `ReaderExpired`, or `SinceError` when detail at `as_of` may be gone."""
        self.check_live(self.shard.state)
        if as_of < self.readable_since:
            raise SinceError(self.id, as_of, self.readable_since)

    def pin(self, pin: Pin, since: Frontier) -> None:
        """Keep detail at and after `since` (again, at another time, for a known `pin`)."""
        self._pins[pin] = since

    def unpin(self, pin: Pin) -> None:
        """End a `pin`; more than once is harmless."""
        since = self._pins.pop(pin, None)
        if since is not None and pin.follows:
            self._requested = max(self._requested, since)

    def take(self, state: State) -> SeqNo:
        """Lease the version `state`: none of its blobs is deleted until as many `give_back` as `take`."""
        self._leases[state.seqno] += 1
        return SeqNo(state.seqno)

    def take_again(self, seqno: SeqNo) -> None:
        """One more lease on a version that is leased."""
        assert self._leases[seqno] > 0, f"version {seqno} of {self.id} is not leased"
        self._leases[seqno] += 1

    def give_back(self, seqno: SeqNo) -> None:
        self._leases[seqno] -= 1
        if self._leases[seqno] <= 0:
            del self._leases[seqno]

    def followed(self) -> None:
        """A listen has moved on: let the durable since follow, now and then."""
        overdue = self.shard.clock.now_ms() >= self._renewed_ms + self.shard.config.downgrade_ms
        if overdue and self.wanted_since() > self.since:
            self._renewed_ms = self.shard.clock.now_ms()
            self._renew_soon()

    async def downgrade_since(self, since: Frontier) -> None:
        """See `ReadHandle.downgrade_since`."""
        self._requested = max(self._requested, since)
        if self.wanted_since() > self.since:
            await self.renew()
            self.check_live(self.shard.state)

    async def expire(self) -> None:
        """See `ReadHandle.expire`."""
        if self._expired:
            return
        self._expired = True
        self.shard.readers.pop(self.reader_id, None)
        self._on_expire(self.reader_id)
        await self.shard.commit(lambda state, _: commands.expire_reader(state, reader=self.reader_id), "expire_reader")

    async def expire_best_effort(self) -> None:
        """`expire`, where a failing or slow store is no error: the durable entry ends with its lease."""
        try:
            async with asyncio.timeout(_EXPIRE_TIMEOUT_S):
                await self.expire()
        except (PenstockError, TimeoutError) as error:
            _log.warning("reader not expired", shard=self.id, reader=self.reader_id, error=repr(error))

    # For the shard (`LocalReader`) and the client

    def hold(self, state: State) -> SeqNo:
        return SeqNo(min(min(self._leases, default=state.seqno), state.seqno))

    def wanted_since(self) -> Frontier:
        if not self._pins:
            return self._requested
        pinned = min(self._pins.values())
        following = any(pin.follows for pin in self._pins)
        return pinned if following else min(pinned, self._requested)

    def give_up(self) -> Frontier:
        """`wanted_since`, for a commit that begins now: from here on, before it is durable, reads below it are
        refused.
        """
        self._given_up = max(self._given_up, self.wanted_since())
        return self._given_up

    def advanced(self, state: State) -> None:
        """Called for each new version: make the hold durable when it has fallen far behind."""
        entry = state.readers.get(self.reader_id)
        if entry is not None and self.hold(state) >= entry.hold + 4 * self.shard.config.hold_versions:
            self._renew_soon()

    def heartbeat(self) -> None:
        """Called a few times per lease: renew it in the background unless a commit did so in passing."""
        if self._lost:
            return
        entry = self.shard.state.readers.get(self.reader_id)
        lease_ms = self.shard.config.reader_lease_ms
        if entry is None or entry.heartbeat_ms + lease_ms // 8 < self.shard.clock.now_ms():
            self._renew_soon()

    async def renew(self) -> None:
        """Commit the current hold, since and heartbeat."""
        entry = await self.shard.commit(
            lambda state, attempt: commands.downgrade_reader(
                state,
                reader=self.reader_id,
                since=self.give_up(),
                hold=self.hold(state),
                now_ms=attempt.now_ms,
            ),
            "downgrade_since",
        )
        self._renewed_ms = self.shard.clock.now_ms()
        if entry is None and not self._expired and not self._lost and not self.shard.state.tombstone:
            self._lost = True
            metrics.READERS_EXPIRED.inc()
            _log.warning("reader has expired", shard=self.id, reader=self.reader_id)

    def _renew_soon(self) -> None:
        if (self._renewing is None or self._renewing.done()) and not self._expired:
            self._renewing = self.shard.tasks.spawn(self._renew_in_background(), f"renew {self.reader_id}")

    async def _renew_in_background(self) -> None:
        try:
            await self.renew()
        except PenstockError as error:
            _log.warning("lease not renewed", shard=self.id, reader=self.reader_id, error=error.message)
