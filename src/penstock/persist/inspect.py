"""What a shard looks like from outside, for people: its state, its live versions, its blobs, and what is wrong with it.

Only the stores are read, without a client and without a lease, while anybody may be writing and whatever is
damaged. What cannot be read is a `problem` in the answer, never an exception; an answer may be some moments old, and
its parts some moments apart. The values are plain structs, ready for JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from penstock.persist.errors import CorruptStateError
from penstock.persist.partstore import part_time_ms
from penstock.persist.readonly import BlobReader, ConsensusReader
from penstock.persist.schema import decode_schema
from penstock.persist.state import Diff, HollowPart, State, apply, decode_diff, decode_rollup
from penstock.persist.store import SeqNo, ShardId
from penstock.persist.sweep import is_left_behind
from penstock.runtime import DONE, ExternalError, InternalError

_SCAN_LIMIT = 1024
_NEWEST_DIFFS = 100
_LEAKS_SHOWN = 100
_SHARDS_AT_A_TIME = 8
_ATTEMPTS = 3


class DiffView(msgspec.Struct, frozen=True):
    """One live version: when it was made, how large its diff is, and what it changed."""

    seqno: int
    walltime_ms: int
    bytes: int
    changed: list[str]


class BatchView(msgspec.Struct, frozen=True):
    """`upper` None: never. `runs`: sorted runs, parts without an order counted singly."""

    id: int
    lower: int
    upper: int | None
    since: int
    rows: int
    parts: int
    runs: int
    blob_bytes: int
    inline_bytes: int


class ReaderView(msgspec.Struct, frozen=True):
    """A leased reader. `expires_ms`: milliseconds from now, negative when it is overdue."""

    id: str
    purpose: str
    since: int | None
    hold: int
    heartbeat_age_ms: int
    expires_ms: int


class CriticalView(msgspec.Struct, frozen=True):
    id: str
    purpose: str
    since: int | None
    opaque: int


class WriterView(msgspec.Struct, frozen=True):
    id: str
    upper: int | None
    heartbeat_age_ms: int
    expires_ms: int


class RollupView(msgspec.Struct, frozen=True):
    seqno: int
    key: str
    bytes: int


class ClaimView(msgspec.Struct, frozen=True):
    batches: list[int]
    claimant: str
    age_ms: int
    live: bool


class StateView(msgspec.Struct, frozen=True):
    """The newest version, readable. Frontiers are None where they are past every time. `schemas`: columns, by id."""

    seqno: int
    walltime_ms: int
    since: int | None
    upper: int | None
    seqno_since: int
    collected: int
    tombstone: bool
    schemas: list[list[str]]
    rows: int
    inline_bytes: int
    blob_bytes: int
    batches: list[BatchView]
    readers: list[ReaderView]
    criticals: list[CriticalView]
    writers: list[WriterView]
    rollups: list[RollupView]
    claims: list[ClaimView]


class ShardView(msgspec.Struct, frozen=True):
    """`state` None: it cannot be rebuilt, `problems` say why."""

    shard: str
    state: StateView | None
    live_diffs: int
    live_diff_bytes: int
    earliest: int | None
    newest_diffs: list[DiffView]
    problems: list[str]


class Amount(msgspec.Struct):
    blobs: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.blobs += 1
        self.bytes += size


class Leak(msgspec.Struct, frozen=True):
    """A blob that nothing refers to. `age_ms` None: its name tells neither who wrote it nor when."""

    key: str
    bytes: int
    age_ms: int | None


class BlobsView(msgspec.Struct, frozen=True):
    """Where the bytes of a shard are. Each blob is in exactly one of the amounts.

    * `current_parts`, `current_rollups`: the newest version refers to them; `older`: only older live versions do.
    * `pending`: nothing refers to them, but their writers may come to; `leaked`: nobody can any more (by age).
    * `foreign`: not written by any version of this program that is known.
    """

    shard: str
    current_parts: Amount
    current_rollups: Amount
    older: Amount
    pending: Amount
    leaked: Amount
    foreign: Amount
    inline_bytes: int
    leaks: list[Leak]
    problems: list[str]


class UsageView(msgspec.Struct, frozen=True):
    """All shards. `unattributed`: blobs whose shard consensus does not know."""

    shards: list[BlobsView]
    total: BlobsView
    unattributed: Amount


class Loaded(msgspec.Struct, frozen=True):
    """A shard as it was found. `removed`: keys that live versions stopped referring to."""

    shard: ShardId
    state: State | None
    live: int
    live_bytes: int
    earliest: int | None
    newest: list[DiffView]
    removed: set[str]
    problems: list[str]


async def load(consensus: ConsensusReader, blob: BlobReader, shard: ShardId) -> Loaded:
    """Read the live versions and the newest state. Damage is in `problems`; so is a store that fails."""
    reading = _Reading(shard)
    for attempt in range(_ATTEMPTS):
        reading = _Reading(shard)
        try:
            await reading.diffs(consensus)
            await reading.rebuild(consensus, blob)
        except ExternalError as error:
            reading.problems.append(f"a store does not answer: {error.message}")
        if not reading.problems or attempt == _ATTEMPTS - 1:
            break  # else it may be that versions were collected under our eyes: look again
    return reading.loaded()


class _Reading:
    def __init__(self, shard: ShardId) -> None:
        self.shard = shard
        self.problems: list[str] = []
        self._live = self._live_bytes = 0
        self._earliest: int | None = None
        self._newest: list[DiffView] = []
        self._removed: set[str] = set()
        self._last = -1
        self._head: Diff | None = None
        self._rollup_keys: dict[str, None] = {}
        self._state: State | None = None

    async def diffs(self, consensus: ConsensusReader) -> None:
        start = SeqNo(0)
        while True:
            versions = await consensus.scan(self.shard, start, _SCAN_LIMIT)
            for version in versions:
                self._take(version.seqno, version.data)
            if len(versions) < _SCAN_LIMIT:
                return
            start = SeqNo(versions[-1].seqno + 1)

    def _take(self, seqno: int, data: bytes) -> None:
        if self._earliest is None:
            self._earliest = seqno
        elif seqno != self._last + 1:
            self.problems.append(f"versions {self._last + 1} to {seqno - 1} are missing from consensus")
        self._last = seqno
        self._live += 1
        self._live_bytes += len(data)
        try:
            diff = decode_diff(self.shard, data)
        except CorruptStateError as error:
            self.problems.append(f"version {seqno}: {error.problem}")
            return
        self._removed.update(diff.removed_rollups)
        if diff.replace is not None:
            self._removed.update(diff.replace.removed)
        self._newest = [
            *self._newest[-_NEWEST_DIFFS + 1 :],
            DiffView(seqno, diff.walltime_ms, len(data), changes(diff)),
        ]
        self._rollup_keys.pop(diff.rollup, None)
        self._rollup_keys[diff.rollup] = None
        self._head = diff

    async def rebuild(self, consensus: ConsensusReader, blob: BlobReader) -> None:
        """The newest state, from the newest rollup that can be read."""
        if self._head is None:
            if self._live == 0:
                self.problems.append("consensus has no versions of it")
            return
        if self._head.tombstone:
            self._state = apply(State(seqno=self._head.seqno - 1), self._head)
            return
        for key in reversed(self._rollup_keys):
            base = await self._rollup(blob, key)
            if base is None:
                continue
            try:
                self._state = await self._apply(consensus, base)
                return
            except (InternalError, CorruptStateError) as error:
                self.problems.append(f"the versions after rollup {key or '(none)'} do not apply: {error.message}")
        self.problems.append("no full state precedes its versions: it cannot be rebuilt")

    async def _apply(self, consensus: ConsensusReader, state: State) -> State:
        while True:
            versions = await consensus.scan(self.shard, SeqNo(state.seqno + 1), _SCAN_LIMIT)
            for version in versions:
                state = apply(state, decode_diff(self.shard, version.data))
            if len(versions) < _SCAN_LIMIT:
                return state

    async def _rollup(self, blob: BlobReader, key: str) -> State | None:
        if not key:
            return State() if self._earliest == 0 else None
        data = await blob.get(f"{self.shard}/{key}")
        if data is None:
            self.problems.append(f"rollup {key} is missing")
            return None
        try:
            return decode_rollup(self.shard, data)
        except CorruptStateError as error:
            self.problems.append(f"rollup {key}: {error.problem}")
            return None

    def loaded(self) -> Loaded:
        return Loaded(
            self.shard,
            self._state,
            self._live,
            self._live_bytes,
            self._earliest,
            self._newest,
            self._removed,
            self.problems,
        )


def changes(diff: Diff) -> list[str]:
    """What a diff changed, in words."""
    if diff.tombstone:
        return ["finalized"]
    told = []
    if diff.append is not None and diff.append.parts:
        told.append(f"+{diff.append.rows} updates from {diff.append.lower}")
    if diff.upper is not None:
        told.append(f"upper {_frontier(diff.upper)}")
    if diff.since is not None:
        told.append(f"since {_frontier(diff.since)}")
    if diff.replace is not None:
        told.append(f"compacted {len(diff.replace.ids)} batches to {diff.replace.batch.rows} updates")
    for what, entries in (
        ("reader", diff.readers),
        ("critical reader", diff.criticals),
        ("writer", diff.writers),
        ("rollup", diff.rollups),
        ("claim", diff.claims),
    ):
        told += [f"{what} {key} {'gone' if entry is None else 'set'}" for key, entry in entries.items()]
    if diff.collected is not None:
        told.append(f"collected up to {diff.collected}")
    if diff.schema is not None:
        told.append("schema")
    return told


def view_shard(loaded: Loaded, now_ms: int) -> ShardView:
    """What was loaded, readable. Ages are measured from `now_ms`."""
    return ShardView(
        shard=loaded.shard,
        state=None if loaded.state is None else view_state(loaded.state, now_ms),
        live_diffs=loaded.live,
        live_diff_bytes=loaded.live_bytes,
        earliest=loaded.earliest,
        newest_diffs=loaded.newest,
        problems=loaded.problems,
    )


def view_state(state: State, now_ms: int) -> StateView:
    """A state, readable."""
    batches = [_batch(state, index) for index in range(len(state.batches))]
    return StateView(
        seqno=state.seqno,
        walltime_ms=state.walltime_ms,
        since=_time(state.since),
        upper=_time(state.upper),
        seqno_since=state.seqno_since,
        collected=state.collected,
        tombstone=state.tombstone,
        schemas=[[f"{field.name} {field.type}" for field in decode_schema(one)] for one in state.schemas],
        rows=sum(batch.rows for batch in batches),
        inline_bytes=state.inline_bytes,
        blob_bytes=sum(batch.blob_bytes for batch in batches),
        batches=batches,
        readers=[
            ReaderView(id_, one.purpose, _time(one.since), one.hold, *_lease(one.heartbeat_ms, one.lease_ms, now_ms))
            for id_, one in sorted(state.readers.items())
        ],
        criticals=[
            CriticalView(id_, one.purpose, _time(one.since), one.opaque) for id_, one in sorted(state.criticals.items())
        ],
        writers=[
            WriterView(id_, _time(one.upper), *_lease(one.heartbeat_ms, one.lease_ms, now_ms))
            for id_, one in sorted(state.writers.items())
        ],
        rollups=[RollupView(seqno, one.key, one.size) for seqno, one in sorted(state.rollups.items())],
        claims=[
            ClaimView(list(one.ids), one.claimant, now_ms - one.started_ms, one.live(now_ms))
            for _, one in sorted(state.claims.items())
        ],
    )


def _batch(state: State, index: int) -> BatchView:
    batch = state.batches[index]
    hollow = [part for part in batch.parts if isinstance(part, HollowPart)]
    return BatchView(
        id=batch.id,
        lower=batch.lower,
        upper=_time(state.batch_upper(index)),
        since=batch.since,
        rows=batch.rows,
        parts=len(batch.parts),
        runs=len({part.run for part in hollow if part.run}) + sum(not part.run for part in hollow),
        blob_bytes=sum(part.size for part in hollow),
        inline_bytes=batch.inline_bytes,
    )


async def blobs(
    consensus: ConsensusReader, blob: BlobReader, shard: ShardId, *, now_ms: int, leaked_after_ms: int
) -> BlobsView:
    """Where the bytes of `shard` are. Blobs are listed before the state is read, so that none that is linked meanwhile
    counts as a leak.
    """
    try:
        listed = {key.partition("/")[2]: size for key, size in await blob.list_prefix(f"{shard}/")}
    except ExternalError as error:
        return _empty_blobs(shard, [f"the blob store does not answer: {error.message}"])
    loaded = await load(consensus, blob, shard)
    view = _empty_blobs(shard, loaded.problems)
    if loaded.state is None:
        for size in listed.values():
            view.foreign.add(size)
        return view
    view = msgspec.structs.replace(view, inline_bytes=loaded.state.inline_bytes)
    _sort_blobs(view, listed, loaded.state, loaded.removed, now_ms, leaked_after_ms)
    missing = sorted(loaded.state.keys() - listed.keys())
    if missing:
        view.problems.extend(await _missing(consensus, blob, loaded, missing))
    return view


def _sort_blobs(
    view: BlobsView, listed: dict[str, int], state: State, removed: set[str], now_ms: int, leaked_after_ms: int
) -> None:
    parts = {key for batch in state.batches for key in batch.keys}
    rollups = {rollup.key for rollup in state.rollups.values()}
    for key, size in listed.items():
        if key in parts:
            view.current_parts.add(size)
        elif key in rollups:
            view.current_rollups.add(size)
        elif key in removed:
            view.older.add(size)
        else:
            written_ms = part_time_ms(key.rpartition("/")[2])
            if written_ms is None and not key.startswith("v"):
                view.foreign.add(size)
            elif is_left_behind(key, state, now_ms - leaked_after_ms):
                view.leaked.add(size)
            else:
                view.pending.add(size)
            view.leaks.append(Leak(key, size, None if written_ms is None else now_ms - written_ms))
    view.leaks.sort(key=lambda leak: -leak.bytes)
    del view.leaks[_LEAKS_SHOWN:]


async def _missing(consensus: ConsensusReader, blob: BlobReader, loaded: Loaded, missing: Sequence[str]) -> list[str]:
    """Which of the blobs that were not listed are missed: those written or removed in the meantime are not."""
    try:
        listed = {key.partition("/")[2] for key, _ in await blob.list_prefix(f"{loaded.shard}/")}
    except ExternalError as error:
        return [f"the blob store does not answer: {error.message}"]
    newest = await load(consensus, blob, loaded.shard)
    needed = newest.state.keys() if newest.state is not None else set(missing)
    return [f"blob {key} is referred to and missing" for key in missing if key in needed and key not in listed]


async def usage(consensus: ConsensusReader, blob: BlobReader, *, now_ms: int, leaked_after_ms: int) -> UsageView:
    """`blobs` of every shard, the largest first, and their sum. Raises the consensus store's error."""
    known = {ShardId(key) for key in await consensus.list_keys()}
    limit = asyncio.Semaphore(_SHARDS_AT_A_TIME)

    async def one(shard: ShardId) -> BlobsView:
        async with limit:
            return await blobs(consensus, blob, shard, now_ms=now_ms, leaked_after_ms=leaked_after_ms)

    unattributed = Amount()
    for digit in "0123456789abcdef":  # a sixteenth of all keys in memory at a time
        for key, size in await blob.list_prefix(f"s{digit}"):
            if key.partition("/")[0] not in known:
                unattributed.add(size)
    views = await asyncio.gather(*map(one, known))
    views.sort(key=lambda view: -_bytes(view))
    total = _empty_blobs(ShardId("total"), [])
    for view in views:
        for name in _AMOUNTS:
            amount, share = getattr(total, name), getattr(view, name)
            amount.blobs += share.blobs
            amount.bytes += share.bytes
    total = msgspec.structs.replace(total, inline_bytes=sum(view.inline_bytes for view in views))
    return UsageView(views, total, unattributed)


_AMOUNTS = ("current_parts", "current_rollups", "older", "pending", "leaked", "foreign")


def _bytes(view: BlobsView) -> int:
    return sum(int(getattr(view, name).bytes) for name in _AMOUNTS)


def _empty_blobs(shard: ShardId, problems: list[str]) -> BlobsView:
    return BlobsView(shard, Amount(), Amount(), Amount(), Amount(), Amount(), Amount(), 0, [], problems)


def _lease(heartbeat_ms: int, lease_ms: int, now_ms: int) -> tuple[int, int]:
    return now_ms - heartbeat_ms, heartbeat_ms + lease_ms - now_ms


def _time(frontier: int) -> int | None:
    return None if frontier == DONE else frontier


def _frontier(frontier: int) -> str:
    return "done" if frontier == DONE else str(frontier)
