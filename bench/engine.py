"""How fast the incremental engine is by itself: hydration and small batches, no database around it.

    python bench/engine.py [a] [c] [top] [min] [--scale 1.0]

(a) count and sum by key, 5 million rows, 100,000 keys; (c) orders (1 M) joined with lineitem (4 M), grouped by customer
(100,000); top: the first 10 of 5 million rows; min: one group of 5 million rows whose minimum is retracted. A batch is
1,000 changes, half of them retractions (c: on both sides; min: one retraction). Peak memory is the process's, of one
case per run.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from penstock.dataflow import (
    Aggregate,
    Collection,
    Dataflow,
    Function,
    InputHandle,
    SortKey,
    Worker,
    join,
    reduce,
    top_k,
)
from penstock.runtime import Frontier, Timestamp, Updates

INPUT_ROWS = 1 << 17
BATCHES = 200


class Bench:
    """A worker with one dataflow; measures until the output frontier has passed a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dataflow = Dataflow(name, Timestamp(0))
        self.worker = Worker(on_failure=lambda _, error: sys.exit(repr(error)))
        self.handles: list[InputHandle] = []
        self.frontier = 0
        self.rows = 0

    def input(self, schema: pa.Schema) -> Collection:
        handle, collection = self.dataflow.input("in", schema)
        self.handles.append(handle)
        return collection

    def watch(self, collection: Collection) -> None:
        def on_data(oks: Updates, errs: Updates, frontier: Frontier) -> None:
            assert len(errs) == 0
            self.rows += len(oks)
            self.frontier = frontier

        collection.inspect(on_data)
        self.worker.install(self.dataflow)

    def hydrate(self, tables: list[pa.Table]) -> None:
        total = sum(table.num_rows for table in tables)
        started, started_cpu = time.perf_counter(), time.process_time()
        for handle, table in zip(self.handles, tables, strict=True):
            for batch in table.to_batches(max_chunksize=INPUT_ROWS):
                handle.send(Updates.at(batch, Timestamp(0)))
                self.worker.step()
            handle.advance_to(Frontier(1))
        self._run_past(0)
        seconds = time.perf_counter() - started
        cpu = time.process_time() - started_cpu
        print(
            f"{self.name:6s} initial {total / seconds / 1e6:6.2f} M rows/s ({seconds:.2f} s, CPU {cpu:.2f} s), "
            f"output {self.rows:,} rows"
        )
        started = time.perf_counter()
        while self.worker.step():
            pass
        print(f"{'':6s} merging afterwards {time.perf_counter() - started:.2f} s")

    def batches(self, make: Callable[[int], list[Updates]], count: int = BATCHES) -> None:
        milliseconds: list[float] = []
        of_cpu: list[float] = []
        maintenance = 0.0
        self.rows = 0
        for at in range(1, count + 1):
            parts = make(at)
            started, started_cpu = time.perf_counter(), time.thread_time()
            for handle, updates in zip(self.handles, parts, strict=True):
                handle.send(updates)
                handle.advance_to(Frontier(at + 1))
            self._run_past(at)
            of_cpu.append((time.thread_time() - started_cpu) * 1e3)
            milliseconds.append((time.perf_counter() - started) * 1e3)
            started = time.perf_counter()
            while self.worker.step():
                pass
            maintenance += time.perf_counter() - started
        p50, p95, worst = np.percentile(milliseconds, [50, 95, 100])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{'':6s} batch p50 {p50:.2f} ms (CPU {np.median(of_cpu):.2f}), p95 {p95:.2f} ms, max {worst:.2f} ms, "
            f"{self.rows / count:.0f} changes out; maintenance {maintenance / count * 1e3:.2f} ms per batch; "
            f"peak {peak:.2f} GB"
        )

    def _run_past(self, at: int) -> None:
        while self.frontier <= at:
            self.worker.step()


