"""One-off queries: DataFusion over Arrow tables and streams.

Every query gets a session of its own, so that nothing of one leaks into another. A stream is read while the
query runs, without holding it in memory, unless the plan reads it more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds
from datafusion import DataFrame, SessionConfig, SessionContext

from penstock.compute.failures import explain_failure
from penstock.runtime import SqlError, Timestamp, conform

Input: TypeAlias = pa.Table | pa.RecordBatchReader
RESULT_BYTES_MAX = 1 << 30


def execute(
    sql: str,
    tables: Mapping[str, Input],
    mz_now: Timestamp,
    *,
    schema: pa.Schema | None = None,
    result_bytes_max: int = RESULT_BYTES_MAX,
    cancelled: Callable[[], bool] = lambda: False,
    partitions: int = 2,
) -> Iterator[pa.RecordBatch]:
    """The result of `sql` (DataFusion's dialect) over `tables`, batch by batch.

    `tables`: by the name the SQL uses; readers are consumed. `mz_now`: what mz_now() answers, milliseconds.
    `schema`: the result is conformed to it by position. `cancelled` is asked between batches. `partitions`:
    threads of the query. Raises `SqlError`: 53000 when the result exceeds `result_bytes_max`, 57014 when
    cancelled, otherwise what the query's own failure means. Closing the iterator ends the query.
    """
    context = new_context(mz_now, partitions=partitions)
    try:
        frame = _plan(context, sql, tables)
        stream = frame.execute_stream()
    except Exception as error:
        raise explain_failure(error) from error
    total = 0
    batches = iter(stream)
    while True:
        if cancelled():
            raise SqlError("canceling statement due to user request", sqlstate="57014")
        try:
            batch = next(batches).to_pyarrow()
            if schema is not None:
                batch = conform(batch, schema)
        except StopIteration:
            return
        except Exception as error:
            raise explain_failure(error) from error
        total += batch.nbytes
        if total > result_bytes_max:
            raise SqlError(
                f"result exceeds the maximum size of {result_bytes_max} bytes",
                sqlstate="53000",
                hint="Select fewer rows or columns, or raise max_result_size.",
            )
        yield batch


def new_context(mz_now: Timestamp | None = None, *, partitions: int = 1) -> SessionContext:
    """A DataFusion session with Penstock's functions. `mz_now` None: mz_now() is not defined."""
    config = SessionConfig().with_target_partitions(partitions).set("datafusion.execution.collect_statistics", "false")
    return SessionContext(config)


class _StreamFragment:
    """The one fragment of a `StreamDataset`, as far as DataFusion's scan of a dataset uses it."""

    def __init__(self, owner: StreamDataset) -> None:
        self._owner = owner
        self.physical_schema = self.schema = owner.schema

    def scanner(
        self,
        schema: pa.Schema | None = None,
        columns: list[str] | None = None,
        filter: ds.Expression | None = None,
        **_: object,
    ) -> ds.Scanner:
        return ds.Scanner.from_batches(self._owner.open(), columns=columns, filter=filter, use_threads=False)


class StreamDataset(ds.InMemoryDataset):
    """A dataset whose contents are asked for when it is scanned: a stream (once), or what `source` then
    holds.
    """

    def __init__(self, schema: pa.Schema, source: Input | None = None) -> None:
        super().__init__(pa.Table.from_batches([], schema=schema))
        self.source = source

    def open(self) -> pa.RecordBatchReader:
        """A reader over the contents. A stream can be opened once."""
        assert self.source is not None, "a dataset without contents was scanned"
        if isinstance(self.source, pa.Table):
            return self.source.to_reader()
        reader, self.source = self.source, None
        return reader

    def get_fragments(self, filter: ds.Expression | None = None) -> Iterator[_StreamFragment]:
        return iter([_StreamFragment(self)])


def _plan(context: SessionContext, sql: str, tables: Mapping[str, Input]) -> DataFrame:
    streams: dict[str, StreamDataset] = {}
    for name, table in tables.items():
        if isinstance(table, pa.Table):
            batches = table.to_batches() or [_empty(table.schema)]
            context.register_record_batches(name, [batches])
        else:
            streams[name] = StreamDataset(table.schema, table)
            context.register_dataset(name, streams[name])
    frame = context.sql(sql)
    if streams:
        text = frame.optimized_logical_plan().display_indent()
        for name, dataset in streams.items():
            if text.count(f"TableScan: {name}") > 1 and isinstance(dataset.source, pa.RecordBatchReader):
                dataset.source = dataset.source.read_all()
    return frame


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
