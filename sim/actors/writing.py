"""Writers of plain shards: racing, impatient, retracting, forgetful."""

from __future__ import annotations

import asyncio
from random import Random

from penstock.persist import BatchTooOld, Mismatch, ShardId, WriteHandle
from penstock.runtime import DONE, Determinate, Frontier, Indeterminate
from sim.actors.reading import some_schema
from sim.actors.rows import SCHEMA, to_updates
from sim.checkers.appends import OPS_PER_ROW_KEY, Answer, Append, Row, Update
from sim.environment import Node

ROWS_MAX = 6


class Writer:
    """One writer of one shard: each step is one append, whose outcome goes into the ledger."""

    def __init__(self, node: Node, dice: Random, shard: ShardId, handle: WriteHandle) -> None:
        self._node = node
        self._dice = dice
        self._shard = shard
        self._mine: list[Row] = []
        """Rows of acknowledged appends that were not retracted."""
        self.handle = handle
        self.expected = int(handle.upper)

    async def step(self) -> None:
        node, dice = self._node, self._dice
        history = node.env.history(self._shard)
        if dice.random() < 0.1:
            self.expected = history.upper  # somebody told it, faster than its own process learnt
        expected = self.expected
        if expected == DONE:
            return
        number = node.env.ledger.next()
        upper = expected + dice.randint(1, 4)
        rows = self._rows(number, expected, upper)
        retracted = self._retractions(expected, upper) if rows else []
        append = Append(number, node.name, expected, upper, tuple(rows))
        node.env.ledger.appends[self._shard].append(append)
        stale, current = self.handle.upper < expected, history.upper == expected
        try:
            result = await self._append([*rows, *retracted], expected, upper)
        except (Determinate, BatchTooOld):
            append.answer = Answer.REFUSED
            self._mine += [row for _, row, _ in retracted]
            await self._find_upper()
            return
        except (Indeterminate, TimeoutError):
            await self._find_upper()
            return
        if isinstance(result, Mismatch):
            append.answer = Answer.REFUSED
            self._mine += [row for _, row, _ in retracted]
            self._check_refusal(result, expected, current)
            self.expected = int(result.current_upper)
            return
        append.answer = Answer.DONE
        self._mine += [row for _, row, _ in rows]
        self.expected = upper
        if stale:
            node.world.reached("stale cached state corrected")
        self._check_acknowledged(append)

    async def _append(self, changes: list[Update], expected: int, upper: int) -> Mismatch | None:
        lower_frontier, upper_frontier = Frontier(expected), Frontier(upper)
        updates = to_updates(changes, self.handle.schema)
        way = self._dice.random()
        if way < 0.1:  # loses patience at any moment
            async with asyncio.timeout(self._dice.random() * 0.05):
                return await self.handle.compare_and_append(updates, lower_frontier, upper_frontier)
        if way < 0.3:
            batch = await self.handle.batch(updates, lower_frontier, upper_frontier)
            await self._node.idle(self._dice, 0.02)
            try:
                result = await self.handle.compare_and_append_batches([batch], lower_frontier, upper_frontier)
            except BatchTooOld:
                self._node.world.reached("batch had become too old")
                await self._node.stubbornly(lambda: self.handle.delete_batch(batch))
                raise
            if result is not None:
                await self._node.stubbornly(lambda: self.handle.delete_batch(batch))
            return result
        return await self.handle.compare_and_append(updates, lower_frontier, upper_frontier)

    def _rows(self, number: int, lower: int, upper: int) -> list[Update]:
        dice = self._dice
        count = dice.choice([0, 1, 1, 2, ROWS_MAX])
        filler = dice.choice([0, 0, 20, 120, 400])
        return [
            (dice.randrange(lower, upper), self._row(number * OPS_PER_ROW_KEY + index, filler), 1)
            for index in range(count)
        ]

    def _row(self, key: int, filler: int) -> Row:
        text = f"{self._dice.getrandbits(4 * filler):x}" if filler else ""
        if self.handle.schema.equals(SCHEMA) or self._dice.random() < 0.3:
            return (key, text)
        return (key, text, self._dice.choice(["", "late", text]))

    def _retractions(self, lower: int, upper: int) -> list[Update]:
        if not self._mine or self._dice.random() < 0.6:
            return []
        row = self._mine.pop(self._dice.randrange(len(self._mine)))
        return [(self._dice.randrange(lower, upper), row, -1)]

    async def _find_upper(self) -> None:
        self.expected = int(await self._node.stubbornly(self.handle.fetch_recent_upper))

    def _check_refusal(self, mismatch: Mismatch, expected: int, was_current: bool) -> None:
        history, node = self._node.env.history(self._shard), self._node
        if was_current and history.upper == expected:
            node.world.violated(f"{node.name}: {mismatch} for {self._shard}, whose upper was {expected} all the time")
        if mismatch.current_upper > history.upper or mismatch.current_upper == expected:
            node.world.violated(f"{node.name}: {mismatch} for an append at {expected}; the upper is {history.upper}")

    def _check_acknowledged(self, append: Append) -> None:
        """What is acknowledged is in the shard at this moment."""
        history, world = self._node.env.history(self._shard), self._node.world
        mine = [one for one in reversed(history.committed) if (one.lower, one.upper) == (append.lower, append.upper)]
        if not mine:
            world.violated(f"{append.process}: acknowledged and not there: {append}")
        elif (self._shard, mine[0].seqno) in self._node.env.lost_answers:
            world.reached("append decided by reading back")


async def write_seldom(node: Node, dice: Random, shard: ShardId) -> None:
    """Append to a shard to which little else happens: what is decided before a pause is still possible after it."""
    await write(node, dice, shard, pace=0.8)


async def write(node: Node, dice: Random, shard: ShardId, pace: float | None = None) -> None:
    """Append again and again, now and then as a new writer. `pace`: mean seconds between appends; None: some."""
    pace = pace or dice.choice([0.08, 0.2, 0.6])
    while not node.done:
        handle = await node.stubbornly(
            lambda: node.client.open_writer(shard, some_schema(node, dice, shard), purpose="simulation")
        )
        writer = Writer(node, dice, shard, handle)
        while not node.done and dice.random() > 0.03:
            if writer.expected == DONE:
                return
            await node.idle(dice, pace)
            await writer.step()
        if dice.random() < 0.7:
            await node.stubbornly(handle.expire)
