"""Rows of the shards that actors share, and reading with the model at hand."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from penstock.persist import Filter, ReaderExpired, ReadHandle, SinceError
from penstock.persist.txn import TxnsReadHandle
from penstock.runtime import ExternalError, Timestamp, Updates
from sim.checkers.appends import Row, Update, as_row
from sim.checkers.shard import Contents
from sim.environment import Node

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])
WIDE = pa.schema([*SCHEMA, ("w", pa.string())])
"""What plain shards may grow to."""
T = TypeVar("T")
Reader = ReadHandle | TxnsReadHandle


class Model(Protocol):
    """What reads of one shard are compared with."""

    @property
    def upper(self) -> int: ...
    def at(self, as_of: int) -> Counter[Row]: ...
    def between(self, first: int, end: int) -> Contents: ...


@dataclass(frozen=True)
class Narrow:
    """`model`, to readers that do not know the third column."""

    model: Model

    @property
    def upper(self) -> int:
        return self.model.upper

    def at(self, as_of: int) -> Counter[Row]:
        narrow: Counter[Row] = Counter()
        for row, count in self.model.at(as_of).items():
            narrow[row[0], row[1]] += count
        return without_zeros(narrow)

    def between(self, first: int, end: int) -> Contents:
        narrow: Contents = Counter()
        for (row, time), count in self.model.between(first, end).items():
            narrow[(row[0], row[1]), time] += count
        return without_zeros(narrow)


def as_seen_by(reader: Reader, model: Model) -> Model:
    """`model`, as `reader` must see it."""
    return Narrow(model) if len(reader.schema) == len(SCHEMA) else model


def to_updates(changes: Sequence[Update], schema: pa.Schema = SCHEMA) -> Updates:
    columns = [
        pa.array([row[place] if place < len(row) else None for _, row, _ in changes], kind)
        for place, kind in enumerate(schema.types)
    ]
    times = np.array([time for time, _, _ in changes], dtype=np.uint64)
    diffs = np.array([diff for _, _, diff in changes], dtype=np.int64)
    return Updates(pa.RecordBatch.from_arrays(columns, schema=schema), times, diffs)


def add(contents: Contents, updates: Updates) -> None:
    """Sum `updates` into `contents`."""
    columns = [column.to_pylist() for column in updates.rows.columns]
    for row, time, diff in zip(zip(*columns, strict=True), updates.times.tolist(), updates.diffs.tolist(), strict=True):
        contents[as_row(row), time] += diff


def without_zeros(contents: Counter[Any]) -> Counter[Any]:
    return Counter({key: count for key, count in contents.items() if count})


async def read_snapshot(node: Node, reader: Reader, as_of: int, filter_: Filter | None = None) -> Counter[Row]:
    """The contents at `as_of`, going on where the store failed."""
    contents: Contents = Counter()
    snapshot = reader.snapshot(Timestamp(as_of), filter_=filter_)
    try:
        while True:
            try:
                add(contents, await anext(snapshot))
            except StopAsyncIteration:
                break
            except ExternalError:
                node.world.reached("snapshot went on after an error")
                await node.process.clock.sleep(0.2)
    finally:
        await snapshot.aclose()
    return by_row(contents)


async def restart(node: Node, read: Callable[[], Awaitable[T]]) -> T:
    """The result of `read`, begun anew where the store failed."""
    while True:
        try:
            return await read()
        except ExternalError:
            await node.process.clock.sleep(0.2)


def by_row(contents: Contents) -> Counter[Row]:
    total: Counter[Row] = Counter()
    for (row, _), count in contents.items():
        total[row] += count
    return without_zeros(total)


class Follow:
    """A listen that is compared with the model as it goes. `frontier`: everything before it agrees."""

    def __init__(self, node: Node, model: Model, name: str, listen: Any, as_of: int, with_snapshot: bool) -> None:
        self._node = node
        self._model = model
        self._name = name
        self._listen = listen
        self._as_of = as_of if with_snapshot else None
        self._pending: Contents = Counter()
        self.frontier = as_of if with_snapshot else as_of + 1

    async def step(self) -> None:
        """Take one event. Raises what the listen raises."""
        event = await anext(self._listen)
        for updates in event.updates:
            add(self._pending, updates)
        if event.progress > self.frontier:
            self._compare(event.progress)

    def _compare(self, progress: int) -> None:
        found = {key: count for key, count in self._pending.items() if count and key[1] < progress}
        expected: Contents = Counter()
        first = self.frontier
        if self._as_of is not None:
            expected.update({(row, self._as_of): count for row, count in self._model.at(self._as_of).items()})
            first, self._as_of = self._as_of + 1, None
        expected.update(self._model.between(first, progress))
        if found != expected:
            self._node.world.violated(
                f"{self._node.name} listened to {self._name} from {first} up to {progress}: "
                f"{difference(expected, Counter(found))}"
            )
        for key in found:
            del self._pending[key]
        self._pending = without_zeros(self._pending)
        self.frontier = progress

    @property
    def caught_up(self) -> bool:
        """Whether it has seen everything that was committed."""
        return self.frontier >= self._model.upper

    async def aclose(self) -> None:
        await self._listen.aclose()


def difference(expected: Counter[Any], found: Counter[Any]) -> str:
    """What is missing and what is too much, for people."""
    missing = {key: count - found[key] for key, count in expected.items() if found[key] < count}
    extra = {key: count - expected[key] for key, count in found.items() if expected[key] < count}
    return f"missing {missing}, too much {extra}"


async def check_snapshot(node: Node, model: Model, name: str, reader: Reader, as_of: int) -> Counter[Row]:
    """Read at `as_of` and compare with the model."""
    found = await read_snapshot(node, reader, as_of)
    expected = model.at(as_of)
    if found != expected:
        node.world.violated(f"{node.name} read {name} at {as_of}: {difference(expected, found)}")
    return found


async def check_listen(
    node: Node, model: Model, name: str, reader: Reader, as_of: int, until: int, *, with_snapshot: bool = False
) -> None:
    """Listen from `as_of` until everything below `until` was seen, comparing with the model."""
    timestamp = Timestamp(as_of)
    listen = await (reader.subscribe(timestamp) if with_snapshot else reader.listen(timestamp))
    follow = Follow(node, model, name, listen, as_of, with_snapshot)
    try:
        while follow.frontier < until:
            try:
                await follow.step()
            except ExternalError:
                node.world.reached("listen went on after an error")
                await node.process.clock.sleep(0.2)
    finally:
        await follow.aclose()


def excused(node: Node, reader: Reader, error: Exception) -> bool:
    """Whether a reader may fail with `error`: it has expired indeed, or its shard was finalized."""
    history = node.env.history(reader.shard)
    if history.state.tombstone:
        node.world.reached("reader of a finalized shard told so")
        return True
    inner = reader.inner if isinstance(reader, TxnsReadHandle) else reader
    if isinstance(error, ReaderExpired):
        if inner.reader_id in history.state.readers and not isinstance(reader, TxnsReadHandle):
            node.world.violated(f"{node.name}: {error}, but the shard still has it")
        node.world.reached("reader expired and was told so")
        return True
    if isinstance(error, SinceError) and inner.reader_id not in history.state.readers:
        return True
    node.log("".join(traceback.format_exception(error)))
    node.world.violated(f"{node.name} cannot read {reader.shard}: {error!r}")
    return False


async def bounded(call: Any, seconds: float) -> Any:
    """The result of `call`, or `TimeoutError`: a client that loses patience."""
    async with asyncio.timeout(seconds):
        return await call
