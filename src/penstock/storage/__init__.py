"""What flows in from durable shards: reading a shard into a dataflow, and how rows and errors share a shard.

Contract with the rooms above: a source feeds every update of its shard from the as-of on exactly once, with
its exact time, and its frontier passes a time only when all updates at it were fed; trouble freezes that
frontier and is reported, it is never hidden. The room knows nothing of controllers or of what a dataflow
computes.
"""

from penstock.storage.row_or_error import (
    SQLSTATE_COLUMN,
    errors_to_shard,
    first_error,
    rows_to_shard,
    shard_columns,
    split_shard_updates,
    view_schema,
)
from penstock.storage.shard_source import ShardReader, ShardSource, SourceReports

__all__ = [
    "SQLSTATE_COLUMN",
    "ShardReader",
    "ShardSource",
    "SourceReports",
    "errors_to_shard",
    "first_error",
    "rows_to_shard",
    "shard_columns",
    "split_shard_updates",
    "view_schema",
]
