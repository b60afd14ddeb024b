"""One run of persist with committers between it and the store: killed, frozen, replaced and doubled.

What `sim.persist` does, with this in the middle: most processes reach consensus through a committer, some directly;
during a rollout two committers are there at once. Besides the shards there are plain registers, which are advanced many
at a time and often from a cached head, as a command is that tolerates one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from random import Random

from prometheus_client import REGISTRY

from penstock.persist import CasResult, Consensus, SeqNo, ShardId, Versioned
from penstock.runtime import Determinate, ExternalError, Indeterminate
from sim import persist
from sim.environment import Environment, Node
from sim.nemesis import Nemesis, Strikes
from sim.stores import ProcessConsensus
from sim.way import BatchingProcessConsensus, CommitterHost, Link, LinkRates
from sim.world import Process

REGISTER = "register-"
REGISTERS = 8

SOMETIMES = (
    "batch could not be serialized",
    "cached head was behind",
    "committer frozen under load",
    "committer killed under load",
    "direct writer beside a committer",
    "refused behind the cache",
    "register taken by another",
    "several changes in one batch",
    "two committers wrote one shard",
    "unknown outcome had taken effect",
    "unknown outcome of a batch had taken effect",
)
"""Rare paths of the committer that many seeds must reach."""


class CommitterEnvironment(Environment):
    """An environment whose nodes reach consensus through committers."""

    hosts: list[CommitterHost]
    direct_share: float
    link_rates: LinkRates
    cache_shards: int

    def prepare(self, dice: Random) -> None:
        """What the seed decides about the way; before the first node."""
        self.hosts = []
        self.direct_share = dice.choice([0.0, 0.0, 0.2])
        fault = dice.choice([0.0, 0.005, 0.02])
        self.link_rates = LinkRates(fault, fault * dice.choice([0, 1]), dice.choice([0.0005, 0.005]))
        self.cache_shards = dice.choice([0, 2, 100])
        self._choices = self.world.random("choices")
        self._writers: dict[str, str] = {}
        self.start_committer()

    def start_committer(self) -> CommitterHost:
        process = self.world.start("committer")
        process.on_crash.append(lambda: self.network.crashed(process))
        dice = self.world.random(f"batches of {process.name}")
        backing = BatchingProcessConsensus(process, self.logs, self.network, self, self.on_cas, dice, self._writers)
        host = CommitterHost(process, backing, self.cache_shards)
        self.hosts.append(host)
        return host

    def living(self) -> list[CommitterHost]:
        return [host for host in self.hosts if host.process.alive]

    def consensus_of(self, process: Process) -> Consensus:
        direct = ProcessConsensus(process, self.logs, self.network, self, self.on_cas)
        dials = self._choices.random() >= self.direct_share
        sticky: list[CommitterHost] = []

        def choose() -> CommitterHost | None:
            """The one it has, while that answers; else any. Now and then a connection ends by itself."""
            if not dials:
                return None
            if not sticky or not sticky[0].process.alive or self._choices.random() < 0.02:
                sticky[:] = [self._choices.choice(self.living() or self.hosts)]
            return sticky[0]

        return Link(self.world, process, choose, direct, lambda: self.link_rates)

    def committed(self, process: Process, key: str, version: Versioned) -> None:
        if not key.startswith(REGISTER):
            super().committed(process, key, version)

    def on_cas(self, process: Process, key: str, new: Versioned, result: CasResult | None, fate: str) -> None:
        if not key.startswith(REGISTER):
            super().on_cas(process, key, new, result, fate)

    def truncated(self, process: Process, key: str, seqno: int) -> None:
        if not key.startswith(REGISTER):
            super().truncated(process, key, seqno)


class CommitterNemesis(Nemesis):
    """Strikes committers too."""

    def strikes(self) -> Strikes:
        return super().strikes() | {self._kill_committer: 4, self._freeze_committer: 3, self._double_committer: 3}

    def _hosts(self) -> list[CommitterHost]:
        assert isinstance(self._env, CommitterEnvironment)
        return self._env.living()

    async def _kill_committer(self) -> None:
        """Killed, and after a while another one is there."""
        assert isinstance(self._env, CommitterEnvironment)
        host = self._dice.choice(self._hosts())
        if host.calls:
            self._env.world.reached("committer killed under load")
        host.process.crash()
        if not self._env.living():
            await self._sleep(self._dice.choice([0.0, 0.1, 1.0]))
            self._env.start_committer()

    async def _freeze_committer(self) -> None:
        host = self._dice.choice(self._hosts())
        if not host.process.frozen:
            host.process.freeze()
            self._later(self._dice.choice([0.05, 1.0, 4.0]), host.process.thaw)

    async def _double_committer(self) -> None:
        """A rollout: another one starts while the old one is still there."""
        assert isinstance(self._env, CommitterEnvironment)
        if len(self._hosts()) < 3:
            self._env.start_committer()


class Run(persist.Run):
    """One seed."""

    def run(self) -> Counter[str]:
        before = _behind()
        try:
            return super().run()
        finally:
            self.world.sometimes["refused behind the cache"] += _behind() - before

    def make_environment(self, txns_shard: ShardId | None) -> Environment:
        env = CommitterEnvironment(self.world, self.plan.config, self.plan.rates, self.plan.pubsub, txns_shard)
        env.prepare(self.world.random("way"))
        return env

    def make_nemesis(self) -> Nemesis:
        plan = self.plan
        dice = self.world.random("nemesis")
        return CommitterNemesis(self.env, dice, self._staff, pace_s=plan.pace_s, until_s=plan.duration_s)

    def calm(self) -> None:
        super().calm()
        assert isinstance(self.env, CommitterEnvironment)
        self.env.link_rates = LinkRates()

    def _staff(self, node: Node) -> None:
        super()._staff(node)
        node.act("registers", self._advance_registers)

    async def _advance_registers(self, node: Node, dice: Random) -> None:
        """Advance several registers at once, each from a head that may be an old one."""
        while not node.done:
            keys = dice.sample(range(REGISTERS), dice.randint(1, REGISTERS))
            await asyncio.gather(*(self._advance(node, dice, f"{REGISTER}{key}") for key in keys))
            await node.idle(dice, 0.05)
        for number in range(REGISTERS):
            # What a lost answer has committed last shows in no other look, and explains refusals.
            await node.stubbornly(partial(node.consensus.head, f"{REGISTER}{number}"))

    async def _advance(self, node: Node, dice: Random, key: str) -> None:
        try:
            cached = dice.random() < 0.7
            head = await node.consensus.head(key, linearized=not cached)
            seqno = 0 if head is None else head.seqno + 1
            data = f"{node.name} {node.env.ledger.next()}".encode()
            result = await node.consensus.compare_and_set(key, Versioned(SeqNo(seqno), data))
            if result is CasResult.MISMATCH:
                self.world.reached("register taken by another")
                newest = await node.consensus.head(key)
                assert newest is not None, f"{key} at {seqno} was refused, but there is none"
                if newest.seqno < seqno - 1:
                    self.world.violated(f"{key}: {seqno} was refused, but {newest.seqno} is the newest")
                if cached and newest.seqno >= seqno:
                    self.world.reached("cached head was behind")
        except (Determinate, Indeterminate) as error:
            node.log(f"{key}: {error.message}")
        except ExternalError as error:
            raise AssertionError(f"{key}: an error of no kind: {error!r}") from error


def _behind() -> int:
    return int(REGISTRY.get_sample_value("committer_cas_behind_cache_total") or 0)
