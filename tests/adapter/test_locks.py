"""Write locks: shared against exclusive, order of arrival, deadlocks refused, nothing kept after cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from penstock.adapter.locks import TableLocks
from penstock.runtime import SqlError


def run(coro: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coro, 20))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_shared_locks_go_together_and_exclusive_ones_alone() -> None:
    async def main() -> None:
        locks = TableLocks()
        await locks.acquire("a", ["t"], exclusive=False)
        await locks.acquire("b", ["t"], exclusive=False)
        alone = asyncio.ensure_future(locks.acquire("c", ["t"], exclusive=True))
        await settle()
        later = asyncio.ensure_future(locks.acquire("d", ["t"], exclusive=False))
        await settle()
        locks.release("a")
        await settle()
        assert not alone.done()
        locks.release("b")
        await alone
        assert not later.done()  # it came after the exclusive one and does not overtake it
        locks.release("c")
        await later

    run(main())


def test_a_cycle_of_waits_is_refused_and_what_was_held_stays_held() -> None:
    async def main() -> None:
        locks = TableLocks()
        await locks.acquire("a", ["x"], exclusive=True)
        await locks.acquire("b", ["y"], exclusive=True)
        waits = asyncio.ensure_future(locks.acquire("a", ["y"], exclusive=True))
        await settle()
        with pytest.raises(SqlError) as caught:
            await locks.acquire("b", ["x"], exclusive=False)
        assert caught.value.sqlstate == "40P01"
        assert locks.held("b") == {"y"}
        locks.release("b")
        await waits

    run(main())


def test_two_upgrades_of_one_lock_are_a_deadlock_but_one_is_not() -> None:
    async def main() -> None:
        locks = TableLocks()
        for owner in ("a", "b"):
            await locks.acquire(owner, ["t"], exclusive=False)
        queued = asyncio.ensure_future(locks.acquire("c", ["t"], exclusive=True))
        await settle()
        upgrade = asyncio.ensure_future(locks.acquire("a", ["t"], exclusive=True))
        await settle()
        with pytest.raises(SqlError, match="deadlock"):
            await locks.acquire("b", ["t"], exclusive=True)
        locks.release("b")
        await upgrade
        locks.release("a")
        await queued

    run(main())


def test_a_cancelled_wait_lets_the_next_one_through() -> None:
    async def main() -> None:
        locks = TableLocks()
        await locks.acquire("a", ["t"], exclusive=False)
        blocked = asyncio.ensure_future(locks.acquire("b", ["s", "t"], exclusive=True))
        await settle()
        behind = asyncio.ensure_future(locks.acquire("c", ["t"], exclusive=False))
        await settle()
        blocked.cancel()
        await behind
        assert locks.held("b") == frozenset()

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_random_owners_exclude_each_other_and_all_finish(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        locks = TableLocks()

        async def owner(name: int) -> None:
            for _ in range(20):
                with contextlib.suppress(SqlError):  # a deadlock: this owner gives way
                    for _ in range(dice.randint(1, 2)):
                        tables = dice.sample("xyz", dice.randint(1, 3))
                        exclusive = dice.random() < 0.4
                        await locks.acquire(name, tables, exclusive=exclusive)
                        for table in tables:
                            holders = locks._locks[table].holders
                            assert len(holders) == 1 or not any(holders.values())
                        await asyncio.sleep(0)
                locks.release(name)

        await asyncio.gather(*(owner(name) for name in range(8)))
        assert not locks._locks

    run(main())
