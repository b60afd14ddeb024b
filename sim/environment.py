"""An environment of persist: stores, the way to them, who watches them, and nodes (processes with a persist client)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from penstock.persist import CasResult, Consensus, PersistClient, PersistConfig, ShardId, Versioned
from penstock.persist.state import decode_diff
from penstock.runtime import ExternalError
from sim.checkers.appends import Append
from sim.checkers.cas import CasHistory, RecordingConsensus
from sim.checkers.list_append import Transaction
from sim.checkers.shard import ShardHistory
from sim.checkers.txns import TxnsHistory
from sim.pubsub import Hub, ProcessPubSub, PubSubRates
from sim.stores import FaultRates, LogStore, Network, ObjectStore, ProcessBlob, ProcessConsensus
from sim.world import Process, World

T = TypeVar("T")


@dataclass
class Ledger:
    """What clients asked for and were told, for the checks at the end."""

    appends: dict[ShardId, list[Append]] = field(default_factory=lambda: defaultdict(list))
    transactions: list[Transaction] = field(default_factory=list)
    number: int = 0

    def next(self) -> int:
        self.number += 1
        return self.number


class Environment:
    """See the module. It is the stores' `Watcher`."""

    def __init__(
        self,
        world: World,
        config: PersistConfig,
        rates: FaultRates,
        pubsub: PubSubRates | None,
        txns_shard: ShardId | None = None,
    ) -> None:
        self.world = world
        self.config = config
        self.objects = ObjectStore()
        self.logs = LogStore()
        self.network = Network(world, rates)
        self.hub = Hub(world, pubsub) if pubsub is not None else None
        self.histories: dict[str, ShardHistory] = {}
        self.cas: dict[str, CasHistory] = {}
        self.ledger = Ledger()
        self.nodes: list[Node] = []
        self.stopping = False
        self.txns_shard = txns_shard
        self.txns = (
            TxnsHistory(self.history(txns_shard), self.history, world.violated, world.reached) if txns_shard else None
        )
        self.rollups_to_lose = 0
        self.lost_answers: set[tuple[str, int]] = set()
        """Commits whose committer was not told."""
        self._committers: dict[tuple[str, int], str] = {}

    def history(self, shard: ShardId) -> ShardHistory:
        known = self.histories.get(shard)
        if known is None:
            known = ShardHistory(shard, self.objects, self.world.violated, self.world.reached)
            self.histories[shard] = known
        return known

    def node(self, kind: str, skew_ms: int = 0) -> Node:
        node = Node(self, self.world.start(kind, skew_ms))
        self.nodes.append(node)
        return node

    def consensus_of(self, process: Process) -> Consensus:
        """How `process` reaches consensus."""
        return ProcessConsensus(process, self.logs, self.network, self, self.on_cas)

    # The stores' watcher

    def committed(self, process: Process, key: str, version: Versioned) -> None:
        history = self.history(ShardId(key))
        history.commit(process, version)
        state = history.state
        if len({claim.claimant for claim in state.claims.values()}) < len(state.claims):
            self.world.reached("compactions of one process side by side")
        if self.rollups_to_lose and len(state.rollups) > 1 and not history.lost_keys:
            newest = max(state.rollups)
            if newest == history.rolled_up:
                self.rollups_to_lose -= 1
                history.lost_keys.add(state.rollups[newest].key)
                self.objects.delete(f"{key}/{state.rollups[newest].key}")
                self.world.log("nemesis", f"takes rollup {state.rollups[newest].key} of {key}")

    def truncated(self, process: Process, key: str, seqno: int) -> None:
        self.history(ShardId(key)).truncated(seqno)

    def written(self, process: Process, key: str, size: int) -> None:
        """A blob alone means nothing yet."""

    def deleted(self, process: Process, key: str, size: int | None) -> None:
        shard, _, own = key.partition("/")
        self.history(ShardId(shard)).deleted(process, own)

    def missed(self, process: Process, key: str) -> None:
        shard, _, own = key.partition("/")
        if own in self.history(ShardId(shard)).lost_keys:
            self.world.reached("lost rollup noticed")

    def on_cas(self, process: Process, key: str, new: Versioned, result: CasResult | None, fate: str) -> None:
        """Count what rarely happens to a compare-and-set."""
        reached = self.world.reached
        if result is CasResult.COMMITTED:
            self._committers[key, new.seqno] = process.name
            if fate != "FINE":
                self.lost_answers.add((key, new.seqno))
                reached("unknown outcome had taken effect")
                if decode_diff(key, new.data).replace is not None:
                    reached("compaction applied, the answer lost")
        elif result is CasResult.MISMATCH:
            own = self._committers.get((key, new.seqno)) == process.name
            reached("mismatch was one's own commit" if own else "lost race")


class Node:
    """A process with a persist client, and the actors that run in it. `skew_ms`: how far its clock is off."""

    def __init__(self, env: Environment, process: Process) -> None:
        self.env = env
        self.world = env.world
        self.process = process
        self.actors: list[asyncio.Task[Any]] = []
        self.follows: dict[str, Any] = {}
        """Long listens by name (`sim.actors.rows.Follow`)."""
        self.stopping = False
        process.on_crash.append(lambda: env.network.crashed(process))
        blob = ProcessBlob(process, env.objects, env.network, env)
        recorded = RecordingConsensus(env.consensus_of(process), process.name, env.world, env.cas)
        self.consensus: Consensus = recorded
        pubsub = ProcessPubSub(process, env.hub) if env.hub is not None else None
        self.client = PersistClient(blob, recorded, clock=process.clock, pubsub=pubsub, config=env.config)

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def done(self) -> bool:
        """Whether actors should come to an end."""
        return self.stopping or self.env.stopping

    def act(self, name: str, actor: Callable[[Node, Random], Coroutine[Any, Any, None]]) -> None:
        """Run `actor` in this process, with dice of its own."""
        dice = Random(f"{self.world.seed}/{self.name}/{name}")
        self.actors.append(self.process.spawn(actor(self, dice), name))

    def log(self, what: str) -> None:
        self.world.log(self.name, what)

    async def idle(self, dice: Random, mean_s: float) -> None:
        """Pause, in the mean for `mean_s`."""
        await self.process.clock.sleep(min(dice.expovariate(1 / mean_s), 5 * mean_s))

    async def stubbornly(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of an idempotent call, however often the store fails."""
        while True:
            try:
                return await call()
            except ExternalError as error:
                self.log(f"tries again: {error.message}")
                await self.process.clock.sleep(0.5)

    async def shut_down(self) -> None:
        """End as a process does that is asked to: cancel the work, close the client."""
        self.stopping = True
        for actor in self.actors:
            actor.cancel()
        if self.actors:
            await asyncio.wait(self.actors)
        await self.client.close()
        self.log("has shut down")
        self.process.world.loop.kill(self.process.domain)
