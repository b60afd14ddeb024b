"""What goes wrong while a run lasts: crashes, freezes longer than leases, outages, clocks that jump, lost rollups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeAlias

from sim.environment import Environment, Node
from sim.stores import Outage, Trap

CHANGES = ("cas", "cas", "set", "delete", "truncate")
"""How the requests begin that change something."""

Strikes: TypeAlias = dict[Callable[[], Coroutine[Any, Any, None]], int]

Staff = Callable[[Node], None]
"""Gives a new node its actors."""


class Nemesis:
    """Strikes until `until_s`; at least one node is left alive. `staff` is asked for each node that starts."""

    def __init__(self, env: Environment, dice: Random, staff: Staff, *, pace_s: float, until_s: float) -> None:
        self._env = env
        self._dice = dice
        self._staff = staff
        self._pace_s = pace_s
        self._until_s = until_s
        self._lease_s = env.config.reader_lease_ms / 1000

    def start_node(self) -> Node:
        skew_ms = self._dice.randint(-200, 200)
        node = self._env.node("node", skew_ms)
        self._staff(node)
        return node

    def strikes(self) -> Strikes:
        """What it can do, and how often it does."""
        return {
            self._crash: 4,
            self._freeze: 4,
            self._crash_midway: 2,
            self._freeze_midway: 4,
            self._freeze_unanswered: 2,
            self._shut_down: 1,
            self._outage: 2,
            self._jump: 1,
            self._lose_rollup: 1,
        }

    async def run(self) -> None:
        """Strike again and again, then put everything in order."""
        strikes = self.strikes()
        sleep = self._sleep
        while self._env.world.now_s < self._until_s:
            await sleep(self._dice.expovariate(1 / self._pace_s))
            strike = self._dice.choices(list(strikes), list(strikes.values()))[0]
            await strike()
        self._env.network.outages.clear()
        self._env.network.traps.clear()
        for process in self._env.world.processes:
            process.thaw()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, max(0.0, self._until_s - self._env.world.now_s) + 0.01))

    def _victims(self) -> list[Node]:
        return [node for node in self._env.nodes if node.process.alive and not node.stopping]

    async def _crash(self) -> None:
        node = self._dice.choice(self._victims())
        self._kill(node)
        await self._sleep(self._dice.choice([0.0, 0.3, self._lease_s * 1.5]))
        self.start_node()

    def _kill(self, node: Node) -> None:
        node.process.crash()
        node.stopping = True

    async def _freeze(self) -> None:
        victims = [node for node in self._victims() if not node.process.frozen]
        if victims:
            self._stop(self._dice.choice(victims), self._dice.choice([0.05, 0.5, 2.5]))

    def _stop(self, node: Node, leases: float) -> None:
        node.process.freeze()
        self._later(leases * self._lease_s, node.process.thaw)

    async def _crash_midway(self) -> None:
        """Kill a process when it is about to change something in a store."""

        def spring(_: str) -> None:
            self._kill(node)
            self._later(0.0, self.start_node)

        node = self._dice.choice(self._victims())
        self._env.network.traps[node.name] = Trap(self._dice.choice(CHANGES), spring)

    async def _freeze_midway(self) -> None:
        """Stop a process when it is about to change something in a store: it does so long after it decided to."""
        node = self._dice.choice(self._victims())
        self._env.network.traps[node.name] = Trap(self._dice.choice(CHANGES), lambda _: self._stop(node, 2.5))

    async def _freeze_unanswered(self) -> None:
        """Stop a process that does not know whether it has changed something, when it is about to look. By then nobody
        else remembers it.
        """

        def asks(request: str) -> None:
            shard = request.split()[1]
            traps[node.name] = Trap(f"scan {shard}", lambda _: self._stop(node, self._dice.choice([0.5, 2.5, 8.0])))

        node, traps = self._dice.choice(self._victims()), self._env.network.traps
        traps[node.name] = Trap("cas", asks, unanswered=True)

    async def _shut_down(self) -> None:
        victims = [node for node in self._victims() if not node.process.frozen]
        if victims:
            node = self._dice.choice(victims)
            self.start_node()
            node.stopping = True
            node.process.spawn(node.shut_down(), "shut down")

    async def _outage(self) -> None:
        node = self._dice.choice(self._victims())
        outage = Outage(None if self._dice.random() < 0.4 else frozenset([node.name]))
        self._env.world.log("nemesis", f"cuts off {outage.processes or 'everybody'}")
        self._env.network.outages.append(outage)
        self._later(self._dice.choice([0.1, 1.0, 3.0]), lambda: self._end(outage))

    def _end(self, outage: Outage) -> None:
        if outage in self._env.network.outages:
            self._env.network.outages.remove(outage)
            self._env.world.log("nemesis", f"reconnects {outage.processes or 'everybody'}")

    async def _jump(self) -> None:
        node = self._dice.choice(self._victims())
        node.process.clock.skew_ms = self._dice.randint(-200, 200)
        self._env.world.log("nemesis", f"sets the clock of {node.name} to {node.process.clock.skew_ms} ms")

    async def _lose_rollup(self) -> None:
        """The next rollup that is listed next to another one vanishes: its store has lied about having it."""
        self._env.rollups_to_lose = 1

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        self._env.world.loop.call_later(seconds, call, context=self._env.world.context)
