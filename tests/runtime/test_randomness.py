"""Randomness: unpredictable by itself, a function of the seed where a seed was given."""

from __future__ import annotations

import asyncio
import random
import uuid

from penstock.runtime import random_uuid, randomness, seeded


def test_ids_are_random_without_a_seed() -> None:
    assert len({random_uuid() for _ in range(100)}) == 100
    assert random_uuid().version == 4


def test_a_seed_decides_everything_in_its_block() -> None:
    def draw() -> list[object]:
        with seeded(random.Random(7)):
            return [random_uuid(), randomness().random(), random_uuid()]

    assert draw() == draw()
    first = draw()[0]
    assert isinstance(first, uuid.UUID)
    assert first.version == 4


def test_a_seed_reaches_tasks_of_its_block_and_no_others() -> None:
    async def main() -> None:
        async def draw() -> uuid.UUID:
            return random_uuid()

        with seeded(random.Random(7)):
            inside = asyncio.ensure_future(draw())
        outside = asyncio.ensure_future(draw())
        with seeded(random.Random(7)):
            expected = random_uuid()
        assert await inside == expected
        assert await outside != expected

    asyncio.run(main())
