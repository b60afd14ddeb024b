"""Rows of SUBSCRIBE: order of times, the snapshot, progress rows, errors as the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
import pyarrow as pa
import pytest

from penstock.adapter.subscribe import subscribe_desc, subscribe_rows
from penstock.control import SubscribeEvent
from penstock.runtime import DataError, Frontier, Timestamp, Updates
from penstock.sql import RelationDesc, type_named

DATA = RelationDesc.of(("v", type_named("text")))


def updates(*rows: tuple[str, int, int]) -> Updates:
    values, times, diffs = zip(*rows, strict=True) if rows else ((), (), ())
    batch = pa.record_batch([pa.array(list(values), pa.string())], schema=DATA.arrow)
    return Updates(batch, np.array(times, dtype=np.uint64), np.array(diffs, dtype=np.int64))


def collect(
    *events: SubscribeEvent, snapshot: bool = True, progress: bool = False
) -> tuple[list[tuple[object, ...]], list[str]]:
    closed: list[str] = []

    async def stream() -> AsyncGenerator[SubscribeEvent, None]:
        try:
            for event in events:
                yield event
        finally:
            closed.append("closed")

    async def main() -> list[tuple[object, ...]]:
        schema = subscribe_desc(DATA, progress=progress).arrow
        rows = subscribe_rows(stream(), schema, Timestamp(5), snapshot=snapshot, progress=progress)
        return [tuple(row.values()) async for batch in rows for row in batch.to_pylist()]

    return asyncio.run(main()), closed


SNAPSHOT = SubscribeEvent(Frontier(5), Frontier(6), updates(("a", 5, 2)))
LATER = SubscribeEvent(Frontier(6), Frontier(9), updates(("c", 8, 1), ("b", 7, -1)))


def test_times_never_go_down_and_the_stream_is_closed() -> None:
    assert collect(SNAPSHOT, LATER) == ([(5, 2, "a"), (7, -1, "b"), (8, 1, "c")], ["closed"])


def test_without_snapshot_only_later_changes_come() -> None:
    assert collect(SNAPSHOT, LATER, snapshot=False)[0] == [(7, -1, "b"), (8, 1, "c")]


def test_progress_rows_begin_at_the_as_of_and_follow_each_step() -> None:
    assert collect(SNAPSHOT, LATER, progress=True)[0] == [
        (5, True, None, None),
        (5, False, 2, "a"),
        (6, True, None, None),
        (7, False, -1, "b"),
        (8, False, 1, "c"),
        (9, True, None, None),
    ]


def test_an_error_in_the_data_ends_the_stream() -> None:
    error = DataError("division by zero", sqlstate="22012")
    with pytest.raises(DataError, match="division by zero"):
        collect(SNAPSHOT, SubscribeEvent(Frontier(6), Frontier(7), error))


def test_large_changes_come_in_bounded_batches() -> None:
    many = updates(*((str(i), 5 + i % 3, 1) for i in range(20_000)))
    rows, _ = collect(SubscribeEvent(Frontier(5), Frontier(9), many))
    assert len(rows) == 20_000
    times = [int(row[0]) for row in rows]  # type: ignore[call-overload]
    assert times == sorted(times)
