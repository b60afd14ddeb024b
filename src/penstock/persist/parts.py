"""Encoding of updates: Parquet (or Arrow IPC) objects for blobs, a bare Arrow record batch for the state.

A stored part holds the row columns followed by ``__time`` (uint64) and ``__diff`` (int64). Any Parquet tool
can read it. Schemas with a type that Parquet lacks (intervals, empty structs) are stored as Arrow IPC files
instead. Everything here is pure and may run in any thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from penstock.persist.schema import FIRST_SCHEMA, SchemaId, selected
from penstock.persist.state import HollowPart, InlinePart
from penstock.persist.statistics import bounds_of_arrays, bounds_of_parquet, encode_statistics
from penstock.runtime import Updates, conform
from penstock.runtime.updates import diffs_of, times_of, with_row_count

N = TypeVar("N", bound=np.generic)

TIME = "__time"
DIFF = "__diff"
PARQUET = "parquet"
IPC = "ipc"

_NOTHING: Mapping[str, int] = MappingProxyType({})
_COMPRESS_FROM_BYTES = 1024
_INLINE_RATIO_MAX = 16
_ROW_GROUP_ROWS = 256 * 1024


def encode_inline(updates: Updates, bytes_max: int, schema: SchemaId = FIRST_SCHEMA) -> InlinePart | None:
    """`updates` as an inline part, or None when it would be longer than `bytes_max`.

    `schema`: the number of their schema in the shard.
    """
    if _has_dictionary(updates.schema) or buffer_bytes(updates) > _INLINE_RATIO_MAX * bytes_max < updates.nbytes:
        return None
    data = _stored_batch(updates).serialize()
    raw_size = 0
    if data.size >= _COMPRESS_FROM_BYTES:
        raw_size = data.size
        data = pa.compress(data, codec="lz4_raw")
    if data.size > bytes_max:
        return None
    rows, diff_sum, time_min, time_max = _summary(updates)
    return InlinePart(data.to_pybytes(), raw_size, rows, diff_sum, time_min, time_max, schema)


def decode_inline(part: InlinePart, schema: pa.Schema) -> Updates:
    """The updates of `part`, which was written with `schema`."""
    data = pa.py_buffer(part.data)
    if part.raw_size:
        data = pa.decompress(data, decompressed_size=part.raw_size, codec="lz4_raw")
    return _from_stored(pa.ipc.read_record_batch(data, _stored_schema(schema)), schema)


def encode_object(
    updates: Updates, key: str, schema: SchemaId = FIRST_SCHEMA, stats_bytes: int = 0
) -> tuple[bytes, HollowPart]:
    """`updates`, whose schema has that number in the shard, as the blob `key`, with its description.

    `stats_bytes`: limit of the statistics in the description, 0 for none.
    """
    batch = _stored_batch(updates)
    sink = pa.BufferOutputStream()
    if all(_fits_parquet(field.type) for field in updates.schema):
        format_ = PARQUET
        metadata: list[Any] = []
        pq.write_table(
            pa.Table.from_batches([batch]),
            sink,
            row_group_size=_ROW_GROUP_ROWS,
            **_encodings(batch.schema),
            write_statistics=[*_stored_names(updates.schema), TIME, DIFF],
            metadata_collector=metadata,
        )
        bounds = bounds_of_parquet(updates.rows, metadata[0]) if stats_bytes else []
    else:
        format_ = IPC
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        bounds = bounds_of_arrays(updates.rows) if stats_bytes else []
    data = sink.getvalue().to_pybytes()
    rows, diff_sum, time_min, time_max = _summary(updates)
    part = HollowPart(
        key,
        format_,
        len(data),
        zlib.crc32(data),
        rows,
        diff_sum,
        time_min,
        time_max,
        memory=updates.nbytes,
        schema=schema,
        stats=encode_statistics(updates.rows, bounds, stats_bytes) if stats_bytes else b"",
    )
    return data, part


def copied(updates: Updates) -> Updates | None:
    """`updates` in memory of their own, in one piece; None for types that this is not worth the trouble for."""
    if _has_dictionary(updates.schema):
        return None
    data = _stored_batch(updates).serialize()
    return _from_stored(pa.ipc.read_record_batch(data, _stored_schema(updates.schema)), updates.schema)


def buffer_bytes(updates: Updates) -> int:
    """Bytes that `updates` keeps in memory: whole buffers, even where only a slice of them is used. Cheap."""
    return int(updates.rows.get_total_buffer_size()) + updates.times.nbytes + updates.diffs.nbytes


class PartDamaged(Exception):
    """The bytes of a blob are not what its description says. The message says how."""


def decode_object(data: bytes, part: HollowPart, schema: pa.Schema, columns: Sequence[str] | None = None) -> Updates:
    """The updates of a blob written with `schema`, restricted to `columns` (in that order). Raises `PartDamaged`."""
    if len(data) != part.size:
        raise PartDamaged(f"it has {len(data)} bytes instead of {part.size}")
    checksum = zlib.crc32(data)
    if checksum != part.crc:
        raise PartDamaged(f"its checksum is {checksum:08x} instead of {part.crc:08x}")
    # Columns can be named only where names do not repeat, and are then stored under their own names or by position.
    names = _stored_names(schema)
    wanted = names if columns is None else [names[schema.get_field_index(name)] for name in columns]
    stored = [*wanted, TIME, DIFF]
    constants: dict[str, int] = {}
    try:
        if part.format == PARQUET:
            file = pq.ParquetFile(pa.BufferReader(data))
            if wanted:
                constants = _constants(file.metadata)
                stored = [name for name in stored if name not in constants]
            table = _read_parquet(data, file, stored)
        elif part.format == IPC:
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        else:
            raise PartDamaged(f"its format {part.format!r} is unknown; is this program too old?")
        batch = table.select(stored).combine_chunks().to_batches()[0]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise PartDamaged(f"it cannot be decoded: {error}") from error
    if batch.num_rows != part.rows:
        raise PartDamaged(f"it has {batch.num_rows} rows instead of {part.rows}")
    return _from_stored(batch, selected(schema, columns), constants)


def _constants(metadata: Any) -> dict[str, int]:
    """The time and the diff of all rows of a Parquet file, where its statistics say that all have the same."""
    found: dict[str, set[int]] = {TIME: set(), DIFF: set()}
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for chunk in (group.column(index) for index in range(group.num_columns - 2, group.num_columns)):
            statistics = chunk.statistics
            if statistics is None or not statistics.has_min_max:
                found.pop(chunk.path_in_schema, None)  # the file is older than they are
            elif (values := found.get(chunk.path_in_schema)) is not None:
                values |= {statistics.min, statistics.max}
    return {name: min(values) for name, values in found.items() if len(values) == 1}


def _read_parquet(data: bytes, file: pq.ParquetFile, columns: Sequence[str]) -> pa.Table:
    """`columns` of a Parquet file. Text that is stored as references to few words is read as such, then spelled out:
    that takes half the time. A value that is spelled out in the file takes at least the four bytes of its length.
    """
    metadata = file.metadata
    words = {field.name: field.type for field in file.schema_arrow if field.name in columns and _is_words(field.type)}
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for chunk in (group.column(index) for index in range(group.num_columns)):
            if chunk.path_in_schema in words and chunk.total_uncompressed_size > 3 * chunk.num_values:
                del words[chunk.path_in_schema]
    if words:
        file = pq.ParquetFile(pa.BufferReader(data), metadata=metadata, read_dictionary=list(words))
    table = file.read(columns=list(columns), use_threads=False)
    for name, kind in words.items():
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(kind))
    return table


def select_rows(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Only `columns` of `rows`, in that order; none is fine."""
    if not columns:
        return with_row_count(pa.schema([]), rows.num_rows)
    return rows.select(list(columns))


