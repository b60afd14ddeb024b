"""`World`: what every simulated run consists of, whatever is simulated.

A world has a loop, processes, a trace whose digest identifies the run, counters of rare paths ("sometimes"), and the
first failure, which ends it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import structlog

from penstock.runtime import Timestamp, seeded
from sim.loop import DOMAIN, Domain, Fate, SimLoop

EPOCH_MS = 1_700_000_000_000
"""Wall-clock time at which every run begins."""
TAIL_LINES = 400

_WORLD: ContextVar[World | None] = ContextVar("sim_world", default=None)


class Violation(AssertionError):
    """A property of the system does not hold."""


class Trace:
    """What happened, line by line; the digest covers all lines, even those that are not kept."""

    def __init__(self, lines_max: int | None = TAIL_LINES) -> None:
        self.lines: deque[str] = deque(maxlen=lines_max)
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: str) -> None:
        self.lines.append(line)
        self._hash.update(line.encode() + b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()


class ProcessClock:
    """The clock of one process: the loop's time, off by `skew_ms`."""

    def __init__(self, loop: SimLoop, skew_ms: int) -> None:
        self._loop = loop
        self.skew_ms = skew_ms

    def now_ms(self) -> Timestamp:
        return Timestamp(EPOCH_MS + int(self._loop.time() * 1000) + self.skew_ms)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Process:
    """One simulated process. What it runs is started with `spawn`, and dies with it."""

    def __init__(self, world: World, name: str, skew_ms: int) -> None:
        self.world = world
        self.name = name
        self.clock = ProcessClock(world.loop, skew_ms)
        self.domain = Domain(name)
        self.on_crash: list[Callable[[], None]] = []
        self.busy: Counter[str] = Counter()
        """What it is in the middle of, for the counters of rare paths."""

    @property
    def alive(self) -> bool:
        return self.domain.fate is not Fate.DEAD

    @property
    def frozen(self) -> bool:
        return self.domain.fate is Fate.FROZEN

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `coro` in this process. An exception it ends with fails the run."""
        context = copy_context()
        context.run(DOMAIN.set, self.domain)
        task = self.world.loop.create_task(coro, name=f"{self.name}/{name}", context=context)
        task.add_done_callback(self.world.check_ended)
        return task

    def crash(self) -> None:
        """As SIGKILL: nothing of it runs any more."""
        self.world.log(self.name, "crashes")
        self.world.loop.kill(self.domain)
        for call in self.on_crash:
            call()

    def freeze(self) -> None:
        self.world.log(self.name, "freezes")
        self.world.loop.freeze(self.domain)

    def thaw(self) -> None:
        if self.frozen:
            self.world.log(self.name, "goes on")
            self.world.loop.thaw(self.domain)


class World:
    """See the module. `random(name)`: an independent stream per purpose, so that one does not disturb another."""

    def __init__(self, seed: int, *, shuffled: bool = True, trace_lines: int | None = TAIL_LINES) -> None:
        self.seed = seed
        self.loop = SimLoop(seed, shuffled=shuffled)  # type: ignore[abstract]  # what nobody calls raises
        self.trace = Trace(trace_lines)
        self.sometimes: Counter[str] = Counter()
        self.processes: list[Process] = []
        self._started = 0
        self._streams: dict[str, random.Random] = {}
        self.context = copy_context()
        """In which callbacks that belong to no process run."""

    def random(self, name: str) -> random.Random:
        if name not in self._streams:
            self._streams[name] = random.Random(f"{self.seed}/{name}")
        return self._streams[name]

    @property
    def now_s(self) -> float:
        return self.loop.time()

    @property
    def now_ms(self) -> int:
        """True wall-clock time."""
        return EPOCH_MS + int(self.loop.time() * 1000)

    def log(self, who: str, what: str) -> None:
        self.trace.add(f"{self.loop.time():11.6f} {who:<10} {what}")

    def reached(self, path: str) -> None:
        """Count a rare path."""
        self.sometimes[path] += 1

    def violated(self, message: str) -> None:
        """A checker found something: the run ends with it."""
        self.log("CHECKER", message)
        self.loop.fail(Violation(message))

    def start(self, kind: str, skew_ms: int = 0) -> Process:
        self._started += 1
        process = Process(self, f"{kind}{self._started}", skew_ms)
        self.processes.append(process)
        self.log(process.name, f"starts, its clock off by {skew_ms} ms")
        return process

    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def check_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self.log(task.get_name(), f"ended with {error!r}")
            self.loop.fail(error)

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run `main` to its end, in this world's context. Raises the first failure."""

        def inside() -> None:
            _WORLD.set(self)
            with seeded(self.random("product")), _captured_logs():
                self.context = copy_context()
                try:
                    self.loop.run_until_complete(main())
                finally:
                    self.loop.close()

        copy_context().run(inside)


@contextmanager
def _captured_logs() -> Any:
    """Send what the product logs to the trace of the world that it runs in."""
    before = structlog.get_config()
    structlog.configure(processors=[_to_trace], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def _to_trace(_: Any, level: str, event: Any) -> Any:
    world = _WORLD.get()
    if world is not None:
        domain = DOMAIN.get()
        details = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "exc_info"))
        world.log(domain.name if domain else "-", f"{level}: {event['event']} {details}")
        if event["event"] in ("background task failed", "defect in upkeep"):
            error = event.get("exc_info")
            world.loop.fail(error if isinstance(error, BaseException) else Violation(details))
    raise structlog.DropEvent
