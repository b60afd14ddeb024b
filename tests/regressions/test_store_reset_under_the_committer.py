"""store_reset_under_the_committer: the consensus store lost its tables under a running committer.

The standalone process creates them again and says why, with the whole cause. One inside a coordinator must not:
`test_store_reset_inside_a_coordinator`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from penstock.committer import RpcConsensus
from penstock.persist import CasResult
from tests.committer.batching import version
from tests.committer.persistd_process import persistd


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    name = "reset_under_the_committer"
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {name}")


def drop(url: str, table: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {table}")


def test_the_standalone_committer_creates_the_tables_again(postgres_url: str, table: str, tmp_path: Path) -> None:
    async def main(address: str) -> None:
        client = RpcConsensus(address)
        keys = [f"s{number}" for number in range(30)]
        for seqno in range(2):
            await asyncio.gather(*(client.compare_and_set(key, version(seqno)) for key in keys))
        drop(postgres_url, table)
        assert await client.head("s0") is None, "one retry, and the caller does not notice"
        drop(postgres_url, table)
        results = await asyncio.gather(*(client.compare_and_set(key, version(0)) for key in keys))
        assert results == [CasResult.COMMITTED] * 30, "the cache of the old contents must be gone too"
        drop(postgres_url, table)
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
