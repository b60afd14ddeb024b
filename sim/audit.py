"""The end of a run: nothing goes wrong any more, so everything must converge, be there, and be small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from penstock.persist import ShardId
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import DONE, Frontier, Timestamp, Updates
from sim.actors.reading import opener
from sim.actors.rows import SCHEMA, as_seen_by, check_listen, check_snapshot
from sim.actors.transactions import KEYS, Lists, TableModel
from sim.actors.ways import check_contents
from sim.checkers import appends, list_append
from sim.checkers.list_append import Transaction
from sim.environment import Environment, Node

SETTLE_S = 300.0
"""Virtual time within which everything must come to rest once nothing goes wrong any more."""


class Audit:
    """See the module. `run` raises, or tells the world of, whatever is not as it should be."""

    def __init__(
        self,
        env: Environment,
        shards: tuple[ShardId, ...],
        tables: tuple[ShardId, ...],
        lists: ShardId,
        doomed: ShardId,
    ) -> None:
        self._env = env
        self._world = env.world
        self._plain = (*shards, lists, doomed)
        self._tables = tables
        self._lists = lists
        self._places = (*tables, lists)
        self._dice = env.world.random("audit")

    async def run(self) -> None:
        await self._come_to_rest()
        auditor = self._env.node("auditor")
        await self._ended([auditor.process.spawn(self._audit(auditor), "audit")], "the audit")
        self._check_histories()

    async def _ended(self, tasks: list[asyncio.Task[None]], what: str) -> None:
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=SETTLE_S)
        if unfinished:
            names = sorted(task.get_name() for task in unfinished)
            self._world.violated(f"{what}: not at an end after {SETTLE_S} s without faults: {names}")

    async def _come_to_rest(self) -> None:
        """Actors end by themselves; those that follow a shard must have seen all of it. Then the nodes shut down."""
        nodes = [node for node in self._env.nodes if node.process.alive and not node.stopping]
        actors = [actor for node in nodes for actor in node.actors]
        await self._ended([actor for actor in actors if "/follow" not in actor.get_name()], "actors")
        if self._tables:
            applier = self._env.node("applier")
            await self._ended([applier.process.spawn(self._apply(applier), "apply")], "applying")
        await self._until(
            lambda: [name for node in nodes for name, one in node.follows.items() if not one.caught_up], "listens"
        )
        for node in nodes:
            node.process.spawn(node.shut_down(), "shut down")
        await self._until(lambda: [node.name for node in self._env.nodes if node.process.alive], "nodes")
        config = self._env.config
        await asyncio.sleep(
            (config.reader_lease_ms + config.writer_lease_ms) / 1000 + 1
        )  # the crashed ones' leases end

    async def _until(self, unfinished: Callable[[], list[str]], what: str) -> None:
        """Wait until nothing is unfinished any more; a violation after `SETTLE_S`."""
        deadline = self._world.now_s + SETTLE_S
        while names := unfinished():
            await asyncio.sleep(0.25)
            if self._world.now_s > deadline:
                self._world.violated(f"{what}: not at an end after {SETTLE_S} s without faults: {names}")
                return

    async def _apply(self, node: Node) -> None:
        assert self._env.txns_shard is not None
        writer = await TxnsWriter.open(node.client, self._env.txns_shard)
        await writer.close()
        await node.shut_down()

    async def _audit(self, node: Node) -> None:
        if self._tables:
            await self._audit_tables(node)
        for shard in self._plain:
            await self._audit_shard(node, shard)
        await self._read_lists(node)
        for shard in (*self._plain, *self._tables):
            await self._check_size(node, shard)

    async def _audit_shard(self, node: Node, shard: ShardId) -> None:
        """Everything that can be read is what was written; it can be written to."""
        history = self._env.history(shard)
        if history.state.tombstone or history.upper == 0:
            return
        reader = await opener(node, shard, self._dice)()
        model = as_seen_by(reader, history)
        since, upper = int(reader.since), int(reader.upper)
        for as_of in sorted({since, (since + upper) // 2, upper - 1}):
            if since <= as_of < upper:
                await check_snapshot(node, model, str(shard), reader, as_of)
                await check_contents(node, self._dice, model, str(shard), reader, as_of)
        if since < upper:
            await check_listen(node, model, str(shard), reader, since, upper, with_snapshot=True)
        await reader.expire()

    async def _audit_tables(self, node: Node) -> None:
        env = self._env
        assert env.txns_shard is not None
        assert env.txns is not None
        writer = await TxnsWriter.open(node.client, env.txns_shard)
        missing = {table: SCHEMA for table in self._tables if table not in writer.registered}
        while missing and await writer.register(missing, Timestamp(writer.upper)) is not None:
            await writer._writer.fetch_recent_upper()
        reader = await TxnsReader.open(node.client, env.txns_shard)
        for table in self._tables:
            model = TableModel(env.txns, table)
            handle = await reader.open_reader(table, SCHEMA, purpose="audit")
            since, upper = int(handle.since), int(handle.upper)
            for as_of in sorted({since, (since + upper) // 2, upper - 1}):
                if since <= as_of < upper:
                    await check_snapshot(node, model, f"table {table}", handle, as_of)
            if since < upper:
                await check_listen(node, model, f"table {table}", handle, since, upper, with_snapshot=True)
            await handle.expire()
        assert await writer.commit_at({}, Timestamp(writer.upper)) is None
        await writer.apply_le(Timestamp(writer.upper - 1))
        self._keep = {table: writer.unapplied_keys(table) for table in self._tables}
        await reader.close()
        await writer.close()

    async def _read_lists(self, node: Node) -> None:
        """One more transaction, after all others: it reads every list."""
        env = self._env
        lists = Lists(node, Random(0), self._places)
        one = Transaction("T-last", self._world.now_s, outcome=True)
        for place in self._places:
            table = place in self._tables
            upper = env.txns.upper if table and env.txns is not None else env.history(place).upper
            contents = env.txns.at(place, upper) if table and env.txns is not None else env.history(place).at(upper)
            lists.note_reads(one, place, list(range(KEYS)), contents)
        one.ended = self._world.now_s
        env.ledger.transactions.append(one)

    async def _check_size(self, node: Node, shard: ShardId) -> None:
        """With upkeep running and nobody holding on, a shard is small: versions, batches, readers, blobs."""
        env, history = self._env, self._env.history(shard)
        config = env.config
        if history.state.tombstone:
            await node.client.finalize(shard)
            await node.client.sweep(shard, older_than_ms=-1_000_000)
            left = env.objects.list_prefix(f"{shard}/")
            if left or len(env.logs.logs[shard]) != 1:
                self._world.violated(f"{shard} is finalized and left {left}, {len(env.logs.logs[shard])} versions")
            return
        if shard in self._tables or history.upper in (0, DONE):
            return
        writer = await node.client.open_writer(shard, SCHEMA, purpose="audit")
        for _ in range(3 * config.rollup_every + 2):
            upper = int(writer.upper)
            assert await writer.compare_and_append(Updates.empty(SCHEMA), Frontier(upper), Frontier(upper + 1)) is None
            await asyncio.sleep(0.1)
        await writer.expire()
        await self._quiet(shard)
        most = 4 * config.rollup_every + 8
        await self._until(  # upkeep that has failed comes back after a growing pause
            lambda: [f"{shard} keeps {len(env.logs.logs[shard])} versions"] if len(env.logs.logs[shard]) > most else [],
            f"collection, with a rollup every {config.rollup_every} versions",
        )
        state = history.state
        if state.readers or len(state.writers) > 1:
            self._world.violated(f"{shard} keeps readers {state.readers}, writers {state.writers}")
        await node.client.sweep(shard, older_than_ms=-1_000_000)
        self._check_orphans(shard)

    async def _quiet(self, shard: ShardId) -> None:
        """Wait until upkeep of `shard` has nothing left to do: nothing has changed for longer than it ever pauses."""
        last: object = None
        since_s = self._world.now_s
        deadline = since_s + SETTLE_S
        while self._world.now_s < since_s + 6:
            now = (self._env.history(shard).state.seqno, self._env.objects.list_prefix(f"{shard}/"))
            if now != last:
                last, since_s = now, self._world.now_s
            if self._world.now_s > deadline:
                self._world.violated(f"{shard}: upkeep does not come to an end")
            await asyncio.sleep(0.5)

    def _check_orphans(self, shard: ShardId) -> None:
        """After a sweep, every blob is one that the state, or a version that is still there, refers to."""
        history, env = self._env.history(shard), self._env
        blobs = {key.partition("/")[2] for key, _ in env.objects.list_prefix(f"{shard}/")}
        extra = blobs - history.state.keys() - history.recently_dropped()
        missing = history.state.keys() - blobs - history.lost_keys
        if extra or missing:
            self._world.violated(f"{shard}: blobs that nobody needs: {sorted(extra)}; missing: {sorted(missing)}")

    def _check_histories(self) -> None:
        env = self._env
        problems: list[str] = []
        for shard, asked in env.ledger.appends.items():
            problems += appends.problems(shard, asked, env.history(shard).committed)
        for history in env.cas.values():
            problems += history.problems()
        problems += list_append.anomalies(env.ledger.transactions)
        for problem in problems[:20]:
            self._world.violated(problem)
