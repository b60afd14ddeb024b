"""A part that cannot be fetched stops whoever reads it: no frontier passes its time before its rows were delivered."""

from __future__ import annotations

import asyncio

import pytest

from penstock.persist import (
    CorruptBlobError,
    InvalidUsage,
    Listen,
    MemBlob,
    MemConsensus,
    PersistClient,
    PersistConfig,
    ReadHandle,
    fetching,
    new_shard_id,
)
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Determinate, ExternalError, Frontier, Timestamp, VirtualClock
from tests.persist.shards import SCHEMA, Change, append, expected_after, expected_at, tally

NO_PATIENCE = PersistConfig(inline_bytes=0, cache_bytes=0, store_retry_ms=0, maintenance=False)


class FailingBlob(MemBlob):
    """The next read fails once, for each entry of `fail`: how many reads go well before it."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: list[int] = []

    async def get(self, key: str) -> bytes | None:
        if self.fail:
            if self.fail[0] == 0:
                self.fail.pop(0)
                raise Determinate("the store is away for a moment")
            self.fail[0] -= 1
        return await super().get(key)


async def filled(blob: MemBlob) -> tuple[PersistClient, ReadHandle, list[Change]]:
    """A shard with one part per time from 0 to 5."""
    client = PersistClient(blob, MemConsensus(), config=NO_PATIENCE)
    shard = new_shard_id()
    writer = await client.open_writer(shard, SCHEMA, purpose="test")
    log = [(time, time, 1) for time in range(6)]
    for change in log:
        await append(writer, [change], change[1], change[1] + 1)
    return client, await client.open_reader(shard, SCHEMA, purpose="test"), log


async def read_stubbornly(listen: Listen, as_of: int, log: list[Change]) -> int:
    """Read to the end of `log`, calling again after every failure, and check each event. Returns the failures."""
    seen, failures = [], 0
    while listen.frontier < len(log):
        try:
            event = await anext(listen)
        except ExternalError:
            failures += 1
            continue
        seen += event.updates
        found, all_ = tally(seen), expected_at(log, as_of) + expected_after(log, as_of)
        missing = [time for (_, time) in all_ - found if time < event.progress]
        assert not missing, f"progress {event.progress} passed rows at {missing} that were not delivered"
    assert tally(seen) == all_
    return failures


@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_a_subscription_that_failed_in_its_snapshot_goes_on_there(good: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "GROUP_ROWS", 1)

    async def main() -> None:
        blob = FailingBlob()
        client, reader, log = await filled(blob)
        blob.fail = [good, 0, 1]
        assert await read_stubbornly(await reader.subscribe(Timestamp(3)), 3, log) == 3
        await client.close()

    asyncio.run(main())


def test_a_listen_that_failed_gives_the_same_event_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "GROUP_ROWS", 1)

    async def main() -> None:
        blob = FailingBlob()
        client, reader, log = await filled(blob)
        blob.fail = [0, 1, 0]
        listen = await reader.listen(Timestamp(0))
        seen = []
        while listen.frontier < 6:
            try:
                event = await anext(listen)
            except ExternalError:
                continue
            seen += event.updates
            assert tally(seen) == expected_after(log[: event.progress], 0)
        assert blob.fail == []
        await client.close()

    asyncio.run(main())


def test_a_damaged_part_is_never_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "GROUP_ROWS", 1)

    async def main() -> None:
        blob = MemBlob()
        client, reader, _ = await filled(blob)
        parts = await blob.list_prefix("")
        await blob.set(parts[2][0], b"no parquet")
        for listen in (await reader.subscribe(Timestamp(5)), await reader.listen(Timestamp(0))):
            for _ in range(8):
                try:
                    event = await anext(listen)
                except (CorruptBlobError, InvalidUsage):  # it says what is wrong, and is closed then
                    continue
                assert event.progress < 6
            assert listen.frontier <= 6
            await listen.aclose()
        await client.close()

    asyncio.run(main())


def test_a_registration_is_not_lost_by_a_log_that_was_opened_in_trouble() -> None:
    async def main() -> None:
        blob, clock = FailingBlob(), VirtualClock(1_000_000)
        client = PersistClient(blob, MemConsensus(), clock=clock, config=NO_PATIENCE)
        log_shard, table = new_shard_id(), new_shard_id()
        writer = await TxnsWriter.open(client, log_shard)
        assert await writer.register({table: SCHEMA}, Timestamp(1)) is None
        await writer.apply_le(Timestamp(1))  # its own log has read what it wrote
        blob.fail = [0]
        opening = asyncio.create_task(TxnsReader.open(client, log_shard))
        async with asyncio.timeout(10):
            while not opening.done():
                clock.advance(0.1)
                await asyncio.sleep(0.001)
        reader = opening.result()
        assert blob.fail == []
        assert reader.upper == Frontier(2)
        assert reader.is_registered(table)
        for opened in (reader, writer, client):
            await opened.close()

    asyncio.run(main())
