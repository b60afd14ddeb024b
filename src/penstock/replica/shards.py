"""The durable shards as a replica uses them: readers for sources, handles for sinks, snapshots for peeks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import structlog

from penstock.persist import (
    Filter,
    IsNull,
    Not,
    Or,
    PersistClient,
    ReaderExpired,
    ReadHandle,
    ShardId,
    SinceError,
    WriteHandle,
    columns_of,
    matching,
)
from penstock.persist.txn import TxnsReader
from penstock.runtime import Clock, ExternalError, Frontier, TaskOwner, Timestamp, Updates
from penstock.runtime.updates import with_row_count
from penstock.storage import (
    SQLSTATE_COLUMN,
    ShardReader,
    first_error,
    shard_columns,
    split_shard_updates,
    view_schema,
)

_log = structlog.get_logger("penstock.replica.shards")

_READER_IDLE_SECONDS = 30.0
_MAINTAIN_SECONDS = 5.0
_READERS_MAX = 256


@dataclass(eq=False)
class _PeekReader:
    reader: ShardReader
    newest: Timestamp
    used_at: float
    users: int = 0


class Shards:
    """Opens shards for one instance. `txns_shard`: where commits to tables are found."""

    def __init__(self, client: PersistClient, txns_shard: ShardId, clock: Clock, tasks: TaskOwner) -> None:
        self._client, self._txns_shard, self._clock = client, txns_shard, clock
        self._txns: TxnsReader | None = None
        self._opening = asyncio.Lock()
        self._peek_readers: dict[ShardId, _PeekReader] = {}
        tasks.spawn(self._maintain(), "peek-readers")

    @property
    def txns_shard(self) -> ShardId:
        return self._txns_shard

    async def open_reader(self, shard: ShardId, schema: pa.Schema, *, is_table: bool, purpose: str) -> ShardReader:
        """A reader of a collection with data columns `schema`."""
        if not is_table:
            return await self._client.open_reader(shard, view_schema(schema), purpose=purpose)
        async with self._opening:
            if self._txns is None:
                self._txns = await TxnsReader.open(self._client, self._txns_shard)
        return await self._txns.open_reader(shard, schema, purpose=purpose)

    async def open_view_writer(self, shard: ShardId, schema: pa.Schema, purpose: str) -> WriteHandle:
        return await self._client.open_writer(shard, view_schema(schema), purpose=purpose)

    async def open_view_reader(self, shard: ShardId, schema: pa.Schema, purpose: str) -> ReadHandle:
        return await self._client.open_reader(shard, view_schema(schema), purpose=purpose)

    async def rows_at(
        self,
        shard: ShardId,
        schema: pa.Schema,
        at: Timestamp,
        *,
        is_table: bool,
        columns: Sequence[str] | None,
        filter_: Filter | None = None,
    ) -> Updates:
        """The contents at `at`, as soon as it is complete: each diff is positive. Raises `DataError` when they have
        an error. Rows that do not pass `filter_` are missing.

        Raises `SinceError` when `at` is compacted away, `CorruptBlobError`, or the store's error.
        """
        wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        names = None if columns is None else list(columns) if is_table else shard_columns(columns)
        if filter_ is not None and not is_table:
            filter_ = Or((Not(IsNull(SQLSTATE_COLUMN)), filter_))  # an error matters whatever is asked for
        try:
            parts = await self._snapshot(shard, schema, at, is_table, names, filter_)
        except (ReaderExpired, SinceError):
            stale = self._peek_readers.pop(shard, None)  # its lease, or what it was opened for, is of the past
            if stale is not None and stale.users == 0:
                await _expire(stale.reader)
            parts = await self._snapshot(shard, schema, at, is_table, names, filter_)
        if not parts:
            return Updates.empty(wanted)
        contents = await asyncio.to_thread(_sum, parts)
        if is_table:
            return contents
        rows, errors = split_shard_updates(contents, wanted)
        present = errors.filter(errors.diffs > 0)
        if len(present):
            raise first_error(present)
        return rows

    async def _snapshot(
        self,
        shard: ShardId,
        schema: pa.Schema,
        at: Timestamp,
        is_table: bool,
        columns: list[str] | None,
        filter_: Filter | None,
    ) -> list[Updates]:
        cached = self._peek_readers.get(shard)
        if cached is None or at < cached.reader.since:
            reader = await self.open_reader(shard, schema, is_table=is_table, purpose="peeks")
            cached = _PeekReader(reader, at, self._clock.monotonic())
            if len(self._peek_readers) < _READERS_MAX and shard not in self._peek_readers:
                self._peek_readers[shard] = cached
        cached.users += 1
        try:
            if filter_ is None:
                return [updates async for updates in cached.reader.snapshot(at, columns=columns)]
            needed = None if columns is None else [*columns, *sorted(columns_of(filter_) - set(columns))]
            parts = cached.reader.snapshot(at, columns=needed, filter_=filter_)
            passing = [await asyncio.to_thread(_passing, updates, filter_, columns) async for updates in parts]
            return [updates for updates in passing if len(updates)]
        finally:
            cached.users -= 1
            cached.newest = max(cached.newest, at)
            cached.used_at = self._clock.monotonic()
            if self._peek_readers.get(shard) is not cached and cached.users == 0:
                await _expire(cached.reader)

    async def _maintain(self) -> None:
        """Let shards be compacted behind the peeks that were served; give up readers that nobody uses."""
        while True:
            await self._clock.sleep(_MAINTAIN_SECONDS)
            for shard, cached in list(self._peek_readers.items()):
                if cached.users:
                    continue
                if self._clock.monotonic() - cached.used_at > _READER_IDLE_SECONDS:
                    del self._peek_readers[shard]
                    await _expire(cached.reader)
                    continue
                try:
                    await cached.reader.downgrade_since(Frontier(cached.newest))
                except ReaderExpired:
                    self._peek_readers.pop(shard, None)
                except ExternalError as error:
                    _log.warning("peek reader not downgraded", shard=shard, error=error.message)


def _passing(updates: Updates, filter_: Filter, columns: Sequence[str] | None) -> Updates:
    """What may pass, and of it `columns`.

    Not only so that less is gathered: the insertion of a row may lie in a part that was left out and its retraction in
    one that was not. Both have the same values, so both pass or neither does.
    """
    kept = updates.filter(matching(filter_, updates.rows))
    if columns is None:
        return kept
    return kept.with_rows(kept.rows.select(columns) if columns else with_row_count(pa.schema([]), len(kept)))


def _sum(parts: list[Updates]) -> Updates:
    """Contents whose diffs are all positive. Where nothing was ever retracted there is nothing to cancel."""
    contents = Updates.concat(parts)
    return contents if (contents.diffs > 0).all() else contents.consolidate()


async def _expire(reader: ShardReader) -> None:
    try:
        await reader.expire()
    except ExternalError as error:
        _log.warning("peek reader not expired: its lease ends by itself", error=error.message)
