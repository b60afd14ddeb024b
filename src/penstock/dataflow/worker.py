"""The worker: one thread that runs dataflows.

Operators are synchronous and never wait for I/O; everything that comes from outside is handed over through
`InputHandle`s, `call` and `activate`, which are thread-safe. A step lasts at most a slice of time, so that
calls (peeks, commands) are served while a dataflow hydrates. Dataflows take turns. One that fails is frozen
and reported; the others go on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

from penstock.dataflow.graph import Dataflow, Operator
from penstock.runtime import Clock, SystemClock

T = TypeVar("T")

_log = structlog.get_logger("penstock.dataflow")

_STEP_SECONDS_MAX = 0.02
_PARK_SECONDS_MAX = 1.0


class Worker:
    """Owns dataflows and runs them on the thread that calls `step` (or `run`).

    `on_failure(dataflow, error)`: called on the worker thread, once per dataflow that freezes.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        on_failure: Callable[[Dataflow, BaseException], None] | None = None,
    ) -> None:
        self._clock = SystemClock() if clock is None else clock
        self._on_failure = on_failure
        self._dataflows: dict[Dataflow, None] = {}
        self._active: dict[Dataflow, None] = {}
        self._maintenance: dict[Dataflow, None] = {}
        self._arrived: deque[Operator] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._event = threading.Event()
        self._closed = False

    @property
    def dataflows(self) -> list[Dataflow]:
        return list(self._dataflows)

    def install(self, dataflow: Dataflow) -> None:
        """Begin to run a complete graph. On the worker thread (or before it starts)."""
        self._dataflows[dataflow] = None
        dataflow.attach(self._wake_dataflow, self._input_ready)
        self.activate()

    def drop(self, dataflow: Dataflow) -> None:
        """Forget a dataflow; its inputs may still be sent to, in vain. On the worker thread. Unknown ones are
        ignored."""
        self._dataflows.pop(dataflow, None)
        self._active.pop(dataflow, None)
        self._maintenance.pop(dataflow, None)
        dataflow.detach()

    def activate(self) -> None:
        """End the present or next `park`. Thread-safe."""
        self._event.set()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the worker thread between two steps. Thread-safe.

        A future cancelled before it starts is not run. After the worker has stopped, the future is cancelled.
        """
        future: Future[T] = Future()
        self._calls.append((function, future))
        if self._closed:
            self._cancel_calls()
        self.activate()
        return future

    def step(self) -> bool:
        """Serve calls, then run active dataflows for a bounded time. True when there is more to do at once."""
        self._serve_calls()
        while self._arrived:
            operator = self._arrived.popleft()
            operator.dataflow.mark(operator)
        idle = not self._active
        deadline = self._clock.monotonic() + _STEP_SECONDS_MAX
        while self._active:
            dataflow = next(iter(self._active))
            del self._active[dataflow]
            self._guard(dataflow, dataflow.sweep)
            if dataflow.active:
                self._active[dataflow] = None  # to the end: dataflows take turns
            elif dataflow.wants_maintenance and dataflow.error is None:
                self._maintenance[dataflow] = None
            if self._calls or self._clock.monotonic() >= deadline:
                break
        if idle and not self._calls and not self._arrived:
            self._maintain_once()  # only when there was nothing else: whoever waits for a step's result has it first
        return bool(self._active or self._maintenance or self._calls or self._arrived)

    def park(self, timeout: float | None) -> None:
        """Sleep until `activate`, at most `timeout` seconds (None: a bounded default)."""
        self._event.wait(_PARK_SECONDS_MAX if timeout is None else timeout)
        self._event.clear()

    def run(self, stop: threading.Event) -> None:
        """Step and park until `stop` is set (and `activate` called). Open calls are then cancelled."""
        try:
            while not stop.is_set():
                if not self.step():
                    self.park(None)
        finally:
            self._closed = True
            self._cancel_calls()

    def _maintain_once(self) -> None:
        if not self._maintenance:
            return
        dataflow = next(iter(self._maintenance))
        del self._maintenance[dataflow]
        self._guard(dataflow, dataflow.maintain)
        if dataflow.wants_maintenance and dataflow.error is None:
            self._maintenance[dataflow] = None

    def _guard(self, dataflow: Dataflow, run: Callable[[], object]) -> None:
        try:
            run()
        except Exception as error:
            _log.error("dataflow frozen", dataflow=dataflow.name, error=repr(error), exc_info=error)
            if self._on_failure is not None:
                self._on_failure(dataflow, error)

    def _serve_calls(self) -> None:
        for _ in range(len(self._calls)):
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _cancel_calls(self) -> None:
        while self._calls:
            try:
                _, future = self._calls.popleft()
            except IndexError:
                return  # another caller was faster
            future.cancel()

    def _wake_dataflow(self, dataflow: Dataflow) -> None:
        if dataflow in self._dataflows and dataflow.error is None:
            self._active[dataflow] = None

    def _input_ready(self, operator: Operator) -> None:
        self._arrived.append(operator)
        self._event.set()
