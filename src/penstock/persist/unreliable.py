"""Stores that fail on purpose, by a seed: each call happens or not, and its answer arrives or not."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from penstock.persist.store import SCAN_ALL, Blob, CasResult, Consensus, SeqNo, Versioned
from penstock.runtime import Determinate, Indeterminate

T = TypeVar("T")


class Faults:
    """Decides the fate of each call. The probabilities may be changed while a test runs.

    `seed`: a number, or a source that a simulation shares. `happens`: probability that the call takes effect.
    `answer_lost`: probability that its outcome is not reported, which is `Indeterminate`. A call that does not happen
    and says so is `Determinate`. `injected` counts the calls that failed on purpose.
    """

    def __init__(self, seed: int | random.Random, happens: float, answer_lost: float) -> None:
        self._random = seed if isinstance(seed, random.Random) else random.Random(seed)
        self.happens = happens
        self.answer_lost = answer_lost
        self.injected = 0

    def totally_available(self) -> None:
        """From now on every call happens and is answered."""
        self.partially_available(1, 0)

    def totally_unavailable(self) -> None:
        """From now on no call happens, and none is answered."""
        self.partially_available(0, 1)

    def partially_available(self, happens: float, answer_lost: float) -> None:
        self.happens, self.answer_lost = happens, answer_lost

    async def call(self, what: str, operation: Callable[[], Awaitable[T]]) -> T:
        happens = self._random.random() < self.happens
        lost = self._random.random() < self.answer_lost
        if happens and not lost:
            return await operation()
        self.injected += 1
        if happens:
            await operation()
        if lost:
            raise Indeterminate(f"injected: the answer to {what} was lost")
        raise Determinate(f"injected: {what} did not happen")


class UnreliableBlob:
    """A `Blob` that fails by chance around `inner`; `faults` says how often."""

    def __init__(
        self, inner: Blob, seed: int | random.Random, *, happens: float = 0.95, answer_lost: float = 0.05
    ) -> None:
        self._inner = inner
        self.faults = Faults(seed, happens, answer_lost)

    async def get(self, key: str) -> bytes | None:
        return await self.faults.call(f"get {key}", lambda: self._inner.get(key))

    async def set(self, key: str, value: bytes) -> None:
        await self.faults.call(f"set {key}", lambda: self._inner.set(key, value))

    async def delete(self, key: str) -> int | None:
        return await self.faults.call(f"delete {key}", lambda: self._inner.delete(key))

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        return await self.faults.call(f"list {prefix}", lambda: self._inner.list_prefix(prefix))

    async def close(self) -> None:
        await self._inner.close()


class UnreliableConsensus:
    """A `Consensus` that fails by chance around `inner`; `faults` says how often."""

    def __init__(
        self, inner: Consensus, seed: int | random.Random, *, happens: float = 0.95, answer_lost: float = 0.05
    ) -> None:
        self._inner = inner
        self.faults = Faults(seed, happens, answer_lost)

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        return await self.faults.call(f"head {key}", lambda: self._inner.head(key, linearized=linearized))

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        return await self.faults.call(f"cas {key}", lambda: self._inner.compare_and_set(key, new))

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        return await self.faults.call(f"scan {key}", lambda: self._inner.scan(key, from_, limit))

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        return await self.faults.call(f"truncate {key}", lambda: self._inner.truncate(key, seqno))

    async def list_keys(self) -> list[str]:
        return await self.faults.call("list keys", self._inner.list_keys)

    async def close(self) -> None:
        await self._inner.close()
