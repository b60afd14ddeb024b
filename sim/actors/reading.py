"""Readers of shards: short reads at any readable time, long listens, holds that must hold."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from random import Random

import pyarrow as pa

from penstock.persist import ReaderExpired, ShardId, SinceError
from penstock.runtime import DONE, ExternalError, Frontier, Timestamp
from sim.actors.rows import (
    SCHEMA,
    WIDE,
    Follow,
    Model,
    Reader,
    as_seen_by,
    bounded,
    check_listen,
    check_snapshot,
    excused,
)
from sim.actors.ways import check_contents
from sim.environment import Node

Open = Callable[[], Awaitable[Reader]]
CANNOT_READ = (ReaderExpired, SinceError)


def opener(node: Node, shard: ShardId, dice: Random) -> Open:
    """How a plain shard is opened in `node`: as it was in the beginning, or as it is."""
    return lambda: node.client.open_reader(shard, some_schema(node, dice, shard), purpose="simulation")


def some_schema(node: Node, dice: Random, shard: ShardId) -> pa.Schema:
    """One of the schemas of a plain shard."""
    grown = len(node.env.history(shard).state.schemas) > 1
    return WIDE if grown and dice.random() < 0.7 else SCHEMA


async def read(node: Node, dice: Random, shard: ShardId) -> None:
    """Short reads by short-lived readers."""
    while not node.done:
        await node.idle(dice, 0.6)
        reader = await node.stubbornly(opener(node, shard, dice))
        model = as_seen_by(reader, node.env.history(shard))
        try:
            for _ in range(dice.randint(1, 3)):
                if not await read_once(node, dice, model, reader, str(shard)):
                    break
        except CANNOT_READ as error:
            if not excused(node, reader, error) or reader.since == DONE:
                return
        except (ExternalError, TimeoutError) as error:
            node.log(f"gave up reading: {error!r}")
        if dice.random() < 0.8:
            await node.stubbornly(reader.expire)


async def read_once(node: Node, dice: Random, model: Model, reader: Reader, name: str) -> bool:
    """A snapshot or a listen, or both from the same time, somewhere in the readable past. Returns whether the reader
    is as before: one that has listened holds the past no longer.
    """
    since, upper = int(reader.since), int(reader.upper)
    if dice.random() < 0.15 and since < DONE:  # wait for a time to come
        with contextlib.suppress(TimeoutError):
            ahead = max(since, upper + dice.randint(0, 2))
            await bounded(check_snapshot(node, model, name, reader, ahead), 2.0)
            node.world.reached("read waited for its time")
        return True
    if since >= upper:
        return True
    as_of = dice.randint(since, upper - 1)
    kind = dice.random()
    if kind < 0.7:
        await check_contents(node, dice, model, name, reader, as_of)
    if kind > 0.5 and since < DONE:
        await check_listen(node, model, name, reader, as_of, upper, with_snapshot=dice.random() < 0.5)
        return False
    return True


async def follow(node: Node, dice: Random, shard: ShardId) -> None:
    """One long listen, for as long as the process lives; opened anew after its lease was lost."""
    await follow_model(node, dice, node.env.history(shard), opener(node, shard, dice), str(shard))


async def follow_model(node: Node, dice: Random, model: Model, open_: Open, name: str) -> None:
    """`follow` for any model and way to open. It never ends by itself unless the shard is finalized."""
    while not node.stopping:
        reader = await node.stubbornly(open_)
        since, upper = int(reader.since), int(reader.upper)
        if since == DONE:
            return
        as_of = dice.randint(since, max(since, upper - 1))
        with_snapshot = dice.random() < 0.5
        following: Follow | None = None
        try:
            listen = await (reader.subscribe if with_snapshot else reader.listen)(Timestamp(as_of))
            following = Follow(node, as_seen_by(reader, model), name, listen, as_of, with_snapshot)
            node.follows[name] = following
            while True:
                try:
                    await following.step()
                except StopAsyncIteration:
                    return
                except ExternalError:
                    node.world.reached("listen went on after an error")
                    await node.process.clock.sleep(0.2)
                if dice.random() < 0.1:
                    await node.idle(dice, 0.5)
        except CANNOT_READ as error:
            if not excused(node, reader, error):
                return
        finally:
            node.follows.pop(name, None)
            if following is not None:
                await following.aclose()


async def hold(node: Node, dice: Random, shard: ShardId) -> None:
    """Hold a time, do nothing for a while, then read exactly there; let go of it step by step."""
    lease_s = node.env.config.reader_lease_ms / 1000
    while not node.done:
        reader = await node.stubbornly(opener(node, shard, dice))
        model = as_seen_by(reader, node.env.history(shard))
        try:
            for _ in range(dice.randint(1, 4)):
                await node.idle(dice, lease_s * dice.choice([0.1, 0.5, 1.5]))
                since = int(reader.since)
                if since == DONE or node.done:
                    return
                if since < reader.upper:
                    await check_contents(node, dice, model, str(shard), reader, since)
                    to = dice.randint(since, int(reader.upper) - 1)
                    await reader.downgrade_since(Frontier(to))
                    if reader.since < to:
                        node.world.violated(f"{node.name}: since of {shard} is {reader.since} after going to {to}")
        except CANNOT_READ as error:
            if not excused(node, reader, error):
                return
        except ExternalError as error:
            node.log(f"gave up holding: {error!r}")
        await node.stubbornly(reader.expire)
