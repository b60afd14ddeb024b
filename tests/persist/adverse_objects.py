"""An object store with everything that a real one may do to its clients, by a seed.

Requests take a while, overtake each other, are done or not, and lose their answers. A write whose answer was lost may
even be done later, long after its client has been told that nobody knows, and has gone on. Conditions hold at the
moment of the write. Tags repeat when a content does, as those of S3 do, which are hashes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random

from penstock.persist.object_store import Changed, ObjectClient, Tag, Unchanged
from penstock.runtime import Indeterminate


class AdverseObjects:
    """What all clients share."""

    def __init__(self, randomness: random.Random, *, lost: float) -> None:
        self.objects: dict[str, bytes] = {}
        self.randomness = randomness
        self.lost = lost
        self._late: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Wait until the last late write has landed; from then on nothing is lost."""
        self.lost = 0
        while self._late:
            await asyncio.gather(*self._late)

    async def pause(self) -> None:
        for _ in range(self.randomness.choice([0, 1, 2, 3, 5, 20])):
            await asyncio.sleep(0)

    async def fate(self, name: str, write: object) -> bool:
        """Whether the write happens now and is answered. Otherwise raises, and it happens now, later or never."""
        if self.randomness.random() >= self.lost:
            return True
        if self.randomness.random() < 0.5 and callable(write):
            task = asyncio.ensure_future(self._later(write))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        raise Indeterminate(f"nobody knows what became of {name}")

    async def _later(self, write: object) -> None:
        for _ in range(self.randomness.randrange(200)):
            await asyncio.sleep(0)
        assert callable(write)
        try:
            write()
        except Changed:
            return


class AdverseClient(ObjectClient):
    """The store as one process sees it."""

    def __init__(self, shared: AdverseObjects) -> None:
        self.shown = "the adverse store"
        self._shared = shared

    async def get(self, name: str, *, known: Tag | None = None) -> tuple[bytes, Tag] | None:
        await self._shared.pause()
        data = self._shared.objects.get(name)
        await self._shared.fate(name, None)
        await self._shared.pause()
        if data is None:
            return None
        if known is not None and known == _tag(data):
            raise Unchanged(name)
        return data, _tag(data)

    async def put(self, name: str, data: bytes) -> None:
        def write() -> None:
            self._shared.objects[name] = data

        await self._shared.pause()
        await self._shared.fate(name, write)
        write()
        await self._shared.pause()

    async def put_if(self, name: str, data: bytes, expected: Tag | None) -> Tag:
        def write() -> None:
            present = self._shared.objects.get(name)
            if (None if present is None else _tag(present)) != expected:
                raise Changed(name)
            self._shared.objects[name] = data

        await self._shared.pause()
        await self._shared.fate(name, write)
        try:
            write()
        finally:
            await self._shared.pause()
        return _tag(data)

    async def delete(self, name: str) -> None:
        await self._shared.pause()
        await self._shared.fate(name, lambda: self._shared.objects.pop(name, None))
        self._shared.objects.pop(name, None)

    async def list(self, prefix: str) -> list[tuple[str, int]]:
        await self._shared.pause()
        return sorted((name, len(data)) for name, data in self._shared.objects.items() if name.startswith(prefix))

    def close(self) -> None:
        """Nothing to give back."""


def _tag(data: bytes) -> Tag:
    return hashlib.md5(data).hexdigest(), None
