"""One shard as its process sees it: the cached state, the commit loop, and waiting for news.

All handles of a client on one shard share one `Shard`. Commits of the process are serialized by a lock, so
that they never lose a race against one another; a race against another process shows as a mismatch, upon
which the newer diffs are fetched and the command is run again. A compare-and-set with an unknown outcome is
always decided: the state is read back, the command (which recognizes its own effect) runs again, and a
repeated attempt competes for the very seqno that the lost one was for, so that at most one of the two takes
effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa
import structlog
from msgspec.structs import replace

from penstock.persist import metrics
from penstock.persist.commands import Step, with_since
from penstock.persist.config import PersistConfig
from penstock.persist.errors import ClientClosed, CorruptStateError, SinceError
from penstock.persist.part_cache import Located
from penstock.persist.partstore import PartStore, PartStores, inline_updates, memory_of
from penstock.persist.pubsub import PubSub
from penstock.persist.retry import Patience, patiently
from penstock.persist.schema import decode_schema
from penstock.persist.state import Diff, HollowPart, Part, Reader, State, apply, decode_diff, decode_rollup, encode_diff
from penstock.persist.store import CasResult, Consensus, SeqNo, ShardId, Versioned
from penstock.runtime import (
    DONE,
    Clock,
    Determinate,
    ExternalError,
    Frontier,
    Indeterminate,
    InternalError,
    PenstockError,
    TaskOwner,
    Updates,
)

R = TypeVar("R")

_log = structlog.get_logger("penstock.persist")

_SCAN_LIMIT = 1024
_REBUILD_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a command may know besides the state. `uncertain`: an earlier attempt may have been committed."""

    now_ms: int
    uncertain: bool


Command = Callable[[State, Attempt], Step[R]]


class LocalReader(Protocol):
    """A leased reader of this process; its durable entry is renewed along with any commit."""

    def hold(self, state: State) -> SeqNo:
        """The oldest version it still reads from, at most `state`'s."""
        ...

    def give_up(self) -> Frontier:
        """How far its since may go; it lets nobody read below that any more."""
        ...

    def advanced(self, state: State) -> None:
        """A new version is known."""
        ...


