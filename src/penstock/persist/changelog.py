"""`Changelog`: one shard as a table with a history, for programs that use nothing of Penstock but its storage.

Versions are the shard's times: the first append makes version 0, each further one the next. Any number of processes
append to one changelog; each append becomes exactly one version, in an order that all readers agree on. A version can
be read for ever, until somebody gives up history.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa

from penstock.persist.client import PersistClient
from penstock.persist.config import PersistConfig
from penstock.persist.errors import Mismatch, SinceError
from penstock.persist.listen import Listen
from penstock.persist.location import open_blob, open_consensus
from penstock.persist.pubsub import PubSub
from penstock.persist.schema import selected
from penstock.persist.since import SinceHandle
from penstock.persist.store import Blob, Consensus, ShardId
from penstock.persist.write import WriteHandle
from penstock.runtime import Frontier, PenstockError, Timestamp, Updates
from penstock.runtime.updates import concat_rows, take_rows

_HISTORY_HOLD = "c00000000-0000-4000-8000-000000000001"
"""The critical reader that says how much history there is. All processes share it: none may move it back."""


class VersionConflict(PenstockError):
    """An append was made for another version than the newest one; `current` is that. Nothing was appended."""

    sqlstate = "40001"

    def __init__(self, shard: ShardId, expected: int, current: int) -> None:
        super().__init__(f"changelog {shard} is at version {current}, not at {expected}: read it again and decide anew")
        self.current = current


@dataclass(frozen=True, slots=True)
class Change:
    """What one version changed: each of `rows` came (+1), went (-1), or either more than once. `diffs`: int64[n]."""

    version: int
    rows: pa.RecordBatch
    diffs: pa.Array


class Changelog:
    """A table with a history. Open it as a context manager; it belongs to one event loop.

    >>> async with await Changelog.open("file:data/blob", "sqlite:data/consensus", shard, schema) as table:
    ...     version = await table.append(rows)
    ...     contents = await table.read()
    """

    def __init__(
        self, client: PersistClient, stores: tuple[Blob, Consensus], writer: WriteHandle, history: SinceHandle
    ) -> None:
        self._client = client
        self._stores = stores
        self._writer = writer
        self._history = history

    @staticmethod
    async def open(
        blob_url: str,
        consensus_url: str,
        shard: ShardId,
        schema: pa.Schema,
        *,
        config: PersistConfig | None = None,
        pubsub: PubSub | None = None,
    ) -> Changelog:
        """The changelog `shard` (`new_shard_id` makes an id) in these stores, created with `schema` unless it is there.

        With a `pubsub` (the caller's, to be closed after this) `changes` hears of appends at once instead of asking the
        store a few times a second.

        Raises `ValueError` for a URL that can never work, `SchemaMismatch` when it has other columns, or the store's
        error.
        """
        blob = open_blob(blob_url)
        try:
            consensus = open_consensus(consensus_url)
        except BaseException:
            await blob.close()
            raise
        client = PersistClient(blob, consensus, config=config, pubsub=pubsub)
        try:
            history = await client.open_since(shard, _HISTORY_HOLD, purpose="history of a changelog")
            writer = await client.open_writer(shard, schema, purpose="changelog")
        except BaseException:
            await _close(client, (blob, consensus))
            raise
        return Changelog(client, (blob, consensus), writer, history)

    async def __aenter__(self) -> Changelog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything that was opened here. What was appended stays. May be called twice."""
        await _close(self._client, self._stores)

    @property
    def shard(self) -> ShardId:
        return self._writer.shard

    @property
    def schema(self) -> pa.Schema:
        return self._writer.schema

    async def version(self) -> int:
        """The newest version, -1 when nothing was ever appended. As new as the call."""
        return await self._writer.fetch_recent_upper() - 1

    async def append(
        self, rows: pa.RecordBatch | pa.Table, *, diffs: Sequence[int] | None = None, expect: int | None = None
    ) -> int:
        """Append `rows` as one version; returns it. Durable on return, and there exactly once.

        `diffs`: per row how often it comes (+) or goes (-), 1 when left out. `expect`: append only if the newest
        version is still this one, for changes that were computed from it. Without it the append takes the next version
        that is free, however many others append at the same time.
        Raises `VersionConflict` (only with `expect`), `InvalidUsage`, `StoreFull`. A cancelled call has either
        happened or not.
        """
        batch = _one_batch(rows)
        upper = self._writer.upper if expect is None else Frontier(expect + 1)
        while True:
            updates = _updates(batch, upper, diffs)
            result = await self._writer.compare_and_append(updates, upper, Frontier(upper + 1))
            if result is None:
                return upper
            assert isinstance(result, Mismatch), result
            if expect is not None:
                raise VersionConflict(self.shard, expect, result.current_upper - 1)
            upper = result.current_upper

    async def read(self, version: int | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The contents at `version`, the newest one when left out: each row as often as it is there.

        Waits for a version that does not exist yet. Only `columns` are read. Raises `SinceError` for a version whose
        history was given up, `ValueError` when a row is there less often than never. The whole answer is in memory;
        `changes` is the way through what is larger.
        """
        schema = selected(self.schema, columns)
        if version is None:
            version = await self.version()
        if version < 0:
            return schema.empty_table()
        reader = await self._client.open_reader(self.shard, self.schema, purpose="changelog read")
        try:
            async with aclosing(reader.snapshot(Timestamp(version), columns=columns)) as snapshot:
                parts = [part async for part in snapshot]
        finally:
            await reader.expire()
        return _contents(parts, schema)

    async def changes(self, after: int = -1) -> AsyncGenerator[Change, None]:
        """Every change after version `after`, in order, for ever: it waits for versions to come. Close it to stop.

        Raises `SinceError` when the history after `after` was given up.
        """
        reader = await self._client.open_reader(self.shard, self.schema, purpose="changelog changes")
        try:
            if after < 0 and reader.since > 0:
                raise SinceError(self.shard, after, reader.since)
            listen = await (reader.listen(Timestamp(after)) if after >= 0 else reader.subscribe(Timestamp(0)))
            async with aclosing(_by_version(listen)) as changes:
                async for change in changes:
                    yield change
        finally:
            await reader.expire()

    async def forget_history(self, before: int) -> None:
        """Give up every version before `before`, for all processes: their contents need not be kept apart any more.

        Space comes back as maintenance gets to it. What is still being read elsewhere stays for as long. Raises
        `ValueError` for a version that does not exist yet.
        """
        if before > await self.version():
            raise ValueError(f"changelog {self.shard} has no version {before} yet")
        held = self._history.opaque
        fenced = await self._history.compare_and_downgrade_since(held, held, Frontier(before))
        assert fenced is None, f"the history hold of {self.shard} has another opaque: {fenced}"


async def _by_version(listen: Listen) -> AsyncGenerator[Change, None]:
    """The updates of a listen, one change per version."""
    async with aclosing(listen):
        waiting: list[Updates] = []
        async for event in listen:
            waiting += event.updates
            ready = [updates.filter(updates.times < event.progress) for updates in waiting]
            waiting = [updates.filter(updates.times >= event.progress) for updates in waiting]
            waiting = [updates for updates in waiting if len(updates)]
            ready = [updates for updates in ready if len(updates)]
            if not ready:
                continue
            together = Updates.concat(ready).consolidate()
            order = np.argsort(together.times, kind="stable")
            together = together.take(order)
            versions, starts = np.unique(together.times, return_index=True)
            for number, start, stop in zip(versions, starts, [*starts[1:], len(together)], strict=True):
                part = together.slice(int(start), int(stop))
                yield Change(int(number), part.rows, pa.array(part.diffs))


def _updates(rows: pa.RecordBatch, version: Frontier, diffs: Sequence[int] | None) -> Updates:
    updates = Updates.at(rows, Timestamp(version))
    if diffs is None:
        return updates
    return Updates(rows, updates.times, np.asarray(diffs, dtype=np.int64))


def _one_batch(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
    if isinstance(rows, pa.RecordBatch):
        return rows
    return concat_rows(rows.to_batches()) if rows.num_rows else Updates.empty(rows.schema).rows


def _contents(parts: Sequence[Updates], schema: pa.Schema) -> pa.Table:
    if all((part.diffs == 1).all() for part in parts):
        return pa.Table.from_batches([part.rows.cast(schema) for part in parts], schema=schema)
    together = Updates.concat(parts).consolidate()
    if (together.diffs < 0).any():
        raise ValueError(f"{int((together.diffs < 0).sum())} rows were taken away more often than they had been added")
    rows = take_rows(together.rows, np.repeat(np.arange(len(together)), together.diffs))
    return pa.Table.from_batches([rows.cast(schema)], schema=schema)


async def _close(client: PersistClient, stores: Iterable[Blob | Consensus]) -> None:
    await client.close()
    for store in stores:
        await store.close()
