"""The simulated event loop: virtual time, seeded order, domains."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any

import pytest

from sim.loop import DOMAIN, Domain, SimLoop, Stuck


def run(main: Coroutine[Any, Any, Any], seed: int = 0, **options: Any) -> Any:
    loop = SimLoop(seed, **options)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def spawn(domain: Domain, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    context = copy_context()
    context.run(DOMAIN.set, domain)
    return asyncio.get_running_loop().create_task(coro, context=context)


async def finishing_order(count: int) -> list[int]:
    order: list[int] = []

    async def one(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(count)))
    return order


def test_a_virtual_hour_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run(main()) >= 3600
    assert time.monotonic() - started < 60


def test_the_seed_decides_the_order() -> None:
    orders = {tuple(run(finishing_order(6), seed)) for seed in range(20)}
    assert len(orders) > 10
    assert run(finishing_order(6), 3) == run(finishing_order(6), 3)
    assert run(finishing_order(6), 3, shuffled=False) == list(range(6))


def test_sets_of_tasks_are_iterated_in_an_order_of_their_own() -> None:
    async def main() -> list[int]:
        tasks = {asyncio.ensure_future(asyncio.sleep(0, number)) for number in range(50)}
        await asyncio.wait(tasks)
        return [task.result() for task in tasks]

    assert run(main()) == run(main())


def test_structured_concurrency_works() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def forever() -> None:
            try:
                await asyncio.sleep(1e9)
            finally:
                seen.append("cancelled")

        async def fails() -> None:
            await asyncio.sleep(1)
            raise ValueError("on purpose")

        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forever())
                tasks.create_task(fails())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        assert await asyncio.get_running_loop().run_in_executor(None, lambda: 7) == 7
        return seen

    assert run(main()) == ["cancelled"]


def test_a_frozen_domain_stands_still_and_goes_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        ticks: list[float] = []

        async def tick() -> None:
            while len(ticks) < 20:
                await asyncio.sleep(1)
                ticks.append(loop.time())

        domain = Domain("frozen")
        task = spawn(domain, tick())
        await asyncio.sleep(5.5)
        loop.freeze(domain)
        await asyncio.sleep(100)
        assert len(ticks) == 5
        loop.thaw(domain)
        await task
        assert ticks[5] > 105, "the timer that came due meanwhile fires late"

    run(main())


def test_a_killed_domain_runs_nothing_any_more_not_even_clean_up() -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        seen: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(10)
                seen.append("went on")
            finally:
                seen.append("cleaned up")

        domain = Domain("killed")
        task = spawn(domain, work())
        await asyncio.sleep(1)
        loop.kill(domain)
        task.cancel()
        await asyncio.sleep(100)
        return list(seen)

    assert run(main()) == []


def test_nothing_left_to_happen_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck, match="nothing is ready"):
        run(main())


def test_spinning_for_ever_is_an_error() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="no end"):
        run(main(), steps_max=1000)


def test_an_error_in_a_callback_ends_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(ZeroDivisionError):
        run(main())
