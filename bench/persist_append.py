"""1,000-row appends to one shard on files and SQLite, beside table formats and databases; then 5 million rows.

Each append is durable on return. The rate is looked at over the first and over the last 20 of them: a store whose
metadata grows with its history gets slower as it goes. All readers are checked to return what was appended.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.report import Report
from bench.table_peers import DATABASES, SCHEMA, TABLE_FORMATS, Peer
from penstock.persist import Changelog, ShardId, new_shard_id

T = TypeVar("T")
APPEND_ROWS = 1_000
EDGE = 20
RUNS = 9
"""Twenty appends take some 25 ms, and one merge that falls into them as long again: the median run is reported. Each
run has a process of its own, as every peer appends for the first time in its process."""
BULK_ROWS = 5_000_000
BULK_APPENDS = 10
BULK_ROUNDS = 5
PROCESSES_APPENDS = 50
PEER_SECONDS_MAX = 90.0
"""A peer that gets slower with its history is stopped after so long; its last 20 are then the last that it came to."""


@dataclass(frozen=True)
class Appends:
    """Seconds of each append, in order."""

    seconds: list[float]

    @property
    def per_s(self) -> float:
        return len(self.seconds) / sum(self.seconds)

    @property
    def first_per_s(self) -> float:
        return EDGE / sum(self.seconds[:EDGE])

    @property
    def last_per_s(self) -> float:
        return EDGE / sum(self.seconds[-EDGE:])

    @property
    def last_over_first(self) -> float:
        return self.last_per_s / self.first_per_s


@dataclass(frozen=True)
class Bulk:
    write_rows_per_s: float
    read_rows_per_s: float


def run(report: Report, *, quick: bool) -> None:
    appends = 200 if quick else 2_000
    runs = [_in_folder(lambda folder: _appends_of_a_process(folder, appends)) for _ in range(RUNS)]
    again = [_in_folder(lambda folder: asyncio.run(_our_appends(folder, appends))) for _ in range(RUNS)]
    report.note(
        f"last over first in a new process: {_ratios(runs)}; in one that goes on appending: {_ratios(again[1:])}"
    )
    ours = sorted(runs, key=lambda one: one.last_over_first)[RUNS // 2]
    for name, peer in {**TABLE_FORMATS, **DATABASES}.items():
        theirs = _measured(report, name, lambda folder, peer=peer: _peer_appends(peer, folder, appends))
        if theirs is None:
            continue
        if len(theirs.seconds) < appends:
            report.note(f"{name} came to {len(theirs.seconds)} of {appends} appends in {PEER_SECONDS_MAX:.0f} s")
        _append_lines(report, name, ours, theirs)
    bulk_rows = BULK_ROWS // 10 if quick else BULK_ROWS
    ours_bulk, delta_bulk = [], []
    for _ in range(BULK_ROUNDS):  # in turns: what else the machine does meets both
        ours_bulk.append(_in_folder(lambda folder: asyncio.run(_our_bulk(folder, bulk_rows))))
        one = _measured(report, "deltalake", lambda folder: _peer_bulk(TABLE_FORMATS["deltalake"], folder, bulk_rows))
        delta_bulk += [one] if one is not None else []
    for metric in ("write_rows_per_s", "read_rows_per_s"):
        report.add(
            metric,
            median(getattr(one, metric) for one in ours_bulk),
            "rows/s",
            peer="deltalake" if delta_bulk else None,
            peer_value=median(getattr(one, metric) for one in delta_bulk) if delta_bulk else None,
            higher_is_better=True,
        )
    _in_folder(lambda folder: _two_processes(report, folder))


def _ratios(runs: list[Appends]) -> str:
    return ", ".join(f"{one.last_over_first:.2f}" for one in runs)


def _append_lines(report: Report, name: str, ours: Appends, theirs: Appends) -> None:
    for metric, value, peer_value, unit in (
        ("appends_per_s", ours.per_s, theirs.per_s, "1/s"),
        ("appends_per_s_first_20", ours.first_per_s, theirs.first_per_s, "1/s"),
        ("appends_per_s_last_20", ours.last_per_s, theirs.last_per_s, "1/s"),
        ("last_over_first", ours.last_over_first, theirs.last_over_first, "ratio"),
    ):
        report.add(metric, value, unit, peer=name, peer_value=peer_value, higher_is_better=True)


def _measured(report: Report, name: str, measure: Callable[[Path], T]) -> T | None:
    try:
        return _in_folder(measure)
    except ModuleNotFoundError as error:
        report.note(f"{name} is not installed (extra `bench`: {error.name}); left out")
        return None


def _in_folder(measure: Callable[[Path], T]) -> T:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        path = Path(folder)
        path.chmod(0o755)  # PostgreSQL runs as a user of its own
        return measure(path)


def _batches(count: int, rows: int) -> Iterator[pa.Table]:
    """`count` batches of `rows` rows from a fixed seed; ids go up."""
    rng = np.random.default_rng(11)
    for number in range(count):
        ids = np.arange(number * rows, (number + 1) * rows)
        device = rng.integers(0, 500, rows, dtype=np.int32)
        note = pc.binary_join_element_wise("device ", pa.array(device).cast(pa.string()), "")
        yield pa.table([ids, device, rng.random(rows), note], schema=SCHEMA)


def _check(contents: pa.Table, rows: int) -> None:
    ids = contents["id"].to_numpy()
    if len(ids) != rows or not np.array_equal(np.sort(ids), np.arange(rows)):
        raise RuntimeError(f"{len(ids)} rows came back of the {rows} that were appended")


async def _opened(folder: Path, shard: ShardId) -> Changelog:
    return await Changelog.open(f"file:{folder / 'blob'}", f"sqlite:{folder / 'consensus'}", shard, SCHEMA)


async def _our_appends(folder: Path, count: int) -> Appends:
    seconds = []
    async with await _opened(folder, new_shard_id()) as table:
        for rows in _batches(count, APPEND_ROWS):
            started = time.perf_counter()
            await table.append(rows)
            seconds.append(time.perf_counter() - started)
        _check(await table.read(), count * APPEND_ROWS)
    return Appends(seconds)


def _appends_of_a_process(folder: Path, count: int) -> Appends:
    command = [sys.executable, "-m", "bench.persist_append", "all", str(folder), str(count)]
    return Appends(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def _peer_appends(peer: Callable[[Path], AbstractContextManager[Peer]], folder: Path, count: int) -> Appends:
    seconds = []
    with peer(folder) as table:
        for rows in _batches(count, APPEND_ROWS):
            prepared = table.prepare(rows)
            started = time.perf_counter()
            table.append(prepared)
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > PEER_SECONDS_MAX:
                break
        _check(table.read(), len(seconds) * APPEND_ROWS)
    return Appends(seconds)


async def _our_bulk(folder: Path, rows: int) -> Bulk:
    batches = list(_batches(BULK_APPENDS, rows // BULK_APPENDS))
    shard = new_shard_id()
    async with await _opened(folder, shard) as table:
        started = time.perf_counter()
        for batch in batches:
            await table.append(batch)
        write_s = time.perf_counter() - started
    async with await _opened(folder, shard) as table:  # nothing is cached
        started = time.perf_counter()
        contents = await table.read()
        read_s = time.perf_counter() - started
    _check(contents, rows)
    return Bulk(rows / write_s, rows / read_s)


def _peer_bulk(peer: Callable[[Path], AbstractContextManager[Peer]], folder: Path, rows: int) -> Bulk:
    batches = list(_batches(BULK_APPENDS, rows // BULK_APPENDS))
    with peer(folder) as table:
        started = time.perf_counter()
        for batch in batches:
            table.append(table.prepare(batch))
        write_s = time.perf_counter() - started
        started = time.perf_counter()
        contents = table.read()
        read_s = time.perf_counter() - started
    _check(contents, rows)
    return Bulk(rows / write_s, rows / read_s)


def _two_processes(report: Report, folder: Path) -> None:
    """Two processes append at the same time; neither may see an error, and every row must be there."""
    shard = new_shard_id()
    command = [sys.executable, "-m", "bench.persist_append", "half", str(folder), shard]
    started = time.perf_counter()
    running = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=300)
        if process.returncode != 0:
            raise RuntimeError(f"an appending process failed:\n{errors.decode()[-4000:]}")
    seconds = time.perf_counter() - started

    async def count() -> pa.Table:
        async with await _opened(folder, shard) as table:
            return await table.read()

    contents = asyncio.run(count())
    _check(contents, 2 * PROCESSES_APPENDS * APPEND_ROWS)
    per_s = 2 * PROCESSES_APPENDS / seconds
    report.add("two_processes_appends_per_s", per_s, "1/s, starts included", peer=None, peer_value=None)


async def _append_half(folder: Path, shard: ShardId, half: int) -> None:
    async with await _opened(folder, shard) as table:
        for number, rows in enumerate(_batches(2 * PROCESSES_APPENDS, APPEND_ROWS)):
            if number % 2 == half:
                await table.append(rows)


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "half":
        asyncio.run(_append_half(where, ShardId(sys.argv[3]), int(sys.argv[4])))
    else:
        print(json.dumps(asyncio.run(_our_appends(where, int(sys.argv[3]))).seconds))
