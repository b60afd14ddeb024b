"""Which parts a read needs, and fetching them from a version that the reader has leased."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pyarrow as pa

from penstock.persist.errors import CorruptBlobError, SinceError
from penstock.persist.filter import Filter, KnownColumn, columns_of, matching, may_match
from penstock.persist.lease import ReaderLease
from penstock.persist.part_cache import Located
from penstock.persist.partstore import memory_of
from penstock.persist.schema import column_sources, selected
from penstock.persist.shard import Shard
from penstock.persist.state import HollowPart, Part
from penstock.persist.statistics import ColumnStatistics, decode_statistics
from penstock.runtime import DONE, Timestamp, Updates

GROUP_ROWS = 64 * 1024
"""Small parts are fetched, and handed on, in groups of about so many rows."""
GROUP_BYTES = 8 * 1024 * 1024
"""And of about so many bytes in memory."""


class Selection:
    """What a reader with `schema` wants of a shard: `columns` (None: all) of the parts that may pass `filter_`."""

    def __init__(self, schema: pa.Schema, columns: Sequence[str] | None = None, filter_: Filter | None = None) -> None:
        """Raises `KeyError` for an unknown column."""
        self.wanted = selected(schema, columns)
        self.filter = filter_
        self._schema = schema
        self._filtered = selected(schema, sorted(columns_of(filter_))) if filter_ is not None else None

    def needs(self, shard: Shard, part: Part) -> bool:
        """Whether a row of `part` may pass the filter. Parts in the state have no statistics, and cost nothing."""
        if self.filter is None or not isinstance(part, HollowPart) or not part.stats:
            return True
        written = shard.written_with(part)
        statistics = decode_statistics(part.stats)
        sources = dict(zip(self._schema.names, column_sources(written, self._schema), strict=True))

        def known(column: str) -> KnownColumn:
            source = sources[column]
            absent = ColumnStatistics(part.rows, None)  # it was written before there was this column
            return KnownColumn(
                self._schema.field(column).type, part.rows, absent if source is None else statistics.get(source)
            )

        return may_match(self.filter, known)

    async def passing(self, shard: Shard, located: Located) -> int:
        """How many rows of a part pass the filter, or may do so."""
        assert self.filter is not None
        updates = await shard.fetch_part(located, self._filtered, keep=False)
        return int(matching(self.filter, updates.rows).sum())


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


def grouped(parts: Sequence[Located], bytes_max: int) -> list[list[Located]]:
    """Parts in groups of some ten thousand rows: many small parts become one batch for the consumer.

    `bytes_max`: decoded size of a group, if it has more than one part.
    """
    groups: list[list[Located]] = []
    rows = nbytes = 0
    for located in parts:
        part = located[2]
        if not groups or rows + part.rows > GROUP_ROWS or nbytes + memory_of(part) > min(GROUP_BYTES, bytes_max):
            groups.append([])
            rows = nbytes = 0
        groups[-1].append(located)
        rows += part.rows
        nbytes += memory_of(part)
    return groups


def to_audit(discarded: Sequence[Located], percent: int, bytes_max: int) -> list[Located]:
    """Those of the `discarded` parts that are read all the same: the same ones each time, `bytes_max` at most."""
    chosen = []
    for located in discarded:
        part = located[2]
        assert isinstance(part, HollowPart)
        if zlib.crc32(part.key.encode()) % 100 < percent and part.size <= bytes_max:
            chosen.append(located)
            bytes_max -= part.size
    return chosen


def stored_bytes(part: Part) -> int:
    """What fetching `part` costs: nothing for one in the state."""
    return part.size if isinstance(part, HollowPart) else 0
