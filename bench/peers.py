"""The peers: DuckDB recomputing from scratch, Pathway maintaining incrementally.

Each function measures one job in the calling process and returns a `Measured`; `bench.measure` gives each a process
of its own, so that peaks of memory can be told apart.
"""

from __future__ import annotations

import queue
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bench.jobs import Change, Job


@dataclass(frozen=True)
class Measured:
    """`initial_s`: seconds from having the tables in memory to the first whole answer; `batch_ms`: one per batch."""

    initial_s: float
    batch_ms: list[float]
    memory_mb_peak: float
    answer: list[Any]
    """The final answer as sorted (k, n, total): every system must give the same."""


def memory_mb_peak() -> float:
    """Greatest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def duckdb_recompute(job: Job, batches: int) -> Measured:
    """Apply each batch to DuckDB tables and run the whole query again."""
    database = _DuckTables(job)
    started = time.perf_counter()
    database.load()
    database.connection.sql(job.query).to_arrow_table()
    initial_s = time.perf_counter() - started
    batch_ms = []
    for changes in job.batches(batches):
        started = time.perf_counter()
        database.apply(changes)
        database.connection.sql(job.query).to_arrow_table()
        batch_ms.append((time.perf_counter() - started) * 1000)
    answer = database.connection.sql(job.query).fetchall()
    return Measured(initial_s, batch_ms, memory_mb_peak(), sorted((int(k), int(n), int(t)) for k, n, t in answer))


def pathway(job: Job, batches: int) -> Measured:
    """Pathway's streaming engine, fed through its Python connector, read through its subscription.

    Pathway does not say which commit its output shows, so a batch counts as visible when the sums over its output are
    those that DuckDB computes for that batch. Keeping those sums costs the peer a few additions per changed key.
    """
    import pathway as pw

    feeds: dict[str, queue.Queue[list[tuple[bool, dict[str, Any]]] | None]] = {n: queue.Queue(4) for n in job.tables}

    class Feed(pw.io.python.ConnectorSubject):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__()
            self._feed = feeds[name]

        def run(self) -> None:
            while (rows := self._feed.get()) is not None:
                for arrives, row in rows:
                    if arrives:
                        self.next(**row)
                    else:
                        self._remove_inner(None, row)
                self.commit()

    def schema(name: str) -> Any:
        names = _without_id(job.tables[name]).column_names
        return pw.schema_builder({n: pw.column_definition(dtype=int, primary_key=n == "row") for n in names}, name=name)

    tables = {n: pw.io.python.read(Feed(n), schema=schema(n), autocommit_duration_ms=None) for n in job.tables}
    if job.name == "grouped":
        rows = tables["t"].select(pw.this.k, v=pw.this.v)
    else:
        orders, items = tables["orders"], tables["lineitem"]
        rows = items.join(orders, items.order_id == orders.row).select(k=orders.customer, v=items.price)
    result = rows.groupby(rows.k).reduce(k=rows.k, n=pw.reducers.count(), total=pw.reducers.sum(rows.v))
    output = _Output()
    pw.io.subscribe(result, on_change=output.change, on_time_end=output.time_end)
    expected = _expected_sums(job, batches)
    initial = {name: [(True, row) for row in _without_id(table).to_pylist()] for name, table in job.tables.items()}

    def apply(work: dict[str, list[tuple[bool, dict[str, Any]]]], sums: tuple[int, int]) -> None:
        for name, changed in work.items():
            feeds[name].put(changed)
        output.wait_for(sums)

    run = threading.Thread(target=lambda: pw.run(monitoring_level=pw.MonitoringLevel.NONE), daemon=True)
    started = time.perf_counter()
    run.start()
    apply(initial, next(expected))
    initial_s = time.perf_counter() - started
    del initial
    batch_ms = []
    for changes in job.batches(batches):
        work = {
            change.table: [(False, row) for row in _without_id(change.deleted).to_pylist()]
            + [(True, row) for row in _without_id(change.inserted).to_pylist()]
            for change in changes
        }
        started = time.perf_counter()
        apply(work, next(expected))
        batch_ms.append((time.perf_counter() - started) * 1000)
    for feed in feeds.values():
        feed.put(None)
    return Measured(initial_s, batch_ms, memory_mb_peak(), sorted((k, n, t) for k, (n, t) in output.rows.items()))


def _without_id(table: pa.Table) -> pa.Table:
    """`id` means a row's own pointer in Pathway: the column is called `row` there."""
    return table.rename_columns(["row" if name == "id" else name for name in table.column_names])


class _Output:
    """What Pathway shows: rows by key, and the running sums of their counts and totals."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, int]] = {}
        self._sums = (0, 0)
        self._moved = threading.Condition()

    def change(self, key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        n, total, sign = row["n"], row["total"], 1 if is_addition else -1
        self._sums = (self._sums[0] + sign * n, self._sums[1] + sign * total)
        if is_addition:
            self.rows[row["k"]] = (n, total)
        elif self.rows.get(row["k"]) == (n, total):
            del self.rows[row["k"]]

    def time_end(self, time: int) -> None:
        with self._moved:
            self._moved.notify_all()

    def wait_for(self, sums: tuple[int, int]) -> None:
        with self._moved:
            if not self._moved.wait_for(lambda: self._sums == sums, timeout=900):
                raise TimeoutError(f"pathway did not reach {sums}; it shows {self._sums}")


class _DuckTables:
    """A job's tables in an in-memory DuckDB."""

    def __init__(self, job: Job) -> None:
        import duckdb

        self._job = job
        self.connection = duckdb.connect()

    def load(self) -> None:
        for name, table in self._job.tables.items():
            self.connection.register("arrow_input", table)
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow_input")

    def apply(self, changes: list[Change]) -> None:
        for change in changes:
            self.connection.register("gone", change.deleted)
            self.connection.register("come", change.inserted)
            self.connection.execute(f"DELETE FROM {change.table} WHERE id IN (SELECT id FROM gone)")
            self.connection.execute(f"INSERT INTO {change.table} SELECT * FROM come")


def _expected_sums(job: Job, batches: int) -> Iterator[tuple[int, int]]:
    """After the initial load and after each batch: sum of counts and sum of totals; all computed before the first is
    given."""
    database = _DuckTables(job)
    database.load()
    query = f"SELECT sum(n)::hugeint, sum(total)::hugeint FROM ({job.query})"
    found = [database.connection.sql(query).fetchall()[0]]
    for changes in job.batches(batches):
        database.apply(changes)
        found.append(database.connection.sql(query).fetchall()[0])
    database.connection.close()
    return iter([(int(sums[0]), int(sums[1])) for sums in found])