def _summary(updates: Updates) -> tuple[int, int, int, int]:
    return (
        len(updates),
        int(updates.diffs.sum()),  # wraps around as int64, like every sum of diffs
        int(updates.times.min()),
        int(updates.times.max()),
    )


def _stored_batch(updates: Updates) -> pa.RecordBatch:
    arrays = [*updates.rows.columns, pa.array(updates.times), pa.array(updates.diffs)]
    return pa.RecordBatch.from_arrays(arrays, schema=_stored_schema(updates.schema))


@lru_cache(maxsize=1024)
def _stored_schema(schema: pa.Schema) -> pa.Schema:
    fields = [
        field.with_name(name).remove_metadata().with_nullable(True)
        for field, name in zip(schema, _stored_names(schema), strict=True)
    ]
    return pa.schema([*fields, pa.field(TIME, pa.uint64()), pa.field(DIFF, pa.int64())])


def _stored_names(schema: pa.Schema) -> list[str]:
    """The columns' own names where these are distinct, else their positions."""
    names = list(schema.names)
    if len({*names, TIME, DIFF}) == len(names) + 2:
        return names
    return [f"c{index}" for index in range(len(names))]


def _from_stored(batch: pa.RecordBatch, schema: pa.Schema, constants: Mapping[str, int] = _NOTHING) -> Updates:
    """`batch`: the columns of `schema`, then the times and diffs, unless they are among the `constants`."""
    count, width = batch.num_rows, len(schema)
    stored = iter(batch.columns[width:])
    times = times_of(constants[TIME], count) if TIME in constants else _numbers(next(stored), np.uint64)
    diffs = diffs_of(constants[DIFF], count) if DIFF in constants else _numbers(next(stored), np.int64)
    if width == 0:
        return Updates(with_row_count(schema, count), times, diffs)
    rows = pa.RecordBatch.from_arrays(batch.columns[:width], names=schema.names)
    return Updates(conform(rows, schema), times, diffs)


def _numbers(column: pa.Array, kind: type[N]) -> npt.NDArray[N]:
    return column.to_numpy(zero_copy_only=False).astype(kind, copy=False)


@lru_cache(maxsize=1024)
def _encodings(stored: pa.Schema) -> dict[str, Any]:
    """How `pyarrow.parquet.write_table` shall write each column.

    Integers and what Parquet keeps as such are packed as differences from their predecessors: smaller than under LZ4,
    and read back twice as fast. Text gets a dictionary, as do times and diffs, which are mostly all the same.
    """
    words = [field.name for field in stored if _is_words(field.type) or pa.types.is_boolean(field.type)]
    packed = [field.name for field in stored if _is_packed(field.type) and field.name not in (TIME, DIFF)]
    nested = any(pa.types.is_nested(field.type) for field in stored)  # whose leaves have names of their own
    return {
        "compression": "lz4" if nested else {f.name: "none" if f.name in packed else "lz4" for f in stored},
        "use_dictionary": [TIME, DIFF, *words],
        "column_encoding": dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
    }


def _is_words(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _is_packed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_date32(kind) or pa.types.is_timestamp(kind))


def _fits_parquet(kind: pa.DataType) -> bool:
    if pa.types.is_interval(kind) or pa.types.is_union(kind):
        return False
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return False
    return all(_fits_parquet(kind.field(index).type) for index in range(kind.num_fields))


@lru_cache(maxsize=1024)
def _has_dictionary(schema: pa.Schema) -> bool:
    def inside(kind: pa.DataType) -> bool:
        if pa.types.is_dictionary(kind):
            return True
        return any(inside(kind.field(index).type) for index in range(kind.num_fields))

    return any(inside(field.type) for field in schema)
