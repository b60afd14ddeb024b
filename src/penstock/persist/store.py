"""What a shard stands on: a blob store and a compare-and-set store.

Both are protocols, so that memory, files, SQLite, a remote committer or a faulty wrapper can be put
underneath without the shard noticing. An implementation promises linearizable operations and reports
failures only as `Determinate` ("it surely did not happen") or `Indeterminate` ("nobody knows"); everything
above relies on that distinction.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType, Protocol

from penstock.runtime import Determinate, random_uuid

ShardId = NewType("ShardId", str)
"""``s<uuid>``; also the shard's key in consensus and the first segment of its blob keys."""

SeqNo = NewType("SeqNo", int)
"""Number of one version of a shard's state; contiguous from 0."""

SCAN_ALL = 2**63 - 1
"""A scan without a limit."""

SEQNO_END = 2**40
"""Seqnos are below this (a thousand versions a second for 34 years)."""


def new_shard_id() -> ShardId:
    """A shard id that was never used."""
    return ShardId(f"s{random_uuid()}")


class Versioned(NamedTuple):
    """One version in consensus."""

    seqno: SeqNo
    data: bytes


class CasResult(Enum):
    COMMITTED = "committed"
    MISMATCH = "mismatch"


class StoreUnusable(Determinate):
    """The store refuses until somebody mends it: trying again by itself is pointless, so it is reported at once."""


class StoreFull(StoreUnusable):
    """There is no room left for a write. Nothing was written; the store goes on once there is room again."""

    sqlstate = "53100"


class Blob(Protocol):
    """Objects by key (segments separated by "/"), each written once and never modified."""

    async def get(self, key: str) -> bytes | None:
        """The object, or None when there is none by this key."""
        ...

    async def set(self, key: str, value: bytes) -> None:
        """Store `value`; atomic, and durable on return. Overwrites."""
        ...

    async def delete(self, key: str) -> int | None:
        """Remove the object. Returns its size in bytes, None when there was none: both are success."""
        ...

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        """(key, size in bytes) of every object whose key starts with the string `prefix`, sorted by key."""
        ...

    async def close(self) -> None:
        """Release threads and files. No other call may follow."""
        ...


class Consensus(Protocol):
    """Per key a log of versions with contiguous seqnos; the newest is the head.

    * A version is added only directly after the head (`new.seqno - 1` must be the head; for 0 there must be
      none).
    * The head is never removed, so a key that was ever written has one.
    """

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        """The newest version. ``linearized=False`` allows an answer that is older than the newest commit."""
        ...

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        """Add `new` if the head is its predecessor. Durable on COMMITTED. MISMATCH: nothing happened."""
        ...

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        """Versions with seqno >= `from_`, ascending, at most `limit`; linearizable."""
        ...

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        """Remove versions below `seqno`; returns how many. `Determinate` when `seqno` is beyond the head."""
        ...

    async def list_keys(self) -> list[str]:
        """Every key that was ever written, sorted."""
        ...

    async def close(self) -> None:
        """Release threads and files; operations under way are finished. No other call may follow."""
        ...


def check_version(key: str, new: Versioned) -> None:
    """Refuse a seqno that no store can hold, before anything happens."""
    if not 0 <= new.seqno < SEQNO_END:
        raise Determinate(f"seqno {new.seqno} of {key} is outside [0, {SEQNO_END})")


def truncated_beyond_head(key: str, seqno: SeqNo, head: SeqNo | None) -> Determinate:
    """The error of a truncation that would remove the head."""
    at = "it was never written" if head is None else f"its head is {head}"
    return Determinate(f"cannot truncate {key} to {seqno}: {at}")
