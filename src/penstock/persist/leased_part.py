"""Parts of a read that are fetched by another process than the one that holds the lease.

One process plans: it leases a version and lists the parts. Others fetch: each gets a part's description as bytes.
As long as the `LeasedPart` lives in the planning process, and its reader's lease with it, the blob is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from penstock.persist.errors import CorruptBlobError, LeaseLost
from penstock.persist.lease import ReaderLease
from penstock.persist.part_cache import Located
from penstock.persist.schema import decode_schema, encode_schema
from penstock.persist.shard import Shard
from penstock.persist.state import HollowPart, Part
from penstock.persist.store import SeqNo, ShardId
from penstock.runtime import Frontier, InternalError, Timestamp, Updates
from penstock.runtime.updates import times_of

_FORMAT = b"\x01"


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """What is needed to fetch a part: which one, under whose lease, and which of its updates as which rows.

    `as_of`: updates after it are left out, the others are at it; None: at their own times. `lower`: updates before it
    are left out.
    """

    shard: str
    reader: str
    seqno: int
    batch: int
    index: int
    part: Part
    schema: bytes
    as_of: int | None
    lower: int


class LeasedPart:
    """A part and the lease on it. Give it back with `release` once it was fetched; dropping it does so too."""

    def __init__(
        self,
        lease: ReaderLease,
        seqno: SeqNo,
        located: Located,
        wanted: pa.Schema,
        *,
        as_of: Timestamp | None = None,
        lower: Frontier = Frontier(0),  # noqa: B008 a number
    ) -> None:
        batch_id, index, part = located
        self._ticket = Ticket(
            lease.id, lease.reader_id, seqno, batch_id, index, part, encode_schema(wanted), as_of, lower
        )
        self._lease: ReaderLease | None = lease
        lease.take_again(seqno)

    @property
    def rows(self) -> int:
        """Rows of the whole part: an upper bound of what fetching it gives."""
        return self._ticket.part.rows

    def to_bytes(self) -> bytes:
        """For `PersistClient.fetch`, here or in another process."""
        return _FORMAT + _encoder.encode(self._ticket)

    def release(self) -> None:
        """Return the lease. Whoever has not fetched the part by now may find it gone. More than once is harmless."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_back(SeqNo(self._ticket.seqno))

    def __del__(self) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class LeasedStep:
    """A step of a listen: `parts` have all updates from the last step's progress to this one's."""

    parts: Sequence[LeasedPart]
    progress: Frontier


def decode_ticket(data: bytes) -> Ticket:
    """Raises `InternalError` when `data` is not what `LeasedPart.to_bytes` gave."""
    try:
        if data[:1] != _FORMAT:
            raise InternalError(f"a leased part has the unknown format {data[:1]!r}; is this program too old?")
        return _decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as error:
        raise InternalError(f"a leased part of {len(data)} bytes cannot be decoded: {error}") from error


async def fetch_leased(shard: Shard, ticket: Ticket) -> Updates:
    """See `PersistClient.fetch`."""
    part, wanted = ticket.part, decode_schema(ticket.schema)
    await shard.fetch_schema_of(part)
    try:
        updates = await shard.fetch_part((ticket.batch, ticket.index, part), wanted)
    except CorruptBlobError:
        state = await shard.fetch()
        entry = state.readers.get(ticket.reader)
        leased = entry is not None and entry.hold <= ticket.seqno
        referred_to = state.keys()
        if not leased and isinstance(part, HollowPart) and part.key not in referred_to:
            raise LeaseLost(shard.id, ticket.reader, part.key) from None
        raise
    updates = updates.filter(updates.times >= np.uint64(ticket.lower))
    if ticket.as_of is None:
        return updates
    updates = updates.filter(updates.times <= np.uint64(ticket.as_of))
    return Updates(updates.rows, times_of(ticket.as_of, len(updates)), updates.diffs)


def shard_of(ticket: Ticket) -> ShardId:
    return ShardId(ticket.shard)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ticket)
