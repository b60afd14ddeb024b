"""The many ways to read what a shard holds at one time, each compared with the model: as a stream, filtered by
statistics, consolidated over files, counted, by parts that another process fetches.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

from penstock.persist import (
    And,
    Compare,
    Filter,
    IsNull,
    LeasedPart,
    LeaseLost,
    Not,
    Operator,
    Or,
    ReadHandle,
    SinceError,
)
from penstock.runtime import ExternalError, Timestamp, Updates
from sim.actors.rows import Model, Reader, add, by_row, check_snapshot, difference, read_snapshot, restart
from sim.checkers.appends import Row
from sim.checkers.shard import Contents
from sim.environment import Node

_COLUMNS = {"k": 0, "v": 1, "w": 2}
_FETCH_S = 2.0
"""How long whoever planned a read waits for another process to fetch a part."""


async def check_contents(node: Node, dice: Random, model: Model, name: str, reader: Reader, as_of: int) -> None:
    """Read what there is at `as_of`, some way, and compare with the model."""
    way = dice.random()
    if way < 0.4:
        await check_snapshot(node, model, name, reader, as_of)
    elif way < 0.6:
        await _check_filtered(node, dice, model, name, reader, as_of)
    elif way < 0.75:
        await _check_cursor(node, model, name, reader, as_of)
    elif way < 0.85 or not isinstance(reader, ReadHandle):
        await _check_count(node, model, name, reader, as_of)
    else:
        await _check_parts(node, dice, model, name, reader, as_of)


async def _check_filtered(node: Node, dice: Random, model: Model, name: str, reader: Reader, as_of: int) -> None:
    """Rows that pass are all there. The others may be, or not."""
    filter_ = _some_filter(dice, sorted(model.at(as_of)), tuple(reader.schema.names))
    found = await read_snapshot(node, reader, as_of, filter_)
    expected = model.at(as_of)
    passing = Counter({row: count for row, count in found.items() if _passes(filter_, row)})
    wanted = Counter({row: count for row, count in expected.items() if _passes(filter_, row)})
    if passing != wanted:
        node.world.violated(f"{node.name} read {name} at {as_of} where {filter_}: {difference(wanted, passing)}")
    if len(found) < len(expected):
        node.world.reached("filter spared parts")


async def _check_cursor(node: Node, model: Model, name: str, reader: Reader, as_of: int) -> None:
    """Each row comes once."""

    async def once() -> list[Updates]:
        cursor = reader.snapshot_cursor(Timestamp(as_of))
        try:
            return [updates async for updates in cursor]
        finally:
            await cursor.aclose()

    contents: Contents = Counter()
    pieces = await restart(node, once)
    for updates in pieces:
        add(contents, updates)
    found, expected = by_row(contents), model.at(as_of)
    if found != expected:
        node.world.violated(f"{node.name}'s cursor on {name} at {as_of}: {difference(expected, found)}")
    rows = sum(len(updates) for updates in pieces)
    if rows != len(expected):
        node.world.violated(f"{node.name}'s cursor on {name} at {as_of}: {len(expected)} rows came as {rows}")
    if len(pieces) > 1:
        node.world.reached("cursor went through files")


async def _check_count(node: Node, model: Model, name: str, reader: Reader, as_of: int) -> None:
    count = await restart(node, lambda: reader.count(Timestamp(as_of)))
    expected = model.at(as_of).total()
    if count != expected:
        node.world.violated(f"{node.name} counted {count} rows of {name} at {as_of}; there are {expected}")


async def _check_parts(node: Node, dice: Random, model: Model, name: str, reader: ReadHandle, as_of: int) -> None:
    """Plan here, fetch there, some time later."""
    parts = await restart(node, lambda: reader.snapshot_parts(Timestamp(as_of)))
    others = [other for other in node.env.nodes if other.process.alive and not other.stopping]
    contents: Contents = Counter()
    for part in parts:
        await node.idle(dice, node.env.config.reader_lease_ms / 5000)
        try:
            fetched = await _fetched_by(dice.choice(others), part) or await _stubbornly_fetched(node, part)
        except (LeaseLost, SinceError) as error:
            state = node.env.history(reader.shard).state
            if not state.tombstone and (reader.reader_id in state.readers or isinstance(error, SinceError)):
                node.world.violated(f"{node.name}: {error}, though the reader is alive")
            node.world.reached("leased part lost with its reader")
            return
        add(contents, fetched)
        part.release()
    found, expected = by_row(contents), model.at(as_of)
    if found != expected:
        node.world.violated(f"{node.name} read {name} at {as_of} by parts: {difference(expected, found)}")
    if parts:
        node.world.reached("parts fetched elsewhere")


async def _fetched_by(other: Node, part: LeasedPart) -> Updates | None:
    """What `other` fetches; None when it fails, is stopped or dies."""
    data = part.to_bytes()
    done: list[Updates | LeaseLost | SinceError] = []

    async def fetch() -> None:
        try:
            done.append(await other.client.fetch(data))
        except (LeaseLost, SinceError) as error:
            done.append(error)
        except ExternalError as error:
            other.log(f"did not fetch: {error.message}")

    if not other.process.alive or other.stopping:
        return None
    await asyncio.wait([other.process.spawn(fetch(), "fetch")], timeout=_FETCH_S)
    outcome = done[0] if done else None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _stubbornly_fetched(node: Node, part: LeasedPart) -> Updates:
    return await node.stubbornly(lambda: node.client.fetch(part.to_bytes()))


def _some_filter(dice: Random, rows: list[Row], columns: tuple[str, ...], depth: int = 0) -> Filter:
    kind = dice.random()
    if depth < 2 and kind < 0.4:
        parts = tuple(_some_filter(dice, rows, columns, depth + 1) for _ in range(dice.randint(1, 3)))
        made: list[Filter] = [And(parts), Or(parts), Not(parts[0])]
        return dice.choice(made)
    column = dice.choice(columns)
    if kind > 0.9:
        return IsNull(column)
    near = dice.choice(rows) if rows else (0, "")
    value: Any = _value(near, column)
    if isinstance(value, int):
        value += dice.choice([-1, 0, 0, 1])
    elif isinstance(value, str):
        value = value[: dice.choice([len(value), len(value), 32, 33, 1])]
    return Compare(column, dice.choice(list(Operator)), value)


def _value(row: Row, column: str) -> int | str | None:
    position = _COLUMNS[column]
    return row[position] if position < len(row) else None


def _passes(filter_: Filter, row: Row) -> bool | None:
    """SQL's answer; None for NULL. Written anew, so that it shares no mistake with the product."""
    match filter_:
        case Compare(column, operator, value):
            own: Any = _value(row, column)
            if own is None or value is None:
                return None
            order = (own > value) - (own < value)
            return bool(
                {"=": order == 0, "<>": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[
                    operator.value
                ]
            )
        case IsNull(column):
            return _value(row, column) is None
        case Not(part):
            inner = _passes(part, row)
            return None if inner is None else not inner
        case And(parts):
            answers = [_passes(part, row) for part in parts]
            return False if False in answers else None if None in answers else True
        case Or(parts):
            answers = [_passes(part, row) for part in parts]
            return True if True in answers else None if None in answers else False
    raise AssertionError(f"{filter_} is not one of those that are made here")
