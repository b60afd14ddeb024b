"""appended_memory_is_reused: a caller fills the buffer of his last append with the next rows.

Arrow columns may stand on memory of NumPy's that its owner writes to again. What was appended is what it held at the
time, whoever reads it, and whatever merges it: also where it is kept in memory beside the durable copy.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penstock.persist import Changelog, PersistConfig, new_shard_id

SCHEMA = pa.schema([("n", pa.int64())])
ROWS = 10
APPENDS = 20


@pytest.mark.parametrize("inline_bytes", [0, 32 * 1024], ids=["blobs", "inline"])
@pytest.mark.parametrize("fan_in", [4, 1000], ids=["merged", "as-appended"])
def test_rows_are_those_of_the_moment_of_the_append(tmp_path: Path, inline_bytes: int, fan_in: int) -> None:
    async def main() -> None:
        config = PersistConfig(inline_bytes=inline_bytes, compaction_fan_in=fan_in)
        urls = f"file:{tmp_path}/blob", f"sqlite:{tmp_path}/consensus"
        shard = new_shard_id()
        buffer = np.empty(ROWS, dtype=np.int64)
        async with await Changelog.open(*urls, shard, SCHEMA, config=config) as table:
            for number in range(APPENDS):
                buffer[:] = np.arange(ROWS) + number * ROWS
                await table.append(pa.table([pa.array(buffer)], schema=SCHEMA))
            buffer[:] = -1
            expected = list(range(ROWS * APPENDS))
            assert sorted((await table.read())["n"].to_pylist()) == expected
        async with await Changelog.open(*urls, shard, SCHEMA, config=config) as table:
            assert sorted((await table.read())["n"].to_pylist()) == expected

    asyncio.run(main())
