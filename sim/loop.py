"""`SimLoop`: an asyncio event loop whose only input is a seed.

* Time is virtual. It moves a little with each callback, and jumps to the next timer when nothing is ready.
* Of all callbacks that are ready, the seed picks the next one. (asyncio promises first come, first served; code that
  leans on that across tasks is fragile, and finding it is part of the purpose.)
* Work for threads runs inline, a little later.
* There is no input or output: a loop with nothing ready and no timer is stuck, which is an error.

Callbacks belong to *domains*, through a context variable that tasks inherit: a simulated process is a domain. A frozen
domain's callbacks wait until it is thawed; a killed domain's callbacks never run again, as those of a process after
SIGKILL. No code of a killed domain runs any more, not even ``finally`` blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import random
import sys
from asyncio import Future, Handle, Task, TimerHandle
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from enum import Enum
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STEP_S = 1e-6
"""What a callback costs in virtual time: enough for time never to stand still."""


class Fate(Enum):
    RUNNING = "running"
    FROZEN = "frozen"
    DEAD = "dead"


class Domain:
    """All callbacks of one simulated process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fate = Fate.RUNNING
        self.parked: list[Handle] = []

    def __repr__(self) -> str:
        return f"Domain({self.name}, {self.fate.value})"


DOMAIN: ContextVar[Domain | None] = ContextVar("sim_domain", default=None)


class Stuck(Exception):
    """Nothing can ever happen again, or far too much happens."""


class SimFuture(Future):  # type: ignore[type-arg]
    """A future whose hash is a number of its own: sets of futures are iterated in an order that memory addresses do
    not decide."""

    def __init__(self, serial: int, loop: SimLoop) -> None:
        self._serial = serial
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._serial


class SimTask(Task):  # type: ignore[type-arg]
    """A task with a hash like `SimFuture`'s."""

    def __init__(self, serial: int, coro: Coroutine[Any, Any, Any], loop: SimLoop, **options: Any) -> None:
        self._serial = serial
        context: Context | None = options.get("context")
        self.domain = DOMAIN.get() if context is None else context.get(DOMAIN)
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.AbstractEventLoop):
    """See the module. `on_error(context)` hears of exceptions in callbacks; by default they end the run."""

    def __init__(self, seed: object, *, shuffled: bool = True, steps_max: int = 5_000_000) -> None:
        self._random = random.Random(f"{seed}/schedule")
        self._shuffled = shuffled
        self._now_s = 0.0
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._serial = 0
        self._steps_max = steps_max
        self._closed = False
        self._running = False
        self._unfinished: dict[int, SimTask] = {}
        self._error: BaseException | None = None
        self.steps = 0

    # Running

    def run_until_complete(self, future: Any) -> Any:
        """Run until `future` is done; returns its result. Raises `Stuck`, or the first error in a callback."""
        task: Future[Any] = asyncio.ensure_future(future, loop=self)
        previous = asyncio._get_running_loop()
        collecting = gc.isenabled()
        gc.disable()  # when an object is collected must not depend on how much memory others use
        asyncio._set_running_loop(self)
        self._running = True
        try:
            while not task.done():
                self._step()
                if self._error is not None:
                    raise self._error
            return task.result()
        finally:
            self._running = False
            asyncio._set_running_loop(previous)
            if collecting:
                gc.enable()

    def _step(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            if not timers:
                raise Stuck(f"nothing is ready and nobody sleeps; unfinished: {self.unfinished()}")
            self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            ready.append(heapq.heappop(timers)[2])
        if self._shuffled and len(ready) > 1:
            index = int(self._random.random() * len(ready))
            ready[index], ready[-1] = ready[-1], ready[index]
            handle = ready.pop()
        else:
            handle = ready.pop(0)
        if handle._cancelled:
            return
        domain = handle._context.get(DOMAIN)  # type: ignore[attr-defined]
        if domain is not None and domain.fate is not Fate.RUNNING:
            if domain.fate is Fate.FROZEN:
                domain.parked.append(handle)
            return
        self.steps += 1
        if self.steps > self._steps_max:
            raise Stuck(f"{self.steps} steps and no end; unfinished: {self.unfinished()}")
        self._now_s += _STEP_S
        handle._run()

    def fail(self, error: BaseException) -> None:
        """End the run with `error` (the first one counts)."""
        if self._error is None:
            self._error = error

    def unfinished(self) -> list[str]:
        """Names of the tasks that have not ended, apart from those of killed domains."""
        tasks = self._unfinished.values()
        return [task.get_name() for task in tasks if task.domain is None or task.domain.fate is not Fate.DEAD]

    def close(self) -> None:
        """Drop everything that has not ended. Its clean-up runs, without effect: nothing can be started any more."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        unfinished, self._unfinished = self._unfinished, {}
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for task in unfinished.values():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):  # a closed loop: whatever its clean-up does is without effect
                    task.get_coro().close()
            unfinished.clear()
        finally:
            sys.unraisablehook = hook

    # Domains

    def freeze(self, domain: Domain) -> None:
        """Stop `domain` until `thaw`; its timers come due all the same, and fire then."""
        domain.fate = Fate.FROZEN

    def thaw(self, domain: Domain) -> None:
        domain.fate = Fate.RUNNING
        self._ready += domain.parked
        domain.parked.clear()

    def kill(self, domain: Domain) -> None:
        """Nothing of `domain` ever runs again."""
        domain.fate = Fate.DEAD
        domain.parked.clear()

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._now_s

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> Handle:
        handle = Handle(callback, args, self, context)
        if not self._closed:
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> TimerHandle:
        return self.call_at(self._now_s + max(0.0, delay), callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> TimerHandle:
        timer = TimerHandle(when, callback, args, self, context)
        if not self._closed:
            heapq.heappush(self._timers, (when, self._next_serial(), timer))
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """Cancelled timers are skipped when they come due."""

    def create_future(self) -> SimFuture:
        return SimFuture(self._next_serial(), self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> Task[Any]:
        serial = self._next_serial()
        task = SimTask(serial, coro, self, name=name or f"task-{serial}", context=context)
        self._unfinished[serial] = task
        task.add_done_callback(self._ended)
        return task

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> Future[T]:
        """Run `func` inline, within a few milliseconds; `executor` is not used."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_later(self._random.random() * 0.004, run)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.fail(error if error is not None else Stuck(str(context.get("message"))))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    async def shutdown_asyncgens(self) -> None:
        """There are none: generators are not tracked."""

    def _ended(self, task: Task[Any]) -> None:
        self._unfinished.pop(hash(task), None)

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial
