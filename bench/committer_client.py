"""One process of clients for the committer benchmark: ``python -m bench.committer_client WHERE CLIENTS``.

WHERE is a consensus URL (each process then has its own pool, with a connection per client) or the address of a
committer. Says READY when every client has written its first version; a line ``SECONDS`` on standard input starts a
measurement, whose figures are printed as one JSON object; the end of the input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid

from penstock.cli.logs import configure_logs
from penstock.committer import RpcConsensus
from penstock.persist import CasResult, Consensus, SeqNo, Versioned, open_consensus

DATA = bytes(range(256)) * 2
"""As large as the diff of a small append."""


class Client:
    """Advances one shard, one version after the other, as a shard's writer does."""

    def __init__(self, store: Consensus) -> None:
        self._store = store
        self._key = f"s{uuid.uuid4()}"
        self._seqno = 0
        self.milliseconds: list[float] = []

    async def advance(self) -> None:
        started = time.perf_counter()
        result = await self._store.compare_and_set(self._key, Versioned(SeqNo(self._seqno), DATA))
        assert result is CasResult.COMMITTED, f"{self._key} at {self._seqno} has one writer and lost a race"
        self.milliseconds.append((time.perf_counter() - started) * 1e3)
        self._seqno += 1

    async def advance_for(self, seconds: float) -> None:
        self.milliseconds = []
        ends_at = time.perf_counter() + seconds
        while time.perf_counter() < ends_at:
            await self.advance()


async def main(where: str, count: int) -> None:
    store: Consensus = open_consensus(where) if "postgres" in where.partition(":")[0] else RpcConsensus(where)
    clients = [Client(store) for _ in range(count)]
    await asyncio.gather(*(client.advance() for client in clients))
    print("READY", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client.advance_for(float(line)) for client in clients))
        figures = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "milliseconds": [round(ms, 3) for client in clients for ms in client.milliseconds],
        }
        print(json.dumps(figures), flush=True)
    await store.close()


if __name__ == "__main__":
    configure_logs("warning")
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
