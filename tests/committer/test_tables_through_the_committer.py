"""Transactions of one process followed by another, through the committer's socket, across its restarts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pyarrow as pa

from penstock.committer import CommitterServer, InProcessConsensus, RpcConsensus, RpcPubSub
from penstock.persist import LocalPubSub, MemBlob, MemConsensus, PersistClient, PersistConfig, new_shard_id
from penstock.persist.txn import TxnsReader, TxnsWriter
from penstock.runtime import Timestamp, Updates

SCHEMA = pa.schema([("k", pa.int64())])


def row(ts: int) -> Updates:
    return Updates.at(pa.RecordBatch.from_arrays([pa.array([ts])], schema=SCHEMA), Timestamp(ts))


def test_a_follower_hears_every_commit_and_outlives_the_server(tmp_path: Path) -> None:
    async def main() -> None:
        consensus, local, blob = InProcessConsensus(MemConsensus()), LocalPubSub(), MemBlob()
        address, txns, table = f"unix:{tmp_path}/c", new_shard_id(), new_shard_id()
        server = CommitterServer(consensus, local)
        await server.listen(address)
        host = PersistClient(blob, consensus, pubsub=local)
        writer = await TxnsWriter.open(host, txns)
        assert await writer.register({table: SCHEMA}, Timestamp(1)) is None

        remote, pushed = RpcConsensus(address), RpcPubSub(address)
        there = PersistClient(blob, remote, pubsub=pushed, config=PersistConfig(poll_min_ms=60_000, poll_max_ms=60_000))
        reader = await TxnsReader.open(there, txns)
        handle = await reader.open_reader(table, SCHEMA, purpose="test")
        listen = await handle.listen(Timestamp(1))
        seen: list[int] = []

        async def until(progress: int) -> None:
            async with asyncio.timeout(20):
                while listen.frontier < progress:
                    for updates in (await anext(listen)).updates:
                        assert updates.times.tolist() == updates.rows.column(0).to_pylist()
                        seen.extend(updates.times.tolist())

        ts, delays = 1, []
        for _ in range(3):
            for _ in range(20):
                ts += 1
                started = time.perf_counter()
                assert await writer.commit_at({table: [row(ts)]}, Timestamp(ts)) is None
                await until(ts + 1)
                delays.append(time.perf_counter() - started)
                await writer.apply_le(Timestamp(ts))
            await server.close()
            ts += 1
            assert await writer.commit_at({table: [row(ts)]}, Timestamp(ts)) is None  # while nobody can hear of it
            server = CommitterServer(consensus, local)
            await server.listen(address)
            await until(ts + 1)
        assert seen == list(range(2, ts + 1))
        assert sorted(delays)[len(delays) // 2] < 0.25, "pushed, not polled"
        await listen.aclose()
        await reader.close()
        await there.close()
        await pushed.close()
        await remote.close()
        await writer.close()
        await host.close()
        await server.close()
        await consensus.close()

    asyncio.run(main())
