"""The way to consensus through a committer: its process, the links that clients have to it, and what breaks on the way.

The committer is the product's own (`penstock.committer.InProcessConsensus`: cache, queue, batches, retries), without
gRPC: a `Link` stands for the wire. What crosses it is encoded as on the wire where meaning could be lost (errors with
their determinacy). A request may arrive late, or after its sender was told that nobody knows; a killed or frozen
committer leaves what it was doing unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from penstock.committer import InProcessConsensus, ShardCache, wire
from penstock.persist import SCAN_ALL, CasResult, Consensus, SeqNo, Versioned
from penstock.persist.store import StoreFailure
from penstock.runtime import Determinate, ExternalError, Indeterminate
from sim.stores import LogStore, Network, ProcessConsensus, Watcher
from sim.world import Process, World

T = TypeVar("T")
OnCas = Callable[[Process, str, Versioned, CasResult | None, str], None]

NOTICED_S = 2.0
"""A frozen committer is noticed within this time."""


class Conflict(Exception):
    """As a database says that it could not serialize."""

    sqlstate = "40001"


class SentBytes(bytes):
    """Bytes that remember whose they are, so that the checkers see the client behind the committer."""

    sender: Process


def sent_by(process: Process, data: bytes) -> bytes:
    marked = SentBytes(data)
    marked.sender = process
    return marked


def sender_of(new: Versioned, otherwise: Process) -> Process:
    return new.data.sender if isinstance(new.data, SentBytes) else otherwise


class BatchingProcessConsensus(ProcessConsensus):
    """A store that takes batches, as a committer's process sees it: one request, one fate for all of them."""

    def __init__(
        self,
        process: Process,
        store: LogStore,
        network: Network,
        watcher: Watcher,
        on_cas: OnCas,
        dice: Random,
        writers: dict[str, str],
    ) -> None:
        """`writers`: the last committer to write each key, of all committers."""
        super().__init__(process, store, network, watcher, on_cas)
        self._logs, self._carrier, self._watching, self._told = store, network, watcher, on_cas
        self._process_, self._dice, self._writers = process, dice, writers

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        outcome = (await self.compare_and_set_many([(key, new)]))[0]
        if isinstance(outcome, CasResult):
            return outcome
        raise outcome

    async def compare_and_set_many(self, changes: Sequence[tuple[str, Versioned]]) -> list[CasResult | StoreFailure]:
        world = self._carrier.world
        assert len({key for key, _ in changes}) == len(changes), "two changes of a shard in one batch"
        if len(changes) > 1:
            world.reached("several changes in one batch")

        def effect() -> list[CasResult | StoreFailure]:
            return [self._change(key, new) for key, new in changes]

        def outcome(results: Any, fate: Any) -> None:
            for index, (key, new) in enumerate(changes):
                result = results[index] if isinstance(results, list) else None
                done = result if isinstance(result, CasResult) else None
                self._told(sender_of(new, self._process_), key, new, done, fate.name)
                if done is CasResult.COMMITTED and fate.name != "FINE" and len(changes) > 1:
                    world.reached("unknown outcome of a batch had taken effect")

        try:
            return await self._carrier.call(self._process_, f"{len(changes)} changes", effect, outcome)
        except Determinate as error:
            if len(changes) > 1 and self._dice.random() < 0.7:
                world.reached("batch could not be serialized")
                raise Determinate(str(error)) from Conflict("could not serialize access")
            raise

    def _change(self, key: str, new: Versioned) -> CasResult | StoreFailure:
        sender = sender_of(new, self._process_)
        result = self._logs.compare_and_set(key, new)
        self._carrier.world.log(sender.name, f"cas {key} {new.seqno} by {self._process_.name}: {result.value}")
        if result is CasResult.COMMITTED:
            self._watching.committed(sender, key, new)
            if self._writers.get(key, self._process_.name) != self._process_.name:
                self._carrier.world.reached("two committers wrote one shard")
            self._writers[key] = self._process_.name
        return result


