"""Schemas of a shard: which may follow which, and that whatever was written with one can be read with another."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from penstock.persist import (
    Evolved,
    ExpectationMismatch,
    Incompatible,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    ReadHandle,
    SchemaId,
    SchemaMismatch,
    SchemaVersion,
    commands,
    new_shard_id,
)
from penstock.persist.schema import encode_schema, incompatibility, migration, unreadable
from penstock.persist.state import (
    Diff,
    HollowPart,
    State,
    apply,
    decode_diff,
    decode_rollup,
    encode_diff,
    encode_rollup,
)
from penstock.persist.txn import TooLate, TxnsReader, TxnsWriter
from penstock.runtime import Frontier, Timestamp, Updates
from tests.persist.shards import client

I64, STR = pa.int64(), pa.string()
ONE = pa.schema([("k", I64)])
TWO = pa.schema([("k", I64), ("v", STR)])
THREE = pa.schema([("k", I64), ("v", STR), ("w", pa.list_(pa.struct([("x", I64)])))])


def struct(*fields: tuple[str, pa.DataType] | pa.Field) -> pa.DataType:
    return pa.struct(list(fields))


REQUIRED = pa.field("x", I64, nullable=False)
COMPATIBLE: list[tuple[str, Any, Any, bool]] = [
    ("the same", [("k", I64)], [("k", I64)], True),
    ("one more at the end", [("k", I64)], [("k", I64), ("v", STR)], True),
    ("one more in front", [("k", I64)], [("v", STR), ("k", I64)], False),
    ("one more, required", [("k", I64)], [("k", I64), REQUIRED], False),
    ("from nothing", [], [("k", I64)], True),
    ("dropped", [("k", I64), ("v", STR)], [("k", I64)], False),
    ("reordered", [("k", I64), ("v", STR)], [("v", STR), ("k", I64)], False),
    ("renamed", [("k", I64)], [("l", I64)], False),
    ("wider", [("k", pa.int32())], [("k", I64)], False),
    ("scale", [("k", pa.decimal128(9, 2))], [("k", pa.decimal128(9, 3))], False),
    ("becomes nullable", [REQUIRED], [("x", I64)], True),
    ("becomes required", [("x", I64)], [REQUIRED], False),
    ("struct grows", [("s", struct(("a", I64)))], [("s", struct(("a", I64), ("b", STR)))], True),
    ("struct shrinks", [("s", struct(("a", I64), ("b", STR)))], [("s", struct(("a", I64)))], False),
    ("struct grows by a required field", [("s", struct(("a", I64)))], [("s", struct(("a", I64), REQUIRED))], False),
    ("struct field becomes nullable", [("s", struct(REQUIRED))], [("s", struct(("x", I64)))], True),
    ("list grows", [("l", pa.list_(struct(("a", I64))))], [("l", pa.list_(struct(("a", I64), ("b", STR))))], True),
    ("list element becomes another", [("l", pa.list_(I64))], [("l", pa.list_(STR))], False),
    ("list elements become required", [("l", pa.list_(I64))], [("l", pa.list_(pa.field("item", I64, False)))], False),
    ("list becomes large", [("l", pa.list_(I64))], [("l", pa.large_list(I64))], False),
    ("struct becomes list", [("s", struct(("a", I64)))], [("s", pa.list_(I64))], False),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "allowed"), [row[1:] for row in COMPATIBLE], ids=[row[0] for row in COMPATIBLE])
def test_compatibility(old: Any, new: Any, allowed: bool) -> None:
    before, after = pa.schema(old), pa.schema(new)
    assert (incompatibility(before, after) is None) == allowed
    if allowed:
        assert unreadable(after, before) is None


def test_register_schema() -> None:
    state = State()
    first = commands.register_schema(state, ONE)
    assert (first.result, first.diff is None) == (0, False)
    state = apply(state, msgspec.structs.replace(first.diff, seqno=0))
    again = commands.register_schema(state, ONE)
    assert (again.result, again.diff) == (0, None)
    assert commands.register_schema(state, TWO).result is None, "some, but none that matches"
    state = State(schemas=(encode_schema(ONE), encode_schema(TWO), encode_schema(ONE)))
    assert commands.register_schema(state, ONE).result == 2, "the newest that matches"
    required = pa.schema([pa.field("k", I64, nullable=False)])
    assert commands.register_schema(state, required).result == 2, "nullability is the catalog's business"
    both = State(schemas=(encode_schema(required), encode_schema(ONE)))
    assert commands.register_schema(both, required).result == 0, "but tells apart"
    assert commands.register_schema(State(tombstone=True), ONE).diff is None


def test_compare_and_evolve_schema() -> None:
    async def main() -> None:
        c, shard = client(), new_shard_id()
        assert await c.latest_schema(shard) is None
        assert isinstance(await c.compare_and_evolve_schema(shard, SchemaId(0), ONE), Incompatible)
        await c.open_writer(shard, ONE, purpose="test")
        assert await c.latest_schema(shard) == SchemaVersion(SchemaId(0), ONE)
        assert await c.compare_and_evolve_schema(shard, SchemaId(0), ONE) == Evolved(SchemaId(0)), "nothing to do"
        assert await c.compare_and_evolve_schema(shard, SchemaId(1), TWO) == ExpectationMismatch(SchemaId(0), ONE)
        assert await c.compare_and_evolve_schema(shard, SchemaId(0), TWO) == Evolved(SchemaId(1))
        assert await c.compare_and_evolve_schema(shard, SchemaId(0), TWO) == ExpectationMismatch(SchemaId(1), TWO)
        refused = await c.compare_and_evolve_schema(shard, SchemaId(1), ONE)
        assert isinstance(refused, Incompatible)
        assert "v is missing" in refused.reason
        assert await c.get_schema(shard, SchemaId(0)) == ONE
        assert await c.get_schema(shard, SchemaId(1)) == TWO
        assert await c.get_schema(shard, SchemaId(2)) is None
        assert (await c.open_writer(shard, ONE, purpose="test")).schema_id == 0
        assert (await c.open_writer(shard, TWO, purpose="test")).schema_id == 1
        with pytest.raises(SchemaMismatch, match="k int64, v string"):
            await c.open_writer(shard, THREE, purpose="test")
        with pytest.raises(SchemaMismatch, match="no column w"):
            await c.open_reader(shard, THREE, purpose="test")
        with pytest.raises(SchemaMismatch, match="int64, not string"):
            await c.open_reader(shard, pa.schema([("k", STR)]), purpose="test")
        await c.close()

    asyncio.run(main())


def test_an_evolution_with_an_unknown_outcome_is_decided() -> None:
    state = State(schemas=(encode_schema(ONE), encode_schema(TWO)))

    def evolve(uncertain: bool) -> object:
        return commands.evolve_schema(state, expected=SchemaId(0), new=TWO, uncertain=uncertain).result

    assert evolve(uncertain=True) == Evolved(SchemaId(1))
    assert evolve(uncertain=False) == ExpectationMismatch(SchemaId(1), TWO)


NESTED = [{"x": 1}, None, {"x": None}, {"x": 4}]
OLD = pa.schema([("s", struct(("x", I64))), ("l", pa.list_(struct(("x", I64)))), ("n", I64)])
NEW = pa.schema(
    [
        ("s", struct(("x", I64), ("y", STR), ("z", pa.month_day_nano_interval()))),
        ("l", pa.list_(struct(("x", I64), ("y", pa.list_(I64))))),
        ("n", I64),
        ("m", struct(("q", I64))),
    ]
)


@pytest.mark.parametrize("cut", [slice(0, 4), slice(1, 3), slice(2, 2)])
def test_migration_of_nested_columns(cut: slice) -> None:
    lists = [[{"x": 1}, None], None, [], [{"x": None}]]
    rows = pa.RecordBatch.from_arrays(
        [pa.array(NESTED, OLD.types[0]), pa.array(lists, OLD.types[1]), pa.array([1, 2, None, 4])], schema=OLD
    ).slice(cut.start, cut.stop - cut.start)
    there = migration(OLD, NEW).apply(rows)
    there.validate(full=True)
    assert there.schema == NEW
    assert there.column(0).to_pylist() == [one and {**one, "y": None, "z": None} for one in NESTED[cut]]
    assert there.column(1).to_pylist() == [
        one if one is None else [inner and {**inner, "y": None} for inner in one] for one in lists[cut]
    ]
    assert there.column(3).null_count == len(rows)
    back = migration(NEW, OLD).apply(there)
    assert back.equals(rows)
    plan = migration(NEW, pa.schema([("m", struct(("q", I64))), ("n", I64)]))
    assert plan.read == ["m", "n"]


@pytest.mark.parametrize("inline_bytes", [0, 1 << 15], ids=["hollow", "inline"])
def test_old_data_stays_readable(inline_bytes: int) -> None:
    """Readers of every version, and of a selection, see every row; before and after compaction."""

    async def main() -> None:
        config = PersistConfig(inline_bytes=inline_bytes, compaction_fan_in=2, cache_bytes=0, maintenance=False)
        upkeep = replace(config, maintenance=True)
        blob, consensus, shard = MemBlob(), MemConsensus(), new_shard_id()
        c = PersistClient(blob, consensus, config=config)
        old = await c.open_writer(shard, ONE, purpose="test")
        readers = [await c.open_reader(shard, ONE, purpose="old, from before")]
        await write(old, [1], 0)
        assert await c.compare_and_evolve_schema(shard, SchemaId(0), TWO) == Evolved(SchemaId(1))
        new = await c.open_writer(shard, TWO, purpose="test")
        await write(new, [2], 1, ["two"])
        await write(old, [3], 2)
        assert await c.compare_and_evolve_schema(shard, SchemaId(1), THREE) == Evolved(SchemaId(2))
        newest = await c.open_writer(shard, THREE, purpose="test")
        await write(newest, [4], 3, ["four"], [[{"x": 4}]])
        for schema in (ONE, TWO, THREE, pa.schema([("v", STR)]), pa.schema([("w", THREE.types[2]), ("k", I64)])):
            readers.append(await c.open_reader(shard, schema, purpose="test"))

        async def check(readers: list[ReadHandle]) -> None:
            full = [
                {"k": 1, "v": None, "w": None},
                {"k": 2, "v": "two", "w": None},
                {"k": 3, "v": None, "w": None},
                {"k": 4, "v": "four", "w": [{"x": 4}]},
            ]
            for reader in readers:
                names = reader.schema.names
                found = [part async for part in reader.snapshot(Timestamp(3))]
                assert {part.schema for part in found} == {reader.schema}
                rows = [row for part in found for row in part.rows.to_pylist()]
                expected = [{name: row[name] for name in names} for row in full]
                assert sorted(map(repr, rows)) == sorted(map(repr, expected))
                seen, listen = [], await reader.listen(Timestamp(0))
                while listen.frontier < 4:
                    seen += (await anext(listen)).updates
                rows = [row for part in seen for row in part.rows.to_pylist()]
                assert sorted(map(repr, rows)) == sorted(map(repr, expected[1:]))
                await listen.aclose()

        await check(readers)
        compacting = PersistClient(blob, consensus, config=upkeep)
        await write(await compacting.open_writer(shard, ONE, purpose="test"), [], 4)
        await compacting._maintenance[shard].idle()
        fresh = PersistClient(blob, consensus, config=config)
        await check([await fresh.open_reader(shard, reader.schema, purpose="test") for reader in readers])
        state = fresh._shards[shard].state
        assert {part.schema for batch in state.batches for part in batch.parts if part.rows > 1} <= {1, 2}
        for opened in (c, compacting, fresh):
            await opened.close()

    asyncio.run(main())


async def write(writer: Any, keys: list[int], at: int, *columns: list[Any]) -> None:
    arrays = [pa.array(values, field.type) for values, field in zip([keys, *columns], writer.schema, strict=True)]
    updates = Updates.at(pa.RecordBatch.from_arrays(arrays, schema=writer.schema), Timestamp(at))
    assert await writer.compare_and_append(updates, Frontier(at), Frontier(at + 1)) is None


@pytest.mark.parametrize("inline_bytes", [0, 1 << 15], ids=["hollow", "inline"])
def test_a_table_changes_its_schema_between_commits(inline_bytes: int) -> None:
    """Commits before, after and across the change; readers that know of it and readers that do not."""

    async def main() -> None:
        blob, consensus = MemBlob(), MemConsensus()
        config = PersistConfig(inline_bytes=inline_bytes, poll_min_ms=1, poll_max_ms=5)
        c, other = (PersistClient(blob, consensus, config=config) for _ in range(2))
        log, table = new_shard_id(), new_shard_id()
        writer = await TxnsWriter.open(c, log)
        assert await writer.register({table: ONE}, Timestamp(0)) is None
        readers = await TxnsReader.open(other, log)
        old = await readers.open_reader(table, ONE, purpose="test")
        listen = await old.subscribe(Timestamp(0))
        assert await writer.commit_at({table: [rows(ONE, {"k": [1]}, 1)]}, Timestamp(1)) is None
        with pytest.raises(SchemaMismatch):
            await writer.change_schema(table, TWO, Timestamp(2))
        assert await c.compare_and_evolve_schema(table, SchemaId(0), TWO) == Evolved(SchemaId(1))
        assert await writer.commit_at({table: [rows(ONE, {"k": [2]}, 2)]}, Timestamp(2)) is None
        assert await writer.change_schema(table, TWO, Timestamp(2)) == TooLate(Frontier(3))
        assert await writer.change_schema(table, TWO, Timestamp(3)) is None
        assert await writer.commit_at({table: [rows(TWO, {"k": [4], "v": ["four"]}, 4)]}, Timestamp(4)) is None
        assert writer.registered == {table: TWO} or await writer.commit_at({}, Timestamp(5)) is None
        new = await readers.open_reader(table, TWO, purpose="test")
        for _ in range(2):
            assert await found(old, 4) == [{"k": 1}, {"k": 2}, {"k": 4}]
            assert await found(new, 4) == [{"k": 1, "v": None}, {"k": 2, "v": None}, {"k": 4, "v": "four"}]
            await writer.apply_le(Timestamp(4))
        seen: list[Any] = []
        while listen.frontier < 5:
            seen += [row for part in (await anext(listen)).updates for row in part.rows.to_pylist()]
        assert seen == [{"k": 1}, {"k": 2}, {"k": 4}]
        successor = await TxnsWriter.open(other, log)
        assert successor.registered == {table: TWO}
        assert await successor.commit_at({table: [rows(TWO, {"k": [6], "v": ["six"]}, 6)]}, Timestamp(6)) is None
        assert await found(new, 6) == [*await found(new, 4), {"k": 6, "v": "six"}]
        assert await successor.forget([table], Timestamp(7)) is None
        assert successor.registered == {} or await successor.commit_at({}, Timestamp(8)) is None
        for opened in (successor, readers, writer, c, other):
            await opened.close()

    asyncio.run(main())


def rows(schema: pa.Schema, columns: dict[str, list[Any]], at: int) -> Updates:
    return Updates.at(pa.RecordBatch.from_pydict(columns, schema=schema), Timestamp(at))


async def found(reader: Any, at: int) -> list[dict[str, Any]]:
    parts = [part async for part in reader.snapshot(Timestamp(at))]
    return sorted((row for part in parts for row in part.rows.to_pylist()), key=lambda row: row["k"])


def test_states_from_before_schemas_had_numbers_are_understood() -> None:
    part = ["h", "w/p", "parquet", 10, 1, 2, 2, 0, 0]
    inline = ["i", b"data", 0, 1, 1, 0, 0]
    diff = {"seqno": 0, "schema": b"one", "append": [0, 0, 0, [part, inline]]}
    state = apply(State(), decode_diff("s", b"\x01" + msgspec.msgpack.encode(diff)))
    assert state.schemas == (b"one",)
    assert [part.schema for part in state.batches[0].parts] == [0, 0]
    body = msgspec.msgpack.encode({"seqno": 4, "schema": b"one", "batches": [[0, 0, 0, [part, inline]]]})
    old = decode_rollup("s", b"PSR1" + zlib.crc32(body).to_bytes(4, "big") + body)
    assert (old.schemas, old.schema, old.batches) == ((b"one",), None, state.batches)
    assert decode_rollup("s", encode_rollup(old)) == old
    evolved = apply(old, decode_diff("s", encode_diff(Diff(seqno=5, schema=b"two"))))
    assert evolved.schemas == (b"one", b"two")
    assert isinstance(state.batches[0].parts[0], HollowPart)
