"""The storage controller: which durable collections there are, and how far back each can be read.

Per collection it owns a critical since in the shard, which no lease ends, and a book of holds in memory. The order of
things is what protects readers: a hold is taken in the book, the book's since is the least hold, and the durable
since follows the book, later, never ahead. Before `initialization_complete` nothing follows anything: after a restart
the dataflows must take their holds before any since moves.

An older coordinator cannot move a since once a newer one has put its epoch there: it gets `Fenced`, which is reported
once to `on_fenced`; a coordinator then must stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from penstock.control.holds import HoldBook, ReadHold
from penstock.control.specs import CollectionSpec, Frontiers
from penstock.persist import ClientClosed, Fenced, PersistClient, SinceHandle, WriteHandle
from penstock.runtime import (
    DONE,
    Clock,
    ExternalError,
    Frontier,
    GlobalId,
    InternalError,
    PenstockError,
    SystemClock,
    TaskOwner,
)
from penstock.storage import view_schema

if TYPE_CHECKING:
    from penstock.persist.txn import TxnsReader

_log = structlog.get_logger("penstock.control.storage")

READER_ID = "controller"
RETAIN_MS = 1_000
_TICK_SECONDS = 1.0
_DOWNGRADES_PER_TICK_MAX = 64
_OPENED_AT_ONCE_MAX = 32


class CoordinatorFenced(PenstockError):
    """A coordinator with a higher epoch has taken over. This one must stop."""

    sqlstate = "57P01"


@dataclass(eq=False)
class _Collection:
    spec: CollectionSpec
    since_handle: SinceHandle
    book: HoldBook
    implied: ReadHold
    """Follows the upper; gone once the collection is dropped."""
    writer: WriteHandle | None
    """Never appends: it watches the upper of a shard that is not in txns."""
    upper: Frontier
    watch: asyncio.Task[None] | None = None
    dropped: bool = False


class StorageController:
    """Holds a critical since per shard, fenced by the coordinator's epoch. Belongs to one event loop."""

    @staticmethod
    async def open(
        client: PersistClient,
        txns: TxnsReader,
        epoch: int,
        *,
        clock: Clock | None = None,
        on_fenced: Callable[[CoordinatorFenced], None] | None = None,
    ) -> StorageController:
        """`epoch`: this coordinator's, above all before it. `on_fenced` is called at most once."""
        controller = StorageController(client, txns, epoch, clock or SystemClock(), on_fenced)
        controller._followers.spawn(controller._follow(), "follow-uppers")
        return controller

    def __init__(
        self,
        client: PersistClient,
        txns: TxnsReader,
        epoch: int,
        clock: Clock,
        on_fenced: Callable[[CoordinatorFenced], None] | None,
    ) -> None:
        self._client, self._txns, self._epoch, self._clock = client, txns, epoch, clock
        self._on_fenced = on_fenced
        self._collections: dict[GlobalId, _Collection] = {}
        self._tasks = TaskOwner("storage-controller")
        self._followers = TaskOwner("storage-controller")
        self._initialized = False

    @property
    def epoch(self) -> int:
        return self._epoch

    async def create_collections(self, specs: Sequence[CollectionSpec]) -> None:
        """Begin to hold these collections, at their durable since. Raises `CoordinatorFenced`."""
        for start in range(0, len(specs), _OPENED_AT_ONCE_MAX):
            batch = specs[start : start + _OPENED_AT_ONCE_MAX]
            opened = await asyncio.gather(*(self._open(spec) for spec in batch))
            self._collections |= {collection.spec.id: collection for collection in opened}

    async def drop_collections(self, ids: Iterable[GlobalId]) -> None:
        """Forget them. A shard is finalized, in the background, once nobody holds it any more."""
        for id_ in ids:
            collection = self._collections[id_]
            collection.dropped = True
            collection.implied.release()

    def initialization_complete(self) -> None:
        """All dataflows hold their inputs: from now on sinces follow the uppers."""
        self._initialized = True

    def acquire_hold(self, id_: GlobalId, at: Frontier | None = None) -> ReadHold:
        """A hold at `at`, or at the earliest time possible. Raises `SinceError`, or `KeyError` for unknown ids."""
        return self._live(id_).book.acquire(at)

    def frontiers(self, id_: GlobalId) -> Frontiers:
        """Where the collection can be read now. Raises `KeyError` for unknown ids."""
        collection = self._live(id_)
        return Frontiers(collection.book.since, self._upper(collection))

    def shard_of(self, id_: GlobalId) -> CollectionSpec:
        """What was said when it was created."""
        return self._live(id_).spec

    async def begin_at(self, id_: GlobalId, since: Frontier) -> None:
        """A collection without contents is readable from `since` on; durable on return.

        For a view before its first write: at earlier times nobody knows what it holds, so nobody may ask.
        """
        collection = self._live(id_)
        if self._upper(collection) > since:
            return
        if since > collection.implied.since:
            collection.implied.downgrade(since)
        await self._downgrade(collection, min(since, collection.book.since))

    async def close(self) -> None:
        """End background work; the durable sinces stay where they are."""
        await self.stop_following()
        await self._tasks.close()
        for collection in self._collections.values():
            collection.implied.release()
            if collection.writer is not None:
                await collection.writer.expire_best_effort()

    async def stop_following(self) -> None:
        """From now on no durable since moves, whatever becomes of the holds."""
        await self._followers.close()

    def _live(self, id_: GlobalId) -> _Collection:
        collection = self._collections[id_]
        if collection.dropped:
            raise KeyError(id_)
        return collection

    def _upper(self, collection: _Collection) -> Frontier:
        return self._txns.upper if collection.spec.is_table else collection.upper

    async def _open(self, spec: CollectionSpec) -> _Collection:
        if spec.id in self._collections:
            raise InternalError(f"collection {spec.id} was created twice")
        handle = await self._client.open_since(
            spec.shard, READER_ID, purpose=f"controller of {spec.id}", opaque=self._epoch
        )
        await self._fence(handle)
        book = HoldBook(spec.id, handle.since)
        implied = book.acquire()
        collection = _Collection(spec, handle, book, implied, None, Frontier(0))
        if not spec.is_table:
            collection.writer = await self._client.open_writer(
                spec.shard, view_schema(spec.schema), purpose=f"upper of {spec.id}"
            )
            collection.upper = await collection.writer.fetch_recent_upper()
            collection.watch = self._tasks.spawn(self._watch(collection), f"watch-{spec.id}")
        return collection

    async def _fence(self, handle: SinceHandle) -> None:
        """Put our epoch there, over any lower one."""
        theirs = handle.opaque
        while True:
            if theirs > self._epoch:
                raise CoordinatorFenced(f"epoch {self._epoch} of this coordinator was superseded by {theirs}")
            result = await handle.compare_and_downgrade_since(theirs, self._epoch, handle.since)
            if result is None:
                return
            theirs = result.opaque

    async def _watch(self, collection: _Collection) -> None:
        """Keep `upper` up to date with a shard that anybody may write."""
        writer = collection.writer
        assert writer is not None
        while collection.upper < DONE:
            try:
                collection.upper = await writer.wait_for_upper_past(collection.upper)
            except ClientClosed:
                return
            except ExternalError as error:
                _log.warning("cannot follow a shard", id=collection.spec.id, error=error.message)
                await self._clock.sleep(_TICK_SECONDS)

    async def _follow(self) -> None:
        """Once a second: implied holds follow the uppers, durable sinces follow the holds, dropped shards go."""
        while True:
            await self._tick()
            await self._clock.sleep(_TICK_SECONDS)

    async def _tick(self) -> None:
        if self._initialized:
            for collection in self._collections.values():
                self._apply_policy(collection)
        lagging = [c for c in self._collections.values() if c.book.since > c.since_handle.since]
        lagging.sort(key=lambda c: (not c.dropped, c.since_handle.since - c.book.since))
        moved = lagging[:_DOWNGRADES_PER_TICK_MAX]
        await asyncio.gather(*(self._downgrade_or_log(collection) for collection in moved))

    def _apply_policy(self, collection: _Collection) -> None:
        upper = self._upper(collection)
        if collection.dropped or upper == DONE or upper == 0:
            return
        wanted = Frontier(max(upper - RETAIN_MS, 0))
        if wanted > collection.implied.since:
            collection.implied.downgrade(wanted)

    async def _downgrade_or_log(self, collection: _Collection) -> None:
        try:
            since = collection.book.since
            if since == DONE:
                await self._finalize(collection)
            else:
                await self._downgrade(collection, since)
        except CoordinatorFenced as fenced:
            if self._on_fenced is None:
                raise
            report, self._on_fenced = self._on_fenced, None
            report(fenced)
        except ExternalError as error:
            _log.warning("a since was not moved", id=collection.spec.id, error=error.message)

    async def _downgrade(self, collection: _Collection, since: Frontier) -> None:
        result = await collection.since_handle.compare_and_downgrade_since(self._epoch, self._epoch, since)
        if isinstance(result, Fenced):
            raise CoordinatorFenced(f"epoch {self._epoch} of this coordinator was superseded by {result.opaque}")

    async def _finalize(self, collection: _Collection) -> None:
        if collection.watch is not None:
            collection.watch.cancel()
        await self._downgrade(collection, collection.since_handle.since)  # only if nobody has fenced us
        await self._client.finalize(collection.spec.shard)
        self._collections.pop(collection.spec.id, None)
