"""The worker and its doors: slices, calls, frozen dataflows, back-pressure, idleness."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import CancelledError

import numpy as np
import pyarrow as pa
import pytest

from penstock.dataflow import (
    ERRORS_SCHEMA,
    Aggregate,
    BatchResult,
    Collection,
    Dataflow,
    Function,
    InputHandle,
    Worker,
    cross_join,
    distinct,
    index,
    map_filter,
    reduce,
    union,
)
from penstock.runtime import DONE, Frontier, InternalError, Timestamp, Updates
from tests.dataflow.oracle import Output, settle, updates

ROW = pa.schema([("x", pa.int64())])


def numbers(count: int, time: int = 0) -> Updates:
    return Updates.at(pa.record_batch([np.arange(count)], schema=ROW), Timestamp(time))


def passing(name: str = "test", as_of: int = 0, until: int = DONE) -> tuple[Dataflow, InputHandle, Collection]:
    dataflow = Dataflow(name, Timestamp(as_of), Frontier(until))
    handle, collection = dataflow.input("in", ROW)
    return dataflow, handle, collection


def explode_at_seven(rows: pa.RecordBatch) -> BatchResult:
    if 7 in rows.column(0).to_pylist():
        raise RuntimeError("seven")
    return BatchResult(rows)


def test_a_broken_operator_freezes_its_dataflow_and_no_other() -> None:
    failures: list[tuple[Dataflow, BaseException]] = []
    worker = Worker(on_failure=lambda dataflow, error: failures.append((dataflow, error)))
    outputs = []
    handles = []
    dataflows = []
    for name in ("broken", "sound"):
        dataflow, handle, collection = passing(name)
        output = Output()
        map_filter(collection, explode_at_seven, ROW).inspect(output)
        worker.install(dataflow)
        outputs.append(output)
        handles.append(handle)
        dataflows.append(dataflow)
    for time, (left, right) in enumerate([(1, 1), (7, 2), (3, 3)]):
        for handle, value in zip(handles, (left, right), strict=True):
            handle.send(updates([((value,), time, 1)], ROW))
            handle.advance_to(Frontier(time + 1))
        settle(worker)
    assert [(dataflow.name, str(error)) for dataflow, error in failures] == [("broken", "seven")]
    assert isinstance(dataflows[0].error, RuntimeError)
    assert outputs[0].frontier == 1, "the frontier of a frozen dataflow passed the time that failed"
    assert outputs[0].oks == [((1,), 0, 1)]
    assert outputs[1].frontier == 3
    assert outputs[1].oks == [((1,), 0, 1), ((2,), 1, 1), ((3,), 2, 1)]


def test_calls_are_served_while_a_dataflow_hydrates() -> None:
    dataflow, handle, collection = passing()
    output = Output()
    pairs = cross_join(collection, collection)
    reduce(pairs, [], [Aggregate(Function.COUNT)]).inspect(output)
    worker = Worker()
    worker.install(dataflow)
    handle.send(numbers(4000))
    handle.close()
    served = 0
    while worker.step():
        if output.frontier == DONE:
            break
        called = worker.call(lambda: 42)
        worker.step()
        assert called.result(timeout=0) == 42
        served += 1
    settle(worker)
    assert output.oks == [((4000 * 4000,), 0, 1)]
    assert served > 3, "16 million pairs were joined in one go"


def test_a_call_that_fails_tells_its_caller_only() -> None:
    worker = Worker()

    def fail() -> None:
        raise KeyError("x")

    failed, fine = worker.call(fail), worker.call(lambda: 1)
    worker.step()
    assert isinstance(failed.exception(timeout=0), KeyError)
    assert fine.result(timeout=0) == 1


def test_run_until_stopped_from_another_thread() -> None:
    dataflow, handle, collection = passing()
    output = Output()
    done = threading.Event()
    distinct(collection).inspect(lambda o, e, f: (output(o, e, f), done.set() if f == DONE else None))  # type: ignore[func-returns-value]
    worker = Worker()
    worker.install(dataflow)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    for time in range(50):
        handle.send(numbers(3, time))
        handle.advance_to(Frontier(time + 1))
    handle.close()
    assert done.wait(30)
    assert worker.call(threading.get_ident).result(timeout=30) == thread.ident
    stop.set()
    worker.activate()
    thread.join(30)
    assert not thread.is_alive()
    assert Counter(row for row, _, _ in output.oks) == Counter({(0,): 1, (1,): 1, (2,): 1})
    with pytest.raises(CancelledError):
        worker.call(lambda: 1).result(timeout=30)


def test_a_full_input_tells_its_producer_to_wait() -> None:
    async def main() -> None:
        dataflow = Dataflow("test", Timestamp(0))
        handle, collection = dataflow.input("in", ROW, buffer_bytes_max=1000)
        output = Output()
        collection.inspect(output)
        worker = Worker()
        worker.install(dataflow)
        assert handle.send(numbers(1))
        assert not handle.send(numbers(1000))
        waiting = asyncio.create_task(handle.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        worker.step()
        await asyncio.wait_for(waiting, 30)
        assert handle.has_room
        assert handle.send(numbers(1))
        await handle.wait_for_room()
        handle.close()
        settle(worker)
        assert sum(diff for _, _, diff in output.oks) == 1002

    asyncio.run(main())


def test_an_update_below_the_frontier_is_refused() -> None:
    dataflow, handle, _ = passing()
    handle.advance_to(Frontier(5))
    handle.advance_to(Frontier(3))
    assert handle.frontier == 5
    with pytest.raises(InternalError, match="an update at 4 came after frontier 5"):
        handle.send(numbers(1, 4))
    assert dataflow.error is None


def test_as_of_and_until_bound_what_a_dataflow_sees() -> None:
    dataflow, handle, collection = passing(as_of=10, until=20)
    output = Output()
    collection.inspect(output)
    worker = Worker()
    worker.install(dataflow)
    handle.send(updates([((1,), 3, 1), ((2,), 12, 1), ((3,), 20, 1)], ROW))
    handle.advance_to(Frontier(20))
    settle(worker)
    assert sorted(output.oks) == [((1,), 10, 1), ((2,), 12, 1)]
    assert output.frontier == DONE, "nothing can come below `until` any more"


def test_what_is_sent_before_installation_is_not_lost() -> None:
    dataflow, handle, collection = passing()
    output = Output()
    collection.inspect(output)
    handle.send(numbers(2))
    handle.close()
    worker = Worker()
    worker.install(dataflow)
    settle(worker)
    assert len(output.oks) == 2


def test_a_dropped_dataflow_runs_no_more() -> None:
    dataflow, handle, collection = passing()
    output = Output()
    collection.inspect(output)
    worker = Worker()
    worker.install(dataflow)
    worker.drop(dataflow)
    worker.drop(dataflow)
    handle.send(numbers(2))
    handle.close()
    settle(worker)
    assert output.oks == []
    assert worker.dataflows == []


def test_errors_of_both_branches_of_a_diamond_count_once() -> None:
    dataflow, handle, collection = passing()
    output = Output()
    union([collection, distinct(collection)]).inspect(output)
    worker = Worker()
    worker.install(dataflow)
    handle.send_errors(updates([(("22012", "division by zero"), 1, 1)], ERRORS_SCHEMA))
    handle.advance_to(Frontier(2))
    settle(worker)
    assert output.errs == [(("22012", "division by zero"), 1, 1)]
    handle.send_errors(updates([(("22012", "division by zero"), 2, -1)], ERRORS_SCHEMA))
    handle.close()
    settle(worker)
    assert output.at(2) == (Counter(), Counter())


def test_a_frontier_without_data_touches_no_state() -> None:
    dataflow, handle, collection = passing()
    output = Output()
    counted = reduce(collection, [0], [Aggregate(Function.COUNT)])
    counted.inspect(output)
    trace = index(counted, [0])
    worker = Worker()
    worker.install(dataflow)
    handle.send(numbers(10))
    handle.advance_to(Frontier(1))
    settle(worker)
    runs = trace._trace.runs
    for operator in dataflow.operators:
        if hasattr(operator, "state"):
            operator.state = None  # any use of it would fail
    for time in range(2, 50):
        handle.advance_to(Frontier(time))
        settle(worker)
    assert dataflow.error is None
    assert (trace.upper, output.frontier) == (49, 49)
    assert trace._trace.runs is runs
