"""Keepers of shards: holders of critical sinces who fence one another, sweepers, finalizers, designers of schemas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from penstock.persist import Evolved, Fenced, Incompatible, ReaderExpired, ShardId, SinceHandle
from penstock.persist.partstore import part_time_ms
from penstock.persist.sweep import Keep
from penstock.persist.txn import TxnsWriter
from penstock.runtime import DONE, ExternalError, Frontier, InternalError
from sim.actors.rows import WIDE
from sim.environment import Node

CRITICAL = "controller"
_AGE_PER_LINK = 2
"""As the product's sweeper has it."""


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
    """Sweep old orphans of plain shards again and again."""
    while not node.done:
        await _sweep(node, dice, dice.choice(shards), frozenset())


async def sweep_tables(node: Node, dice: Random, tables: tuple[ShardId, ...]) -> None:
    """Sweep what transactions left behind, and nothing that they may come to need."""
    txns = node.env.txns_shard
    assert txns is not None
    while not node.done:
        try:
            writer = await TxnsWriter.open(node.client, txns)
            while not node.done and dice.random() > 0.1:
                shard = dice.choice((*tables, txns))
                await _sweep(node, dice, shard, partial(writer.keys_to_keep, shard))
            await writer.close()
        except (ExternalError, ReaderExpired) as error:
            node.log(f"sweeps tables anew: {error!r}")
        except InternalError as error:
            if "was closed" not in error.message:
                raise


async def _sweep(node: Node, dice: Random, shard: ShardId, keep: frozenset[str] | Keep) -> None:
    await node.idle(dice, 1.0)
    older_than_ms = _AGE_PER_LINK * node.env.config.link_ms
    try:
        swept = await node.client.sweep(shard, older_than_ms=older_than_ms, keep=keep)
    except ExternalError as error:
        node.log(f"sweep of {shard}: {error.message}")
        return
    if swept:
        node.world.reached("sweeper removed an orphan")
    if any(part_time_ms(key.rpartition("/")[2]) is not None for key in swept):
        node.world.reached("sweeper removed an orphaned part")


async def evolve(node: Node, dice: Random, shard: ShardId) -> None:
    """Add a column, whoever is reading and writing meanwhile."""
    await node.idle(dice, 2.0)
    latest = await node.stubbornly(lambda: node.client.latest_schema(shard))
    if latest is None or len(latest.schema) == len(WIDE):
        return
    result = await node.stubbornly(lambda: node.client.compare_and_evolve_schema(shard, latest.id, WIDE))
    history = node.env.history(shard)
    if isinstance(result, Evolved):
        node.world.reached("schema evolved")
        if len(history.state.schemas) != 2:
            node.world.violated(f"{node.name} evolved {shard}, which has {len(history.state.schemas)} schemas")
    elif isinstance(result, Incompatible) and not history.state.tombstone:
        node.world.violated(f"{node.name} could not evolve {shard}: {result}")


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
