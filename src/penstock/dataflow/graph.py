"""The dataflow graph: operators, the edges between them, and the handles through which data enters.

A dataflow is a directed acyclic graph of operators that pass `Updates` and frontiers to each other. It is
built once, in topological order, and then only activated.

Contract of an operator

* it sends nothing at a time below its output frontier: consumers have closed those times;
* its output frontier never goes back and passes a time only when all updates at that time have been sent;
* it holds long work as a generator and yields between slices, so that commands and other operators run in
  between;
* with no data, a frontier passes through it without touching its state;
* an exception leaves it as it is: the dataflow freezes with that error and no frontier moves any more,
  because a frontier that moves looks like progress.

Errors are data with times and diffs of their own. They are not needed by the operators between the failing
expression and whoever reads the result, so a collection remembers the operators above it that can fail, and a
sink listens to each of them directly. The frontier of a sink's input covers them too: an operator sends its
errors before it lets go of their time.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from penstock.runtime import DONE, Frontier, Timestamp, Updates

if TYPE_CHECKING:
    from penstock.dataflow.input import InputHandle

ERRORS_SCHEMA = pa.schema([pa.field("sqlstate", pa.string()), pa.field("message", pa.string())])
"""One row per error; its diff counts how many input rows cause it."""

Slices = Iterator[None]
"""Work that yields between slices."""


class Port:
    """One input of one operator: what has arrived and not been taken, and the frontier of its edge."""

    __slots__ = ("frontier", "operator", "queue")

    def __init__(self, operator: Operator, frontier: Frontier) -> None:
        self.operator = operator
        self.queue: list[Any] = []
        self.frontier = frontier

    def take(self) -> list[Any]:
        """Everything that has arrived, in order; the queue is empty afterwards."""
        taken, self.queue = self.queue, []
        return taken


class Operator(ABC):
    """A node. Subclasses implement `activate` and call `send`, `send_errors` and `advance`."""

    def __init__(self, dataflow: Dataflow, name: str, schema: pa.Schema, inputs: Sequence[Operator]) -> None:
        self.dataflow = dataflow
        self.name = name
        self.schema = schema
        self.frontier: Frontier = Frontier(dataflow.as_of)
        self.subscribers: list[Port] = []
        self.error_subscribers: list[Port] = []
        self.ports: list[Port] = []
        for source in inputs:
            if source.dataflow is not dataflow:
                raise ValueError(f"{source.name} belongs to another dataflow than {dataflow.name}")
            port = Port(self, source.frontier)
            source.subscribers.append(port)
            self.ports.append(port)
        self._slices: Slices | None = None
        self.index = dataflow._add(self)
        self.name = f"{dataflow.name}/{self.index}-{name}"

    @abstractmethod
    def activate(self) -> Slices | None:
        """Take what has arrived. Work of bounded size is done at once; the rest is returned as slices."""

    def maintain(self) -> bool:
        """One bounded slice of work that nobody waits for (merging runs). True when there is more."""
        return False

    def run(self) -> bool:
        """One activation or one slice of a started one. True when it is not finished."""
        if self._slices is None:
            self._slices = self.activate()
            if self._slices is None:
                return False
        try:
            next(self._slices)
        except StopIteration:
            self._slices = None
            # What arrived while the slices ran has marked this operator, but that mark may be spent: look
            # again.
            self.dataflow.mark(self)
            return False
        return True

    @property
    def input_frontier(self) -> Frontier:
        """What all inputs have passed."""
        ports = self.ports
        if len(ports) == 1:
            return ports[0].frontier
        return min((port.frontier for port in ports), default=DONE)

    def send(self, message: Updates | Any) -> None:
        """Pass a message to all consumers. Its times are at or beyond this operator's frontier."""
        if isinstance(message, Updates) and len(message) == 0:
            return
        mark = self.dataflow.mark
        for port in self.subscribers:
            port.queue.append(message)
            mark(port.operator)

    def send_errors(self, errors: Updates) -> None:
        """Pass error rows to all sinks below."""
        if len(errors) == 0:
            return
        for port in self.error_subscribers:
            port.queue.append(errors)
            self.dataflow.mark(port.operator)

    def advance(self, frontier: Frontier) -> None:
        """Let go of all times below `frontier`."""
        if frontier <= self.frontier:
            return
        self.frontier = frontier
        mark = self.dataflow.mark
        for port in self.subscribers:
            port.frontier = frontier
            mark(port.operator)

    def listen_errors(self, sources: frozenset[Operator]) -> Port:
        """A port on which the errors of all `sources` arrive. Its frontier is not kept: see the data's."""
        port = Port(self, Frontier(0))
        for source in sources:
            source.error_subscribers.append(port)
        return port


