"""The state of one shard, and the diffs that lead from each version to the next.

A version of the state is a value. A command computes a `Diff` from it; `apply` is the only function that
makes the next version, for the committer of the diff as well as for everyone who reads it back from
consensus. So a diff that was committed applies everywhere by construction.

Batches tile ``[0, upper)``: each begins at its `lower` and ends where the next one begins (the last one at
the shard's upper). An append without updates therefore only moves `upper`: progress leaves nothing behind
in the state. Durable formats are described in docs/rfcs/0001-shard-state.md.
"""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

import msgspec

from penstock.persist.errors import CorruptStateError
from penstock.persist.store import SeqNo
from penstock.runtime import DONE, Frontier, InternalError, meet

_DIFF_FORMAT = b"\x01"
_ROLLUP_FORMAT = b"PSR1"


class HollowPart(msgspec.Struct, frozen=True, array_like=True, tag="h"):
    """Updates in a blob. `key` lacks the shard; `size` (bytes) and `crc` (CRC-32) are the object's.

    `run`: 0 for a part in no order; the parts of a batch with the same number beyond 0 are one run, sorted as
    `order` says. `memory`: bytes when decoded, 0 for unknown. `schema`: number of the schema it was written with.
    `stats`: as `statistics` encodes them.
    """

    key: str
    format: str
    size: int
    crc: int
    rows: int
    diff_sum: int
    time_min: int
    time_max: int
    run: int = 0
    memory: int = 0
    schema: int = 0
    stats: bytes = b""


class InlinePart(msgspec.Struct, frozen=True, array_like=True, tag="i"):
    """Updates in the state itself. `raw_size`: bytes after decompression, 0 when not compressed.

    `schema`: number of the schema it was written with.
    """

    data: bytes
    raw_size: int
    rows: int
    diff_sum: int
    time_min: int
    time_max: int
    schema: int = 0


Part = HollowPart | InlinePart


class LinkedBatch(msgspec.Struct, frozen=True, array_like=True):
    """Updates from `lower` to the next batch's lower.

    `id`: seqno of the version that brought it in, unique. `since`: times were advanced to it, 0 for a
    user's batch.
    """

    id: int
    lower: int
    since: int
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def inline_bytes(self) -> int:
        return sum(len(part.data) for part in self.parts if isinstance(part, InlinePart))

    @property
    def keys(self) -> list[str]:
        return [part.key for part in self.parts if isinstance(part, HollowPart)]


class Reader(msgspec.Struct, frozen=True, array_like=True):
    """A leased reader. `hold`: nothing that version `hold` or a later one refers to is deleted."""

    hold: int
    since: int
    heartbeat_ms: int
    lease_ms: int
    purpose: str


class Critical(msgspec.Struct, frozen=True, array_like=True):
    """A reader without lease, fenced by `opaque`."""

    since: int
    opaque: int
    purpose: str


class Writer(msgspec.Struct, frozen=True, array_like=True):
    """A writer's newest append: `token` identifies it, so that an append with an unknown outcome can be
    decided.
    """

    token: bytes
    upper: int
    heartbeat_ms: int
    lease_ms: int


class Rollup(msgspec.Struct, frozen=True, array_like=True):
    """A full state in a blob. `key` lacks the shard."""

    key: str
    size: int


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Somebody is compacting the batches `ids`. It is void after `lease_ms`: whoever took it has died."""

    ids: tuple[int, ...]
    claimant: str
    started_ms: int
    lease_ms: int

    def live(self, now_ms: int) -> bool:
        """Whether others leave these batches alone. Clocks may differ, so one from the future ends as well."""
        return abs(now_ms - self.started_ms) < self.lease_ms


class Replace(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive batches `ids` become `batch`. `removed`: keys of parts that this version no longer refers
    to.
    """

    ids: tuple[int, ...]
    batch: LinkedBatch
    removed: tuple[str, ...]


