"""Interruption: a cancel request or a timeout ends what runs and nothing else; a lost client looks cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

from penstock.adapter.interrupts import Interruptible
from penstock.runtime import SqlError

CANCEL = SqlError("canceling statement due to user request", sqlstate="57014")


def run(coro: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coro, 20))


def test_an_interrupt_ends_the_wait_and_the_next_statement_runs() -> None:
    async def main() -> None:
        ours = Interruptible()
        ours.interrupt(CANCEL)  # nothing runs: nothing happens
        asyncio.get_running_loop().call_soon(lambda: ours.interrupt(CANCEL))
        with pytest.raises(SqlError, match="user request"):
            await ours.run(asyncio.Event().wait(), None)
        assert await ours.run(asyncio.sleep(0, "next"), None) == "next"

    run(main())


def test_a_deadline_is_a_statement_timeout() -> None:
    async def main() -> None:
        ours = Interruptible()
        with pytest.raises(SqlError, match="statement timeout") as caught:
            await ours.run(asyncio.Event().wait(), ours.deadline(0.01))
        assert caught.value.sqlstate == "57014"
        assert ours.deadline(None) is None

    run(main())


def test_a_timeout_of_the_work_itself_is_not_ours() -> None:
    async def main() -> None:
        async def work() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            await Interruptible().run(work(), None)

    run(main())


def test_results_are_interrupted_between_batches_and_closed() -> None:
    async def main() -> None:
        ours = Interruptible()
        closed: list[bool] = []

        async def batches() -> AsyncGenerator[int, None]:
            try:
                yield 1
                yield 2
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        guarded = ours.guard(batches(), None)
        assert [await anext(guarded), await anext(guarded)] == [1, 2]
        asyncio.get_running_loop().call_soon(lambda: ours.interrupt(CANCEL))
        with pytest.raises(SqlError, match="user request"):
            await anext(guarded)
        assert closed == [True]

        left = ours.guard(batches(), None)
        await anext(left)
        await left.aclose()
        assert closed == [True, True]

    run(main())


def test_cancellation_of_the_task_passes_through() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(Interruptible().run(asyncio.Event().wait(), None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