class Shard:
    """See the module. `state` is the newest version known; it never goes back."""

    def __init__(
        self,
        id_: ShardId,
        consensus: Consensus,
        stores: PartStores,
        clock: Clock,
        pubsub: PubSub | None,
        config: PersistConfig,
        tasks: TaskOwner,
    ) -> None:
        self.id = id_
        self.state = State()
        self.consensus = consensus
        self.parts = stores.foreground
        self.stores = stores
        self.clock = clock
        self.config = config
        self.tasks = tasks
        self.readers: dict[str, LocalReader] = {}
        self.writers: set[str] = set()
        self.after_commit: Callable[[State], None] = lambda _: None
        self._pubsub = pubsub
        self._lock = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._closed = False
        self._unsubscribe = pubsub.subscribe(id_, self._on_diff) if pubsub else None

    # Committing

    async def commit(self, command: Command[R], name: str = "other") -> R:
        """Run `command` until its diff is committed or it has none. Durable on return. `name`: for the metrics.

        Raises `StoreFull` at once and the store's error after `store_retry_ms`: `Determinate` if no attempt
        can have taken effect, else `Indeterminate`. A cancelled call has either happened or not.
        """
        count = metrics.of_command(name)
        count.started.inc()
        started_s = self.clock.monotonic()
        try:
            async with self._lock:
                result = await self._commit(command, count)
        except Exception:
            count.failed.inc()
            raise
        count.succeeded.inc()
        count.seconds.observe(self.clock.monotonic() - started_s)
        return result

    async def _commit(self, command: Command[R], count: metrics.CommandMetrics) -> R:
        # A token outlives half a writer's lease for certain; past that an unknown outcome stays unknown.
        limit_ms = min(self.config.store_retry_ms, self.config.writer_lease_ms // 2)
        patience = Patience(self.clock, limit_ms, f"commit to {self.id}")
        unknown: Indeterminate | None = None
        while True:
            base = self.state
            now_ms = self.clock.now_ms()
            step = command(base, Attempt(now_ms, unknown is not None))
            if step.diff is None:
                if unknown is not None:
                    count.found_done.inc()
                return step.result
            diff = self._complete(base, step.diff, now_ms)
            data = encode_diff(diff)
            try:
                outcome = await self.consensus.compare_and_set(self.id, Versioned(SeqNo(diff.seqno), data))
            except Determinate as error:
                await patience.wait(unknown or error)
                continue
            except Indeterminate as error:
                unknown = error
                await patience.wait(error)
                await self._read_back(unknown)
                continue
            if outcome is CasResult.COMMITTED:
                self._install(apply(base, diff))
                if self._pubsub is not None:
                    self._pubsub.publish(self.id, Versioned(SeqNo(diff.seqno), data))
                self.after_commit(self.state)
                return step.result
            count.mismatch.inc()
            await self._read_back(unknown)
            if self.state.seqno == base.seqno:
                raise CorruptStateError(self.id, f"consensus has lost versions up to {base.seqno}")

    async def _read_back(self, unknown: Indeterminate | None) -> None:
        """Learn what became of an attempt. Where even that fails, an `unknown` outcome stays unknown: an error of the
        reading must not pass for one of the attempt, which may have been committed.
        """
        try:
            await self._refresh()
        except ExternalError as error:
            raise unknown or error from error

    def _complete(self, base: State, diff: Diff, now_ms: int) -> Diff:
        """Fill in what every version carries, renew this process's readers, drop the expired.

        Expiry is judged on the new state: a reader that this very diff touches, or that lives in this
        process, stays.
        """
        if diff.tombstone:  # nothing else of the state stays
            return replace(diff, seqno=base.seqno + 1, walltime_ms=max(now_ms, base.walltime_ms + 1))
        readers: dict[str, Reader | None] = {}
        # A rollup can be collected up to once the holds have passed it: let them do so along with it.
        wanted_hold = max(diff.rollups, default=0)
        for reader_id, entry in base.readers.items():
            if reader_id in diff.readers:
                continue
            local = self.readers.get(reader_id)
            if local is not None:
                renewed = self._renewed(base, entry, local, now_ms, wanted_hold)
                if renewed is not None:
                    readers[reader_id] = renewed
            elif entry.heartbeat_ms + entry.lease_ms < now_ms:
                readers[reader_id] = None
        writers = {
            writer_id: None
            for writer_id, writer in base.writers.items()
            if writer_id not in diff.writers and writer.heartbeat_ms + writer.lease_ms < now_ms
        }
        complete = replace(
            diff,
            seqno=base.seqno + 1,
            walltime_ms=max(now_ms, base.walltime_ms + 1),
            rollup=diff.rollup or base.rollup,
            readers=diff.readers | readers if readers else diff.readers,
            writers=diff.writers | writers if writers else diff.writers,
        )
        return with_since(base, complete) if any(readers.values()) else complete

    def _renewed(self, base: State, entry: Reader, local: LocalReader, now_ms: int, wanted_hold: int) -> Reader | None:
        """The entry of a reader of this process with its hold, since and heartbeat moved on, if that is
        due, or if it lets go of what is below `wanted_hold`.
        """
        hold = max(entry.hold, local.hold(base))
        stale = entry.heartbeat_ms + entry.lease_ms // 4 < now_ms
        lets_go = entry.hold < wanted_hold and hold > entry.hold
        if not stale and not lets_go and hold < entry.hold + self.config.hold_versions:
            return None
        since = max(entry.since, local.give_up())
        return replace(entry, hold=hold, since=since, heartbeat_ms=max(entry.heartbeat_ms, now_ms))

    # Learning of versions

    def written_with(self, part: Part) -> pa.Schema:
        """The schema of a part of this shard. Schemas stay: any version since the part was stored has it.

        Raises `SinceError` when the shard was finalized meanwhile.
        """
        if self.state.tombstone:
            raise SinceError(self.id, part.time_max, DONE)
        if part.schema >= len(self.state.schemas):
            raise InternalError(f"shard {self.id} has {len(self.state.schemas)} schemas, a part is of {part.schema}")
        return decode_schema(self.state.schemas[part.schema])

    async def fetch(self) -> State:
        """The newest version at some moment after the call began."""
        await self._refresh()
        return self.state

    async def fetch_part(self, located: Located, wanted: pa.Schema, *, keep: bool = True) -> Updates:
        """The updates of a part as rows of `wanted`. Raises `CorruptBlobError`, or the store's error."""
        return await self.parts.fetch(self.id, located, self.written_with(located[2]), wanted, keep=keep)

    async def fetch_to_merge(self, store: PartStore, located: Sequence[Located], wanted: pa.Schema) -> Updates:
        """The updates of several parts, at least one, together. They are not kept, for the parts will soon be gone.

        `store`: one of `stores`. Raises like `fetch_part`. Parts in the state are decoded in a thread: many of
        them take a millisecond.
        """
        stored = await asyncio.gather(
            *(
                store.fetch(self.id, one, self.written_with(one[2]), wanted, keep=False)
                for one in located
                if isinstance(one[2], HollowPart)
            )
        )
        inline = [(part, self.written_with(part)) for _, _, part in located if not isinstance(part, HollowPart)]
        if not inline:
            return Updates.concat(stored)

        def decoded() -> Updates:
            return Updates.concat([*stored, *(inline_updates(part, by, wanted) for part, by in inline)])

        return await store.run(decoded, sum(memory_of(part) for _, _, part in located))

    async def fetch_schema_of(self, part: Part) -> pa.Schema:
        """`written_with`, for a part that may be newer than the version known here."""
        if part.schema >= len(self.state.schemas):
            await self.fetch()
        return self.written_with(part)

    async def _refresh(self) -> None:
        await patiently(self._refresh_once, self.clock, self.config.store_retry_ms, f"read the state of {self.id}")

    async def _refresh_once(self) -> None:
        while True:
            start = SeqNo(self.state.seqno + 1)
            if start == 0:
                await self._rebuild()
                return
            versions = await self.consensus.scan(self.id, start, _SCAN_LIMIT)
            if versions and versions[0].seqno > start:
                await self._rebuild()
                return
            self._install_all(versions)
            if len(versions) < _SCAN_LIMIT:
                return

    def _install_all(self, versions: list[Versioned]) -> None:
        state = self.state
        for version in versions:
            if version.seqno == state.seqno + 1:
                state = apply(state, decode_diff(self.id, version.data))
        self._install(state)

    async def _rebuild(self) -> None:
        """From the rollup that the head names, and the diffs after it. Never moves back."""
        for _ in range(_REBUILD_ATTEMPTS):
            head = await self.consensus.head(self.id)
            if head is None or head.seqno <= self.state.seqno:
                return
            diff = decode_diff(self.id, head.data)
            if diff.tombstone:
                self._install(apply(State(seqno=diff.seqno - 1), diff))
                return
            state = await self._load_rollup(diff.rollup)
            if state is None:
                newer = await self.consensus.head(self.id)
                if newer is not None and decode_diff(self.id, newer.data).rollup != diff.rollup:
                    continue  # it was collected in the meantime; the newer head names its successor
                state = await self._load_older_rollup(diff.rollup)
            versions = await self.consensus.scan(self.id, SeqNo(state.seqno + 1))
            if versions and versions[0].seqno != state.seqno + 1:
                continue  # truncated in the meantime
            for version in versions:
                state = apply(state, decode_diff(self.id, version.data))
            self._install(state)
            return
        raise CorruptStateError(self.id, f"no full state precedes its versions ({_REBUILD_ATTEMPTS} attempts)")

    async def _load_rollup(self, key: str) -> State | None:
        """The state in the rollup `key` ("": before the first version). None when missing or damaged."""
        if not key:
            return State()
        data = await self.parts.blob.get(f"{self.id}/{key}")
        if data is None:
            return None
        try:
            return decode_rollup(self.id, data)
        except CorruptStateError as error:
            _log.error("rollup is damaged", shard=self.id, key=key, error=error.message)
            return None

    async def _load_older_rollup(self, lost: str) -> State:
        """Live diffs name older rollups, one of which precedes them all: any will do."""
        versions = await self.consensus.scan(self.id, SeqNo(0))
        keys = dict.fromkeys(decode_diff(self.id, version.data).rollup for version in reversed(versions))
        for key in keys:
            if key == lost or (key == "" and versions[0].seqno > 0):
                continue
            state = await self._load_rollup(key)
            if state is not None and state.seqno + 1 >= versions[0].seqno:
                return state
        raise CorruptStateError(self.id, f"blob {self.id}/{lost}, a full state, is missing or damaged")

    def _on_diff(self, version: Versioned) -> None:
        """A pushed diff: applied when it is the next one, a reason to fetch when it is beyond that."""
        if version.seqno <= self.state.seqno:
            metrics.PUSHED_DIFFS.labels("known").inc()
            return
        if version.seqno == self.state.seqno + 1:
            try:
                self._install(apply(self.state, decode_diff(self.id, version.data)))
                metrics.PUSHED_DIFFS.labels("applied").inc()
                return
            except CorruptStateError as error:
                _log.warning("pushed diff is damaged", shard=self.id, error=error.message)
        metrics.PUSHED_DIFFS.labels("gap").inc()
        if self._closed:
            return
        if self._fetching is None or self._fetching.done():
            self._fetching = self.tasks.spawn(self._fill_gap(), f"fetch {self.id}")

    async def _fill_gap(self) -> None:
        """Fetch what a push showed to be missing. Only a short cut: whoever needs the news polls for them as well."""
        try:
            await self._refresh()
        except PenstockError as error:
            _log.warning("pushed versions not fetched", shard=self.id, error=error.message)

    def _install(self, state: State) -> None:
        if state.seqno <= self.state.seqno:
            return
        assert state.upper >= self.state.upper, f"{self.id}: upper {self.state.upper} -> {state.upper}"
        assert state.since >= self.state.since, f"{self.id}: since {self.state.since} -> {state.since}"
        self.state = state
        self.look_again()
        for reader in list(self.readers.values()):
            reader.advanced(state)

    # Waiting

    async def wait_until(self, condition: Callable[[State], bool]) -> State:
        """The first known version for which `condition` holds. Cancellable at any moment."""
        while not condition(self.state):
            if self._closed:
                raise self._client_closed()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            self._ensure_poller()
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self.state

    def look_again(self) -> None:
        """Let all who wait evaluate their condition anew: something else than the state has changed."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _ensure_poller(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = self.tasks.spawn(self._poll(), f"poll {self.id}")

    async def _poll(self) -> None:
        """Look for new versions while somebody waits for one. A store that fails for too long fails those
        who wait.
        """
        try:
            await self._poll_until_nobody_waits()
        except PenstockError as error:
            self._fail_waiters(error)

    async def _poll_until_nobody_waits(self) -> None:
        most_ms = self.config.poll_max_ms
        least_ms = most_ms if self._pubsub is not None else min(self.config.poll_min_ms, most_ms)
        pause_ms = least_ms
        while self._waiters:
            seqno = self.state.seqno
            await self.clock.sleep(pause_ms / 1000)
            if self.state.seqno != seqno:
                pause_ms = least_ms
                continue  # news came by itself
            if self._waiters:
                await self._refresh()
                pause_ms = least_ms if self.state.seqno != seqno else min(pause_ms * 2, most_ms)

    def _client_closed(self) -> ClientClosed:
        return ClientClosed(f"the client of shard {self.id} was closed")

    def _fail_waiters(self, error: PenstockError) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def close(self) -> None:
        """Stop listening for pushed diffs; whoever still waits gets `ClientClosed`."""
        self._closed = True
        self.after_commit = lambda _: None
        self._fail_waiters(self._client_closed())
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
