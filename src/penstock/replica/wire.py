"""Arrow data in the messages of the compute protocol.

`compute_pb2*.py` are generated from `compute.proto` and committed. After a change of the protocol::

    cd src && python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
        penstock/replica/compute.proto
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from penstock.runtime import Updates

_TIME = pa.field("time", pa.uint64(), nullable=False)
_DIFF = pa.field("diff", pa.int64(), nullable=False)


def to_ipc(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """An Arrow IPC stream of `batches`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """The table of an Arrow IPC stream; its columns refer to `data`. Raises `pyarrow.ArrowInvalid`."""
    return pa.ipc.open_stream(data).read_all()


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """All rows of `table` as one batch, also when it has no rows."""
    batches = table.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches) if batches else Updates.empty(table.schema).rows


def schema_to_ipc(schema: pa.Schema) -> bytes:
    """An Arrow schema message, metadata included."""
    return bytes(schema.serialize())


def schema_from_ipc(data: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(data))


def updates_to_ipc(updates: Updates) -> bytes:
    """The rows with two more columns at the end: time and diff."""
    schema = pa.schema([*updates.schema, _TIME, _DIFF], metadata=updates.schema.metadata)
    columns = [*updates.rows.columns, pa.array(updates.times), pa.array(updates.diffs)]
    return to_ipc([pa.RecordBatch.from_arrays(columns, schema=schema)], schema)


def updates_from_ipc(data: bytes) -> Updates:
    """Inverse of `updates_to_ipc`."""
    batch = one_batch(from_ipc(data))
    width = batch.num_columns - 2
    times = batch.column(width).to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    diffs = batch.column(width + 1).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    rows = batch.select(list(range(width)))
    if width == 0:
        rows = Updates.empty(rows.schema).rows if not len(times) else _rows_without_columns(len(times))
    return Updates(rows.replace_schema_metadata(batch.schema.metadata), times, diffs)


def _rows_without_columns(count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.array([{}] * count, type=pa.struct([])))