class Diff(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one version changed; what is absent stayed. In the maps, None removes the entry.

    `schema`: one more, with the next number.
    """

    seqno: int = -1
    walltime_ms: int = 0
    rollup: str = ""
    upper: int | None = None
    since: int | None = None
    append: LinkedBatch | None = None
    replace: Replace | None = None
    readers: dict[str, Reader | None] = {}
    criticals: dict[str, Critical | None] = {}
    writers: dict[str, Writer | None] = {}
    rollups: dict[int, Rollup | None] = {}
    removed_rollups: tuple[str, ...] = ()
    schema: bytes | None = None
    collected: int | None = None
    tombstone: bool = False
    claims: dict[int, Claim | None] = {}


class State(msgspec.Struct, frozen=True):
    """One version. `collected`: versions below it were removed. `rollup`: key of the newest rollup, "" for
    none. `schemas`: by number. `schema`: only in rollups from before there could be several;
    `decode_rollup` makes it number 0.
    """

    seqno: int = -1
    walltime_ms: int = 0
    upper: int = 0
    since: int = 0
    batches: tuple[LinkedBatch, ...] = ()
    readers: dict[str, Reader] = {}
    criticals: dict[str, Critical] = {}
    writers: dict[str, Writer] = {}
    rollups: dict[int, Rollup] = {}
    rollup: str = ""
    schema: bytes | None = None
    collected: int = 0
    tombstone: bool = False
    inline_bytes: int = 0
    claims: dict[int, Claim] = {}
    """By the first of their batches: compactions under way."""
    schemas: tuple[bytes, ...] = ()

    @property
    def seqno_since(self) -> SeqNo:
        """The oldest version that somebody holds, or this one."""
        return SeqNo(min((reader.hold for reader in self.readers.values()), default=self.seqno))

    @property
    def latest_rollup(self) -> int:
        """Seqno of the newest rollup, -1 when there is none."""
        return max(self.rollups, default=-1)

    def batch_upper(self, index: int) -> Frontier:
        """Where the batch at `index` ends."""
        if index + 1 < len(self.batches):
            return Frontier(self.batches[index + 1].lower)
        return Frontier(self.upper)

    def keys(self) -> set[str]:
        """Every blob this version refers to, without the shard."""
        keys = {key for batch in self.batches for key in batch.keys}
        keys.update(rollup.key for rollup in self.rollups.values())
        return keys

    def readers_since(self) -> Frontier | None:
        """The meet of all readers' sinces, None when there are no readers."""
        sinces = [Frontier(reader.since) for reader in self.readers.values()]
        sinces += [Frontier(critical.since) for critical in self.criticals.values()]
        return meet(*sinces) if sinces else None


def apply(state: State, diff: Diff) -> State:
    """The version after `state`. Raises `InternalError` when `diff` is not its successor."""
    if diff.seqno != state.seqno + 1:
        raise InternalError(f"diff {diff.seqno} does not follow version {state.seqno}")
    if diff.tombstone:
        return _tombstone(diff)
    batches, inline_bytes = state.batches, state.inline_bytes
    if diff.replace is not None:
        batches, freed = _replace(batches, diff.replace)
        inline_bytes += diff.replace.batch.inline_bytes - freed
    if diff.append is not None:
        batches = (*batches, diff.append)
        inline_bytes += diff.append.inline_bytes
    return State(
        seqno=diff.seqno,
        walltime_ms=diff.walltime_ms,
        upper=state.upper if diff.upper is None else diff.upper,
        since=state.since if diff.since is None else diff.since,
        batches=batches,
        readers=_merge(state.readers, diff.readers),
        criticals=_merge(state.criticals, diff.criticals),
        writers=_merge(state.writers, diff.writers),
        rollups=_merge(state.rollups, diff.rollups),
        rollup=diff.rollup,
        schemas=state.schemas if diff.schema is None else (*state.schemas, diff.schema),
        collected=state.collected if diff.collected is None else diff.collected,
        tombstone=False,
        inline_bytes=inline_bytes,
        claims=_merge(state.claims, diff.claims),
    )


def _tombstone(diff: Diff) -> State:
    """A finalized shard: both frontiers done, nothing referred to. Depends on the diff alone, so it needs
    no rollup.
    """
    return State(
        seqno=diff.seqno,
        walltime_ms=diff.walltime_ms,
        upper=DONE,
        since=DONE,
        collected=diff.collected or 0,
        tombstone=True,
    )


def _replace(batches: tuple[LinkedBatch, ...], replace: Replace) -> tuple[tuple[LinkedBatch, ...], int]:
    start = position(batches, replace.ids)
    if start is None:
        raise InternalError(f"batches {replace.ids} are not consecutive in {[batch.id for batch in batches]}")
    end = start + len(replace.ids)
    freed = sum(batch.inline_bytes for batch in batches[start:end])
    return (*batches[:start], replace.batch, *batches[end:]), freed


def position(batches: tuple[LinkedBatch, ...], ids: tuple[int, ...]) -> int | None:
    """Index of the first of the consecutive batches `ids`, None when they are not there in this order."""
    for index, batch in enumerate(batches):
        if batch.id == ids[0]:
            found = tuple(batch.id for batch in batches[index : index + len(ids)])
            return index if found == ids else None
    return None


K = TypeVar("K", str, int)
V = TypeVar("V")


def _merge(entries: dict[K, V], changes: dict[K, V | None]) -> dict[K, V]:
    if not changes:
        return entries
    merged = dict(entries)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


_encoder = msgspec.msgpack.Encoder()
_diff_decoder = msgspec.msgpack.Decoder(Diff)
_state_decoder = msgspec.msgpack.Decoder(State)


def encode_diff(diff: Diff) -> bytes:
    return _DIFF_FORMAT + _encoder.encode(diff)


def decode_diff(shard: str, data: bytes) -> Diff:
    """Raises `CorruptStateError`."""
    if data[:1] != _DIFF_FORMAT:
        raise CorruptStateError(shard, f"a version has the unknown format {data[:1]!r}; is this program too old?")
    try:
        return _diff_decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as error:
        raise CorruptStateError(shard, f"a version cannot be decoded: {error}") from error


def encode_rollup(state: State) -> bytes:
    body = _encoder.encode(state)
    return _ROLLUP_FORMAT + zlib.crc32(body).to_bytes(4, "big") + body


def decode_rollup(shard: str, data: bytes) -> State:
    """Raises `CorruptStateError`."""
    body: Any = memoryview(data)[8:]
    if data[:4] != _ROLLUP_FORMAT or int.from_bytes(data[4:8], "big") != zlib.crc32(body):
        raise CorruptStateError(shard, f"a rollup of {len(data)} bytes is damaged or of an unknown format")
    try:
        state = _state_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptStateError(shard, f"a rollup cannot be decoded: {error}") from error
    if state.schema is not None:
        state = msgspec.structs.replace(state, schema=None, schemas=(state.schema,))
    return state
