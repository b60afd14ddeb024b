"""Property 10: a commit to several shards is there as a whole or not at all, for every reader, at every time: while
it is applied to some and not to others, after its writer has died half-way, in the log and out of it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from penstock.persist.txn import TxnsWriter
from penstock.runtime import Timestamp
from tests.persist.txn.cluster import FAST, SCHEMA, Row, cluster, contents, rows, table


@pytest.mark.parametrize("inline_bytes", [32 * 1024, 0])
@pytest.mark.parametrize("seed", range(2))
def test_every_reader_sees_whole_commits(seed: int, inline_bytes: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        async with cluster(config=replace(FAST, inline_bytes=inline_bytes)) as c:
            writer = await c.writer()
            shards = [await table(writer, n + 1) for n in range(3)]
            readers = [await c.reader() for _ in range(2)]
            handles = [[await one.open_reader(shard, SCHEMA, purpose="test") for shard in shards] for one in readers]
            committed: Counter[Row] = Counter()
            by_time: dict[int, Counter[Row]] = {}
            for ts in range(10, 50):
                row = (ts, "same in all")
                assert await writer.commit_at({shard: [rows(ts, row)] for shard in shards}, Timestamp(ts)) is None
                committed[row] += 1
                by_time[ts] = Counter(committed)
                await apply_some(writer, dice)
                if dice.random() < 0.1:
                    writer = await c.writer()  # the other one has died; this one finishes its work
                if dice.random() < 0.4:
                    as_of = dice.randrange(10, ts + 1)
                    for of_process in handles:
                        found = await asyncio.gather(*(contents(handle, as_of) for handle in of_process))
                        assert list(found) == [by_time[as_of]] * 3, f"torn at {as_of}"

    async def apply_some(writer: TxnsWriter, dice: random.Random) -> None:
        """Move the writes of one table into its shard, and not those of the others; or of all; or of none."""
        what = dice.choice(["one", "all", "none", "none"])
        if what == "all":
            await writer.apply_le(Timestamp(100))
        elif what == "one":
            await writer._log.wait_past(Timestamp(writer.upper - 1))
            unapplied = list(writer._log.unapplied_le(Timestamp(100)).values())
            if unapplied:
                await writer._apply_shard(dice.choice(unapplied))

    asyncio.run(main())
