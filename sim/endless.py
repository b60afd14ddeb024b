"""A virtual hour of endless small appends: what a shard keeps must not depend on how long it has existed.

Two writers race with small appends (most of them mere progress, the others replacing one row out of a hundred), a
listener follows, a critical since lets go of the past: a table in use. The settings are the product's defaults. Every
virtual minute the live versions, the blobs and the size of the state are measured at the stores.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from penstock.persist import Mismatch, PersistConfig, ShardId, new_shard_id
from penstock.persist.state import encode_rollup
from penstock.runtime import Frontier, Timestamp
from sim.actors.rows import SCHEMA, to_updates
from sim.checkers.appends import Row, Update
from sim.environment import Environment, Node
from sim.pubsub import PubSubRates
from sim.stores import FaultRates
from sim.world import World

HOUR_S = 3600.0
PACE_S = 0.5
"""Between the appends of one writer, in the mean."""
SAMPLE_S = 60.0
KEYS = 100
LAG_MS = 1000
"""How far the critical since stays behind."""
GROWTH_MAX = 1.2
"""Greatest of the last quarter in relation to the greatest of the second quarter."""


@dataclass(frozen=True)
class Sample:
    """What the stores hold at one moment."""

    live_versions: int
    batches: int
    blobs: int
    blob_bytes: int
    state_bytes: int


class Endless:
    """One run. `samples` fill as it goes; `problems` is the verdict."""

    def __init__(self, seed: int, duration_s: float = HOUR_S) -> None:
        self.world = World(seed)
        self.samples: list[Sample] = []
        self.appends = 0
        self._duration_s = duration_s
        self._rows: dict[int, Row] = {}

    def run(self) -> None:
        self.world.run(self._main)

    async def _main(self) -> None:
        rates = FaultRates(slow=0.01, slow_s=0.3)
        self.env = Environment(self.world, PersistConfig(), rates, PubSubRates(lost=0.01))
        shard = new_shard_id()
        nodes = [self.env.node("node") for _ in range(3)]
        nodes[0].act("write", lambda node, dice: self._write(node, dice, shard))
        nodes[1].act("write", lambda node, dice: self._write(node, dice, shard))
        nodes[1].act("since", lambda node, dice: self._let_go(node, shard))
        nodes[2].act("follow", lambda node, dice: self._follow(node, shard))
        while self.world.now_s < self._duration_s:
            await asyncio.sleep(SAMPLE_S)
            self.samples.append(self._sample(shard))

    async def _write(self, node: Node, dice: Random, shard: ShardId) -> None:
        writer = await node.client.open_writer(shard, SCHEMA, purpose="endless")
        while True:
            await node.idle(dice, PACE_S)
            lower = int(writer.upper)
            upper = max(lower + 1, int(self.world.now_s * 1000))
            changes = self._change(dice, lower) if dice.random() < 0.4 else []
            result = await writer.compare_and_append(to_updates(changes), Frontier(lower), Frontier(upper))
            if isinstance(result, Mismatch):
                continue
            self.appends += 1
            for _, row, diff in changes:
                if diff > 0:
                    self._rows[row[0]] = row

    def _change(self, dice: Random, time: int) -> list[Update]:
        key = dice.randrange(KEYS)
        new = (key, f"{dice.getrandbits(400):x}")
        old = self._rows.get(key)
        return [(time, new, 1)] if old is None else [(time, old, -1), (time, new, 1)]

    async def _let_go(self, node: Node, shard: ShardId) -> None:
        since = await node.client.open_since(shard, "controller", purpose="endless")
        while True:
            await node.process.clock.sleep(1.0)
            to = self.env.history(shard).upper - LAG_MS
            if to > since.since:
                assert await since.compare_and_downgrade_since(0, 0, Frontier(to)) is None

    async def _follow(self, node: Node, shard: ShardId) -> None:
        reader = await node.client.open_reader(shard, SCHEMA, purpose="endless")
        async for event in await reader.subscribe(Timestamp(reader.since)):
            assert event.progress <= self.env.history(shard).upper

    def _sample(self, shard: ShardId) -> Sample:
        state = self.env.history(shard).state
        blobs = self.env.objects.list_prefix(f"{shard}/")
        return Sample(
            live_versions=len(self.env.logs.logs[shard]),
            batches=len(state.batches),
            blobs=len(blobs),
            blob_bytes=sum(size for _, size in blobs),
            state_bytes=len(encode_rollup(state)),
        )


def problems(samples: Sequence[Sample]) -> list[str]:
    """Which measures grow: their greatest in the last quarter is far above that in the second."""
    quarter = len(samples) // 4
    found = []
    for name in Sample.__dataclass_fields__:
        values = [getattr(sample, name) for sample in samples]
        early, late = max(values[quarter : 2 * quarter]), max(values[-quarter:])
        if late > GROWTH_MAX * early:
            found.append(f"{name} grows: at most {early} in the second quarter, {late} in the last")
    return found


def main(seed: int, duration_s: float = HOUR_S) -> int:
    """Run, print the measures per ten samples and the JSON line; returns the exit status."""
    run = Endless(seed, duration_s)
    run.run()
    wrong = problems(run.samples)
    for sample in run.samples[9::10]:
        print(sample)
    for one in wrong:
        print(f"FAILED: {one}\nreplay: python -m sim endless-appends --start {seed}")
    print(f"{run.appends} appends, {run.world.loop.steps} steps", file=sys.stderr)
    line = {
        "sim": "endless-appends",
        "seeds": 1,
        "failures": len(wrong),
        "failing_seeds": [seed] if wrong else [],
        "appends": run.appends,
        "max": {name: max(getattr(one, name) for one in run.samples) for name in Sample.__dataclass_fields__},
        "digest": run.world.trace.digest(),
    }
    print(json.dumps(line), flush=True)
    return 1 if wrong else 0
