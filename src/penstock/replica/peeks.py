"""Peeks: one-off reads at a time, answered from indexes and shards.

Each peek is a task: it gathers its inputs as soon as each is complete at the peek's time, runs the query on a thread
pool, and sends the rows in chunks, never more than the controller has granted credit for. Only a peek that computes
occupies a thread; one that waits, for a frontier or for credit, costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pyarrow as pa
import structlog

from penstock.compute.query import execute
from penstock.persist import And, Compare, Filter, Operator, ShardId
from penstock.replica import compute_pb2 as pb
from penstock.replica.shards import Shards
from penstock.replica.wire import from_ipc, one_batch, schema_from_ipc, to_ipc
from penstock.runtime import DataError, GlobalId, InternalError, PenstockError, SqlError, TaskOwner, Timestamp, Updates
from penstock.runtime.updates import take_rows

_log = structlog.get_logger("penstock.replica.peeks")

_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS_MIN = 64
_THREADS = 8
_PEEKS_MAX = 10_000


class PeekSources(Protocol):
    """Where peeks read."""

    @property
    def shards(self) -> Shards: ...

    async def read_index(self, id_: GlobalId, at: Timestamp, keys: pa.RecordBatch | None) -> pa.RecordBatch:
        """The rows of an index at `at`, as soon as they are complete. Raises `SqlError`, `DataError`."""
        ...


class PeekServer:
    """The peeks of one session. `send` takes responses, in order."""

    def __init__(self, sources: PeekSources, send: Callable[[pb.Response], None]) -> None:
        self._sources, self._send = sources, send
        self._tasks = TaskOwner("peeks")
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="peek")
        self._running: dict[bytes, _Peek] = {}

    def start(self, command: pb.Peek) -> None:
        """Answer a peek. Refused when too many run."""
        if len(self._running) >= _PEEKS_MAX:
            refusal = SqlError(f"the replica has {_PEEKS_MAX} open reads already", sqlstate="53300")
            self._end(command.uuid, error=encode_error(refusal, definite=False))
            return
        peek = self._running[command.uuid] = _Peek(command)
        peek.task = self._tasks.spawn(self._answer(peek), command.uuid.hex())

    def grant(self, credit: pb.PeekCredit) -> None:
        """The controller takes so many more chunks."""
        if peek := self._running.get(credit.uuid):
            for _ in range(credit.chunks):
                peek.credit.release()

    def cancel(self, uuid: bytes) -> None:
        """Stop working on it. It is answered all the same."""
        peek = self._running.get(uuid)
        if peek is not None and peek.task is not None:
            peek.cancelled = True
            peek.task.cancel()

    async def close(self) -> None:
        """The session ends: nobody waits for any answer."""
        for peek in self._running.values():
            peek.cancelled = True
        await self._tasks.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, peek: _Peek) -> None:
        uuid = peek.command.uuid
        try:
            await self._stream(peek)
            self._end(uuid, complete=pb.Complete())
        except asyncio.CancelledError:
            self._end(uuid, canceled=pb.Canceled())
            raise
        except DataError as error:
            self._end(uuid, error=encode_error(error, definite=True))
        except SqlError as error:
            self._end(uuid, error=encode_error(error, definite=False))
        except PenstockError as error:
            _log.warning("peek failed", error=error.message)
            self._end(uuid, error=encode_error(error, definite=False))
        except Exception as error:  # whatever a query provokes in a library must not end the replica
            _log.error("peek failed", exc_info=error)
            failure = SqlError(f"the query failed in the replica: {error!r}", sqlstate="XX000")
            self._end(uuid, error=encode_error(failure, definite=False))
        finally:
            self._running.pop(uuid, None)

    async def _stream(self, peek: _Peek) -> None:
        command = peek.command
        at = Timestamp(command.timestamp)
        names = list(command.inputs)
        tables = await _all_or_nothing([self._input(command.inputs[name], at) for name in names])
        inputs = dict(zip(names, tables, strict=True))
        if not command.HasField("query"):
            (table,) = inputs.values()
            batches: Iterator[pa.RecordBatch] = _limited(table, command.result_bytes_max)
        else:
            batches = execute(
                command.query,
                inputs,
                at,
                result_bytes_max=command.result_bytes_max,
                cancelled=lambda: peek.cancelled,
            )
        loop = asyncio.get_running_loop()
        while (chunk := await loop.run_in_executor(self._pool, _next_chunk, batches)) is not None:
            for ipc in chunk:
                await peek.credit.acquire()
                self._send(pb.Response(peek_rows=pb.PeekRows(uuid=command.uuid, ipc=ipc)))

    async def _input(self, input_: pb.PeekInput, at: Timestamp) -> pa.Table:
        match input_.WhichOneof("kind"):
            case "index":
                keys = one_batch(from_ipc(input_.index.keys_ipc)) if input_.index.HasField("keys_ipc") else None
                rows = await self._sources.read_index(GlobalId(input_.index.id), at, keys)
                return pa.Table.from_batches([rows])
            case "shard":
                shard = input_.shard
                updates = await self._sources.shards.rows_at(
                    ShardId(shard.shard),
                    schema_from_ipc(shard.schema_ipc),
                    at,
                    is_table=shard.is_table,
                    columns=None if shard.all_columns else list(shard.columns),
                    filter_=_filter(shard.comparisons),
                )
                return pa.Table.from_batches([_rows(updates)])
            case "constant_ipc":
                return from_ipc(input_.constant_ipc)
            case other:
                raise SqlError(f"the replica does not know how to read a {other}", sqlstate="0A000")

    def _end(
        self,
        uuid: bytes,
        *,
        complete: pb.Complete | None = None,
        error: pb.Error | None = None,
        canceled: pb.Canceled | None = None,
    ) -> None:
        self._send(pb.Response(peek_end=pb.PeekEnd(uuid=uuid, complete=complete, error=error, canceled=canceled)))


class _Peek:
    def __init__(self, command: pb.Peek) -> None:
        self.command = command
        self.credit = asyncio.Semaphore(max(command.credit, 1))
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None


def encode_error(error: PenstockError, *, definite: bool) -> pb.Error:
    """An error as the controller decodes it."""
    if isinstance(error, SqlError):
        return pb.Error(
            sqlstate=error.sqlstate,
            message=error.message,
            detail=error.detail or "",
            hint=error.hint or "",
            definite=definite,
        )
    return pb.Error(sqlstate=error.sqlstate, message=error.message, definite=definite)


async def _all_or_nothing(inputs: list[Awaitable[pa.Table]]) -> list[pa.Table]:
    """All results, or the first failure once the others were cancelled."""
    tasks = [asyncio.ensure_future(input_) for input_ in inputs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _next_chunk(batches: Iterator[pa.RecordBatch]) -> list[bytes] | None:
    """The next batch as messages of bounded size; None at the end. Runs on a thread of the pool."""
    for batch in batches:
        if batch.num_rows:
            return [to_ipc([part], batch.schema) for part in _slices(batch)]
    return None


def _filter(comparisons: Sequence[pb.Comparison]) -> Filter | None:
    """What a row must meet to matter; None: any does."""
    if not comparisons:
        return None
    return And(
        tuple(
            Compare(one.column, Operator(one.operator), one_batch(from_ipc(one.value_ipc)).column(0)[0])
            for one in comparisons
        )
    )


def _rows(contents: Updates) -> pa.RecordBatch:
    """Each row as often as it occurs."""
    if (contents.diffs == 1).all():
        return contents.rows
    if int(contents.diffs.min()) < 0:
        raise InternalError(f"a collection holds a row {contents.diffs.min()} times at {contents.times[0]}")
    return take_rows(contents.rows, np.repeat(np.arange(len(contents)), contents.diffs))


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = max(batch.num_rows * _CHUNK_BYTES // max(batch.nbytes, 1), _CHUNK_ROWS_MIN)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _limited(table: pa.Table, bytes_max: int) -> Iterator[pa.RecordBatch]:
    if table.nbytes > bytes_max:
        raise SqlError(
            f"result exceeds the maximum size of {bytes_max} bytes",
            sqlstate="53000",
            hint="Select fewer rows or columns, or raise max_result_size.",
        )
    yield from table.to_batches()
