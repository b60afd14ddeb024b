"""Keepers of shards: holders of critical sinces who fence one another, sweepers, finalizers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from penstock.persist import Fenced, ShardId, SinceHandle
from penstock.runtime import DONE, ExternalError, Frontier
from sim.environment import Node

CRITICAL = "controller"
SWEEP_OLDER_S = 60.0
"""Longer than any process of a run may be between storing a batch and appending it, freezes included."""


async def control_since(node: Node, dice: Random, shard: ShardId, upper: Callable[[], int], lag: int) -> None:
    """Take the critical since over from whoever has it, then let it follow the upper; begin anew when fenced."""
    while not node.done:
        handle = await node.stubbornly(lambda: node.client.open_since(shard, CRITICAL, purpose="simulation"))
        opaque = node.env.ledger.next()
        node.env.history(shard).opaque_owners[opaque] = node.name
        try:
            await _reign(node, dice, handle, opaque, upper, lag)
        except ExternalError as error:
            node.log(f"critical since of {shard}: {error.message}")
        if handle.since == DONE:
            return
        await node.idle(dice, 2.0)


async def _reign(
    node: Node, dice: Random, handle: SinceHandle, opaque: int, upper: Callable[[], int], lag: int
) -> None:
    took_over = await handle.compare_and_downgrade_since(handle.opaque, opaque, handle.since)
    history = node.env.history(handle.shard)
    while took_over is None and not node.done and handle.since < DONE:
        await node.idle(dice, 0.3)
        since = int(handle.since)
        to = max(since, upper() - lag) if dice.random() < 0.9 else max(0, since - 5)
        fenced = await handle.compare_and_downgrade_since(opaque, opaque, Frontier(to))
        if isinstance(fenced, Fenced):
            node.world.reached("fenced holder refused")
            critical = history.state.criticals.get(CRITICAL)
            if critical is not None and critical.opaque == opaque:
                node.world.violated(f"{node.name} was fenced from {handle.shard} without a reason: {fenced}")
            return
        if handle.since < since:
            node.world.violated(f"{node.name}: critical since of {handle.shard} went from {since} to {handle.since}")


async def sweep(node: Node, dice: Random, shards: tuple[ShardId, ...]) -> None:
    """Sweep old orphans of plain shards now and then."""
    while not node.done:
        await node.idle(dice, 4.0)
        shard = dice.choice(shards)
        try:
            if await node.client.sweep(shard, older_than_ms=int(SWEEP_OLDER_S * 1000)):
                node.world.reached("sweeper removed an orphan")
        except ExternalError as error:
            node.log(f"sweep of {shard}: {error.message}")


async def finalize(node: Node, dice: Random, shard: ShardId) -> None:
    """Finalize a shard that others are using."""
    await node.idle(dice, 6.0)
    if node.done:
        return
    history = node.env.history(shard)
    writers = len(history.state.writers)
    before = history.state.tombstone
    await node.stubbornly(lambda: node.client.finalize(shard))
    if not history.state.tombstone:
        node.world.violated(f"{node.name} finalized {shard}, and it is not")
    node.world.reached("finalized")
    if writers or before:
        node.world.reached("finalize raced")
