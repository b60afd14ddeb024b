"""One measurement in a process of its own, so that its peak of memory is its own.

``python -m bench.measure SIDE JOB ROWS BATCHES`` prints one JSON object; `measured` starts that and reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import subprocess
import sys

from bench import jobs
from bench.peers import Measured

BATCHES = 40
SIDES = {
    "engine": ("bench.engine_side", "engine"),
    "sql": ("bench.sql_side", "sql"),
    "duckdb": ("bench.peers", "duckdb_recompute"),
    "pathway": ("bench.peers", "pathway"),
}


def measured(side: str, job: str, rows: int, batches: int = BATCHES) -> Measured:
    """Measure `side` (a key of `SIDES`) on `job` with `rows` rows. RuntimeError with its last words when it fails."""
    command = [sys.executable, "-m", "bench.measure", side, job, str(rows), str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-4000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    side, name, rows, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    job = {"grouped": jobs.grouped, "join": jobs.join}[name](rows)
    module, function = SIDES[side]
    result = dataclasses.asdict(getattr(importlib.import_module(module), function)(job, batches))
    result["answer"] = [hashlib.sha256(json.dumps(result["answer"]).encode()).hexdigest()]
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
