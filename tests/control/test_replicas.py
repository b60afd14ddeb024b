"""Controllers and real replica processes together: what is computed is right, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penstock.compute.ir import Negate
from penstock.control import (
    ClusterSpec,
    CollectionSpec,
    ComputeController,
    Health,
    ProcessOrchestrator,
    ReplicaSpec,
    StorageController,
    SubscribeEvent,
)
from penstock.control.answers import SubscribeStream
from penstock.control.specs import ReplicaId
from penstock.runtime import DONE, Frontier, GlobalId, SqlError, Timestamp, Updates
from penstock.storage import errors_to_shard, view_schema
from tests.control.environment import CLUSTER, SCHEMA, TXNS, Environment, copy_of, rows, shard_of


def run(directory: Path, body: Callable[[Environment], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), Environment(directory, **options) as environment:
            await body(environment)

    asyncio.run(main())


def key(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, pa.int64())], names=["k"])


class Load:
    """Random inserts and retractions on a table, with the contents it must have at each time."""

    def __init__(self, env: Environment, table: str, seed: int) -> None:
        self._env, self._table = env, table
        self._random = np.random.default_rng(seed)
        self._live: Counter[tuple[int, int]] = Counter()
        self.history: dict[int, Counter[tuple[int, int]]] = {}
        self.next = 1

    async def commit(self) -> int:
        """One commit of a few changes; returns its time."""
        changes = []
        for _ in range(int(self._random.integers(1, 6))):
            row = (int(self._random.integers(0, 10)), int(self._random.integers(0, 10)))
            changes.append((*row, 1))
            self._live[row] += 1
        for row in [row for row, count in self._live.items() if count and self._random.random() < 0.2]:
            changes.append((*row, -1))
            self._live[row] -= 1
        ts = self.next
        await self._env.insert(ts, **{self._table: changes})
        self.history[ts] = Counter({row: count for row, count in self._live.items() if count})
        self.next = ts + int(self._random.integers(1, 4))
        return ts


def started(env: Environment) -> None:
    env.compute.initialization_complete()
    env.storage.initialization_complete()


def test_views_over_tables_and_over_views(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.create("u2", "u3")
        load = Load(env, "u1", 1)
        as_of = await load.commit()
        await env.create_view("u2", "u1", as_of)
        started(env)
        await env.written("u2", as_of + 1)
        await env.create_view("u3", "u2", as_of)
        for _ in range(30):
            last = await load.commit()
        await env.written("u3", last + 1)
        for ts, expected in load.history.items():
            assert await env.contents("u2", ts) == expected, ts
            assert await env.contents("u3", ts) == expected, ts
        assert await env.peek_shard("u1", last) == sorted(load.history[last].elements())
        assert await env.peek_shard("u3", last, columns=("v",)) == sorted(
            (v,) for _, v in load.history[last].elements()
        )
        assert env.compute.hydrated(GlobalId("u3"))
        assert env.storage.frontiers(GlobalId("u3")).since == as_of

    run(tmp_path, body)


@pytest.mark.crash
@pytest.mark.parametrize("replicas", [1, 2])
def test_killed_replicas_lose_and_double_nothing(tmp_path: Path, replicas: int) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.create("u2")
        load = Load(env, "u1", 2)
        as_of = await load.commit()
        await env.create_view("u2", "u1", as_of)
        started(env)
        stream = await env.subscribe("t1", "u1", as_of)
        end = DONE
        following = asyncio.ensure_future(accumulate(stream, until=lambda: end))
        random = np.random.default_rng(3)
        for round_ in range(4):
            for _ in range(int(random.integers(5, 20))):
                last = await load.commit()
            if round_ % 2 == 0:
                await env.written("u2", last + 1)
            await env.kill(ReplicaId(f"r{1 + round_ % replicas}"))
        end = Frontier(load.next + 1)
        last = await load.commit()
        await env.written("u2", last + 1)
        for ts, expected in load.history.items():
            assert await env.contents("u2", ts) == expected, ts
        totals = await following
        await stream.aclose()
        for ts, expected in load.history.items():
            assert totals(ts) == expected, ts
        if replicas == 1:
            assert env.orchestrator.restarts(ReplicaId("r1")) >= 1

    run(tmp_path, body, replicas=replicas)


async def accumulate(
    stream: SubscribeStream, until: Callable[[], Frontier]
) -> Callable[[int], Counter[tuple[int, int]]]:
    """Read a subscription up to a frontier; the answer says what it amounts to at a time."""
    events: list[SubscribeEvent] = []
    reached = Frontier(0)
    while reached < until():
        event = await anext(stream)
        assert isinstance(event.updates, Updates)
        assert not events or event.lower == events[-1].upper
        assert all(event.lower <= time < event.upper for time in event.updates.times.tolist())
        events.append(event)
        reached = event.upper

    def at(ts: int) -> Counter[tuple[int, int]]:
        total: Counter[tuple[int, int]] = Counter()
        for event in events:
            updates = event.updates
            columns = [*(c.to_pylist() for c in updates.rows.columns), updates.times.tolist(), updates.diffs.tolist()]
            for k, v, time, diff in zip(*columns, strict=True):
                if time <= ts:
                    total[k, v] += diff
        return Counter({row: count for row, count in total.items() if count})

    return at


def test_subscribe_without_snapshot_begins_after_its_as_of(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.insert(1, u1=[(1, 1, 1)])
        started(env)
        stream = await env.subscribe("t1", "u1", 1, with_snapshot=False)
        await env.insert(2, u1=[(2, 2, 1)])
        await env.insert(5, u1=[(1, 1, -1)])
        total = await accumulate(stream, until=lambda: Frontier(6))
        assert total(4) == {(2, 2): 1}
        assert total(5) == {(2, 2): 1, (1, 1): -1}
        await stream.aclose()
        await env.until(lambda: not env.compute._clusters["c1"].flows)

    run(tmp_path, body)


def test_peeks_wait_for_their_time_and_survive_a_kill(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.insert(1, u1=[(1, 10, 1), (1, 11, 1), (2, 20, 2)])
        await env.create_index("i1", "u1", 1)
        started(env)
        assert await env.peek_index("i1", 1) == [(1, 10), (1, 11), (2, 20), (2, 20)]
        assert await env.peek_index("i1", 1, keys=key(2, 7)) == [(2, 20), (2, 20)]
        assert await env.peek_index("i1", 1, "SELECT k, sum(v) AS s FROM t GROUP BY k") == [(1, 21), (2, 40)]
        early = asyncio.ensure_future(env.peek_index("i1", 5))
        query = asyncio.ensure_future(env.peek_shard("u1", 5, "SELECT count(*) AS n FROM t"))
        pid = env.orchestrator.pids()[ReplicaId("r1")]
        await env.kill()
        await env.until(lambda: env.orchestrator.pids().get(ReplicaId("r1"), pid) != pid)
        assert not early.done()
        await env.insert(5, u1=[(3, 30, 1)])
        assert await early == [(1, 10), (1, 11), (2, 20), (2, 20), (3, 30)]
        assert await query == [(5,)]

    run(tmp_path, body)


def test_bad_queries_are_answered_with_errors(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.insert(1, u1=[(1, 0, 1)])
        started(env)
        with pytest.raises(SqlError):
            await env.peek_shard("u1", 1, "SELECT nonsense FROM nowhere")
        with pytest.raises(SqlError) as large:
            await env.peek_shard("u1", 1, "SELECT * FROM t", max_result_bytes=1)
        assert large.value.sqlstate.startswith("53")
        assert await env.peek_shard("u1", 1) == [(1, 0)]

    run(tmp_path, body)


def test_large_answers_flow_with_the_reader(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.insert(1, u1=[(k, k, 1) for k in range(1000)])
        started(env)
        query = "SELECT a.k, b.v FROM t a CROSS JOIN t b"
        answer = await env.peek_shard("u1", 1, query)
        assert len(answer) == 1_000_000

    run(tmp_path, body)


def test_errors_in_a_view_are_answered_and_retracted(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create("u1", "u2")
        started(env)
        await env.write("u1", rows((1, 1, 0, 1)), 1)
        await env.create_view("u2", "u1", 0)
        writer = env.shards["u1"]
        failure = pa.RecordBatch.from_arrays(
            [pa.array(["22012"]), pa.array(["division by zero"])], ["sqlstate", "message"]
        )
        for ts, diff in ((1, 1), (2, -1)):
            change = errors_to_shard(Updates.at(failure, Timestamp(ts), diff), SCHEMA)
            assert await writer.compare_and_append(change, Frontier(ts), Frontier(ts + 1)) is None
        await env.written("u2", 3)
        assert await env.peek_shard("u2", 0) == [(1, 1)]
        with pytest.raises(SqlError, match="division by zero") as failed:
            await env.peek_shard("u2", 1)
        assert failed.value.sqlstate == "22012"
        assert await env.peek_shard("u2", 2) == [(1, 1)]
        stream = await env.subscribe("t1", "u2", 0)
        events = [event async for event in stream]
        assert [(e.lower, e.upper) for e in events] == [(0, 1), (1, 2)]
        assert "division" in str(events[1].updates)

    run(tmp_path, body)


def test_corrupt_part_stalls_only_its_view(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1", "u2")
        await env.create("u3", "u4")
        big = [(k, k, 1) for k in range(20_000)]
        await env.insert(1, u1=big, u2=[(1, 1, 1)])
        await env.log.apply_le(Timestamp(1))
        for key_, _ in await env.blob.list_prefix(f"{shard_of('u1')}/"):
            await env.blob.set(key_, b"\\0 damaged")
        for id_, input_ in (("u3", "u1"), ("u4", "u2")):
            await env.create_view(id_, input_, 1)
        started(env)
        await env.written("u4", 2)
        stalled = lambda: [s for s in env.compute.statuses() if s.health is Health.STALLED]  # noqa: E731
        await env.until(lambda: bool(stalled()))
        (status,) = stalled()
        assert status.id == "u3"
        assert shard_of("u1") in status.message
        for ts in range(2, 6):
            await env.insert(ts, u1=[(1, 1, 1)], u2=[(ts, ts, 1)])
        await env.written("u4", 6)
        assert env.storage.frontiers(GlobalId("u3")).upper <= 1
        with pytest.raises(SqlError) as corrupt:
            await env.peek_shard("u1", 5)
        assert corrupt.value.sqlstate == "XX001"
        assert shard_of("u1") in corrupt.value.message
        assert len(await env.peek_shard("u4", 5)) == 5

    run(tmp_path, body)


def test_dropping_ends_the_dataflow_and_frees_its_input(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.create("u2")
        await env.insert(1, u1=[(1, 1, 1)])
        await env.create_view("u2", "u1", 1)
        started(env)
        await env.written("u2", 2)
        await env.compute.drop_collections([GlobalId("u2")])
        await env.storage.drop_collections([GlobalId("u2")])
        await env.insert(10_000, u1=[(2, 2, 1)])
        await env.until(lambda: env.storage.frontiers(GlobalId("u1")).since > 1)
        reader = await env.client.open_reader(shard_of("u2"), view_schema(SCHEMA), purpose="gone")
        await env.until(lambda: reader.upper == DONE)

    run(tmp_path, body)


class Adopting:
    """An orchestrator whose replicas are another one's: they outlive the controller that uses it."""

    def __init__(self, owner: ProcessOrchestrator) -> None:
        self._owner = owner

    async def ensure(self, replica: ReplicaId) -> str:
        return await self._owner.ensure(replica)

    async def drop(self, replica: ReplicaId) -> None:
        await self._owner.drop(replica)

    async def close(self) -> None:
        pass


