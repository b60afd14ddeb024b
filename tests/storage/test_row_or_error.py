"""Rows and errors in one shard come back as they went in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from penstock.runtime import Timestamp, Updates
from penstock.storage.row_or_error import (
    ERRORS_SCHEMA,
    errors_to_shard,
    rows_to_shard,
    split_shard_updates,
    view_schema,
)

SCHEMA = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())], metadata={"k": "v"})


def test_round_trip() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2]), pa.array(["x", None])], schema=SCHEMA)
    rows = Updates(batch, np.array([3, 4], np.uint64), np.array([1, -1], np.int64))
    failures = pa.RecordBatch.from_arrays([pa.array(["22012", None]), pa.array(["zero", None])], schema=ERRORS_SCHEMA)
    errors = Updates.at(failures, Timestamp(5), -1)
    shard = Updates.concat([rows_to_shard(rows, SCHEMA), errors_to_shard(errors, SCHEMA)])
    assert shard.schema.equals(view_schema(SCHEMA), check_metadata=True)
    oks, errs = split_shard_updates(shard, SCHEMA)
    assert oks.schema.equals(SCHEMA, check_metadata=True)
    assert oks.rows.to_pylist() == rows.rows.to_pylist()
    assert oks.times.tolist() == [3, 4]
    assert oks.diffs.tolist() == [1, -1]
    assert errs.rows.to_pylist() == [
        {"sqlstate": "22012", "message": "zero"},
        {"sqlstate": "XX000", "message": "unknown error"},
    ]
    assert errs.times.tolist() == [5, 5]


@pytest.mark.parametrize("count", [0, 3])
def test_a_collection_without_columns(count: int) -> None:
    schema = pa.schema([])
    batch = pa.RecordBatch.from_struct_array(pa.array([{}] * count, pa.struct([])))
    shard = rows_to_shard(Updates.at(batch, Timestamp(1)), schema)
    oks, errs = split_shard_updates(shard, schema)
    assert (len(oks), oks.rows.num_rows, len(errs)) == (count, count, 0)
