"""cause_chain_cut_off: "db error" alone came out of the wire; the SQLSTATE and the server's words stayed behind.

A client of a committer on a real PostgreSQL must see the innermost message.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from penstock.committer import CommitterServer, InProcessConsensus, RpcConsensus
from penstock.persist import LocalPubSub, open_consensus
from penstock.runtime import ExternalError
from tests.committer.batching import version


def test_the_client_sees_what_the_server_of_the_store_said(postgres_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        committer = InProcessConsensus(open_consensus(f"{postgres_url}&table=cause_chain_cut_off"))
        server = CommitterServer(committer, LocalPubSub())
        client = RpcConsensus(await server.listen(f"unix:{tmp_path}/c"))
        await client.compare_and_set("s", version(0))
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP TABLE cause_chain_cut_off")
        with pytest.raises(ExternalError) as caught:
            await client.head("s")
        message = str(caught.value)
        assert "reading the head of s through the committer" in message
        assert "UndefinedTable" in message, "the innermost cause, by its class"
        assert message.count("cause_chain_cut_off") > 1
        assert "(SQLSTATE 42P01)" in message
        await client.close()
        await server.close()
        await committer.close()

    asyncio.run(main())
