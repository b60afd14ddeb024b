"""The door to all shards of one pair of stores."""

from __future__ import annotations

import asyncio

import pyarrow as pa

from penstock.persist import commands, metrics
from penstock.persist.collect import remove_all
from penstock.persist.config import PersistConfig
from penstock.persist.errors import ClientClosed, SchemaMismatch
from penstock.persist.lease import ReaderLease
from penstock.persist.leased_part import decode_ticket, fetch_leased, shard_of
from penstock.persist.maintain import Maintenance, Slots
from penstock.persist.metered import MeteredBlob, MeteredConsensus
from penstock.persist.partstore import PartStores
from penstock.persist.pubsub import PubSub
from penstock.persist.read import ReadHandle
from penstock.persist.schema import (
    Evolved,
    ExpectationMismatch,
    Incompatible,
    SchemaId,
    SchemaVersion,
    decode_schema,
    describe,
    encode_schema,
    find_schema,
    unreadable,
)
from penstock.persist.shard import Shard
from penstock.persist.since import SinceHandle
from penstock.persist.state import State
from penstock.persist.store import Blob, Consensus, ShardId
from penstock.persist.sweep import Keep, sweep_orphans
from penstock.persist.write import WriteHandle
from penstock.runtime import Clock, SystemClock, TaskOwner, Updates, random_uuid

_HEARTBEATS_PER_LEASE = 4


