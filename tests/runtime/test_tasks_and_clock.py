"""Owned tasks end with their owner; virtual time moves only when told to."""

from __future__ import annotations

import asyncio

import pytest

from penstock.runtime import TaskOwner, VirtualClock


def test_closing_the_owner_cancels_and_awaits_its_tasks() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    async def main() -> None:
        owner = TaskOwner("test")
        owner.spawn(work(), "work")
        await asyncio.sleep(0)
        await owner.close()
        assert ended == ["cleaned up"]
        with pytest.raises(RuntimeError, match="closed"):
            owner.spawn(work(), "late")

    asyncio.run(main())


def test_a_failed_task_is_reported_once() -> None:
    failures: list[tuple[str, str]] = []

    async def fail() -> None:
        raise ValueError("boom")

    async def main() -> None:
        owner = TaskOwner("test", on_failure=lambda name, error: failures.append((name, str(error))))
        task = owner.spawn(fail(), "fail")
        await asyncio.wait([task])
        await owner.close()

    asyncio.run(main())
    assert failures == [("test/fail", "boom")]


def test_virtual_sleepers_wake_in_order_of_their_deadlines() -> None:
    woken: list[float] = []

    async def main() -> None:
        clock = VirtualClock(now_ms=1000)

        async def sleeper(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(seconds)

        tasks = [asyncio.ensure_future(sleeper(s)) for s in (3, 1, 2)]
        await asyncio.sleep(0)
        assert clock.next_deadline() == 2.0
        clock.advance(2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert woken == [1, 2]
        assert clock.now_ms() == 3000
        clock.advance(1)
        await asyncio.gather(*tasks)
        assert woken == [1, 2, 3]

    asyncio.run(main())
