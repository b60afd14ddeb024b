"""A job through SQL: a real server, everything durable, one client over TCP.

A batch is one transaction (COPY of the new rows, DELETE by id of the old ones) followed by a SELECT from the
maintained view that must show it; strict serializability makes that SELECT wait until the view has caught up. The
clock runs over all of it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.jobs import Job
from bench.peers import Measured, memory_mb_peak
from tools.serving import copy_in, serving


def sql(job: Job, batches: int) -> Measured:
    """`initial_s`: from the first COPY to the view's first whole answer. Memory is this client's, not reported."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        serving(Path(folder)) as server,
        server.connect() as connection,
        connection.cursor() as cursor,
    ):
        for table, columns in job.ddl.items():
            cursor.execute(f"CREATE TABLE {table} ({columns})")
        started = time.perf_counter()
        for table, rows in job.tables.items():
            copy_in(connection, table, rows)
        cursor.execute(f"CREATE MATERIALIZED VIEW answer AS {job.query}")
        cursor.execute("SELECT count(*) FROM answer")
        initial_s = time.perf_counter() - started
        cursor.execute("CREATE INDEX answer_by_key ON answer (k)")
        for table in job.tables:
            cursor.execute(f"CREATE INDEX {table}_by_id ON {table} (id)")
            cursor.execute(f"SELECT * FROM {table} WHERE id = 0")
        cursor.execute("SELECT * FROM answer WHERE k = 0")
        batch_ms = []
        for changes in job.batches(batches):
            started = time.perf_counter()
            with connection.transaction():
                for change in changes:
                    cursor.execute(f"DELETE FROM {change.table} WHERE id = ANY(%s)", [change.deleted["id"].to_pylist()])
                    copy_in(connection, change.table, change.inserted)
            cursor.execute("SELECT * FROM answer WHERE k = 0")
            batch_ms.append((time.perf_counter() - started) * 1000)
        answer = cursor.execute("SELECT k, n, total FROM answer").fetchall()
    rows_found = sorted((int(k), int(n), int(total)) for k, n, total in answer)
    return Measured(initial_s, batch_ms, memory_mb_peak(), rows_found)