async def successor(env: Environment, epoch: int) -> tuple[StorageController, ComputeController]:
    """The controllers of the next coordinator, which finds the replicas running."""
    storage = await StorageController.open(env.client, env.txns, epoch)
    compute = ComputeController(storage, Adopting(env.orchestrator), txns_shard=TXNS)
    await storage.create_collections([CollectionSpec(GlobalId("u1"), shard_of("u1"), SCHEMA, True)])
    views = [CollectionSpec(GlobalId(id_), shard_of(id_), SCHEMA, False) for id_ in ("u2", "u3")]
    await storage.create_collections(views)
    await compute.create_cluster(ClusterSpec(CLUSTER, "test", (ReplicaSpec(ReplicaId("r1"), "r1"),)))
    return storage, compute


def test_a_new_coordinator_finds_its_dataflows_running(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.create("u2", "u3")
        await env.insert(10_001, u1=[(1, 1, 1)])
        for id_ in ("u2", "u3"):
            await env.create_view(id_, "u1", 10_001)
        await env.create_index("i1", "u1", 10_001)
        started(env)
        await env.insert(20_000, u1=[(2, 2, 1)])
        await env.written("u2", 20_001)
        await env.written("u3", 20_001)
        pid = env.orchestrator.pids()

        storage, compute = await successor(env, epoch=2)
        changed = env.view("u3", "u1", 0, Negate(Negate(copy_of("u1"))))
        flows = [(CLUSTER, env.index("i1", "u1", 0)), (CLUSTER, env.view("u2", "u1", 0)), (CLUSTER, changed)]
        assert await compute.bootstrap(flows, Timestamp(20_000)) == {}
        compute.initialization_complete()
        storage.initialization_complete()
        await env.insert(30_000, u1=[(3, 3, 1)])
        await env.until(lambda: all(compute.frontiers(GlobalId(id_)).upper >= 30_001 for id_ in ("u2", "u3", "i1")))
        for id_ in ("u2", "u3"):
            assert await env.contents(id_, 30_000) == {(1, 1): 1, (2, 2): 1, (3, 3): 1}
            assert await env.contents(id_, 19_999) == {(1, 1): 1}
        assert env.orchestrator.pids() == pid
        log = (env.directory / "run" / "r1.log").read_text()
        assert "dropped=1 kept=2 wanted=3" in log
        await compute.close()
        await storage.close()

    run(tmp_path, body)


def test_input_since_past_view_upper_quarantines_one_view(tmp_path: Path) -> None:
    async def body(env: Environment) -> None:
        await env.create_tables("u1")
        await env.create("u2", "u3")
        await env.insert(1, u1=[(1, 1, 1)])
        await env.create_view("u2", "u1", 1)
        started(env)
        await env.written("u2", 2)
        await env.compute.drop_collections([GlobalId("u2")])  # as if law 5 had been broken: nothing holds u1 for u2
        await env.insert(90_000, u1=[(2, 2, 1)])
        await env.until(lambda: env.storage.frontiers(GlobalId("u1")).since > 80_000)

        storage, compute = await successor(env, epoch=2)
        await env.until(lambda: storage.frontiers(GlobalId("u1")).since > 80_000)
        flows = [(CLUSTER, env.view(id_, "u1", 0)) for id_ in ("u2", "u3")]
        quarantined = await compute.bootstrap(flows, Timestamp(90_000))
        assert list(quarantined) == ["u2"]
        compute.initialization_complete()
        storage.initialization_complete()
        await env.until(lambda: storage.frontiers(GlobalId("u3")).upper > 90_000)
        (status,) = [s for s in compute.statuses() if s.health is Health.QUARANTINED]
        assert status.id == "u2"
        assert "recreate" in status.message
        assert await env.contents("u2", 1) == {(1, 1): 1}
        assert await env.contents("u3", 90_000) == {(1, 1): 1, (2, 2): 1}
        await compute.drop_collections([GlobalId("u2")])
        assert compute.statuses() == [] or all(s.health is Health.RUNNING for s in compute.statuses())
        await compute.close()
        await storage.close()

    run(tmp_path, body)


def test_a_restarted_environment_goes_on(tmp_path: Path) -> None:
    async def first(env: Environment) -> None:
        await env.create_tables("u1")
        await env.create("u2")
        await env.insert(1, u1=[(1, 1, 1)])
        await env.create_view("u2", "u1", 1)
        started(env)
        await env.written("u2", 2)

    async def second(env: Environment) -> None:
        await env.create_tables("u1", ts=100)
        await env.create("u2", "u3")
        flows = [(CLUSTER, env.view(id_, "u1", 0)) for id_ in ("u2", "u3")]
        assert await env.compute.bootstrap(flows, Timestamp(100)) == {}
        started(env)
        await env.insert(200, u1=[(1, 1, -1), (5, 5, 1)])
        await env.written("u2", 201)
        await env.written("u3", 201)
        assert await env.contents("u2", 1) == {(1, 1): 1}
        assert await env.contents("u2", 199) == {(1, 1): 1}
        assert await env.contents("u2", 200) == await env.contents("u3", 200) == {(5, 5): 1}

    run(tmp_path, first)
    run(tmp_path, second, epoch=2)
