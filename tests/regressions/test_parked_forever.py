"""A worker with nothing to do parks with a bound, and what arrives while it is about to park ends the park at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pyarrow as pa
import pytest

from penstock.dataflow import Dataflow, Worker
from penstock.dataflow import worker as worker_module
from penstock.runtime import Frontier, Timestamp, Updates

SCHEMA = pa.schema([("a", pa.int64())])
DEADLINE_S = 3.0


def ends(work: Callable[[], object]) -> bool:
    """Whether `work` ends on a thread of its own, in time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    return not thread.is_alive()


def test_a_stopped_worker_ends_although_nobody_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever polls something that activates nothing is asked again after the bound."""
    monkeypatch.setattr(worker_module, "_PARK_SECONDS_MAX", 0.05)
    worker, stop, idle = Worker(), threading.Event(), threading.Event()
    plain_park = worker.park

    def park(timeout: float | None) -> None:
        idle.set()
        plain_park(timeout)

    monkeypatch.setattr(worker, "park", park)

    def stop_once_it_is_parked() -> None:
        idle.wait(DEADLINE_S)
        stop.set()

    threading.Thread(target=stop_once_it_is_parked, daemon=True).start()
    assert ends(lambda: worker.run(stop))


@pytest.mark.parametrize("source", ["input", "frontier", "call", "activate"])
def test_what_arrives_before_the_park_ends_it(source: str) -> None:
    worker, dataflow = Worker(), Dataflow("test", Timestamp(0))
    feed, collection = dataflow.input("in", SCHEMA)
    seen: list[Frontier] = []
    collection.inspect(lambda oks, errs, frontier: seen.append(frontier))
    worker.install(dataflow)
    while worker.step():
        pass
    worker.park(0)  # nothing is pending any more
    match source:
        case "input":
            feed.send(Updates.at(pa.record_batch([pa.array([1], pa.int64())], schema=SCHEMA), Timestamp(1)))
        case "frontier":
            feed.advance_to(Frontier(5))
        case "call":
            worker.call(lambda: None)
        case "activate":
            worker.activate()
    assert ends(lambda: worker.park(3600.0))
