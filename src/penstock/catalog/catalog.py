"""The durable catalog: one shard, one writer, fenced by an epoch.

The shard's times are versions: each commit is one compare-and-append from version v to v + 1, so it is there whole
or not at all. Opening writes a fence with a greater epoch; whoever held the catalog before meets a moved upper at
its next commit, finds the fence, and fails before it has written anything. Nothing else can move the upper, so a
lost race
*is* a fence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from penstock.catalog.entries import CATALOG_SCHEMA, Entry, Fence, decode_value, encode_value
from penstock.catalog.state import CatalogState, Key
from penstock.catalog.transaction import CatalogTransaction
from penstock.persist import Fenced, Mismatch, PersistClient, ShardId, SinceHandle, WriteHandle, new_shard_id
from penstock.runtime import Frontier, InternalError, PenstockError, Timestamp, Updates, step_back

CATALOG_SHARD = ShardId("s00000000-0000-4000-8000-000000000001")
"""The same in every environment: whoever has the stores finds the catalog."""

TXNS_SHARD_SETTING = "penstock.txns_shard"
_CRITICAL_READER = "c00000000-0000-4000-8000-00000000ca7a"


class CatalogFenced(PenstockError):
    """Another coordinator has taken over; this one must stop. Nothing of the failed change was written."""

    sqlstate = "57P01"


class Catalog:
    """The coordinator's handle. One task at a time may use it; `state` may be read by anyone at any time."""

    def __init__(self, writer: WriteHandle, since: SinceHandle, state: CatalogState, upper: Frontier) -> None:
        self._writer = writer
        self._since = since
        self._upper = upper
        self._fenced: CatalogFenced | None = None
        self.state = state
        self.epoch = state.epoch

    @staticmethod
    async def open(client: PersistClient, shard: ShardId = CATALOG_SHARD) -> Catalog:
        """Take the catalog over: read it, write a fence above all earlier ones, fill it if it is new.

        Durable on return: the fence. Two that open at once both succeed, one after the other; the first is fenced then.
        """
        writer = await client.open_writer(shard, CATALOG_SCHEMA, purpose="catalog")
        since = await client.open_since(shard, _CRITICAL_READER, purpose="catalog")
        while True:
            upper = await writer.fetch_recent_upper()
            base = await _read(client, shard, upper)
            transaction = CatalogTransaction(base)
            if upper == 0:
                _initialize(transaction)
            fence: dict[Key, Entry] = {("fence", "epoch"): Fence(epoch=base.epoch + 1)}
            state = CatalogState({**transaction.state.entries, **fence}, int(upper))
            lost = await writer.compare_and_append(
                _difference(base, state, Timestamp(upper)), upper, Frontier(upper + 1)
            )
            if lost is None:
                catalog = Catalog(writer, since, state, Frontier(upper + 1))
                await catalog._compact()
                return catalog

    def begin(self) -> CatalogTransaction:
        """A transaction on the newest state. It is thrown away or given to `commit`."""
        return CatalogTransaction(self.state)

    async def commit(self, transaction: CatalogTransaction) -> CatalogState:
        """Make `transaction` durable and the newest state. Returns that.

        Raises CatalogFenced when another coordinator has taken over, ExternalError when the store fails (the change
        may or may not have happened: reopen the catalog). Cancelled: likewise.
        """
        self._check_unfenced()
        if transaction.base is not self.state:
            raise InternalError(
                f"catalog transaction on version {transaction.base.version} meets version {self.state.version}"
            )
        if not transaction.changed_keys:
            return self.state
        state = CatalogState(transaction.state.entries, int(self._upper))
        changes = _difference(self.state, state, Timestamp(self._upper))
        lost = await self._writer.compare_and_append(changes, self._upper, Frontier(self._upper + 1))
        if lost is not None:
            raise self._fence(lost)
        self._upper = Frontier(self._upper + 1)
        self.state = state
        await self._compact()
        return state

    async def check_leader(self) -> None:
        """Ask the store whether this is still the newest coordinator. Raises CatalogFenced when it is not."""
        self._check_unfenced()
        upper = await self._writer.fetch_recent_upper()
        if upper != self._upper:
            raise self._fence(Mismatch(upper))

    async def touch(self) -> None:
        """Commit a version of the shard that changes nothing, for whoever wants to see something new in it. Durable."""
        await self._writer.fence_late_attempts()

    async def close(self) -> None:
        await self._writer.expire()

    async def _compact(self) -> None:
        """Only the newest version is ever read again."""
        since = Frontier(step_back(self._upper))
        outcome = await self._since.compare_and_downgrade_since(self._since.opaque, self.epoch, since)
        if isinstance(outcome, Fenced) and outcome.opaque > self.epoch:
            raise self._fence(Mismatch(self._upper))

    def _fence(self, lost: Mismatch) -> CatalogFenced:
        self._fenced = CatalogFenced(
            f"another penstock serve has taken over this environment (the catalog moved from version {self._upper} to "
            f"{lost.current_upper} under epoch {self.epoch}); this one must stop"
        )
        return self._fenced

    def _check_unfenced(self) -> None:
        if self._fenced is not None:
            raise self._fenced


async def _read(client: PersistClient, shard: ShardId, upper: Frontier) -> CatalogState:
    """The contents at the newest complete version."""
    if upper == 0:
        return CatalogState({}, 0)
    reader = await client.open_reader(shard, CATALOG_SCHEMA, purpose="catalog bootstrap")
    try:
        as_of = step_back(upper)
        parts = [part async for part in await reader.snapshot(as_of)]
    finally:
        await reader.expire()
    entries: dict[Key, Entry] = {}
    if not parts:
        return CatalogState(entries, int(as_of))
    contents = Updates.concat(parts).consolidate()
    kinds, keys, values = (column.to_pylist() for column in contents.rows.columns)
    # a catalog has thousands of entries, not millions: one Python step each, once at the start
    for kind, key, value, diff in zip(kinds, keys, values, contents.diffs.tolist(), strict=True):
        if diff != 1 or (kind, key) in entries:
            raise InternalError(f"the catalog has {diff} of {kind} {key!r} at version {as_of}; exactly one is allowed")
        entries[kind, key] = decode_value(kind, key, value)
    return CatalogState(entries, int(as_of))


def _initialize(transaction: CatalogTransaction) -> None:
    """What a new environment has."""
    transaction.create_database("materialize")
    transaction.create_role("materialize")
    transaction.create_cluster("quickstart", size="100cc", replication_factor=1)
    transaction.set_setting(TXNS_SHARD_SETTING, new_shard_id())


def _difference(before: CatalogState, after: CatalogState, time: Timestamp) -> Updates:
    """The updates that turn `before` into `after`, all at `time`."""
    rows = [(key, entry, -1) for key, entry in _missing(before.entries, after.entries)]
    rows += [(key, entry, 1) for key, entry in _missing(after.entries, before.entries)]
    columns = [
        [kind for (kind, _), _, _ in rows],
        [key for (_, key), _, _ in rows],
        [encode_value(entry) for _, entry, _ in rows],
    ]
    batch = pa.RecordBatch.from_arrays([pa.array(c, pa.string()) for c in columns], schema=CATALOG_SCHEMA)
    diffs = np.array([diff for _, _, diff in rows], dtype=np.int64)
    return Updates(batch, np.full(len(rows), time, dtype=np.uint64), diffs)


def _missing(here: Mapping[Key, Entry], there: Mapping[Key, Entry]) -> list[tuple[Key, Entry]]:
    return [(key, entry) for key, entry in here.items() if there.get(key) != entry]
