"""Small shards for tests: rows of (key, time, diff), and reading them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.persist import (
    Listen,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    ReadHandle,
    WriteHandle,
)
from penstock.persist.policy import Policy
from penstock.persist.state import LinkedBatch, State
from penstock.runtime import Frontier, Timestamp, Updates

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])
Change = tuple[int, int, int]
"""(key, time, diff)."""
Tally = Counter[tuple[int, int]]
"""(key, time) -> sum of diffs, without zeros."""


def updates(changes: Sequence[Change]) -> Updates:
    keys = [key for key, _, _ in changes]
    rows = pa.record_batch([pa.array(keys, pa.int64()), pa.array([f"v{key}" for key in keys])], schema=SCHEMA)
    times = np.array([time for _, time, _ in changes], dtype=np.uint64)
    return Updates(rows, times, np.array([diff for _, _, diff in changes], dtype=np.int64))


def tally(parts: Sequence[Updates]) -> Tally:
    counts: Tally = Counter()
    for part in parts:
        keys = part.rows.column(0).to_pylist()
        for key, time, diff in zip(keys, part.times.tolist(), part.diffs.tolist(), strict=True):
            counts[key, time] += diff
    return Counter({key: count for key, count in counts.items() if count})


def expected_at(changes: Sequence[Change], as_of: int) -> Tally:
    """What a snapshot at `as_of` must contain."""
    counts: Tally = Counter()
    for key, time, diff in changes:
        if time <= as_of:
            counts[key, as_of] += diff
    return Counter({key: count for key, count in counts.items() if count})


def expected_after(changes: Sequence[Change], as_of: int) -> Tally:
    """What a listen from `as_of` must bring."""
    counts: Tally = Counter()
    for key, time, diff in changes:
        if time > as_of:
            counts[key, time] += diff
    return Counter({key: count for key, count in counts.items() if count})


async def snapshot(reader: ReadHandle, as_of: int) -> Tally:
    return tally([part async for part in reader.snapshot(Timestamp(as_of))])


async def read_until(listen: Listen, upper: int) -> list[Updates]:
    seen: list[Updates] = []
    async for event in listen:
        seen += event.updates
        if event.progress >= upper:
            break
    return seen


async def append(writer: WriteHandle, changes: Sequence[Change], lower: int, upper: int) -> None:
    assert await writer.compare_and_append(updates(changes), Frontier(lower), Frontier(upper)) is None


def client(**config: Any) -> PersistClient:
    return PersistClient(MemBlob(), MemConsensus(), config=PersistConfig(**config))


def most_urgent(policy: Policy, state: State, claimed: frozenset[int] = frozenset()) -> tuple[LinkedBatch, ...]:
    """What `policy` would have merged first; nothing when nothing is due."""
    return next((due.batches for due in policy.due(state, claimed)), ())
