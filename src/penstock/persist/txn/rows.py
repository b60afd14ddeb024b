"""What the txns shard holds: one row per registered shard and one per write that is not yet tidied away.

A row is ``(shard, payload)``. Payloads begin with a format byte and a kind:

* ``r``: the shard is registered. Then the time of the registration (8 bytes, big-endian) and the shard's
  schema.
* ``w``: a write to the shard. Then a stored batch (`Batch.to_bytes`): small ones carry their updates in
  themselves, large ones point to blobs of the shard.

A payload occurs at most once in the whole history of the log (a shard has one write per time, a
registration has its time), so that retracting a row means exactly that row. See docs/rfcs/0002-txn-wal.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from penstock.persist.schema import decode_schema
from penstock.persist.store import ShardId
from penstock.persist.write import Batch
from penstock.runtime import InternalError, Timestamp, Updates

TXNS_SCHEMA = pa.schema([("shard", pa.string()), ("payload", pa.binary())])

_FORMAT = b"\x01"
_REGISTRATION = _FORMAT + b"r"
_ENDING = _FORMAT + b"e"
_WRITE = _FORMAT + b"w"


@dataclass(frozen=True, eq=False)
class _Bound:
    """One end of the time for which a shard is registered."""

    shard: ShardId
    ts: Timestamp
    payload: bytes

    @cached_property
    def schema(self) -> pa.Schema:
        return decode_schema(self.payload[10:])


class Registration(_Bound):
    """`shard` is written through transactions only, from `ts` on."""

    @staticmethod
    def new(shard: ShardId, ts: Timestamp, schema: bytes) -> Registration:
        """`schema` as `parts.encode_schema` gives it."""
        return Registration(shard, ts, _REGISTRATION + int(ts).to_bytes(8, "big") + schema)


class Ending(_Bound):
    """`shard` is not registered after `ts`, and its own upper may not have been moved there yet."""

    @staticmethod
    def new(registration: Registration, ts: Timestamp) -> Ending:
        payload = _ENDING + int(ts).to_bytes(8, "big") + registration.payload[10:]
        return Ending(registration.shard, ts, payload)


@dataclass(frozen=True, eq=False)
class Write:
    """All that one commit wrote to one shard; every update is at `ts`."""

    batch: Batch
    payload: bytes

    @property
    def shard(self) -> ShardId:
        return self.batch.shard

    @property
    def ts(self) -> Timestamp:
        return Timestamp(self.batch.lower)

    @property
    def inline(self) -> bool:
        """Whether the updates are in the payload itself, not in blobs of the shard."""
        return not self.batch.keys

    @staticmethod
    def new(batch: Batch) -> Write:
        return Write(batch, _WRITE + batch.to_bytes())


Entry = Registration | Ending | Write


def decode(shard: str, payload: bytes) -> Entry:
    """The entry of a row. Raises `InternalError` for one that this program does not know."""
    kind, body = payload[:2], payload[2:]
    if kind in (_REGISTRATION, _ENDING):
        bound = Registration if kind == _REGISTRATION else Ending
        return bound(ShardId(shard), Timestamp(int.from_bytes(body[:8], "big")), payload)
    if kind == _WRITE:
        return Write(Batch.from_bytes(body), payload)
    raise InternalError(f"transaction log row for {shard} has the unknown kind {kind!r}; is this program too old?")


def encode(added: Sequence[Entry], retracted: Sequence[Entry], ts: Timestamp) -> Updates:
    """The updates of the txns shard that add some entries and retract others, at `ts`."""
    entries = [*added, *retracted]
    shards = pa.array([entry.shard for entry in entries], pa.string())
    payloads = pa.array([entry.payload for entry in entries], pa.binary())
    rows = pa.RecordBatch.from_arrays([shards, payloads], schema=TXNS_SCHEMA)
    diffs = np.repeat(np.array([1, -1], dtype=np.int64), [len(added), len(retracted)])
    return Updates(rows, np.full(len(entries), ts, dtype=np.uint64), diffs)
