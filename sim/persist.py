"""One run of persist: nodes full of actors, a nemesis, and an audit once it has left.

Which actors, which settings, which faults: the seed decides ("swarm testing": a run that leaves most features out goes
deeper into the others).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from prometheus_client import REGISTRY

from penstock.persist import PersistConfig, ShardId, new_shard_id
from sim.actors.keeping import control_since, evolve, finalize, sweep, sweep_tables
from sim.actors.reading import follow, hold, read
from sim.actors.transactions import coordinate, follow_table, read_tables, transact_plain
from sim.actors.writing import write, write_seldom
from sim.audit import Audit
from sim.environment import Environment, Node
from sim.nemesis import Nemesis
from sim.pubsub import PubSubRates
from sim.stores import FaultRates
from sim.world import TAIL_LINES, World

SOMETIMES = (
    "append decided by reading back",
    "batch had become too old",
    "collection crashed midway, finished by another",
    "compaction applied, the answer lost",
    "compaction result not applicable",
    "compactions of one process side by side",
    "cursor went through files",
    "fenced holder refused",
    "filter spared parts",
    "finalize raced",
    "gap in pushed news",
    "inline drained to blobs",
    "lease expired under a pause",
    "listen went on after an error",
    "lost rollup noticed",
    "lost race",
    "mismatch was one's own commit",
    "news by poll",
    "news by push",
    "parts fetched elsewhere",
    "read waited for its time",
    "reader expired and was told so",
    "reader of a finalized shard told so",
    "schema evolved",
    "snapshot went on after an error",
    "stale cached state corrected",
    "sweeper removed an orphan",
    "sweeper removed an orphaned part",
    "tables read at one time",
    "transaction applied by another process",
    "transaction tidied by another process",
    "unknown outcome had taken effect",
)
"""Rare paths that many seeds must reach."""
LONERS = 0.15
"""So many of the nodes do little, each of it at great risk of being overtaken."""


@dataclass
class Plan:
    """What the seed decided."""

    config: PersistConfig
    rates: FaultRates
    pubsub: PubSubRates | None
    shards: int
    tables: int
    nodes: int
    actors: int
    duration_s: float
    pace_s: float
    shuffled: bool

    @staticmethod
    def draw(dice: Random) -> Plan:
        choice = dice.choice
        fault = choice([0.0, 0.01, 0.04])
        lease_ms = choice([1500, 3000, 5000])
        return Plan(
            config=PersistConfig(
                inline_bytes=choice([0, 500, 900, 3000]),
                inline_total_bytes=choice([1000, 3000, 10_000]),
                part_bytes=choice([1000, 4000, 100_000]),
                uploads=choice([1, 3]),
                compaction_fan_in=choice([3, 4]),
                compaction_small_bytes=choice([300, 2000, 1_000_000]),
                compaction_claim_rows=choice([0, 20, 1024]),
                compaction_timeout_ms=choice([500, 90_000]),
                compaction_memory_bytes=choice([8000, 30_000, 1_000_000]),
                rollup_every=choice([8, 16]),
                poll_min_ms=choice([5, 25]),
                poll_max_ms=choice([50, 400]),
                reader_lease_ms=lease_ms,
                writer_lease_ms=choice([3000, 8000, 20_000]),
                hold_versions=choice([4, 8]),
                downgrade_ms=choice([20, 300, 2000]),
                store_retry_ms=choice([20, 300, 2000]),
                cache_bytes=choice([0, 20_000, 1_000_000]),
                prefetch_bytes=choice([500, 5000, 1_000_000]),
                stats_bytes=choice([0, 60, 1024]),
                stats_from_bytes=0,
                stats_audit_percent=choice([0, 50]),
                snapshot_memory_bytes=choice([1000, 5000, 1_000_000]),
                link_ms=choice([700, 2000]),
            ),
            rates=FaultRates(
                determinate=fault * choice([0, 1, 2]),
                unknown_before=fault * choice([0, 1]),
                unknown_after=fault * choice([0, 1, 2]),
                unknown_late=fault * choice([0, 1]),
                slow=choice([0.0, 0.01, 0.05]),
                delay_s=choice([0.002, 0.02]),
                slow_s=choice([0.2, 1.5]),
            ),
            pubsub=None
            if dice.random() < 0.3
            else PubSubRates(choice([0.0, 0.1, 0.5]), choice([0.0, 0.2]), choice([0.002, 0.05])),
            shards=choice([1, 1, 2]),
            tables=choice([0, 2, 2, 3]),
            nodes=choice([2, 3]),
            actors=choice([2, 3, 4]),
            duration_s=choice([4.0, 7.0, 10.0]),
            pace_s=choice([0.6, 1.2, 3.0]),
            shuffled=dice.random() < 0.75,
        )


class Run:
    """One seed."""

    def __init__(self, seed: int, *, trace_lines: int | None = TAIL_LINES) -> None:
        self.plan = Plan.draw(Random(f"{seed}/plan"))
        self.world = World(seed, shuffled=self.plan.shuffled, trace_lines=trace_lines)
        self._dice = self.world.random("staff")
        self._has_loner = False

    def run(self) -> Counter[str]:
        """Raises the first failure; returns how often each rare path was reached."""
        pushed = _pushed("applied"), _pushed("gap")
        try:
            self.world.run(self._main)
        finally:
            self.world.sometimes["news by push"] += _pushed("applied") - pushed[0]
            self.world.sometimes["gap in pushed news"] += _pushed("gap") - pushed[1]
        return self.world.sometimes

    async def _main(self) -> None:
        plan = self.plan
        self.world.log("plan", repr(plan))
        shards = tuple(new_shard_id() for _ in range(plan.shards))
        tables = tuple(new_shard_id() for _ in range(plan.tables))
        self._shards, self._tables = shards, tables
        self._lists, self._doomed, self._quiet = new_shard_id(), new_shard_id(), new_shard_id()
        env = self.env = self.make_environment(new_shard_id() if tables else None)
        nemesis = self.make_nemesis()
        for _ in range(plan.nodes):
            nemesis.start_node()
        await nemesis.run()
        self.calm()
        env.stopping = True
        self.world.log("nemesis", "leaves")
        await Audit(env, (*shards, self._quiet), tables, self._lists, self._doomed).run()

    def make_environment(self, txns_shard: ShardId | None) -> Environment:
        return Environment(self.world, self.plan.config, self.plan.rates, self.plan.pubsub, txns_shard)

    def make_nemesis(self) -> Nemesis:
        plan = self.plan
        dice = self.world.random("nemesis")
        return Nemesis(self.env, dice, self._staff, pace_s=plan.pace_s, until_s=plan.duration_s)

    def calm(self) -> None:
        """Nothing goes wrong on the way any more."""
        self.env.network.rates = self.plan.rates.calm()

    def _staff(self, node: Node) -> None:
        """Give `node` a few jobs; between them the nodes do everything that the plan has."""
        dice, env = self._dice, self.env
        if dice.random() < LONERS:
            node.act("write seldom", lambda n, d: write_seldom(n, d, self._quiet))
            self._has_loner = True
            return
        if self._has_loner:
            node.act("sweep quiet", lambda n, d: sweep(n, d, (self._quiet,)))
        plain = (*self._shards, self._doomed)
        places = (*self._tables, self._lists)
        txns = env.txns
        if self._tables:
            node.act("coordinate", lambda n, d: coordinate(n, d, self._tables, places))
        node.act("write", lambda n, d: write(n, d, self._shards[0]))
        jobs = {
            "write again": lambda n, d: write(n, d, dice_of(d, plain)),
            "read": lambda n, d: read(n, d, dice_of(d, plain)),
            "follow": lambda n, d: follow(n, d, dice_of(d, plain)),
            "hold": lambda n, d: hold(n, d, dice_of(d, plain)),
            "lists": lambda n, d: transact_plain(n, d, self._lists, places),
            "since": lambda n, d: self._control(n, d, dice_of(d, (*plain, self._lists))),
            "sweep": lambda n, d: sweep(n, d, (*plain, self._lists)),
            "evolve": lambda n, d: evolve(n, d, dice_of(d, plain)),
            "finalize": lambda n, d: finalize(n, d, self._doomed),
        }
        if txns is not None:
            jobs["tables"] = lambda n, d: read_tables(n, d, self._tables)
            jobs["follow table"] = lambda n, d: follow_table(n, d, dice_of(d, self._tables))
            jobs["sweep tables"] = lambda n, d: sweep_tables(n, d, self._tables)
            jobs["table since"] = lambda n, d: self._control(n, d, dice_of(d, self._tables))
        for name in dice.sample(sorted(jobs), self.plan.actors):
            node.act(name, jobs[name])

    async def _control(self, node: Node, dice: Random, shard: ShardId) -> None:
        txns = self.env.txns
        table = shard in self._tables
        history = self.env.history(shard)

        def upper() -> int:
            return txns.upper if table and txns is not None else history.upper

        await control_since(node, dice, shard, upper, dice.choice([1, 5, 20]))


def _pushed(result: str) -> int:
    """How many pushed diffs came to `result`, as the product counts them."""
    return int(REGISTRY.get_sample_value("persist_pushed_diffs_total", {"result": result}) or 0)


def dice_of(dice: Random, shards: tuple[ShardId, ...]) -> ShardId:
    """The first shard most of the time, so that it sees a lot of everything."""
    return shards[0] if dice.random() < 0.5 else dice.choice(shards)
