"""Controllers and real replica processes together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.control.environment import Environment, rows


def run(directory: Path, body: Callable[[Environment], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), Environment(directory, **options) as environment:
            await body(environment)

    asyncio.run(main())


def test_a_view_follows_its_input(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create("u1", "u2")
        await env.write("u1", rows((1, 10, 0, 1), (2, 20, 3, 1)), 5)
        await env.create_view("u2", "u1", 2)
        env.compute.initialization_complete()
        env.storage.initialization_complete()
        await env.written("u2", 5)
        assert await env.contents("u2", 2) == {(1, 10): 1}
        assert await env.contents("u2", 4) == {(1, 10): 1, (2, 20): 1}
        for time in range(5, 30):
            await env.write("u1", rows((time, time, time, 1)), time + 1)
        await env.written("u2", 30)
        assert await env.contents("u2", 29) == await env.contents("u1", 29)
        assert await env.peek_shard("u2", 4) == [(1, 10), (2, 20)]

    run(tmp_path, body)
