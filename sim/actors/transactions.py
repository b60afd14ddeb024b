"""List-append transactions over tables (through the transaction log) and over one plain shard (by compare-and-append).

A transaction reads some lists at the newest complete time, then appends at the next one; that the append is refused
unless nothing happened in between makes it atomic. Reads are split at a random time into a snapshot and a listen. A
list's row is ``(key, "time.position|value|filler")``: sorted by its text it is in the order of the appends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from random import Random

from penstock.persist import BatchTooOld, InvalidUsage, Mismatch, PersistClient, ReaderExpired, ShardId, SinceError
from penstock.persist.txn import TxnsReader, TxnsReadHandle, TxnsWriter
from penstock.runtime import Determinate, ExternalError, Frontier, InternalError, Timestamp, Updates, step_back
from sim.actors.reading import follow_model
from sim.actors.rows import (
    SCHEMA,
    Reader,
    add,
    bounded,
    excused,
    read_snapshot,
    to_updates,
    without_zeros,
)
from sim.actors.ways import check_contents
from sim.checkers.appends import Row, Update
from sim.checkers.list_append import Transaction
from sim.checkers.shard import Contents
from sim.checkers.txns import TxnsHistory
from sim.environment import Node

KEYS = 3
"""Lists per shard."""
PATIENCE_S = 5.0


@dataclass(frozen=True)
class TableModel:
    """What readers of one table see."""

    txns: TxnsHistory
    shard: ShardId

    @property
    def upper(self) -> int:
        registered = self.shard in self.txns.registered
        return self.txns.upper if registered else self.txns.table(self.shard).upper

    def at(self, as_of: int) -> Counter[Row]:
        return self.txns.at(self.shard, as_of)

    def between(self, first: int, end: int) -> Contents:
        return self.txns.between(self.shard, first, end)


class Lists:
    """One client of lists: makes up transactions, notes what they read and append."""

    def __init__(self, node: Node, dice: Random, places: tuple[ShardId, ...]) -> None:
        self._node = node
        self._dice = dice
        self._places = places

    def begin(
        self, places: tuple[ShardId, ...]
    ) -> tuple[Transaction, dict[ShardId, list[int]], dict[ShardId, list[int]]]:
        """A transaction, and the keys it is to read and to append to, per place."""
        node, dice = self._node, self._dice
        one = Transaction(f"T{node.env.ledger.next()}", node.world.now_s)
        reads: dict[ShardId, list[int]] = {}
        appends: dict[ShardId, list[int]] = {}
        for _ in range(dice.randint(1, 3)):
            reads.setdefault(dice.choice(places), []).append(dice.randrange(KEYS))
        for _ in range(dice.choice([0, 1, 1, 2, 3])):
            appends.setdefault(dice.choice(places), []).append(dice.randrange(KEYS))
        return one, reads, appends

    def name(self, place: ShardId, key: int) -> str:
        return f"{self._places.index(place)}/{key}"

    def note_reads(self, one: Transaction, place: ShardId, keys: list[int], contents: Counter[Row]) -> None:
        for key in keys:
            one.reads[self.name(place, key)] = values_of(contents, key)

    def rows(self, one: Transaction, place: ShardId, keys: list[int], ts: int) -> list[Update]:
        """The rows that append one value to each of `keys`, noted in `one`."""
        filler = self._dice.choice([0, 0, 50, 300])
        changes: list[Update] = []
        for position, key in enumerate(keys):
            appended = one.appends.setdefault(self.name(place, key), [])
            value = f"{one.name}.{len(appended)}"
            appended.append(value)
            text = f"{ts:010d}.{position:02d}|{value}|{self._dice.getrandbits(4 * filler + 1):x}"
            changes.append((ts, (key, text), 1))
        return changes


def values_of(contents: Counter[Row], key: int) -> tuple[str, ...]:
    """The list of `key`, as it was read."""
    texts = sorted(row[1] for row, count in contents.items() if row[0] == key for _ in range(count))
    return tuple(text.split("|")[1] for text in texts)


async def read_split(node: Node, dice: Random, reader: Reader, read_ts: int) -> Counter[Row]:
    """The contents at `read_ts`: a snapshot there, or one at an earlier time and a listen from that on."""
    since = int(reader.since)
    split = dice.randint(min(since, read_ts), read_ts)
    if split == read_ts or dice.random() < 0.3:
        return await read_snapshot(node, reader, read_ts)
    listen = await reader.subscribe(Timestamp(split))
    contents: Contents = Counter()
    try:
        while True:
            try:
                event = await anext(listen)
            except ExternalError:
                await node.process.clock.sleep(0.2)
                continue
            for updates in event.updates:
                add(contents, updates)
            if event.progress > read_ts:
                break
    finally:
        await listen.aclose()
    total: Counter[Row] = Counter()
    for (row, time), count in contents.items():
        if time <= read_ts:
            total[row] += count
    return without_zeros(total)


async def transact_plain(node: Node, dice: Random, shard: ShardId, places: tuple[ShardId, ...]) -> None:
    """Transactions over the lists of one shard: read at the upper, append at it."""
    lists = Lists(node, dice, places)
    while not node.done:
        writer = await node.stubbornly(lambda: node.client.open_writer(shard, SCHEMA, purpose="lists"))
        reader = await node.stubbornly(lambda: node.client.open_reader(shard, SCHEMA, purpose="lists"))
        try:
            while not node.done and dice.random() > 0.05:
                await node.idle(dice, 0.3)
                one, reads, appends = lists.begin((shard,))
                node.env.ledger.transactions.append(one)
                one.outcome = False
                upper = int(writer.upper)
                if upper > 0:
                    contents = await read_split(node, dice, reader, upper - 1)
                    lists.note_reads(one, shard, reads[shard], contents)
                else:
                    lists.note_reads(one, shard, reads[shard], Counter())
                changes = lists.rows(one, shard, appends.get(shard, []), upper)
                one.outcome = None
                try:
                    result = await writer.compare_and_append(to_updates(changes), Frontier(upper), Frontier(upper + 1))
                except Determinate:
                    one.outcome = False
                    continue
                finish(node, one, not isinstance(result, Mismatch))
        except (ReaderExpired, SinceError) as error:
            if not excused(node, reader, error):
                return
        except ExternalError as error:
            node.log(f"lists: {error!r}")
        await node.stubbornly(reader.expire)


def finish(node: Node, one: Transaction, committed: bool) -> None:
    """Note how `one` ended."""
    one.outcome = committed
    if committed:
        one.ended = node.world.now_s


class Coordinator:
    """What a coordinator does with the transaction log: registers tables, commits, applies, forgets."""

    def __init__(self, node: Node, dice: Random, tables: tuple[ShardId, ...], lists: Lists) -> None:
        assert node.env.txns_shard is not None
        self._node = node
        self._dice = dice
        self._tables = tables
        self._lists = lists
        self._txns = node.env.txns_shard
        self._handles: dict[ShardId, TxnsReadHandle] = {}
        self.writer: TxnsWriter | None = None
        self.reader: TxnsReader | None = None

    async def run(self) -> None:
        """One life: from opening the log to losing it."""
        node = self._node
        self.writer = await TxnsWriter.open(node.client, self._txns)
        self.reader = await TxnsReader.open(node.client, self._txns)
        applying = node.process.spawn(self._apply(self.writer, Random(self._dice.random())), "apply")
        try:
            while not node.done:
                await node.idle(self._dice, 0.25)
                await self._step(self.writer)
        finally:
            applying.cancel()
            await asyncio.wait([applying])
            for handle in self._handles.values():
                await handle.inner.lease.expire_best_effort()
            await self.reader.close()
            await self.writer.close()

    async def _apply(self, writer: TxnsWriter, dice: Random) -> None:
        """In the background, behind the commits, whatever the store does: as coordinators do."""
        node = self._node
        while True:
            await node.idle(dice, 0.3)
            try:
                await writer.apply_le(step_back(writer.upper))
                if dice.random() < 0.2:
                    await writer.compact_to(Timestamp(max(0, int(writer.upper) - 1 - dice.randrange(8))))
            except (ExternalError, ReaderExpired) as error:
                node.log(f"not applied: {error!r}")
            except InternalError as error:
                if "was closed" not in error.message:
                    raise
                return

    async def _step(self, writer: TxnsWriter) -> None:
        dice = self._dice
        registered = {table: SCHEMA for table in self._tables if table in writer.registered}
        missing = {table: SCHEMA for table in self._tables if table not in writer.registered}
        if missing:
            if await writer.register(missing, Timestamp(writer.upper)) is not None:
                await writer._writer.fetch_recent_upper()
            return
        if dice.random() < 0.02:
            await writer.forget([dice.choice(tuple(registered))], Timestamp(writer.upper))
            self._handles.clear()
            return
        await self.transact(writer)

    async def transact(self, writer: TxnsWriter) -> bool:
        """One transaction; whether it was committed."""
        node, dice = self._node, self._dice
        one, reads, appends = self._lists.begin(self._tables)
        node.env.ledger.transactions.append(one)
        one.outcome = False
        ts = int(writer.upper)
        for table, keys in reads.items():
            contents = await bounded(read_split(node, dice, await self._handle(table), ts - 1), PATIENCE_S)
            self._lists.note_reads(one, table, keys, contents)
        writes: dict[ShardId, list[Updates]] = {
            table: [to_updates(self._lists.rows(one, table, keys, ts))] for table, keys in appends.items()
        }
        one.outcome = None
        try:
            late = await writer.commit_at(writes, Timestamp(ts))
        except (BatchTooOld, Determinate, InvalidUsage):
            one.outcome = False
            raise
        finish(node, one, late is None)
        if late is not None:
            if late.upper <= ts - 1:
                node.world.violated(f"{node.name}: {late} for a commit at {ts}")
            await writer._writer.fetch_recent_upper()
        return late is None

    async def _handle(self, table: ShardId) -> TxnsReadHandle:
        assert self.reader is not None
        if table in self._handles and self._dice.random() < 0.1:
            await self._handles.pop(table).expire()
        if table not in self._handles:
            self._handles[table] = await self.reader.open_reader(table, SCHEMA, purpose="lists")
        return self._handles[table]


async def coordinate(node: Node, dice: Random, tables: tuple[ShardId, ...], places: tuple[ShardId, ...]) -> None:
    """Transactions over tables, as one of possibly several coordinators."""
    while not node.done:
        coordinator = Coordinator(node, dice, tables, Lists(node, dice, places))
        try:
            await coordinator.run()
        except BatchTooOld:
            node.world.reached("batch had become too old")
        except (ExternalError, TimeoutError, ReaderExpired, SinceError, InvalidUsage) as error:
            node.log(f"coordinator begins anew: {error!r}")
        except InternalError as error:
            if "was closed" not in error.message:
                raise
        await node.idle(dice, 0.3)


async def read_tables(node: Node, dice: Random, tables: tuple[ShardId, ...]) -> None:
    """Read all tables at one time, and follow them, comparing with the commits: all of each or none of it."""
    env = node.env
    assert env.txns is not None
    assert env.txns_shard is not None
    while not node.done:
        reader = await _open_txns(node, node.client, env.txns_shard)
        try:
            while not node.done and dice.random() > 0.1:
                await node.idle(dice, 0.5)
                await _read_all(node, dice, env.txns, reader, tables)
        except (ExternalError, TimeoutError) as error:
            node.log(f"gave up reading tables: {error!r}")
        except (ReaderExpired, SinceError) as error:
            node.log(f"reads tables anew: {error!r}")
        except InternalError as error:
            if "was closed" not in error.message:
                raise
        await reader.close()


async def _open_txns(node: Node, client: PersistClient, shard: ShardId) -> TxnsReader:
    while True:
        try:
            return await TxnsReader.open(client, shard)
        except (ExternalError, ReaderExpired) as error:
            node.log(f"opens the log again: {error!r}")
            await node.process.clock.sleep(0.5)


async def _read_all(
    node: Node, dice: Random, txns: TxnsHistory, reader: TxnsReader, tables: tuple[ShardId, ...]
) -> None:
    handles = []
    for table in tables:
        if reader.is_registered(table):
            handles.append(await reader.open_reader(table, SCHEMA, purpose="tables"))
    first = max((int(handle.since) for handle in handles), default=0)
    last = int(reader.upper) - 1
    if handles and first <= last:
        as_of = dice.randint(first, last)
        for handle in handles:
            model = TableModel(txns, handle.shard)
            try:
                await bounded(check_contents(node, dice, model, f"table {handle.shard}", handle, as_of), PATIENCE_S)
            except SinceError as error:
                if not excused(node, handle, error):
                    return
        node.world.reached("tables read at one time")
    for handle in handles:
        await handle.expire()


async def follow_table(node: Node, dice: Random, table: ShardId) -> None:
    """A long listen on one table."""
    env = node.env
    assert env.txns is not None
    assert env.txns_shard is not None
    reader = await _open_txns(node, node.client, env.txns_shard)

    async def open_() -> Reader:
        while True:
            try:
                return await reader.open_reader(table, SCHEMA, purpose="follow")
            except ReaderExpired as error:  # the log's, which it opens anew after a loss
                node.log(f"opens {table} again: {error!r}")

    await follow_model(node, dice, TableModel(env.txns, table), open_, f"table {table}")
    await reader.close()
