"""Compare-and-set histories are linearizable.

Versions have contiguous numbers, so the order of the commits is known and the general, exponential search is not
needed. Each commit has an interval in which it must have taken effect (until for ever, where nobody knows the outcome).
The numbers fix the order; greedily, commit n can be no earlier than ``earliest[n] = max(invoked[0..n])`` and no later
than ``latest[n] = min(answered[n..])``. The history is linearizable if and only if ``earliest <= latest`` everywhere
and every refusal and every read can be placed between the commits it saw and those it did not.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from penstock.persist import SCAN_ALL, CasResult, Consensus, SeqNo, Versioned
from penstock.runtime import Determinate, ExternalError
from sim.world import World

COMMITTED = "committed"
MISMATCH = "mismatch"
DETERMINATE = "determinate"
UNKNOWN = "unknown"


@dataclass
class Attempt:
    """One compare-and-set as its caller saw it. `answered`: infinite while there is no answer."""

    process: str
    seqno: int
    data: bytes
    invoked: float
    answered: float = math.inf
    outcome: str = UNKNOWN


@dataclass
class Look:
    """A linearized read: `head` was the newest seqno (-1: none) at some moment in between; `versions` were there."""

    process: str
    invoked: float
    answered: float
    head: int | None
    versions: Sequence[Versioned]


@dataclass
class CasHistory:
    """All attempts and looks at one key."""

    key: str
    attempts: list[Attempt] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What contradicts linearizability; empty when nothing does."""
        found: list[str] = []
        log = self._committers(found)
        earliest = list(accumulate((one.invoked for one in log), max))
        latest = list(accumulate((one.answered for one in reversed(log)), min))[::-1]
        for seqno, (low, high) in enumerate(zip(earliest, latest, strict=True)):
            if low > high:
                found.append(f"{self.key}: commit {seqno} must be after {low:.6f} and before {high:.6f}")
        for attempt in self.attempts:
            if attempt.outcome == MISMATCH and not _refusable(attempt, earliest, latest):
                found.append(f"{self.key}: {attempt.process} was refused {attempt.seqno} without a reason: {attempt}")
        for look in self.looks:
            found += self._impossible(look, log, earliest, latest)
        return found

    def _committers(self, found: list[str]) -> list[Attempt]:
        """Who committed each version. Of attempts with equal bytes any unknown one will do."""
        by_seqno: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            by_seqno[attempt.seqno].append(attempt)
        seen: dict[int, bytes] = {}
        for look in self.looks:
            for version in look.versions:
                if seen.setdefault(version.seqno, version.data) != version.data:
                    found.append(f"{self.key}: version {version.seqno} was read with two contents")
        log: list[Attempt] = []
        while True:
            seqno = len(log)
            attempts = by_seqno.get(seqno, [])
            sure = [one for one in attempts if one.outcome == COMMITTED]
            if len(sure) > 1:
                found.append(f"{self.key}: {seqno} was committed by {[one.process for one in sure]}")
            maybe = [
                one for one in attempts if one.outcome == UNKNOWN and (seqno not in seen or one.data == seen[seqno])
            ]
            if sure:
                if seqno in seen and sure[0].data != seen[seqno]:
                    found.append(f"{self.key}: {seqno} was read with other bytes than {sure[0].process} committed")
                log.append(sure[0])
            elif maybe and (seqno in seen or any(later > seqno for later in self._needed(by_seqno, seen))):
                log.append(min(maybe, key=lambda one: one.invoked))
            elif seqno in seen or any(later > seqno for later in self._needed(by_seqno, seen)):
                found.append(f"{self.key}: version {seqno} exists, but nobody can have committed it")
                return log
            else:
                return log

    def _needed(self, by_seqno: dict[int, list[Attempt]], seen: dict[int, bytes]) -> list[int]:
        if not hasattr(self, "_last"):
            sure = [one.seqno for one in self.attempts if one.outcome == COMMITTED]
            self._last = max([*sure, *seen], default=-1)
        return [self._last]

    def _impossible(
        self, look: Look, log: Sequence[Attempt], earliest: Sequence[float], latest: Sequence[float]
    ) -> list[str]:
        found = []
        for version in look.versions:
            if version.seqno >= len(log) or earliest[version.seqno] > look.answered:
                found.append(f"{self.key}: {look.process} read {version.seqno} before anybody wrote it")
        if look.head is not None and look.head + 1 < len(log) and latest[look.head + 1] < look.invoked:
            found.append(
                f"{self.key}: {look.process} saw the head {look.head} from {look.invoked:.6f} on, but {look.head + 1} "
                f"was there by {latest[look.head + 1]:.6f}"
            )
        return found


def _refusable(attempt: Attempt, earliest: Sequence[float], latest: Sequence[float]) -> bool:
    """Whether, at some moment of the attempt, the head may have been another than its predecessor."""
    if attempt.seqno < len(earliest) and earliest[attempt.seqno] <= attempt.answered:
        return True
    before = attempt.seqno - 1
    return before >= 0 and (before >= len(latest) or latest[before] >= attempt.invoked)


class RecordingConsensus:
    """A `Consensus` that notes what its caller asks and is told."""

    def __init__(self, inner: Consensus, process: str, world: World, histories: dict[str, CasHistory]) -> None:
        self._inner = inner
        self._process = process
        self._world = world
        self._histories = histories

    def _history(self, key: str) -> CasHistory:
        return self._histories.setdefault(key, CasHistory(key))

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        invoked = self._world.now_s
        head = await self._inner.head(key, linearized=linearized)
        seqno = (-1 if head is None else head.seqno) if linearized else None
        self._look(key, invoked, seqno, [] if head is None else [head])
        return head

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        attempt = Attempt(self._process, new.seqno, new.data, self._world.now_s)
        self._history(key).attempts.append(attempt)
        try:
            result = await self._inner.compare_and_set(key, new)
        except Determinate:
            attempt.outcome, attempt.answered = DETERMINATE, self._world.now_s
            raise
        except ExternalError:
            raise  # unknown, for ever
        attempt.outcome, attempt.answered = result.value, self._world.now_s
        return result

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        invoked = self._world.now_s
        versions = await self._inner.scan(key, from_, limit)
        task = asyncio.current_task()
        if versions and task is not None and "/poll " in task.get_name():
            self._world.reached("news by poll")
        head = versions[-1].seqno if versions and len(versions) < limit else None
        self._look(key, invoked, head, versions)
        return versions

    def _look(self, key: str, invoked: float, head: int | None, versions: list[Versioned]) -> None:
        if versions or head is not None:
            self._history(key).looks.append(Look(self._process, invoked, self._world.now_s, head, versions))

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        return await self._inner.truncate(key, seqno)

    async def list_keys(self) -> list[str]:
        return await self._inner.list_keys()

    async def close(self) -> None:
        await self._inner.close()
