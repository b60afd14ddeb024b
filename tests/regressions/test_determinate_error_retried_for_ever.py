"""determinate_error_retried_for_ever: the RPC layer flattened the kinds of errors.

A determinate error that arrives as an indeterminate one is pursued as if it might have happened, without end. Each kind
must come out of the wire as it went in, with its innermost cause.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.committer import CommitterServer, InProcessConsensus, RpcConsensus
from penstock.persist import CasResult, LocalPubSub, MemConsensus, SeqNo, StoreFull, Versioned
from penstock.runtime import Determinate, Indeterminate


class FailingConsensus(MemConsensus):
    error: Exception = Determinate("unset")

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        raise self.error

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        raise self.error


def test_each_kind_of_error_survives_the_wire(tmp_path: Path) -> None:
    async def main() -> None:
        store = FailingConsensus()
        server = CommitterServer(InProcessConsensus(store), LocalPubSub())
        client = RpcConsensus(await server.listen(f"unix:{tmp_path}/c"))
        for error in (Determinate("conflict"), Indeterminate("timeout"), StoreFull("no room")):
            error.__cause__ = OSError("SQLSTATE 40001: restart transaction")
            store.error = error
            for call in (client.head("s"), client.compare_and_set("s", Versioned(SeqNo(0), b"x"))):
                with pytest.raises(type(error), match="restart transaction") as caught:
                    await call
                assert type(caught.value) is type(error)
        store.error = RuntimeError("a bug in the store")
        with pytest.raises(Indeterminate, match="a bug in the store"):
            await client.head("s")
        await client.close()
        await server.close()

    asyncio.run(main())
