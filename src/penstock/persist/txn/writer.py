"""`TxnsWriter`: commits, registrations, and the upkeep of the log behind them.

A commit is one compare-and-append on the txns shard. Whatever happens after it only moves things to where
they are cheaper to keep: *apply* appends a write to its own shard, *tidy* retracts applied writes from the
log along with a later commit, *compact* lets the log forget. Each step can be done by anybody, twice, or
not at all, in any crash:

* Applying appends from the shard's upper, so of two appliers one wins and the other sees that the upper is
  past.
* Retracting happens by compare-and-append at the very upper up to which the log was read, so no row is
  retracted twice.
* The log's since never passes a write that is still in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import structlog

from penstock.persist import metrics
from penstock.persist.client import PersistClient
from penstock.persist.errors import InvalidUsage, Mismatch, SchemaMismatch
from penstock.persist.schema import encode_schema
from penstock.persist.since import SinceHandle
from penstock.persist.store import ShardId
from penstock.persist.txn.log import TxnsLog
from penstock.persist.txn.rows import TXNS_SCHEMA, Ending, Entry, Registration, Write, encode
from penstock.persist.write import Batch, WriteHandle, store_and_append
from penstock.runtime import (
    DONE,
    ExternalError,
    Frontier,
    InternalError,
    TaskOwner,
    Timestamp,
    Updates,
    step_back,
)

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger("penstock.txn")

_SINCE_ID = "txns"
_AT_A_TIME = 16
"""Shards that are written at once."""
_COMPACT_EVERY_S = 5.0
UNAPPLIED_BYTES_MAX = 64 << 20
"""A commit applies older writes first when so much has not been applied: the log must not grow without
bound.
"""


@dataclass(frozen=True, slots=True)
class TooLate:
    """Nothing happened: the time was passed. Times from `upper` on are possible."""

    upper: Frontier


def _counted(op: str) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Count a method as the operation `op`, with its outcome and duration."""
    seconds = metrics.TXNS_SECONDS.labels(op)
    done, too_late, failed = (metrics.TXNS.labels(op, outcome) for outcome in ("done", "too_late", "failed"))

    def count(method: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @wraps(method)
        async def counted(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                with seconds.time():
                    result = await method(*args, **kwargs)
            except Exception:
                failed.inc()
                raise
            (too_late if isinstance(result, TooLate) else done).inc()
            return result

        return counted

    return count


class TxnsWriter:
    """One per coordinator. Several may race (a takeover): each commit has one winner, the others get
    `TooLate`.

    Methods raise `InvalidUsage` for a caller's mistake, `StoreFull` at once, and the store's error after
    long patience: `Determinate` if nothing happened, `Indeterminate` if nobody knows (the same call at the
    same time may be repeated: `TooLate` then, unless another writer exists). A cancelled call has either
    happened or not.
    """

    def __init__(self, client: PersistClient, writer: WriteHandle, since: SinceHandle, log: TxnsLog) -> None:
        self._client = client
        self._writer = writer
        self._since = since
        self._log = log
        self._shards: dict[ShardId, WriteHandle] = {}
        self._committing = asyncio.Lock()
        self._applying = asyncio.Lock()
        self._tidy: dict[bytes, Entry] = {}
        """By payload: applied, and to be retracted with the next commit."""
        self._clock = writer._shard.clock
        self._compacted_s = self._clock.monotonic()
        self._tasks = TaskOwner("txns-writer")

    @staticmethod
    async def open(client: PersistClient, txns_shard: ShardId) -> TxnsWriter:
        """Open the log, creating it if it is new, and apply what earlier writers committed but did not
        apply.
        """
        writer = await client.open_writer(txns_shard, TXNS_SCHEMA, purpose="transactions")
        since = await client.open_since(txns_shard, _SINCE_ID, purpose="transactions")
        log = await TxnsLog.open(client, txns_shard, purpose="transaction writer")
        opened = TxnsWriter(client, writer, since, log)
        try:
            await opened.apply_le(step_back(log.progress))
        except BaseException:
            await opened.close()
            raise
        return opened

    @property
    def upper(self) -> Frontier:
        """The newest upper of the log that this process knows of."""
        return self._writer.upper

    @property
    def registered(self) -> dict[ShardId, pa.Schema]:
        """The registered shards as of the newest commit that was read back, with their schemas."""
        return {shard: entry.schema for shard, entry in self._log.registrations.items()}

    @_counted("commit")
    async def commit_at(self, writes: dict[ShardId, list[Updates]], ts: Timestamp) -> TooLate | None:
        """Write to all these shards, or to none. All updates must be at `ts`. Durable on None, and readable
        at `ts`.

        Moves the logical upper of every registered shard to ``ts + 1``; without writes that is all it does.
        """
        async with self._committing:
            if ts < self.upper:
                return TooLate(self.upper)
            if self._log.unapplied_bytes > UNAPPLIED_BYTES_MAX:
                await self.apply_le(step_back(self._log.progress))
            expected = await self._catch_up()
            unknown = writes.keys() - self._log.registrations.keys()
            if unknown:
                upper = await self._writer.fetch_recent_upper()
                if upper > expected:
                    return TooLate(upper)  # another writer may have registered them
                raise InvalidUsage(f"writes at {ts} to {', '.join(unknown)}, which are not registered")
            batches, late = await store_and_append(
                lambda: self._store(writes, ts),
                lambda batches: self._append([Write.new(batch) for batch in batches], [], expected, ts),
                self._discard,
            )
            if late is not None:
                await self._discard(batches)
            return late

    @_counted("register")
    async def register(self, shards: dict[ShardId, pa.Schema], ts: Timestamp) -> TooLate | None:
        """From `ts` on these shards are written by `commit_at` only. Those that are registered already stay
        as they are.

        Until then a shard may have been written directly. Raises `SchemaMismatch` when it has other columns.
        """
        async with self._committing:
            if ts < self.upper:
                return TooLate(self.upper)
            expected = await self._catch_up()
            entries = []
            for shard, schema in shards.items():
                known = self._log.registrations.get(shard)
                if known is None:
                    entries.append(Registration.new(shard, ts, encode_schema(schema)))
                elif known.schema.names != schema.names or known.schema.types != schema.types:
                    raise SchemaMismatch(f"shard {shard} is registered with {known.schema}, not with {schema}")
            # First the shards, then the log: a crash in between leaves an unregistered shard that is a
            # little ahead.
            upper = max(await self._advance(entries, Frontier(ts + 1)), default=Frontier(0))
            if upper == DONE:
                raise InvalidUsage(f"one of the shards {', '.join(shards)} is finalized; it cannot be registered")
            if upper > ts + 1:
                return TooLate(upper)  # it was written beyond ts already, without transactions
            return await self._append(entries, [], expected, ts)

    @_counted("change_schema")
    async def change_schema(self, shard: ShardId, schema: pa.Schema, ts: Timestamp) -> TooLate | None:
        """From `ts` on, writes to a registered `shard` have `schema`: one of its versions, which
        `PersistClient.compare_and_evolve_schema` made.

        What was written before stays as it is. Raises `SchemaMismatch` when `schema` is none of the shard's.
        """
        async with self._committing:
            if ts < self.upper:
                return TooLate(self.upper)
            expected = await self._catch_up()
            known = self._log.registrations.get(shard)
            if known is None:
                raise InvalidUsage(f"the schema of {shard}, which is not registered, cannot change at {ts}")
            await self._shard_writer(shard, schema)
            if known.schema.equals(schema):
                return await self._append([], [], expected, ts)
            # The same registration, for it is still the same time from which on the shard is in the log.
            changed = Registration.new(shard, known.ts, encode_schema(schema))
            return await self._append([changed], [known], expected, ts)

    @_counted("forget")
    async def forget(self, shards: list[ShardId], ts: Timestamp) -> TooLate | None:
        """These shards are no longer written by `commit_at`; from ``ts + 1`` on they have their own upper
        again.
        """
        async with self._committing:
            if ts < self.upper:
                return TooLate(self.upper)
            expected = await self._catch_up()
            known = [self._log.registrations[shard] for shard in shards if shard in self._log.registrations]
            endings = [Ending.new(registration, ts) for registration in known]
            await self.apply_le(step_back(expected))  # nobody would look for their writes any more
            late = await self._append(endings, known, expected, ts)
            if late is None:
                await self._end(endings)
            return late

    @_counted("apply")
    async def apply_le(self, ts: Timestamp) -> None:
        """Move all writes up to `ts` into their shards. Idempotent.

        Nobody needs to wait for it: readers see a commit as soon as it is durable, apart from those of
        large writes, which read the shard.
        """
        async with self._applying:
            upper = self.upper if ts < self.upper else await self._writer.fetch_recent_upper()
            if upper > 0:
                await self._log.wait_past(min(ts, step_back(upper)))
            found = self._log.unapplied_le(ts)
            await _each(self._apply_shard, found.values())
            await self._end([ending for ending in self._log.endings.values() if ending.ts <= ts])
        self._compact_now_and_then()

    @_counted("compact")
    async def compact_to(self, ts: Timestamp) -> None:
        """Let the log forget the times of what happened up to `ts`. It never passes a write that is still
        in it.

        Also done every few seconds by itself.
        """
        since = min(ts, step_back(self._log.progress))
        unapplied = [write.ts for writes in self._log.unapplied_le(since).values() for write in writes]
        fenced = await self._since.compare_and_downgrade_since(0, 0, Frontier(min([since, *unapplied])))
        if fenced is not None:
            raise InternalError(f"the since of the transaction log was taken over: {fenced}")
        self._compacted_s = self._clock.monotonic()

    def unapplied_keys(self, shard: ShardId) -> frozenset[str]:
        """Blobs of committed writes that the shard does not refer to yet, as far as this process knows."""
        return frozenset(key for write in self._log.unapplied(shard) for key in write.batch.keys)

    async def keys_to_keep(self, shard: ShardId) -> frozenset[str]:
        """What a sweep must keep: `unapplied_keys` of all that is committed, by whomever, and ever will be of batches
        that are too old to be committed now.
        """
        upper = await self._writer.fence_late_attempts()
        if upper > 0:
            await self._log.wait_past(step_back(upper))
        return self.unapplied_keys(shard)

    async def close(self) -> None:
        """End the background work. What was committed stays committed. May be called twice."""
        await self._tasks.close()
        await self._log.close()

    async def _catch_up(self) -> Frontier:
        """Read the log up to where the next append is to be; returns that upper.

        What the log says at that moment is what the append may rely on. It expects this very upper, so it fails if
        anybody has changed the log since.
        """
        if self.upper > 0:
            await self._log.wait_past(step_back(self.upper))
        return self._log.progress

    async def _store(self, writes: dict[ShardId, list[Updates]], ts: Timestamp) -> list[Batch]:
        """Store the updates of each shard as one batch at `ts`. On an error none is left behind, where
        possible.
        """
        stored: list[Batch] = []

        async def store(shard: ShardId) -> None:
            updates = [part for part in writes[shard] if len(part)]
            if updates:
                writer = await self._shard_writer(shard, self._log.registrations[shard].schema)
                stored.append(await writer.batch(Updates.concat(updates), Frontier(ts), Frontier(ts + 1)))

        try:
            await _each(store, writes)
        except Exception:
            await self._discard(stored)
            raise
        return stored

    async def _append(
        self, added: Sequence[Entry], retracted: Sequence[Entry], expected: Frontier, ts: Timestamp
    ) -> TooLate | None:
        """Append to the log at `ts`, with the retractions that are due, if its upper is still `expected`.

        Somebody has moved it: the answer is `TooLate` at that upper even when `ts` is not below it. What was checked
        against the log (registrations above all) is then no longer certain, and the caller comes back with a new time
        anyway.
        """
        if ts < expected:
            return TooLate(expected)
        writes = [entry for entry in added if isinstance(entry, Write)]
        tidy = [entry for entry in self._tidy.values() if self._log.holds(entry)]
        updates = encode(added, [*retracted, *tidy], ts)
        batches = [write.batch for write in writes]
        result = await self._writer.compare_and_append(updates, expected, Frontier(ts + 1), naming=batches)
        if isinstance(result, Mismatch):
            return TooLate(result.current_upper)
        for entry in tidy:
            self._tidy.pop(entry.payload, None)
        for write in writes:
            metrics.TXNS_WRITES.labels("inline" if write.inline else "blob").inc()
        metrics.TXNS_UNAPPLIED_BYTES.set(self._log.unapplied_bytes)
        return None

    async def _apply_shard(self, writes: Sequence[Write]) -> None:
        """Append the `writes` to one shard that it does not have yet, and note them all for tidying."""
        shard = writes[0].shard
        writes = [write for write in writes if write.payload not in self._tidy]
        registration = self._log.registrations.get(shard)
        if registration is None or not writes:
            return
        writer = await self._shard_writer(shard, registration.schema)
        upper = writer.upper
        while pending := [write for write in writes if write.ts >= upper]:
            new_upper = Frontier(pending[-1].ts + 1)
            result = await writer.compare_and_append_batches(
                [write.batch for write in pending], upper, new_upper, kept=True
            )
            upper = new_upper if result is None else result.current_upper
        self._tidy.update((write.payload, write) for write in writes)

    async def _end(self, endings: Sequence[Ending]) -> None:
        """Move shards that were forgotten past their last time under transactions, and note that for
        tidying.
        """
        for ending in endings:
            if ending.payload not in self._tidy:
                await self._advance([ending], Frontier(ending.ts + 1))
                if ending.shard not in self._log.registrations:
                    self._shards.pop(ending.shard, None)
                self._tidy[ending.payload] = ending

    async def _advance(self, entries: Sequence[Registration | Ending], upper: Frontier) -> list[Frontier]:
        """Move the uppers of these shards to `upper` where they are below; returns what they are after
        that.
        """

        async def advance(entry: Registration | Ending) -> Frontier:
            writer = await self._shard_writer(entry.shard, entry.schema)
            current = writer.upper
            while current < upper:
                result = await writer.compare_and_append(Updates.empty(writer.schema), current, upper)
                current = upper if result is None else result.current_upper
            return current

        return await _each(advance, entries)

    async def _shard_writer(self, shard: ShardId, schema: pa.Schema) -> WriteHandle:
        writer = self._shards.get(shard)
        if writer is None or not writer.schema.equals(schema):
            writer = await self._client.open_writer(shard, schema, purpose="transactions")
            self._shards[shard] = writer
        return writer

    async def _discard(self, batches: Iterable[Batch]) -> None:
        """Delete the blobs of batches that will never be committed."""
        for batch in batches:
            try:
                await self._writer._shard.parts.delete(batch.shard, batch.keys)  # the table may have been forgotten
            except ExternalError as error:
                _log.warning("blobs of an uncommitted write stay behind", shard=batch.shard, error=error.message)

    def _compact_now_and_then(self) -> None:
        if self._clock.monotonic() >= self._compacted_s + _COMPACT_EVERY_S:
            self._compacted_s = self._clock.monotonic()
            self._tasks.spawn(self._compact(), "compact")

    async def _compact(self) -> None:
        try:
            await self.compact_to(step_back(self._log.progress))
        except ExternalError as error:
            _log.warning("the transaction log was not compacted", error=error.message)


async def _each(call: Callable[[A], Awaitable[T]], arguments: Iterable[A]) -> list[T]:
    """Make a call for each of `arguments`, some at a time; wait for all of them, then raise the first
    error.
    """
    limit = asyncio.Semaphore(_AT_A_TIME)

    async def limited(argument: A) -> T:
        async with limit:
            return await call(argument)

    results = await asyncio.gather(*map(limited, arguments), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