def changes(
    table: pa.Table, rng: np.random.Generator, at: int, count: int, fresh: Callable[[int], pa.RecordBatch]
) -> Updates:
    """`count` changes at time `at`: half retract rows of `table`, half insert new ones."""
    old = table.take(rng.integers(0, table.num_rows, count // 2)).combine_chunks().to_batches()[0]
    return Updates.concat([Updates.at(old, Timestamp(at), -1), Updates.at(fresh(count // 2), Timestamp(at))])


def case_a(scale: float) -> None:
    rng = np.random.default_rng(1)
    rows, keys = int(5_000_000 * scale), int(100_000 * scale)
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    table = pa.table([rng.integers(0, keys, rows), rng.integers(0, 1000, rows)], schema=schema)
    bench = Bench("a")
    aggregates = [Aggregate(Function.COUNT), Aggregate(Function.SUM, 1)]
    bench.watch(reduce(bench.input(schema), [0], aggregates))
    bench.hydrate([table])

    def fresh(count: int) -> pa.RecordBatch:
        return pa.record_batch([rng.integers(0, keys, count), rng.integers(0, 1000, count)], schema=schema)

    bench.batches(lambda at: [changes(table, rng, at, 1000, fresh)])


def case_c(scale: float) -> None:
    rng = np.random.default_rng(2)
    orders, lines, customers = int(1_000_000 * scale), int(4_000_000 * scale), int(100_000 * scale)
    order_schema = pa.schema([("o_orderkey", pa.int64()), ("o_custkey", pa.int64())])
    line_schema = pa.schema([("l_orderkey", pa.int64()), ("l_quantity", pa.int64()), ("l_price", pa.int64())])
    order_table = pa.table([np.arange(orders), rng.integers(0, customers, orders)], schema=order_schema)
    line_table = pa.table(
        [rng.integers(0, orders, lines), rng.integers(1, 50, lines), rng.integers(1, 10**6, lines)], schema=line_schema
    )
    bench = Bench("c")
    joined = join(bench.input(order_schema), bench.input(line_schema), [0], [0], columns=[1, 3, 4])
    aggregates = [Aggregate(Function.COUNT), Aggregate(Function.SUM, 1), Aggregate(Function.SUM, 2)]
    bench.watch(reduce(joined, [0], aggregates))
    bench.hydrate([order_table, line_table])

    def fresh_orders(count: int) -> pa.RecordBatch:
        return pa.record_batch([rng.integers(0, orders, count), rng.integers(0, customers, count)], schema=order_schema)

    def fresh_lines(count: int) -> pa.RecordBatch:
        columns = [rng.integers(0, orders, count), rng.integers(1, 50, count), rng.integers(1, 10**6, count)]
        return pa.record_batch(columns, schema=line_schema)

    # no order is taken back twice: an order has one row
    permuted = rng.permutation(orders)

    def make(at: int) -> list[Updates]:
        gone = order_table.take(permuted[at * 250 : (at + 1) * 250]).combine_chunks().to_batches()[0]
        order_changes = Updates.concat(
            [Updates.at(gone, Timestamp(at), -1), Updates.at(fresh_orders(250), Timestamp(at))]
        )
        return [order_changes, changes(line_table, rng, at, 500, fresh_lines)]

    bench.batches(make)


def case_top(scale: float) -> None:
    rng = np.random.default_rng(3)
    rows = int(5_000_000 * scale)
    schema = pa.schema([("id", pa.int64()), ("score", pa.int64())])
    table = pa.table([np.arange(rows), rng.integers(0, 10**9, rows)], schema=schema)
    bench = Bench("top")
    bench.watch(top_k(bench.input(schema), [], [SortKey(1, descending=True)], 10))
    bench.hydrate([table])
    permuted = rng.permutation(rows)

    def make(at: int) -> list[Updates]:
        gone = table.take(permuted[at * 500 : (at + 1) * 500]).combine_chunks().to_batches()[0]
        new = pa.record_batch([np.arange(500) + rows + at * 500, rng.integers(0, 10**9, 500)], schema=schema)
        return [Updates.concat([Updates.at(gone, Timestamp(at), -1), Updates.at(new, Timestamp(at))])]

    bench.batches(make)


def case_min(scale: float) -> None:
    rng = np.random.default_rng(4)
    rows = int(5_000_000 * scale)
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    values = rng.permutation(rows)
    table = pa.table([np.zeros(rows, np.int64), values], schema=schema)
    bench = Bench("min")
    bench.watch(reduce(bench.input(schema), [0], [Aggregate(Function.MIN, 1)]))
    bench.hydrate([table])

    def make(at: int) -> list[Updates]:
        gone = pa.record_batch([np.zeros(1, np.int64), np.array([at - 1])], schema=schema)
        return [Updates.at(gone, Timestamp(at), -1)]

    bench.batches(make)


CASES = {"a": case_a, "c": case_c, "top": case_top, "min": case_min}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    for name in arguments.cases or CASES:
        CASES[name](arguments.scale)


if __name__ == "__main__":
    main()
