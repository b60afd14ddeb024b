"""Rows of a commit, taken from the log itself: what it holds, or the blobs it points to."""

from __future__ import annotations

import pyarrow as pa

from penstock.persist.fetching import fetch_group
from penstock.persist.lease import ReaderLease
from penstock.persist.partstore import inline_updates
from penstock.persist.state import InlinePart, Part
from penstock.runtime import Timestamp, Updates

_NO_BATCH = -1
"""A part that no state refers to yet is in no batch; blobs are known by their keys."""


async def fetch_part(lease: ReaderLease, part: Part, wanted: pa.Schema) -> Updates:
    """The updates of a part of a commit, as rows of `wanted`.

    Those in a blob need a lease on a version of the shard that the commit had not reached: from the next ones on it may
    be compacted away. Raises like `fetch_group`.
    """
    written = await lease.shard.fetch_schema_of(part)
    if isinstance(part, InlinePart):
        return inline_updates(part, written, wanted)
    (updates,) = await fetch_group(lease, wanted, [(_NO_BATCH, 0, part)], Timestamp(part.time_max))
    return updates
