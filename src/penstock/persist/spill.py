"""Updates of one time, distributed by hash over temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from penstock.persist import metrics
from penstock.runtime import Timestamp, Updates, hash_columns
from penstock.runtime.updates import times_of, with_row_count

_BITS = 4
DEPTH_MAX = 64 // _BITS - 1
"""Further down there are no bits of the hash left to tell rows apart: what is together then is equal, or nearly."""


class SpilledPartitions:
    """Rows of `schema`, by four bits of their hashes: which ones, `depth` says. The files have no names: they are gone
    when the process is. Not for two threads at once.
    """

    def __init__(self, schema: pa.Schema, depth: int, directory: str | None) -> None:
        assert 0 <= depth <= DEPTH_MAX, f"depth {depth}"
        self.count = 1 << _BITS
        self._schema = schema
        self._shift = np.uint64(_BITS * depth)
        self._directory = directory
        self._time = Timestamp(0)
        names = [f"c{index}" for index in range(len(schema))]
        fields = [field.with_name(name) for field, name in zip(schema, names, strict=True)]
        self._stored = pa.schema([*fields, pa.field("diff", pa.int64())])
        self._files: dict[int, IO[bytes]] = {}
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, updates: Updates) -> None:
        """Put `updates`, all at one time, into the files."""
        if len(updates) == 0:
            return
        self._time = Timestamp(int(updates.times[0]))
        hashes = hash_columns(updates.rows.columns, len(updates)) >> self._shift
        places = (hashes & np.uint64(self.count - 1)).astype(np.int64)
        order = np.argsort(places, kind="stable")
        ends = np.cumsum(np.bincount(places, minlength=self.count))
        ordered = updates.take(order)
        start = 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                self._write(number, ordered.slice(start, end))
            start = end

    def read(self, number: int) -> Iterator[Updates]:
        """What one file holds, a piece at a time. Nothing can be added to it any more."""
        writer = self._writers.pop(number, None)
        if writer is None:
            return
        writer.close()
        file = self._files[number]
        metrics.SPILLED_BYTES.inc(file.tell())
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield self._updates(batch)
        file.close()

    def close(self) -> None:
        """Remove the files. May be called twice."""
        self._writers.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self, number: int, updates: Updates) -> None:
        writer = self._writers.get(number)
        if writer is None:
            self._files[number] = file = tempfile.TemporaryFile(prefix="penstock-", dir=self._directory)  # noqa: SIM115
            writer = pa.ipc.new_stream(file, self._stored, options=pa.ipc.IpcWriteOptions(compression="lz4"))
            self._writers[number] = writer
        arrays = [*updates.rows.columns, pa.array(updates.diffs)]
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._stored))

    def _updates(self, batch: pa.RecordBatch) -> Updates:
        diffs = batch.column(batch.num_columns - 1).to_numpy(zero_copy_only=False)
        if len(self._schema) == 0:
            rows = with_row_count(self._schema, batch.num_rows)
        else:
            rows = pa.RecordBatch.from_arrays(batch.columns[:-1], schema=self._schema)
        return Updates(rows, times_of(self._time, len(diffs)), diffs)
