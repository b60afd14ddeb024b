"""The stores of a simulated environment, and the unreliable way there.

`ObjectStore` and `LogStore` are the truth: plain dictionaries, changed in one step. A process reaches them through
`ProcessBlob` and `ProcessConsensus`, over a `Network` that decides by seed how long a request and its answer take and
whether they arrive. A request outlives its sender: it may take effect after the sender was told that nobody knows, was
cancelled, frozen or killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

from penstock.persist import SCAN_ALL, CasResult, SeqNo, Versioned
from penstock.persist.store import check_version, truncated_beyond_head
from penstock.runtime import Determinate, Indeterminate
from sim.world import Process, World

T = TypeVar("T")


class Watcher(Protocol):
    """Hears of every effect on the stores, at the moment of the effect."""

    def committed(self, process: Process, key: str, version: Versioned) -> None: ...
    def truncated(self, process: Process, key: str, seqno: int) -> None: ...
    def written(self, process: Process, key: str, size: int) -> None: ...
    def deleted(self, process: Process, key: str, size: int | None) -> None: ...
    def missed(self, process: Process, key: str) -> None: ...


class ObjectStore:
    """Blobs by key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def set(self, key: str, value: bytes) -> None:
        self.objects[key] = bytes(value)

    def delete(self, key: str) -> int | None:
        value = self.objects.pop(key, None)
        return None if value is None else len(value)

    def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        return sorted((key, len(value)) for key, value in self.objects.items() if key.startswith(prefix))


