"""What a transaction log looks like from outside: see `penstock.persist.inspect`, whose rules hold here as well."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np

from penstock.persist.inspect import load
from penstock.persist.parts import PartDamaged, decode_inline, decode_object
from penstock.persist.readonly import BlobReader, ConsensusReader
from penstock.persist.schema import decode_schema
from penstock.persist.state import HollowPart, State
from penstock.persist.store import ShardId
from penstock.persist.txn.rows import TXNS_SCHEMA, Ending, Registration, Write, decode
from penstock.runtime import DONE, ExternalError, PenstockError, Updates

_SHARDS_AT_A_TIME = 8


class TableView(msgspec.Struct):
    """A registered shard. `physical_upper`: its own; None where it is past every time or cannot be read.

    `unapplied`: writes that the log holds, `unapplied_bytes` of payload. They may be in the shard already.
    """

    shard: str
    registered_at: int
    columns: list[str]
    physical_upper: int | None = None
    unapplied: int = 0
    unapplied_bytes: int = 0
    oldest_unapplied: int | None = None


class TxnsView(msgspec.Struct, frozen=True):
    """`logical_upper`: the upper of all registered shards. `endings`: shards that were forgotten and may lag behind."""

    shard: str
    logical_upper: int | None
    since: int | None
    tables: list[TableView]
    endings: list[str]
    problems: list[str]


async def find_log(consensus: ConsensusReader, blob: BlobReader) -> list[ShardId]:
    """The shards that hold transaction logs, by their columns. Reads the state of every shard."""
    limit = asyncio.Semaphore(_SHARDS_AT_A_TIME)

    async def is_log(shard: ShardId) -> bool:
        async with limit:
            state = (await load(consensus, blob, shard)).state
        if state is None or not state.schemas:
            return False
        schema = decode_schema(state.schemas[0])
        return schema.names == TXNS_SCHEMA.names and schema.types == TXNS_SCHEMA.types

    shards = [ShardId(key) for key in await consensus.list_keys()]
    found = await asyncio.gather(*map(is_log, shards))
    return [shard for shard, yes in zip(shards, found, strict=True) if yes]


async def view_txns(consensus: ConsensusReader, blob: BlobReader, shard: ShardId) -> TxnsView:
    """The transaction log in `shard`: who is registered and what has not been tidied away."""
    loaded = await load(consensus, blob, shard)
    state, problems = loaded.state, loaded.problems
    if state is None:
        return TxnsView(shard, None, None, [], [], problems)
    tables: dict[str, TableView] = {}
    endings: list[str] = []
    writes: list[Write] = []
    for entry in await _entries(blob, shard, state, problems):
        if isinstance(entry, Registration):
            columns = [f"{field.name} {field.type}" for field in entry.schema]
            tables[entry.shard] = TableView(entry.shard, entry.ts, columns)
        elif isinstance(entry, Ending):
            endings.append(entry.shard)
        else:
            writes.append(entry)
    for write in sorted(writes, key=lambda one: one.ts):
        table = tables.get(write.shard)
        if table is None:
            problems.append(f"a write at {write.ts} to {write.shard}, which is not registered")
            continue
        table.unapplied += 1
        table.unapplied_bytes += len(write.payload)
        table.oldest_unapplied = write.ts if table.oldest_unapplied is None else table.oldest_unapplied
    await _add_uppers(consensus, blob, list(tables.values()), problems)
    return TxnsView(
        shard,
        _time(state.upper),
        _time(state.since),
        sorted(tables.values(), key=lambda one: one.shard),
        sorted(endings),
        problems,
    )


async def _entries(
    blob: BlobReader, shard: ShardId, state: State, problems: list[str]
) -> list[Registration | Ending | Write]:
    """What the log holds now: the rows whose diffs do not cancel out."""
    parts: list[Updates] = []
    for batch in state.batches:
        for part in batch.parts:
            if not isinstance(part, HollowPart):
                parts.append(decode_inline(part, TXNS_SCHEMA))
                continue
            try:
                data = await blob.get(f"{shard}/{part.key}")
                if data is None:
                    raise PartDamaged("it does not exist")
                parts.append(decode_object(data, part, TXNS_SCHEMA))
            except (PartDamaged, ExternalError) as error:
                problems.append(f"blob {part.key} of the log cannot be read: {error}")
    if not parts:
        return []
    updates = Updates.concat(parts)
    at_once = Updates(updates.rows, np.zeros(len(updates), dtype=np.uint64), updates.diffs)
    summed = at_once.consolidate()
    found: list[Registration | Ending | Write] = []
    shards, payloads = (column.to_pylist() for column in summed.rows.columns)
    for of, payload, diff in zip(shards, payloads, summed.diffs.tolist(), strict=True):
        if diff != 1:
            problems.append(f"an entry for {of} is in the log {diff} times")
        try:
            found.append(decode(of, payload))
        except PenstockError as error:
            problems.append(error.message)
    return found


async def _add_uppers(
    consensus: ConsensusReader, blob: BlobReader, tables: list[TableView], problems: list[str]
) -> None:
    limit = asyncio.Semaphore(_SHARDS_AT_A_TIME)

    async def add(table: TableView) -> None:
        async with limit:
            loaded = await load(consensus, blob, ShardId(table.shard))
        if loaded.state is not None:
            table.physical_upper = _time(loaded.state.upper)
        problems.extend(f"{table.shard}: {problem}" for problem in loaded.problems)

    await asyncio.gather(*map(add, tables))


def _time(frontier: int) -> int | None:
    return None if frontier == DONE else frontier
