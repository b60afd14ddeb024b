"""What a shard stands on: a blob store and a compare-and-set store.

Both are protocols, so that memory, files, SQLite, a remote committer or a faulty wrapper can be put
underneath without the shard noticing. An implementation promises linearizable operations and reports
failures only as `Determinate` ("it surely did not happen") or `Indeterminate` ("nobody knows"); everything
above relies on that distinction.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, NewType, Protocol, TypeAlias, runtime_checkable

from penstock.runtime import Determinate, ExternalError, random_uuid

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


class StoreRefused(StoreUnusable):
    """The store answered that it does not admit who asks (credentials, rights): its URL can never work as it is."""

    sqlstate = "28000"


class SchemaMissing(StoreUnusable):
    """The tables of the store are gone: dropped, or the database is a fresh one. Nothing happened.

    Only who may take the loss of everything for granted creates them again (a committer that serves whatever
    store it is pointed at); anybody else must report it.
    """

    sqlstate = "42P01"


StoreFailure: TypeAlias = ExternalError
"""What became of one member of a batch instead of a result; says by its class whether it may have happened."""

BATCH_MAX = 64
"""Most changes in one `compare_and_set_many`."""


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


@runtime_checkable
class BatchingConsensus(Consensus, Protocol):
    """A `Consensus` that takes changes of many keys in one round trip."""

    async def compare_and_set_many(self, changes: Sequence[tuple[str, Versioned]]) -> list[CasResult | StoreFailure]:
        """`compare_and_set` of up to `BATCH_MAX` changes of distinct keys, each with its own result, in their order.

        A mismatch or a refusal of one never fails its neighbours. Raises what failed the batch as a whole:
        `Determinate` when none of it happened, `Indeterminate` when any of it may have.
        """
        ...


@runtime_checkable
class SchemaOwner(Protocol):
    """A store with tables of its own, whose operations raise `SchemaMissing` when these were dropped under it."""

    async def ensure_schema(self) -> None:
        """Create what is missing. May be called at any time, by many processes at once; keeps what is there."""
        ...


def check_batch(changes: Sequence[tuple[str, Versioned]]) -> None:
    """Assert what a caller of `compare_and_set_many` promises."""
    assert len(changes) <= BATCH_MAX, f"a batch of {len(changes)} changes; at most {BATCH_MAX}"
    assert len({key for key, _ in changes}) == len(changes), f"a key twice in one batch: {[k for k, _ in changes]}"


def check_version(key: str, new: Versioned) -> None:
    """Refuse a seqno that no store can hold, before anything happens."""
    if not 0 <= new.seqno < SEQNO_END:
        raise Determinate(f"seqno {new.seqno} of {key} is outside [0, {SEQNO_END})")


def truncated_beyond_head(key: str, seqno: SeqNo, head: SeqNo | None) -> Determinate:
    """The error of a truncation that would remove the head."""
    at = "it was never written" if head is None else f"its head is {head}"
    return Determinate(f"cannot truncate {key} to {seqno}: {at}")
