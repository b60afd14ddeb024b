"""store_reset_under_the_committer: the consensus store lost its tables under a running committer.

The standalone process creates them again and says why, with the whole cause. One inside a coordinator must not:
`test_store_reset_inside_a_coordinator`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.committer import RpcConsensus
from penstock.persist import CasResult
from tests.committer.batching import version
from tests.committer.persistd_process import persistd
from tests.servers import drop_table, table_name


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    with table_name(postgres_url, "reset_under_the_committer") as name:
        yield name


def test_the_standalone_committer_creates_the_tables_again(postgres_url: str, table: str, tmp_path: Path) -> None:
    async def main(address: str) -> None:
        client = RpcConsensus(address)
        keys = [f"s{number}" for number in range(30)]
        for seqno in range(2):
            await asyncio.gather(*(client.compare_and_set(key, version(seqno)) for key in keys))
        drop_table(postgres_url, table)
        assert await client.head("s0") is None, "one retry, and the caller does not notice"
        drop_table(postgres_url, table)
        results = await asyncio.gather(*(client.compare_and_set(key, version(0)) for key in keys))
        assert results == [CasResult.COMMITTED] * 30, "the cache of the old contents must be gone too"
        drop_table(postgres_url, table)
        results = await asyncio.gather(*(client.compare_and_set(key, version(1)) for key in keys))
        assert set(results) <= {CasResult.MISMATCH}, "what was built on lost versions fails"
        assert await client.scan("s0", version(0).seqno) == []
        await client.close()

    url = f"{postgres_url}&table={table}"
    with persistd(tmp_path, "--listen", f"unix:{tmp_path}/c", "--consensus-url", url) as process:
        asyncio.run(main(process.ready()))
        told = [event for event in process.events() if "was reset" in event["event"]]
        assert len(told) == 3, "said once each time"
        assert "42P01" in " ".join(told[0]["causes"])
        assert f'relation "{table}" does not exist' in " ".join(told[0]["causes"])