class Collection:
    """A changing collection: the operator that sends its rows and the operators whose errors poison it.

    `schema`: of the rows. Collections are values: building on one does not change it.
    """

    __slots__ = ("errors", "operator")

    def __init__(self, operator: Operator, errors: frozenset[Operator] = frozenset()) -> None:
        self.operator = operator
        self.errors = errors

    @property
    def schema(self) -> pa.Schema:
        return self.operator.schema

    @property
    def dataflow(self) -> Dataflow:
        return self.operator.dataflow

    @staticmethod
    def of(operator: Operator, *sources: Collection, fallible: bool = False) -> Collection:
        """What `operator` makes from `sources`, with their errors and, when `fallible`, its own."""
        errors: frozenset[Operator] = frozenset().union(*(source.errors for source in sources))
        return Collection(operator, errors | {operator} if fallible else errors)

    def inspect(self, on_data: Callable[[Updates, Updates, Frontier], None]) -> None:
        """Call ``on_data(oks, errs, frontier)`` on the worker thread each time the frontier moves.

        `oks` and `errs` are consolidated and hold all updates below `frontier` that earlier calls did not;
        either may be empty. An exception from `on_data` freezes the dataflow.
        """
        from penstock.dataflow.inspect import Inspect

        Inspect(self, on_data)


class Dataflow:
    """One graph. `as_of`: earlier updates count as being at this time. `until`: later ones are dropped.

    `name` appears in operator names and error messages.
    """

    def __init__(self, name: str, as_of: Timestamp, until: Frontier = DONE) -> None:
        self.name = name
        self.as_of = as_of
        self.until = until
        self.operators: list[Operator] = []
        self.inputs: list[InputHandle] = []
        self.error: BaseException | None = None
        self.detached = False
        self.shared: dict[Any, Operator] = {}
        self._wake: Callable[[Dataflow], None] = _nobody
        self._input_ready: Callable[[Operator], None] = _nobody
        self._marked: list[bool] = []
        self._heap: list[int] = []
        self._maintenance: dict[Operator, None] = {}

    def input(
        self, name: str, schema: pa.Schema, *, buffer_bytes_max: int | None = None
    ) -> tuple[InputHandle, Collection]:
        """A door for data. The handle is for the producer, on any thread; the collection is what it sends."""
        from penstock.dataflow.input import InputHandle, InputOperator

        operator = InputOperator(self, name, schema)
        handle = InputHandle(operator, buffer_bytes_max=buffer_bytes_max)
        self.inputs.append(handle)
        return handle, Collection.of(operator, fallible=True)

    def mark(self, operator: Operator) -> None:
        """`operator` has something to look at."""
        index = operator.index
        if not self._marked[index]:
            self._marked[index] = True
            if not self._heap:
                self._wake(self)
            heapq.heappush(self._heap, index)

    def want_maintenance(self, operator: Operator) -> None:
        """`operator.maintain` shall be called while there is nothing more urgent."""
        self._maintenance[operator] = None
        self._wake(self)

    def attach(self, wake: Callable[[Dataflow], None], input_ready: Callable[[Operator], None]) -> None:
        """A worker takes the graph over: `wake` on its own thread, `input_ready` from any."""
        # The callbacks come first: what was sent before is found by the first activation of every operator.
        self._wake, self._input_ready = wake, input_ready
        for operator in self.operators:
            self.mark(operator)
        wake(self)

    def detach(self) -> None:
        """The worker lets go of the graph."""
        self.detached = True
        self._wake = self._input_ready = _nobody

    def input_ready(self, operator: Operator) -> None:
        """An input has something to take. Thread-safe."""
        self._input_ready(operator)

    @property
    def wants_maintenance(self) -> bool:
        return bool(self._maintenance)

    @property
    def active(self) -> bool:
        return bool(self._heap) and self.error is None

    def sweep(self) -> None:
        """Run every marked operator once, in topological order; an unfinished one is marked for the next
        sweep.

        Slices of a long activation thus alternate with the consumption of what they sent. An exception
        freezes the dataflow and is raised to the worker.
        """
        unfinished: list[Operator] = []
        heap, marked = self._heap, self._marked
        last = -1
        while heap:
            if heap[0] <= last:  # marked itself or an earlier one again: that is for the next sweep
                break
            last = heapq.heappop(heap)
            marked[last] = False
            operator = self.operators[last]
            try:
                if operator.run():
                    unfinished.append(operator)
            except BaseException as error:
                self.error = error
                raise
        for operator in unfinished:
            self.mark(operator)

    def maintain(self) -> bool:
        """One slice of background work. True when there is more."""
        if self.error is not None:
            return False
        for operator in list(self._maintenance):
            try:
                if not operator.maintain():
                    del self._maintenance[operator]
            except BaseException as error:
                self.error = error
                raise
            break
        return bool(self._maintenance)

    def _add(self, operator: Operator) -> int:
        self.operators.append(operator)
        self._marked.append(False)
        return len(self.operators) - 1


