"""oversized_state_spins: a message cap of 4 MiB met an answer of 4.7 MiB, and the client repeated the call for ever."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from penstock.committer import CommitterServer, InProcessConsensus, RpcConsensus
from penstock.persist import CasResult, LocalPubSub, MemConsensus, SeqNo, Versioned


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_state_beyond_the_default_cap_passes_both_ways(transport: str, tmp_path: Path) -> None:
    async def main() -> None:
        server = CommitterServer(InProcessConsensus(MemConsensus()), LocalPubSub())
        client = RpcConsensus(await server.listen(f"unix:{tmp_path}/c" if transport == "unix" else "127.0.0.1:0"))
        state = Versioned(SeqNo(0), os.urandom(9 << 20))
        assert await client.compare_and_set("s", state) is CasResult.COMMITTED
        assert await client.head("s") == state
        assert await client.scan("s", SeqNo(0)) == [state]
        await client.close()
        await server.close()

    asyncio.run(main())
