"""Fetching parts of a version that a reader has leased."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.persist.errors import CorruptBlobError, SinceError
from penstock.persist.lease import ReaderLease
from penstock.persist.partstore import Located
from penstock.runtime import DONE, Timestamp, Updates

GROUP_ROWS = 64 * 1024
"""Small parts are fetched, and handed on, in groups of about so many rows."""


async def fetch_group(
    lease: ReaderLease, wanted: pa.Schema, group: Sequence[Located], as_of: Timestamp
) -> list[Updates]:
    """The updates of each part of `group`, as rows of `wanted`, for a read at `as_of`. Raises `ReaderExpired`,
    `SinceError` when the shard was finalized meanwhile, `CorruptBlobError`, or the store's error.
    """
    shard = lease.shard
    try:
        return [await shard.fetch_part(located, wanted) for located in group]
    except CorruptBlobError:
        # Without the lease, or the shard, the blob may have been deleted rightfully: that is another error.
        state = await shard.fetch()
        lease.check_live(state)
        if state.tombstone:
            raise SinceError(lease.id, as_of, DONE) from None
        raise


def grouped(parts: Sequence[Located]) -> list[list[Located]]:
    """Parts in groups of some ten thousand rows: many small parts become one batch for the consumer."""
    groups: list[list[Located]] = []
    rows = 0
    for located in parts:
        if not groups or rows + located[2].rows > GROUP_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(located)
        rows += located[2].rows
    return groups