class LogStore:
    """Versions by key, contiguous from the oldest that was not truncated."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Versioned]] = {}

    def head(self, key: str) -> Versioned | None:
        log = self.logs.get(key)
        return log[-1] if log else None

    def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        check_version(key, new)
        head = self.head(key)
        if new.seqno != (-1 if head is None else head.seqno) + 1:
            return CasResult.MISMATCH
        self.logs.setdefault(key, []).append(Versioned(new.seqno, bytes(new.data)))
        return CasResult.COMMITTED

    def scan(self, key: str, from_: int, limit: int) -> list[Versioned]:
        log = self.logs.get(key, [])
        start = max(0, from_ - log[0].seqno) if log else 0
        return log[start : start + limit]

    def truncate(self, key: str, seqno: SeqNo) -> int:
        log = self.logs.get(key)
        if not log or seqno > log[-1].seqno:
            raise truncated_beyond_head(key, seqno, log[-1].seqno if log else None)
        removed = max(0, seqno - log[0].seqno)
        del log[:removed]
        return removed


@dataclass
class FaultRates:
    """Probabilities per request. `unknown_before`: it is lost. `unknown_after`: its answer is. `unknown_late`: it takes
    effect after the sender was told that nobody knows."""

    determinate: float = 0.0
    unknown_before: float = 0.0
    unknown_after: float = 0.0
    unknown_late: float = 0.0
    slow: float = 0.0
    delay_s: float = 0.004
    slow_s: float = 1.0

    def calm(self) -> FaultRates:
        return FaultRates(delay_s=self.delay_s)


class _Fate(Enum):
    FINE = "fine"
    DETERMINATE = "determinate"
    BEFORE = "unknown, not done"
    AFTER = "unknown, done"
    LATE = "unknown, done later"


class _Request:
    __slots__ = ("dropped", "fate")

    def __init__(self, fate: _Fate) -> None:
        self.fate = fate
        self.dropped = False


@dataclass
class Outage:
    """No request of `processes` (None: of anybody) reaches the stores."""

    processes: frozenset[str] | None


@dataclass
class Trap:
    """Springs when its process is about to send a request that begins like this, and is told which; `unanswered`: when
    it has just sent one, which takes effect, and whose answer is lost.
    """

    request: str
    spring: Callable[[str], None]
    unanswered: bool = False


class Network:
    """Carries requests from processes to the stores and answers back."""

    def __init__(self, world: World, rates: FaultRates) -> None:
        self.world = world
        self.rates = rates
        self.outages: list[Outage] = []
        self.traps: dict[str, Trap] = {}
        """By name of the process."""
        self._random = world.random("network")
        self._in_flight: dict[str, dict[_Request, None]] = {}

    async def call(
        self,
        process: Process,
        what: str,
        effect: Callable[[], T],
        outcome: Callable[[T | Exception | None, _Fate], None] | None = None,
    ) -> T:
        """`effect` at the stores, as `process` sees it. `outcome` hears what became of it when its fate is sealed."""
        world, dice = self.world, self._random
        trap = self._sprung(process, what)
        if trap is not None and not trap.unanswered:
            world.log(process.name, f"is about to {what}")
            trap.spring(what)
            await asyncio.sleep(0)  # it goes on from here, if ever
            trap = None
        fate = self._decide(process) if trap is None else _Fate.AFTER
        request = _Request(fate)
        answer = world.loop.create_future()
        flying = self._in_flight.setdefault(process.name, {})
        flying[request] = None

        def finish() -> None:
            flying.pop(request, None)
            if request.dropped:
                world.log(process.name, f"{what}: lost in the crash")
                return
            result: T | None = None
            error: Exception | None = None
            if request.fate not in (_Fate.DETERMINATE, _Fate.BEFORE):
                try:
                    result = effect()
                except Determinate as refused:
                    error = refused
            if outcome is not None:
                outcome(error or result, request.fate)
            if request.fate is not _Fate.FINE:
                world.log(process.name, f"{what}: {request.fate.value}")
            if request.fate is not _Fate.LATE:
                world.loop.call_later(self._delay(), respond, result, error, context=world.context)

        def respond(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if request.fate is _Fate.FINE:
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)
            elif request.fate is _Fate.DETERMINATE:
                answer.set_exception(Determinate(f"simulated: {what} did not happen"))
            else:
                answer.set_exception(Indeterminate(f"simulated: {what} may have happened"))

        delay = self._delay()
        if fate is _Fate.LATE:
            world.loop.call_later(delay, respond, None, None, context=world.context)
            delay += dice.random() * 0.3
        world.loop.call_later(delay, finish, context=world.context)
        if trap is not None:
            trap.spring(what)
        return await answer  # type: ignore[no-any-return]

    def _sprung(self, process: Process, what: str) -> Trap | None:
        trap = self.traps.get(process.name)
        if trap is None or not what.startswith(trap.request) or (trap.unanswered and self._is_cut_off(process)):
            return None
        return self.traps.pop(process.name)

    def crashed(self, process: Process) -> None:
        """Of its requests under way some arrive and some do not."""
        for request in self._in_flight.pop(process.name, {}):
            request.dropped = self._random.random() < 0.5

    def _decide(self, process: Process) -> _Fate:
        dice, rates = self._random.random(), self.rates
        if self._is_cut_off(process):
            return _Fate.DETERMINATE if dice < 0.7 else _Fate.BEFORE
        for fate, rate in (
            (_Fate.DETERMINATE, rates.determinate),
            (_Fate.BEFORE, rates.unknown_before),
            (_Fate.AFTER, rates.unknown_after),
            (_Fate.LATE, rates.unknown_late),
        ):
            if dice < rate:
                return fate
            dice -= rate
        return _Fate.FINE

    def _is_cut_off(self, process: Process) -> bool:
        return any(outage.processes is None or process.name in outage.processes for outage in self.outages)

    def _delay(self) -> float:
        rates, dice = self.rates, self._random.random()
        if dice < rates.slow:
            return self._random.random() * rates.slow_s
        return dice * rates.delay_s


class ProcessBlob:
    """A `Blob` as one process sees it."""

    def __init__(self, process: Process, store: ObjectStore, network: Network, watcher: Watcher) -> None:
        self._process = process
        self._store = store
        self._network = network
        self._watcher = watcher

    async def get(self, key: str) -> bytes | None:
        def effect() -> bytes | None:
            value = self._store.get(key)
            if value is None:
                self._watcher.missed(self._process, key)
            return value

        return await self._network.call(self._process, f"get {key}", effect)

    async def set(self, key: str, value: bytes) -> None:
        def effect() -> None:
            self._store.set(key, value)
            self._network.world.log(self._process.name, f"wrote {key}")
            self._watcher.written(self._process, key, len(value))

        await self._network.call(self._process, f"set {key}", effect)

    async def delete(self, key: str) -> int | None:
        def effect() -> int | None:
            size = self._store.delete(key)
            self._network.world.log(self._process.name, f"deleted {key}")
            self._watcher.deleted(self._process, key, size)
            return size

        return await self._network.call(self._process, f"delete {key}", effect)

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        return await self._network.call(self._process, f"list {prefix}", lambda: self._store.list_prefix(prefix))

    async def close(self) -> None:
        """Nothing to release."""


class ProcessConsensus:
    """A `Consensus` as one process sees it. `on_cas` hears what became of each compare-and-set at the store."""

    def __init__(
        self,
        process: Process,
        store: LogStore,
        network: Network,
        watcher: Watcher,
        on_cas: Callable[[Process, str, Versioned, CasResult | None, str], None] | None = None,
    ) -> None:
        self._process = process
        self._store = store
        self._network = network
        self._watcher = watcher
        self._on_cas = on_cas

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        return await self._network.call(self._process, f"head {key}", lambda: self._store.head(key))

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        def effect() -> CasResult:
            result = self._store.compare_and_set(key, new)
            self._network.world.log(self._process.name, f"cas {key} {new.seqno}: {result.value}")
            if result is CasResult.COMMITTED:
                self._watcher.committed(self._process, key, new)
            return result

        def outcome(result: Any, fate: _Fate) -> None:
            if self._on_cas is not None:
                done = result if isinstance(result, CasResult) else None
                self._on_cas(self._process, key, new, done, fate.name)

        return await self._network.call(self._process, f"cas {key} {new.seqno}", effect, outcome)

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        return await self._network.call(
            self._process, f"scan {key} {from_}", lambda: self._store.scan(key, from_, limit)
        )

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        def effect() -> int:
            removed = self._store.truncate(key, seqno)
            self._network.world.log(self._process.name, f"truncated {key} to {seqno}: {removed}")
            self._watcher.truncated(self._process, key, seqno)
            return removed

        return await self._network.call(self._process, f"truncate {key} {seqno}", effect)

    async def list_keys(self) -> list[str]:
        return await self._network.call(self._process, "list keys", lambda: sorted(self._store.logs))

    async def close(self) -> None:
        """Nothing to release."""
