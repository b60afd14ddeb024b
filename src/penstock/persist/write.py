"""Appending to a shard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import pyarrow as pa
import structlog

from penstock.persist import commands, metrics
from penstock.persist.commands import Appended, Step
from penstock.persist.errors import BatchTooOld, ClientClosed, InvalidUsage, Mismatch
from penstock.persist.parts import encode_inline
from penstock.persist.partstore import age_ms
from penstock.persist.schema import SchemaId
from penstock.persist.shard import Attempt, Shard
from penstock.persist.state import HollowPart, Part, State
from penstock.persist.store import ShardId
from penstock.runtime import (
    DONE,
    Determinate,
    ExternalError,
    Frontier,
    Indeterminate,
    InternalError,
    PenstockError,
    Updates,
    conform,
    random_uuid,
)

R = TypeVar("R")
S = TypeVar("S")

_EXPIRE_TIMEOUT_S = 2.0
_STORES_MAX = 3
"""How often updates are stored anew because whoever stored them was stopped before it could append them."""

_log = structlog.get_logger("penstock.persist")


async def store_and_append(
    store: Callable[[], Awaitable[S]], append: Callable[[S], Awaitable[R]], discard: Callable[[S], Awaitable[None]]
) -> tuple[S, R]:
    """What was stored, and what came of appending it. It is stored anew where this process was stopped in between for
    so long that `append` finds it too old.

    What surely was not appended is discarded on the way out with an error: that of `store` or `append`, or
    `Determinate` when it was too old each time.
    """
    stores_left = _STORES_MAX
    while True:
        stored = await store()
        stores_left -= 1
        try:
            return stored, await append(stored)
        except Determinate:
            await discard(stored)
            raise
        except BatchTooOld as error:
            await discard(stored)
            if not stores_left:
                raise Determinate(error.message) from error
            _log.warning("stored anew: this process was stopped for long", shard=error.shard)


@dataclass(frozen=True, slots=True)
class Batch:
    """Updates that are stored but not yet in the shard: all their times are in ``[lower, upper)``.

    Append it with `WriteHandle.compare_and_append_batches` (here or, by way of `to_bytes`, in another
    process) or remove its blobs with `WriteHandle.delete_batch`.
    """

    shard: ShardId
    lower: Frontier
    upper: Frontier
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def keys(self) -> list[str]:
        """Keys of its blobs within the shard."""
        return [part.key for part in self.parts if isinstance(part, HollowPart)]

    def check_age(self, now_ms: int, limit_ms: int) -> None:
        """Raise `BatchTooOld` when its blobs may have been swept, for nothing referred to them in time."""
        waited_ms = age_ms(self.parts, now_ms)
        if waited_ms > limit_ms:
            raise BatchTooOld(self.shard, waited_ms, limit_ms)

    def to_bytes(self) -> bytes:
        """A durable form. What it refers to stays for `PersistConfig.link_ms`; longer only if kept from sweeps."""
        return _encoder.encode(_Encoded(self.shard, self.lower, self.upper, self.parts))

    @staticmethod
    def from_bytes(data: bytes) -> Batch:
        """Raises `InternalError` when `data` is not what `to_bytes` gave."""
        try:
            encoded = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise InternalError(f"an encoded batch of {len(data)} bytes cannot be decoded: {error}") from error
        return Batch(ShardId(encoded.shard), Frontier(encoded.lower), Frontier(encoded.upper), encoded.parts)


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    shard: str
    lower: int
    upper: int
    parts: tuple[Part, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Encoded)


class WriteHandle:
    """One writer of one shard. Its appends take effect one at a time, each exactly once.

    `upper`: the newest upper this process knows of.
    """

    def __init__(self, shard: Shard, writer: str, schema: pa.Schema, schema_id: SchemaId) -> None:
        self._shard = shard
        self._writer = writer
        self._schema = schema
        self._schema_id = schema_id
        self._one_in_flight = asyncio.Lock()
        self._expired = False
        shard.writers.add(writer)

    @property
    def shard(self) -> ShardId:
        return self._shard.id

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @property
    def schema_id(self) -> SchemaId:
        """The number of `schema`; it stays, whatever becomes of the shard's."""
        return self._schema_id

    @property
    def writer_id(self) -> str:
        return self._writer

    @property
    def expired(self) -> bool:
        return self._expired

    @property
    def upper(self) -> Frontier:
        return Frontier(self._shard.state.upper)

    async def fetch_recent_upper(self) -> Frontier:
        """The shard's upper at some moment after the call began."""
        return Frontier((await self._shard.fetch()).upper)

    async def fence_late_attempts(self) -> Frontier:
        """Make every commit to the shard that is under way now, in whatever process, fail and be thought over.

        Returns the shard's upper: what is not below it by now and is too old to be appended never will be. Durable.
        """
        await self._shard.commit(lambda state, _: commands.fence(state), "fence")
        return self.upper

    async def wait_for_upper_past(self, frontier: Frontier) -> Frontier:
        """Wait until the upper is greater than `frontier` (at once for `DONE`); returns it."""
        state = await self._shard.wait_until(lambda state: state.upper > frontier or state.upper == DONE)
        return Frontier(state.upper)

    async def compare_and_append(
        self, updates: Updates, expected_upper: Frontier, new_upper: Frontier, *, naming: Sequence[Batch] = ()
    ) -> Mismatch | None:
        """Append `updates` and move the upper from `expected_upper` to `new_upper`, if that is where it is.

        Times must be in ``[expected_upper, new_upper)``. Durable on None; on `Mismatch` nothing happened.
        Without updates it costs one consensus write. Raises `InvalidUsage`, `StoreFull` (nothing happened),
        or after long patience the store's error. A cancelled call has either happened or not.

        `naming`: stored batches that the `updates` speak of. `BatchTooOld` is raised (nothing happened) when one of
        them has waited for too long.
        """
        self._check_open()
        self._check_times(updates, expected_upper, new_upper)
        if await self._lost(expected_upper):
            return Mismatch(self.upper)

        async def store() -> Batch:
            for one in naming:
                self._check_age(one)
            return await self.batch(updates, expected_upper, new_upper)

        async def append(batch: Batch) -> Appended | Mismatch:
            return await self._append([batch], expected_upper, new_upper, [batch, *naming])

        batch, result = await store_and_append(store, append, self._discard)
        if isinstance(result, Mismatch):
            await self.delete_batch(batch)
            return result
        return None

    async def batch(self, updates: Updates, lower: Frontier, upper: Frontier) -> Batch:
        """Store `updates`, whose times must be in ``[lower, upper)``, without appending them."""
        self._check_open()
        self._check_times(updates, lower, upper)
        if len(updates) == 0:
            return Batch(self.shard, lower, upper, ())
        updates = updates.with_rows(conform(updates.rows, self._schema))
        config, state = self._shard.config, self._shard.state
        inline = encode_inline(updates, config.inline_bytes, self._schema_id)
        if inline is not None and state.inline_bytes + len(inline.data) <= config.inline_total_bytes:
            metrics.PART_BYTES.labels("inline").inc(len(inline.data))
            return Batch(self.shard, lower, upper, (inline,))
        parts = await self._shard.parts.upload(self.shard, self._writer, updates, self._schema_id)
        return Batch(self.shard, lower, upper, tuple(parts))

    async def compare_and_append_batches(
        self, batches: Sequence[Batch], expected_upper: Frontier, new_upper: Frontier, *, kept: bool = False
    ) -> Mismatch | None:
        """Like `compare_and_append`, for stored batches, each within ``[expected_upper, new_upper)``.

        On `Mismatch` the batches are still the caller's. A batch must not be appended twice. `kept`: the caller has
        seen to it that a sweep spares their blobs; else `BatchTooOld` is raised when they have waited for too long.
        """
        self._check_open()
        for batch in batches:
            if not kept:
                self._check_age(batch)
            if batch.shard != self.shard:
                raise InvalidUsage(f"a batch of shard {batch.shard} cannot be appended to {self.shard}")
            if batch.parts and not expected_upper <= batch.lower <= batch.upper <= new_upper:
                raise InvalidUsage(
                    f"a batch from {batch.lower} up to {batch.upper} cannot be appended to {self.shard} "
                    f"from {expected_upper} up to {new_upper}"
                )
        if await self._lost(expected_upper):
            return Mismatch(self.upper)
        result = await self._append(batches, expected_upper, new_upper, () if kept else batches)
        return result if isinstance(result, Mismatch) else None

    async def delete_batch(self, batch: Batch) -> None:
        """Remove the blobs of a batch that was not, and never will be, appended."""
        await self._shard.parts.delete(self.shard, batch.keys)

    async def _discard(self, batch: Batch) -> None:
        """`delete_batch` on the way out with an error that matters more."""
        try:
            await self.delete_batch(batch)
        except ExternalError as error:
            _log.warning("blobs left to the sweep", shard=self.shard, keys=batch.keys, error=error.message)

    async def expire(self) -> None:
        """End this writer. Nothing it appended is affected. May be called twice."""
        if self._expired:
            return
        self._expired = True
        self._shard.writers.discard(self._writer)
        await self._shard.commit(lambda state, _: commands.expire_writer(state, writer=self._writer), "expire_writer")

    async def expire_best_effort(self) -> None:
        """`expire`, where a failing store is no error: the durable entry ends with its lease."""
        try:
            async with asyncio.timeout(_EXPIRE_TIMEOUT_S):
                await self.expire()
        except (PenstockError, TimeoutError) as error:
            _log.warning("writer not expired", shard=self.shard, writer=self._writer, error=repr(error))

    async def _append(
        self, batches: Sequence[Batch], expected: Frontier, new: Frontier, young: Sequence[Batch]
    ) -> Appended | Mismatch:
        """Raises `BatchTooOld` when one of `young` has waited for too long by the time of the commit."""
        if not expected <= new <= DONE:
            raise InvalidUsage(
                f"append to {self.shard} from {expected} up to {new}: the bounds are inverted or too great"
            )
        parts = tuple(part for batch in batches for part in batch.parts)
        if new == expected:
            if parts:
                raise InvalidUsage(f"append to {self.shard} at the empty interval [{expected}, {new})")
            upper = await self.fetch_recent_upper()
            return Appended() if upper == expected else Mismatch(upper)
        token = random_uuid().bytes
        lease_ms = self._shard.config.writer_lease_ms
        first_ms: int | None = None

        def append(state: State, attempt: Attempt) -> Step[Appended | Mismatch]:
            nonlocal first_ms
            first_ms = min(first_ms or attempt.now_ms, attempt.now_ms)
            step = commands.append(
                state,
                writer=self._writer,
                token=token,
                expected=expected,
                new=new,
                parts=parts,
                now_ms=attempt.now_ms,
                lease_ms=lease_ms,
            )
            if step.diff is not None:
                self._check_ages(young, attempt)
            elif isinstance(step.result, Mismatch) and attempt.uncertain and not state.tombstone:
                self._check_token_would_be_known(state, first_ms + lease_ms)
            return step

        async with self._one_in_flight:  # a second one would make an unknown outcome undecidable
            return await self._shard.commit(append, "compare_and_append")

    def _check_ages(self, batches: Sequence[Batch], attempt: Attempt) -> None:
        """Asked in every attempt: whoever sweeps commits a version first, so that attempts from before it fail."""
        try:
            for batch in batches:
                batch.check_age(attempt.now_ms, self._shard.config.link_ms)
        except BatchTooOld as error:
            if attempt.uncertain:
                raise Indeterminate(f"an append to {self.shard} may have happened; since then: {error}") from error
            raise

    def _check_token_would_be_known(self, state: State, until_ms: int) -> None:
        """A mismatch says that an earlier attempt was not committed only where its token would still be there: nobody
        can have dropped it before `until_ms` by the clock of the versions, which is that of whoever expires.
        """
        if self._writer not in state.writers and state.walltime_ms > until_ms:
            raise Indeterminate(
                f"an append to {self.shard} may have happened: by the time its outcome was looked for, writer "
                f"{self._writer} had expired (was this process stopped?)"
            )

    def _check_age(self, batch: Batch) -> None:
        batch.check_age(self._shard.clock.now_ms(), self._shard.config.link_ms)

    def _check_times(self, updates: Updates, lower: Frontier, upper: Frontier) -> None:
        if lower > upper:
            raise InvalidUsage(f"updates for {self.shard} from {lower} up to {upper}: the bounds are inverted")
        if len(updates) == 0:
            return
        first, last = int(updates.times.min()), int(updates.times.max())
        if first < lower or last >= upper:
            raise InvalidUsage(
                f"updates for {self.shard} have times from {first} to {last}, outside [{lower}, {upper})"
            )

    async def _lost(self, expected: Frontier) -> bool:
        """Whether the upper is not `expected`, by the newest state when the cached one says so."""
        if self._shard.state.upper == expected:
            return False
        return (await self._shard.fetch()).upper != expected

    def _check_open(self) -> None:
        if self._expired:
            raise ClientClosed(f"writer {self._writer} of shard {self.shard} has been expired")