def _nobody(_: object) -> None:
    """Stands where no worker is attached."""


class Stash:
    """Updates that wait for their times to be closed."""

    __slots__ = ("_parts", "rows")

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, Updates]] = []
        self.rows = 0

    def push(self, updates: Updates) -> None:
        if len(updates):
            self._parts.append((int(updates.times.min()), int(updates.times.max()), updates))
            self.rows += len(updates)

    def closed(self, frontier: Frontier) -> bool:
        """Whether anything waits at a time below `frontier`."""
        return any(first < frontier for first, _, _ in self._parts)

    def take_below(self, frontier: Frontier) -> list[Updates]:
        """Remove and return all updates with times below `frontier`, in order of arrival."""
        taken: list[Updates] = []
        kept: list[tuple[int, int, Updates]] = []
        for first, last, updates in self._parts:
            if last < frontier:
                taken.append(updates)
            elif first >= frontier:
                kept.append((first, last, updates))
            else:
                below = updates.times < np.uint64(frontier)
                taken.append(updates.filter(below))
                rest = updates.filter(~below)
                kept.append((int(rest.times.min()), last, rest))
        self._parts = kept
        self.rows = sum(len(updates) for _, _, updates in kept)
        return taken


def pieces(bundle: list[Updates], rows_max: int) -> list[Updates]:
    """The same updates in batches of about `rows_max`: small ones together, large ones apart."""
    result: list[Updates] = []
    group: list[Updates] = []
    rows = 0
    for updates in bundle:
        for start in range(0, len(updates), rows_max):
            part = updates if len(updates) <= rows_max else updates.slice(start, start + rows_max)
            if rows + len(part) > rows_max and group:
                result.append(Updates.concat(group))
                group, rows = [], 0
            group.append(part)
            rows += len(part)
    if group:
        result.append(Updates.concat(group))
    return result


class StatefulOperator(Operator):
    """Acts on closed times: collects updates until the input frontier passes them, then handles them in one
    bundle.

    Subclasses with one input implement `close(updates, frontier)`.
    """

    def __init__(self, dataflow: Dataflow, name: str, schema: pa.Schema, inputs: Sequence[Operator]) -> None:
        super().__init__(dataflow, name, schema, inputs)
        self.stash = Stash()

    def activate(self) -> Slices | None:
        port = self.ports[0]
        for updates in port.take():
            self.stash.push(updates)
        frontier = port.frontier
        if frontier <= self.frontier:
            return None
        if not self.stash.closed(frontier):
            self.advance(frontier)
            return None
        return self._bundle(self.stash.take_below(frontier), frontier)

    def _bundle(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        yield from self.close(bundle, frontier)
        self.advance(frontier)

    @abstractmethod
    def close(self, bundle: list[Updates], frontier: Frontier) -> Slices:
        """Handle all updates of `bundle` (not empty; times in ``[self.frontier, frontier)``)."""
