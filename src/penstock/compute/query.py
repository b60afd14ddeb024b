"""One-off queries: DataFusion over Arrow tables and streams.

Every query gets a session of its own, so that nothing of one leaks into another. A stream is read while the
query runs, without holding it in memory, unless the plan reads it more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds
from datafusion import DataFrame, SessionContext

from penstock.compute.failures import explain_failure
from penstock.runtime import SqlError, Timestamp, conform
from penstock.sql.functions import new_context

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
    context = new_context(partitions=partitions, mz_now=mz_now)
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


class _StreamScanner:
    """As much of a scanner as DataFusion uses: one pass over a reader, a batch at a time, nothing read ahead.

    `filter`: DataFusion leaves to the scan what it can say as an Arrow expression.
    """

    def __init__(self, owner: StreamDataset, columns: list[str] | None, filter: ds.Expression | None) -> None:
        self._owner, self._columns, self._filter = owner, columns, filter
        schema = owner.schema
        self.projected_schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._owner.open():
            kept = batch if self._filter is None else batch.filter(self._filter)
            yield kept if self._columns is None else kept.select(self._columns)


class _StreamFragment:
    """The one fragment of a `StreamDataset`, as far as DataFusion's scan of a dataset uses it."""

    def __init__(self, owner: StreamDataset) -> None:
        self._owner = owner
        self.physical_schema = self.schema = owner.schema

    def scanner(
        self,
        _schema: pa.Schema | None = None,
        columns: list[str] | None = None,
        filter: ds.Expression | None = None,
        **_: object,
    ) -> _StreamScanner:
        return _StreamScanner(self._owner, columns, filter)


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
            streams[name] = _register_stream(context, name, table)
    frame = context.sql(sql)
    if streams:
        text = frame.optimized_logical_plan().display_indent()
        for name, dataset in streams.items():
            scans = text.count(f"TableScan: {name}") + text.count(f"TableScan: {_BEHIND}{name}")
            if scans > 1 and isinstance(dataset.source, pa.RecordBatchReader):
                dataset.source = dataset.source.read_all()
    return frame


_BEHIND = "stream_behind_"
_LIMIT_NONE = 2**63 - 1


def _register_stream(context: SessionContext, name: str, reader: pa.RecordBatchReader) -> StreamDataset:
    """The stream as table `name`.

    Arrow, which filters what it scans, and DataFusion order NaN differently: where there are floats, a limit that
    never bites keeps DataFusion's filters out of the scan.
    """
    dataset = StreamDataset(reader.schema, reader)
    if any(pa.types.is_floating(kind) for kind in reader.schema.types):
        context.register_dataset(_BEHIND + name, dataset)
        view = context.sql(f'SELECT * FROM "{_BEHIND}{name}" LIMIT {_LIMIT_NONE}')
        context.register_view(name, view)
    else:
        context.register_dataset(name, dataset)
    return dataset


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
