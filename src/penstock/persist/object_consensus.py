"""Consensus on an object store alone: no other server is needed, at the price of a slow write per commit.

Each key has one *head* object that is only ever replaced on condition that it still is what the writer read
(docs/rfcs/0005-object-consensus.md has the layout and the argument). Every append and every truncation is exactly
one such write, so that a writer that was paused for however long simply fails. What no longer fits into the head
is moved, before the write that refers to it, to an immutable segment.

The last known head of each key is kept in memory with its tag. Acting on an old one is safe (the condition fails) and
costs a request, so that a process that is alone with a key appends with one request and no read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from penstock.persist import metrics
from penstock.persist.object_log import (
    Log,
    Segment,
    decode_head,
    decode_segment,
    encode_head,
    encode_segment,
    first_log,
    is_garbage,
)
from penstock.persist.object_store import Changed, ObjectClient, Tag, Unchanged, segment, segment_text
from penstock.persist.store import (
    SCAN_ALL,
    CasResult,
    SeqNo,
    StoreUnusable,
    Versioned,
    check_version,
    truncated_beyond_head,
)
from penstock.runtime import Determinate, ExternalError, random_uuid

_log = structlog.get_logger("penstock.persist")

_ROUNDS_MAX = 16
"""Somebody else won this often in a row: report it instead of going on for ever."""

_CACHE_BYTES_MAX = 64 << 20
_HEADS = "consensus/heads/"
_SEGMENTS = "consensus/segments/"
_PROBES = "consensus/probes/"


@dataclass(frozen=True)
class _Known:
    """A head as it was seen, and what the store called it."""

    log: Log
    tag: Tag
    bytes: int


class ObjectConsensus:
    """A `Consensus` in the objects of `client`, which must be one that never repeats a conditional write.

    The first write checks that the store obeys conditions, and raises `StoreUnusable` where it does not: on such a
    store every race would lose data in silence. Damaged objects are `StoreUnusable`, by name. Belongs to one event
    loop; a cancelled call is done or not done.
    """

    def __init__(self, client: ObjectClient) -> None:
        self._client = client
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._known_bytes = 0
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._verifying = asyncio.Lock()
        self._verified = False

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        """The newest version. Always asks the store: an unchanged head costs it next to nothing."""
        known = await self._refresh(key)
        return known.log.head if known else None

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        for _ in range(_ROUNDS_MAX):
            known = await self._refresh(key)
            if known is None:
                return []
            log = known.log
            start = max(from_, log.floor)
            end = min(start + limit, log.head.seqno + 1)
            wanted = [s for s in log.segments if s.first < end and s.last >= start]
            found = await asyncio.gather(*(self._read_segment(key, s) for s in wanted))
            if None not in found:
                old = [v for versions in found for v in versions or () if start <= v.seqno < end]
                return old + log.between(start, end)
            # A truncation has taken a segment since the head was read, so the head must have changed.
            again = await self._refresh(key)
            if again is None or again.log.age == log.age:
                lost = [s.name for s, versions in zip(wanted, found, strict=True) if versions is None]
                raise StoreUnusable(
                    f"{', '.join(lost)} of {key} is missing in {self._client.shown}: restore it from a backup"
                )
        raise Determinate(f"cannot scan {key} in {self._client.shown}: it was truncated {_ROUNDS_MAX} times meanwhile")

    async def list_keys(self) -> list[str]:
        names = [name.removeprefix(_HEADS) for name, _ in await self._client.list(_HEADS)]
        return sorted(segment_text(name) for name in names)

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        check_version(key, new)
        await self._verify()
        async with self._alone_with(key):
            known, fresh = self._known.get(key), False
            for _ in range(_ROUNDS_MAX):
                head = known.log.head.seqno if known else -1
                if head >= new.seqno:
                    return CasResult.MISMATCH  # heads only grow, so that an old one is enough to know
                if head == new.seqno - 1:
                    if await self._append(key, known, new.data):
                        return CasResult.COMMITTED
                elif fresh:
                    return CasResult.MISMATCH
                known, fresh = await self._refresh(key), True
        raise self._crowded(f"write version {new.seqno} of {key}")

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        await self._verify()
        async with self._alone_with(key):
            known, fresh = self._known.get(key), False
            for _ in range(_ROUNDS_MAX):
                if known is not None and seqno <= known.log.head.seqno:
                    if seqno <= known.log.floor:
                        return 0
                    log = known.log.truncate(seqno)
                    if await self._replace(key, known.tag, log):
                        if len(log.segments) < len(known.log.segments):
                            await self._collect(key, log)
                        return seqno - known.log.floor
                elif fresh:
                    raise truncated_beyond_head(key, seqno, known.log.head.seqno if known else None)
                known, fresh = await self._refresh(key), True
        raise self._crowded(f"truncate {key} to {seqno}")

    async def close(self) -> None:
        self._client.close()

    # Writing

    async def _append(self, key: str, known: _Known | None, data: bytes) -> bool:
        """One more version after `known`. False: the head is another one by now, and nothing happened."""
        if known is None:
            return await self._replace(key, None, first_log(data))
        log = known.log
        if not log.is_full(data):
            return await self._replace(key, known.tag, log.append(data))
        spilled, rest = log.spill(random_uuid().hex)
        await self._client.put(_segment_name(key, spilled), encode_segment(log.versions))
        if await self._replace(key, known.tag, rest.append(data)):
            return True
        await self._delete([_segment_name(key, spilled)])  # what would refer to it surely did not happen
        return False

    async def _replace(self, key: str, tag: Tag | None, log: Log) -> bool:
        """The one write that changes a log, on condition that the head still is what `tag` names."""
        data = encode_head(log)
        try:
            tag = await self._client.put_if(_HEADS + segment(key), data, tag)
        except Changed:
            return False
        self._remember(key, _Known(log, tag, len(data)))
        return True

    async def _collect(self, key: str, log: Log) -> None:
        """Delete the segments that `log` has dropped, and what writers that failed left. A failure leaves garbage."""
        folder = _segment_name(key, None)
        try:
            names = await self._client.list(folder)
        except ExternalError as error:
            _log.warning("segments are left behind", key=key, error=error.message)
            return
        await self._delete([name for name, _ in names if is_garbage(name.removeprefix(folder), log)])

    async def _delete(self, names: Iterable[str]) -> None:
        for outcome in await asyncio.gather(*(self._client.delete(name) for name in names), return_exceptions=True):
            if isinstance(outcome, ExternalError):
                _log.warning("an object is left behind", error=outcome.message)
            elif isinstance(outcome, BaseException):
                raise outcome

    def _crowded(self, what: str) -> Determinate:
        return Determinate(f"cannot {what} in {self._client.shown}: others were first {_ROUNDS_MAX} times in a row")

    async def _verify(self) -> None:
        """Once: a store that ignores the condition of a write (some imitations of S3 do) must not be written to."""
        if self._verified:
            return
        async with self._verifying:
            if self._verified:
                return
            name = _PROBES + random_uuid().hex
            try:
                old = await self._client.put_if(name, b"1", None)
                new = await self._client.put_if(name, b"2", old)
            except Changed as error:
                raise self._disobedient() from error
            for expected in (None, old):
                try:
                    await self._client.put_if(name, b"3", expected)
                except Changed:
                    continue
                raise self._disobedient()
            if old == new:
                raise self._disobedient()
            await self._delete([name])
            self._verified = True

    def _disobedient(self) -> StoreUnusable:
        return StoreUnusable(
            f"{self._client.shown} ignores conditions of writes (If-None-Match, If-Match): consensus is impossible "
            "there; use a store that has them, or PostgreSQL or SQLite for consensus"
        )

    # Reading

    async def _refresh(self, key: str) -> _Known | None:
        """The head as it is now."""
        known = self._known.get(key)
        try:
            found = await self._client.get(_HEADS + segment(key), known=known.tag if known else None)
        except Unchanged:
            metrics.OBJECT_HEADS.labels("unchanged").inc()
            return self._known.get(key, known)
        metrics.OBJECT_HEADS.labels("read").inc()
        if found is None:
            if known is not None:
                raise StoreUnusable(
                    f"the head of {key} has disappeared from {self._client.shown}: restore it from a backup"
                )
            return None
        data, tag = found
        return self._remember(
            key, _Known(decode_head(data, f"the head of {key} in {self._client.shown}"), tag, len(data))
        )

    async def _read_segment(self, key: str, wanted: Segment) -> list[Versioned] | None:
        found = await self._client.get(_segment_name(key, wanted))
        what = f"segment {wanted.name} of {key} in {self._client.shown}"
        return None if found is None else decode_segment(found[0], wanted, what)

    def _remember(self, key: str, seen: _Known) -> _Known:
        """Keep `seen` unless a later head is known: a read may be overtaken by a write. Returns the later one."""
        known = self._known.pop(key, None)
        if known is not None:
            self._known_bytes -= known.bytes
            if known.log.age > seen.log.age:
                seen = known
        self._known[key] = seen
        self._known_bytes += seen.bytes
        while self._known_bytes > _CACHE_BYTES_MAX and len(self._known) > 1:
            _, dropped = self._known.popitem(last=False)
            self._known_bytes -= dropped.bytes
        return seen

    @asynccontextmanager
    async def _alone_with(self, key: str) -> AsyncIterator[None]:
        """One writer per key in this process: two would only make each other fail."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1


def _segment_name(key: str, of: Segment | None) -> str:
    """The name of a segment; of None: what the names of all segments of `key` begin with."""
    return f"{_SEGMENTS}{segment(key)}/{of.name if of else ''}"
