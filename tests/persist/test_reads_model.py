"""Every way of reading gives what a model says: at any time, of any columns, with any filter, here or elsewhere,
whatever the sizes, wherever the rows are, before and after compaction, with the schema of before or after.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.persist import (
    And,
    Compare,
    Evolved,
    Filter,
    IsNull,
    MemBlob,
    MemConsensus,
    Not,
    Operator,
    Or,
    PersistClient,
    PersistConfig,
    ReadHandle,
    SchemaId,
    matching,
    new_shard_id,
)
from penstock.persist.txn import TxnsReader, TxnsReadHandle, TxnsWriter
from penstock.runtime import Frontier, Timestamp, Updates

OLD = pa.schema([("k", pa.int64()), ("s", pa.string())])
NEW = pa.schema([*OLD, ("n", pa.float64())])
Row = tuple[Any, ...]
Tally = Counter[Row]

KEYS = st.integers(0, 6)
TEXTS = st.sampled_from([None, "", "a", "b" * 40, "b" * 40 + "c"])
NUMBERS = st.sampled_from([None, -1.5, 0.0, 2.0])


@dataclass(frozen=True)
class Write:
    """(row, time after `lower`, diff) of each update; all times are below `length`. `new`: with the newer schema."""

    rows: list[tuple[Row, int, int]]
    length: int
    new: bool


WRITES = st.builds(
    Write,
    st.lists(st.tuples(st.tuples(KEYS, TEXTS, NUMBERS), st.integers(0, 2), st.sampled_from([1, 1, 2, -1])), max_size=6),
    st.integers(3, 4),
    st.booleans(),
)
LEAVES: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Compare, st.just("k"), st.sampled_from(Operator), KEYS),
    st.builds(Compare, st.just("s"), st.sampled_from(Operator), TEXTS),
    st.just(IsNull("s")),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(inner.map(Not), st.tuples(inner, inner).map(And), st.tuples(inner, inner).map(Or)),
    max_leaves=4,
)
CONFIGS = st.builds(
    PersistConfig,
    inline_bytes=st.sampled_from([0, 700, 1 << 15]),
    part_bytes=st.sampled_from([50, 1 << 20]),
    stats_bytes=st.sampled_from([0, 60, 1024]),
    stats_from_bytes=st.just(0),
    stats_audit_percent=st.sampled_from([0, 50, 100]),
    prefetch_bytes=st.sampled_from([1, 1 << 20]),
    snapshot_memory_bytes=st.sampled_from([1, 1 << 20]),
    cache_bytes=st.sampled_from([0, 1 << 20]),
    compaction_fan_in=st.sampled_from([2, 8]),
    rollup_every=st.just(8),
    maintenance=st.booleans(),
)
SETTINGS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])


class Model:
    """All updates there ever were, as rows of `NEW`."""

    def __init__(self) -> None:
        self.log: list[tuple[Row, int, int]] = []

    def wrote(self, write: Write, lower: int) -> None:
        self.log += [(row if write.new else (*row[:2], None), lower + time, diff) for row, time, diff in write.rows]

    def at(self, as_of: int, columns: Sequence[int]) -> Tally:
        found: Tally = Counter()
        for row, time, diff in self.log:
            if time <= as_of:
                found[tuple(row[column] for column in columns)] += diff
        return Counter({row: count for row, count in found.items() if count})

    def after(self, as_of: int, columns: Sequence[int]) -> Tally:
        found: Tally = Counter()
        for row, time, diff in self.log:
            if time > as_of:
                found[(*(row[column] for column in columns), time)] += diff
        return Counter({row: count for row, count in found.items() if count})


def tally(parts: Sequence[Updates], *, times: bool = False) -> Tally:
    found: Tally = Counter()
    for part in parts:
        rows = part.rows.to_pylist() if part.rows.num_columns else [{}] * len(part)
        for row, time, diff in zip(rows, part.times.tolist(), part.diffs.tolist(), strict=True):
            found[(*row.values(), time) if times else tuple(row.values())] += diff
    return Counter({row: count for row, count in found.items() if count})


def rows_of(schema: pa.Schema, rows: Sequence[Row]) -> pa.RecordBatch:
    arrays = [pa.array([row[place] for row in rows], field.type) for place, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def updates(write: Write, lower: int) -> Updates:
    rows = rows_of(NEW if write.new else OLD, [row for row, _, _ in write.rows])
    times = np.array([lower + time for _, time, _ in write.rows], dtype=np.uint64)
    return Updates(rows, times, np.array([diff for _, _, diff in write.rows], dtype=np.int64))


async def check(
    reader: ReadHandle | TxnsReadHandle, there: PersistClient, model: Model, as_of: int, upper: int, filter_: Filter
) -> None:
    """All reads of `reader` at `as_of`."""
    names, at = reader.schema.names, Timestamp(as_of)
    own = [NEW.names.index(name) for name in names]
    everything = model.at(as_of, own)
    assert tally([part async for part in reader.snapshot(at)]) == everything
    kept = [part async for part in reader.snapshot(at, filter_=filter_)]
    passing = matching(filter_, rows_of(reader.schema, list(everything)))
    expected = {row: count for (row, count), passes in zip(everything.items(), passing, strict=True) if passes}
    assert tally([part.filter(matching(filter_, part.rows)) for part in kept]) == expected
    for columns in ([], names[:1], names[::-1]):
        chunks = [chunk async for chunk in reader.snapshot_cursor(at, columns=columns)]
        assert tally(chunks) == model.at(as_of, [NEW.names.index(name) for name in columns])
        assert sum(map(len, chunks)) == len(tally(chunks)), "no row comes twice"
    assert await reader.count(at) == sum(everything.values())
    if isinstance(reader, ReadHandle):
        parts = await reader.snapshot_parts(at, filter_=filter_)
        assert tally([await there.fetch(part.to_bytes()) for part in parts]) == tally(kept)
        assert (await reader.snapshot_stats(at)).rows >= len(everything)
    listen = await reader.listen(at)
    seen: list[Updates] = []
    while listen.frontier < upper:
        seen += (await anext(listen)).updates
    assert tally(seen, times=True) == model.after(as_of, own)
    await listen.aclose()


@settings(SETTINGS, max_examples=50)
@given(CONFIGS, st.lists(WRITES, min_size=1, max_size=6), st.data())
def test_every_read_of_a_shard(config: PersistConfig, writes: list[Write], data: st.DataObject) -> None:
    async def main() -> None:
        blob, consensus, shard, model = MemBlob(), MemConsensus(), new_shard_id(), Model()
        here, there = (PersistClient(blob, consensus, config=config) for _ in range(2))
        writers = {False: await here.open_writer(shard, OLD, purpose="test")}
        since = await here.open_since(shard, "controller", purpose="test")
        upper = 0
        for write in writes:
            if write.new and True not in writers:
                assert await here.compare_and_evolve_schema(shard, SchemaId(0), NEW) == Evolved(SchemaId(1))
                writers[True] = await here.open_writer(shard, NEW, purpose="test")
            lower, upper = upper, upper + write.length
            change = updates(write, lower)
            assert await writers[write.new].compare_and_append(change, Frontier(lower), Frontier(upper)) is None
            model.wrote(write, lower)
            if data.draw(st.booleans()):
                await since.compare_and_downgrade_since(0, 0, Frontier(data.draw(st.integers(0, upper - 1))))
            await here._maintenance[shard].idle()
        for schema in [OLD, NEW] if True in writers else [OLD]:
            reader = await there.open_reader(shard, schema, purpose="test")
            as_of = data.draw(st.integers(int(reader.since), upper - 1))
            await check(reader, here, model, as_of, upper, data.draw(FILTERS))
        await here.close()
        await there.close()

    asyncio.run(main())


@settings(SETTINGS, max_examples=25)
@given(CONFIGS, st.lists(WRITES, min_size=1, max_size=6), st.data())
def test_every_read_of_a_table(config: PersistConfig, writes: list[Write], data: st.DataObject) -> None:
    async def main() -> None:
        blob, consensus, model = MemBlob(), MemConsensus(), Model()
        here, there = (PersistClient(blob, consensus, config=config) for _ in range(2))
        log, table = new_shard_id(), new_shard_id()
        writer = await TxnsWriter.open(here, log)
        assert await writer.register({table: OLD}, Timestamp(0)) is None
        now, new = 1, False
        for write in writes:
            if write.new and not new:
                new = True
                assert isinstance(await here.compare_and_evolve_schema(table, SchemaId(0), NEW), Evolved)
                assert await writer.change_schema(table, NEW, Timestamp(now)) is None
                now += 1
            commit = Write([(row, 0, diff) for row, _, diff in write.rows], 1, new)
            assert await writer.commit_at({table: [updates(commit, now)]}, Timestamp(now)) is None
            model.wrote(commit, now)
            if data.draw(st.booleans()):
                await writer.apply_le(Timestamp(now))
            now += 1
        readers = await TxnsReader.open(there, log)
        for schema in [OLD, NEW] if new else [OLD]:
            reader = await readers.open_reader(table, schema, purpose="test")
            as_of = data.draw(st.integers(int(reader.since), now - 1))
            await check(reader, here, model, as_of, now, data.draw(FILTERS))
        for opened in (readers, writer, here, there):
            await opened.close()

    asyncio.run(main())
