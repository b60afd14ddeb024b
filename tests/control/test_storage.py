"""The storage controller over real shards: holds, durable sinces, fencing, drops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pyarrow as pa
import pytest

from penstock.control.holds import SinceError
from penstock.control.specs import CollectionSpec
from penstock.control.storage import READER_ID, RETAIN_MS, CoordinatorFenced, StorageController
from penstock.persist import MemBlob, MemConsensus, PersistClient, WriteHandle, new_shard_id
from penstock.runtime import Frontier, GlobalId, Updates, VirtualClock
from penstock.storage import view_schema

SCHEMA = pa.schema([("a", pa.int64())])
TABLE, VIEW = GlobalId("u1"), GlobalId("u2")


class Harness:
    """A coordinator's stores and clock; `txns` stands in for the transactions' frontier."""

    def __init__(self) -> None:
        self.client = PersistClient(MemBlob(), MemConsensus())
        self.clock = VirtualClock()
        self.txns = SimpleNamespace(upper=Frontier(0))
        self.shards = {TABLE: new_shard_id(), VIEW: new_shard_id()}
        self.fenced: list[CoordinatorFenced] = []

    async def controller(self, epoch: int = 1) -> StorageController:
        controller = await StorageController.open(
            self.client, self.txns, epoch, clock=self.clock, on_fenced=self.fenced.append
        )
        await controller.create_collections(
            [
                CollectionSpec(TABLE, self.shards[TABLE], SCHEMA, True),
                CollectionSpec(VIEW, self.shards[VIEW], SCHEMA, False),
            ]
        )
        return controller

    async def writer(self) -> WriteHandle:
        return await self.client.open_writer(self.shards[VIEW], view_schema(SCHEMA), purpose="test")

    async def durable(self, id_: GlobalId) -> Frontier:
        handle = await self.client.open_since(self.shards[id_], READER_ID, purpose="test")
        return handle.since

    async def ticks(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Let seconds pass until `condition` holds."""
        async with asyncio.timeout(20):
            while not await condition():
                self.clock.advance(1.0)
                await asyncio.sleep(0.002)


def run(body: Callable[[Harness], Awaitable[None]]) -> None:
    async def main() -> None:
        harness = Harness()
        async with asyncio.timeout(30):
            await body(harness)
        await harness.client.close()

    asyncio.run(main())


def empty() -> Updates:
    return Updates.empty(view_schema(SCHEMA))


def test_sinces_follow_uppers_only_after_initialization() -> None:
    async def body(harness: Harness) -> None:
        controller = await harness.controller()
        harness.txns.upper = Frontier(90_000)
        writer = await harness.writer()
        await writer.compare_and_append(empty(), Frontier(0), Frontier(50_000))
        for _ in range(5):
            harness.clock.advance(1.0)
            await asyncio.sleep(0.002)
        assert controller.frontiers(TABLE).since == controller.frontiers(VIEW).since == 0
        controller.initialization_complete()

        async def followed() -> bool:
            return (
                await harness.durable(TABLE) == 90_000 - RETAIN_MS and await harness.durable(VIEW) == 50_000 - RETAIN_MS
            )

        await harness.ticks(followed)
        assert controller.frontiers(VIEW).upper == 50_000
        assert controller.frontiers(TABLE).upper == 90_000
        await controller.close()

    run(body)


def test_a_hold_keeps_the_durable_since_back() -> None:
    async def body(harness: Harness) -> None:
        controller = await harness.controller()
        hold = controller.acquire_hold(TABLE, Frontier(70))
        controller.initialization_complete()
        harness.txns.upper = Frontier(90_000)

        async def at(since: int) -> bool:
            return await harness.durable(TABLE) == since

        await harness.ticks(lambda: at(70))
        with pytest.raises(SinceError):
            controller.acquire_hold(TABLE, Frontier(69))
        hold.release()
        await harness.ticks(lambda: at(90_000 - RETAIN_MS))
        await controller.close()

    run(body)


def test_a_new_coordinator_fences_the_old_one() -> None:
    async def body(harness: Harness) -> None:
        old = await harness.controller(epoch=1)
        old.initialization_complete()
        new = await harness.controller(epoch=2)
        harness.txns.upper = Frontier(90_000)

        async def reported() -> bool:
            return bool(harness.fenced)

        await harness.ticks(reported)
        assert await harness.durable(TABLE) == 0
        with pytest.raises(CoordinatorFenced, match="superseded by 2"):
            await harness.controller(epoch=1)
        await old.close()
        await new.close()
        assert len(harness.fenced) == 1

    run(body)


def test_a_dropped_collection_goes_with_its_last_hold() -> None:
    async def body(harness: Harness) -> None:
        controller = await harness.controller()
        controller.initialization_complete()
        hold = controller.acquire_hold(VIEW)
        await controller.drop_collections([VIEW])
        with pytest.raises(KeyError):
            controller.acquire_hold(VIEW)
        writer = await harness.writer()
        for _ in range(5):
            harness.clock.advance(1.0)
            await asyncio.sleep(0.002)
        assert await writer.compare_and_append(empty(), Frontier(0), Frontier(5)) is None
        hold.release()

        async def finalized() -> bool:
            reader = await harness.client.open_reader(harness.shards[VIEW], view_schema(SCHEMA), purpose="test")
            return reader.upper > 5

        await harness.ticks(finalized)
        await controller.close()

    run(body)


def test_a_view_without_contents_begins_at_its_as_of() -> None:
    async def body(harness: Harness) -> None:
        controller = await harness.controller()
        await controller.begin_at(VIEW, Frontier(40))
        assert controller.frontiers(VIEW).since == 40
        assert await harness.durable(VIEW) == 40
        writer = await harness.writer()
        await writer.compare_and_append(empty(), Frontier(0), Frontier(60))

        async def watched() -> bool:
            return controller.frontiers(VIEW).upper == 60

        await harness.ticks(watched)
        await controller.begin_at(VIEW, Frontier(50))
        assert controller.frontiers(VIEW).since == 40
        await controller.close()

    run(body)


def test_closing_leaves_the_durable_sinces_alone() -> None:
    async def body(harness: Harness) -> None:
        controller = await harness.controller()
        hold = controller.acquire_hold(TABLE, Frontier(70))
        controller.initialization_complete()
        harness.txns.upper = Frontier(90_000)
        await controller.stop_following()
        hold.release()
        await controller.close()
        assert await harness.durable(TABLE) <= 70

    run(body)
