"""A transaction log that comes in several pieces is folded once it is all there: not one piece without the others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from penstock.persist import Batch, ListenEvent, snapshot
from penstock.persist.txn.rows import Write, encode
from penstock.runtime import Frontier, Timestamp
from tests.persist.txn.cluster import FAST, SCHEMA, cluster, contents, rows, table

PIECEMEAL = replace(FAST, prefetch_bytes=1, inline_bytes=0, maintenance=False)


def test_what_was_committed_and_retracted_is_no_longer_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    in_order = snapshot.parts_up_to
    monkeypatch.setattr(snapshot, "parts_up_to", lambda state, as_of: in_order(state, as_of)[::-1])  # in any order

    async def main() -> None:
        async with cluster(config=PIECEMEAL) as c:
            writer = await c.writer()
            a = await table(writer, 1)
            for ts in range(2, 8):
                assert await writer.commit_at({a: [rows(ts, (ts, "x"))]}, Timestamp(ts)) is None
                await writer.apply_le(Timestamp(ts))
            assert await writer.commit_at({}, Timestamp(8)) is None
            again = await c.reader()
            assert again.upper == 9
            assert again.is_registered(a)
            assert again._log.unapplied(a) == []
            handle = await again.open_reader(a, SCHEMA, purpose="test")
            assert await contents(handle, 8) == {(ts, "x"): 1 for ts in range(2, 8)}
            assert handle.upper == Frontier(9)

    asyncio.run(main())


def test_what_comes_before_its_time_waits_for_the_rest_of_it() -> None:
    """A listen that is far behind may bring rows of a later time along with the last ones of an earlier time."""

    async def main() -> None:
        async with cluster(config=FAST) as c:
            writer = await c.writer()
            a = await table(writer, 1)
            log = (await c.reader())._log
            write = Write.new(Batch(a, Frontier(5), Frontier(6), ()))
            early = encode([], [write], Timestamp(7))
            late = encode([write], [], Timestamp(5))
            log._take(ListenEvent([early], Frontier(4)))
            assert log.unapplied(a) == []
            log._take(ListenEvent([late], Frontier(8)))
            assert (log.progress, log.unapplied(a)) == (8, [])

    asyncio.run(main())