class CommitterHost:
    """A process that runs a committer."""

    def __init__(self, process: Process, backing: Consensus, cache_shards: int) -> None:
        self.process = process
        self.calls: dict[asyncio.Future[Any], None] = {}
        """What clients wait for: when the process dies, their connections break."""
        process.on_crash.append(self._hang_up)
        self._backing = backing
        self._cache_shards = cache_shards
        self.committer: InProcessConsensus | None = None
        process.spawn(self._start(), "start")

    async def _start(self) -> None:
        cache = ShardCache(self._cache_shards)
        self.committer = InProcessConsensus(self._backing, cache=cache, clock=self.process.clock)

    def _hang_up(self) -> None:
        for call in list(self.calls):
            if not call.done():
                call.set_exception(Indeterminate("simulated: the committer is gone"))
        self.calls.clear()


@dataclass
class LinkRates:
    """Probabilities per call, and the longest time one way."""

    lost: float = 0.0
    late: float = 0.0
    delay_s: float = 0.002


class Link:
    """A `Consensus` through whichever committer `choose` names, or directly where it names none."""

    def __init__(
        self,
        world: World,
        process: Process,
        choose: Callable[[], CommitterHost | None],
        direct: Consensus,
        rates: Callable[[], LinkRates],
    ) -> None:
        self._world = world
        self._process = process
        self._choose = choose
        self._direct = direct
        self._rates = rates
        self._dice = world.random("links")

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        return await self._call(f"head {key}", lambda c: c.head(key, linearized=linearized))

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        marked = Versioned(new.seqno, sent_by(self._process, new.data))
        return await self._call(f"cas {key} {new.seqno}", lambda c: c.compare_and_set(key, marked))

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        return await self._call(f"scan {key}", lambda c: c.scan(key, from_, limit))

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        return await self._call(f"truncate {key}", lambda c: c.truncate(key, seqno))

    async def list_keys(self) -> list[str]:
        return await self._call("list keys", lambda c: c.list_keys())

    async def close(self) -> None:
        """Nothing to release."""

    async def _call(self, what: str, operation: Callable[[Consensus], Coroutine[Any, Any, T]]) -> T:
        host = self._choose()
        if host is None:
            self._world.reached("direct writer beside a committer")
            return await operation(self._direct)
        if not host.process.alive or host.committer is None:
            await self._process.clock.sleep(0.05)
            raise Indeterminate(f"simulated: no connection for {what}")
        world, dice, rates = self._world, self._dice, self._rates()
        answer: asyncio.Future[T] = world.loop.create_future()
        host.calls[answer] = None

        def arrive() -> None:
            if host.process.alive:
                host.process.spawn(self._serve(host, operation, answer, rates), what)

        fate = dice.random()
        delay = dice.random() * rates.delay_s
        if fate < rates.lost:
            world.loop.call_later(delay, self._break, answer, what, context=world.context)
        else:
            if fate < rates.lost + rates.late:
                world.loop.call_later(delay, self._break, answer, what, context=world.context)
                delay += dice.random() * 0.5
            world.loop.call_later(delay, arrive, context=world.context)
        noticing = world.loop.call_later(NOTICED_S, self._frozen, host, answer, what, context=world.context)
        try:
            return await answer
        finally:
            noticing.cancel()
            host.calls.pop(answer, None)

    async def _serve(
        self,
        host: CommitterHost,
        operation: Callable[[Consensus], Coroutine[Any, Any, T]],
        answer: asyncio.Future[T],
        rates: LinkRates,
    ) -> None:
        """In the committer's process: carry out and answer, errors as on the wire."""
        assert host.committer is not None
        result: T | None = None
        failure: Exception | None = None
        try:
            result = await operation(host.committer)
        except ExternalError as error:
            encoded = wire.to_error(error)
            failure = wire.from_error(encoded, "through the committer")
        world = self._world
        world.loop.call_later(
            self._dice.random() * rates.delay_s, self._answered, answer, result, failure, context=world.context
        )

    def _answered(self, answer: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
        if answer.done():
            return
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(result)

    def _break(self, answer: asyncio.Future[Any], what: str) -> None:
        if not answer.done():
            answer.set_exception(Indeterminate(f"simulated: the connection broke during {what}"))

    def _frozen(self, host: CommitterHost, answer: asyncio.Future[Any], what: str) -> None:
        if host.process.frozen:
            self._world.reached("committer frozen under load")
            self._break(answer, what)
        elif not answer.done():
            world = self._world
            world.loop.call_later(NOTICED_S, self._frozen, host, answer, what, context=world.context)
