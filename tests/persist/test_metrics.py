"""What is counted, and that nothing is counted per shard: a process may have very many."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY

from penstock.persist import (
    MemBlob,
    MemConsensus,
    Mismatch,
    PersistClient,
    PersistConfig,
    UnreliableConsensus,
    new_shard_id,
)
from penstock.persist.txn import TooLate, TxnsWriter
from penstock.runtime import Frontier, Timestamp
from tests.persist.shards import SCHEMA, append, snapshot, updates
from tests.persist.txn.cluster import cluster, rows, table


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def series() -> int:
    """How many series of persist there are."""
    return sum(
        1 for family in REGISTRY.collect() if family.name.startswith(("persist_", "txns_")) for _ in family.samples
    )


async def use(client: PersistClient, appends: int) -> None:
    shard = new_shard_id()
    writer = await client.open_writer(shard, SCHEMA, purpose="test")
    reader = await client.open_reader(shard, SCHEMA, purpose="test")
    for t in range(appends):
        await append(writer, [(t, t, 1)], t, t + 1)
    assert isinstance(await writer.compare_and_append(updates([]), Frontier(0), Frontier(1)), Mismatch)
    await snapshot(reader, appends - 1)
    await client._maintenance[shard].idle()


def test_commands_stores_and_upkeep_are_counted() -> None:
    async def main() -> None:
        client = PersistClient(
            MemBlob(), MemConsensus(), config=PersistConfig(inline_bytes=0, rollup_every=8, compaction_fan_in=4)
        )
        names = {
            "persist_cmd_started_total": {"cmd": "compare_and_append"},
            "persist_cmd_succeeded_total": {"cmd": "compare_and_append"},
            "persist_cmd_seconds_count": {"cmd": "compare_and_append"},
            "persist_store_started_total": {"op": "consensus_cas"},
            "persist_store_bytes_total": {"op": "blob_set"},
            "persist_store_seconds_count": {"op": "blob_set"},
            "persist_upkeep_seconds_count": {"step": "compaction"},
            "persist_compacted_rows_total": {},
            "persist_collected_versions_total": {},
        }
        before = {name: value(name, **labels) for name, labels in names.items()}
        applied = {step: value("persist_upkeep_total", step=step, outcome="applied") for step in STEPS}
        await use(client, 40)
        for name, labels in names.items():
            assert value(name, **labels) > before[name], name
        for step in STEPS:
            assert value("persist_upkeep_total", step=step, outcome="applied") > applied[step], step
        assert value("persist_upkeep_waiting", step="compaction") == 0
        assert value("persist_live_diffs_max") >= value("persist_live_diffs") / value("persist_shards")
        assert value("persist_batches") > 0
        await client.close()

    asyncio.run(main())


STEPS = ("rollup", "collection", "compaction")


def test_failures_and_lost_answers_are_counted() -> None:
    async def main() -> None:
        names = {
            "determinate": {"op": "consensus_cas", "outcome": "determinate"},
            "indeterminate": {"op": "consensus_cas", "outcome": "indeterminate"},
        }
        before = {name: value("persist_store_failed_total", **labels) for name, labels in names.items()}
        found, retries = value("persist_cmd_noop_total", cmd="compare_and_append"), value("persist_store_retries_total")
        consensus = UnreliableConsensus(MemConsensus(), 3, happens=0.7, answer_lost=0.3)
        client = PersistClient(MemBlob(), consensus, config=PersistConfig(maintenance=False))
        await use(client, 20)
        for name, labels in names.items():
            assert value("persist_store_failed_total", **labels) > before[name], name
        assert value("persist_cmd_noop_total", cmd="compare_and_append") > found
        assert value("persist_store_retries_total") > retries
        await client.close()

    asyncio.run(main())


def test_there_is_no_series_per_shard() -> None:
    async def main() -> None:
        client = PersistClient(MemBlob(), MemConsensus(), config=PersistConfig(rollup_every=4))
        await use(client, 10)
        before = series()
        for _ in range(20):
            await use(client, 10)
        assert series() == before
        assert value("persist_shards") >= 21
        await client.close()
        assert not client.cached_states()

    asyncio.run(main())


def test_transactions_are_counted() -> None:
    async def main() -> None:
        def done(op: str) -> float:
            return value("txns_ops_total", op=op, outcome="done")

        ops = ("register", "commit", "apply", "forget", "compact")
        before = {op: done(op) for op in ops}
        late, inline = (
            value("txns_ops_total", op="commit", outcome="too_late"),
            value("txns_writes_total", way="inline"),
        )
        async with cluster() as c:
            writer = await c.writer()
            shard = await table(writer, 1)
            assert await writer.commit_at({shard: [rows(5, (1, "a"))]}, Timestamp(5)) is None
            assert value("txns_unapplied_bytes") >= 0
            assert isinstance(await writer.commit_at({}, Timestamp(5)), TooLate)
            await writer.apply_le(Timestamp(5))
            assert await writer.forget([shard], Timestamp(6)) is None
            await writer.compact_to(Timestamp(6))
            assert isinstance(writer, TxnsWriter)
        assert {op: done(op) > before[op] for op in ops} == dict.fromkeys(ops, True)
        assert value("txns_ops_total", op="commit", outcome="too_late") == late + 1
        assert value("txns_writes_total", way="inline") == inline + 1
        assert value("txns_op_seconds_count", op="commit") > 0

    asyncio.run(main())