class PersistClient:
    """Opens handles on shards; owns the cached states, the threads and the background work behind them.

    All of it belongs to one event loop. The stores stay open at `close`: they are the caller's.
    """

    def __init__(
        self,
        blob: Blob,
        consensus: Consensus,
        *,
        clock: Clock | None = None,
        pubsub: PubSub | None = None,
        config: PersistConfig | None = None,
    ) -> None:
        self.config = config or PersistConfig()
        self._clock = clock or SystemClock()
        self._consensus: Consensus = MeteredConsensus(consensus, self._clock)
        self._pubsub = pubsub
        self._stores = PartStores.open(MeteredBlob(blob, self._clock), self._clock, self.config)
        self._tasks = TaskOwner("persist")
        self._slots = Slots(self.config)
        self._shards: dict[ShardId, Shard] = {}
        self._maintenance: dict[ShardId, Maintenance] = {}
        self._readers: dict[str, ReaderLease] = {}
        self._writers: dict[str, WriteHandle] = {}
        self._heartbeat: asyncio.Task[None] | None = None
        self._closed = False
        metrics.GAUGES.watch(self)

    @property
    def clock(self) -> Clock:
        return self._clock

    async def open_writer(self, shard: ShardId, schema: pa.Schema, *, purpose: str) -> WriteHandle:
        """A writer. The first writer or reader of a shard gives it its `schema`; later ones name any of its versions,
        and go on writing that one when newer ones come.

        `purpose` appears in diagnostics. Raises `SchemaMismatch`, `CorruptStateError`, or the store's error.
        """
        shared = await self._open(shard)
        schema_id = await shared.commit(lambda state, _: commands.register_schema(state, schema), "register_schema")
        if schema_id is None:
            raise _mismatch(shard, shared.state, schema, f"be written for {purpose} with")
        handle = WriteHandle(shared, f"w{random_uuid()}", schema, schema_id)
        self._writers = {key: writer for key, writer in self._writers.items() if not writer.expired}
        self._writers[handle.writer_id] = handle
        return handle

    async def open_reader(self, shard: ShardId, schema: pa.Schema, *, purpose: str) -> ReadHandle:
        """A leased reader: nothing at or after its `since` is compacted away while it lives.

        `schema`: any version of the shard's, or a selection of the newest one's columns; whatever rows were written
        with, they are read as this. Raises `SchemaMismatch`, `CorruptStateError`, or the store's error.
        """
        shared = await self._open(shard)
        reader_id = f"r{random_uuid()}"
        encoded = encode_schema(schema)
        _check_readable(shard, shared.state, schema, purpose)
        entry = await shared.commit(
            lambda state, attempt: commands.register_reader(
                state,
                reader=reader_id,
                schema=encoded,
                now_ms=attempt.now_ms,
                lease_ms=self.config.reader_lease_ms,
                purpose=purpose,
            ),
            "register_reader",
        )
        lease = ReaderLease(shared, reader_id, entry, on_expire=self._forget_reader)
        try:
            _check_readable(shard, shared.state, schema, purpose)
        except SchemaMismatch:
            await lease.expire()
            raise
        self._readers[reader_id] = lease
        if self._heartbeat is None:
            self._heartbeat = self._tasks.spawn(self._heartbeats(), "heartbeats")
        return ReadHandle(lease, schema)

    async def open_since(self, shard: ShardId, reader_id: str, *, purpose: str, opaque: int = 0) -> SinceHandle:
        """The critical reader `reader_id`, registered at the shard's since with `opaque` unless it exists.

        Record the id durably before: a critical reader that nobody remembers holds the shard's since for
        ever.
        """
        shared = await self._open(shard)
        entry = await shared.commit(
            lambda state, _: commands.register_critical(state, reader=reader_id, opaque=opaque, purpose=purpose),
            "register_critical",
        )
        return SinceHandle(shared, reader_id, entry)

    async def latest_schema(self, shard: ShardId) -> SchemaVersion | None:
        """The newest schema of a shard, as of some moment after the call began; None while it has none."""
        schemas = (await self._open(shard)).state.schemas
        if not schemas:
            return None
        return SchemaVersion(SchemaId(len(schemas) - 1), decode_schema(schemas[-1]))

    async def get_schema(self, shard: ShardId, id: SchemaId) -> pa.Schema | None:
        """The schema with the number `id`; None when there is none (yet)."""
        schemas = (await self._open(shard)).state.schemas
        return decode_schema(schemas[id]) if 0 <= id < len(schemas) else None

    async def compare_and_evolve_schema(
        self, shard: ShardId, expected: SchemaId, new: pa.Schema
    ) -> Evolved | ExpectationMismatch | Incompatible:
        """Make `new` the newest schema of a shard if the newest one is number `expected` now. Durable on `Evolved`.

        `new` may add nullable fields at the end and let fields become nullable, at any depth. Handles that are open go
        on with their schemas; what is stored stays as it is, and is read with the schema of whoever reads it.
        """
        shared = await self._open(shard)
        return await shared.commit(
            lambda state, attempt: commands.evolve_schema(
                state, expected=expected, new=new, uncertain=attempt.uncertain
            ),
            "evolve_schema",
        )

    async def fetch(self, part: bytes) -> Updates:
        """The updates of a part that another handle has leased, in this process or another one (`LeasedPart.to_bytes`).

        Raises `LeaseLost` when it is gone because nobody leases it any more, `SinceError` when the shard was finalized,
        `CorruptBlobError` when it should be there, or the store's error.
        """
        ticket = decode_ticket(part)
        return await fetch_leased(await self._open(shard_of(ticket)), ticket)

    async def finalize(self, shard: ShardId) -> None:
        """Drop a shard: all handles on it end, its data is deleted, one small record stays. Idempotent."""
        shared = await self._open(shard)
        await shared.commit(lambda state, _: commands.finalize(state), "finalize")
        await remove_all(shared)
        self._shards.pop(shard, None)
        self._maintenance.pop(shard, None)
        shared.close()

    async def sweep(
        self, shard: ShardId, *, older_than_ms: int, keep: frozenset[str] | Keep = frozenset()
    ) -> list[str]:
        """Delete blobs that nothing refers to and that are older than `older_than_ms`: what crashes left
        behind.

        `keep`: keys (`Batch.keys`) of batches that are stored but not appended yet, or how to find them: that is asked
        after the blobs were listed and before the state is read. Returns the deleted keys.
        """
        return await sweep_orphans(await self._peek(shard), older_than_ms, keep)

    async def shards(self) -> list[ShardId]:
        """All shards of the consensus store, finalized ones included, sorted."""
        return [ShardId(key) for key in await self._consensus.list_keys()]

    def cached_states(self) -> list[State]:
        """The newest known state of each shard that this client has open; none once it is closed. Thread-safe."""
        if self._closed:
            return []
        return [shard.state for shard in list(self._shards.values())]

    async def close(self) -> None:
        """End background work and expire all handles, as far as the stores allow. May be called twice."""
        if self._closed:
            return
        self._closed = True
        handles: list[ReaderLease | WriteHandle] = [*self._readers.values(), *self._writers.values()]
        await asyncio.gather(*(handle.expire_best_effort() for handle in handles))
        for shard in self._shards.values():
            shard.close()
        await self._tasks.close()
        self._stores.close()

    async def _open(self, shard: ShardId) -> Shard:
        if self._closed:
            raise ClientClosed("the persist client is closed")
        shared = self._shards.get(shard)
        if shared is None:
            shared = self._shards[shard] = self._shard(shard, self._pubsub)
            maintenance = Maintenance(shared, self._slots)
            self._maintenance[shard] = maintenance
            if self.config.maintenance:
                shared.after_commit = maintenance.poke
        await shared.fetch()
        return shared

    async def _peek(self, shard: ShardId) -> Shard:
        """The shard as it is, without keeping it: whoever goes through all shards must not hold all their states."""
        if shard in self._shards:
            return await self._open(shard)
        if self._closed:
            raise ClientClosed("the persist client is closed")
        peeked = self._shard(shard, None)
        await peeked.fetch()
        return peeked

    def _shard(self, shard: ShardId, pubsub: PubSub | None) -> Shard:
        return Shard(shard, self._consensus, self._stores, self._clock, pubsub, self.config, self._tasks)

    def _forget_reader(self, reader_id: str) -> None:
        self._readers.pop(reader_id, None)

    async def _heartbeats(self) -> None:
        """Renew the leases of readers whose shards see no commits of this process, which renew them in
        passing.
        """
        while True:
            await self._clock.sleep(self.config.reader_lease_ms / 1000 / _HEARTBEATS_PER_LEASE)
            for lease in list(self._readers.values()):
                lease.heartbeat()


def _check_readable(shard: ShardId, state: State, schema: pa.Schema, purpose: str) -> None:
    """Names and types must agree; nullability and metadata are the catalog's business."""
    if state.schemas and find_schema(state.schemas, schema) is None:
        problem = unreadable(decode_schema(state.schemas[-1]), schema)
        if problem is not None:
            raise _mismatch(shard, state, schema, f"be read for {purpose}: {problem}; asked for were the columns")


def _mismatch(shard: ShardId, state: State, schema: pa.Schema, attempt: str) -> SchemaMismatch:
    theirs = describe(decode_schema(state.schemas[-1]))
    return SchemaMismatch(f"shard {shard} has the columns ({theirs}); it cannot {attempt} ({describe(schema)})")
