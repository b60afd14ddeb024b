"""Blobs and consensus in a real S3: the conformance suites, and what only a network can do wrong."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from penstock.persist import (
    Blob,
    CasResult,
    Consensus,
    SeqNo,
    StoreUnusable,
    Versioned,
    object_log,
    open_blob,
    open_blob_when_ready,
    open_consensus,
)
from penstock.runtime import Indeterminate, SystemClock
from tests.persist import blob_suite, consensus_suite
from tests.persist.proxy import Proxy, proxying
from tests.persist.race import race_processes
from tests.servers import S3_BUCKET, s3_url

_numbers = itertools.count()


@pytest.fixture
def url(s3_endpoint: str) -> str:
    """A location that no other test uses."""
    return s3_url(s3_endpoint, f"test-{next(_numbers)}/deep")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Blob, Consensus]]:
    """Both stores at one location."""
    blob, consensus = open_blob(url), open_consensus(url)
    try:
        yield blob, consensus
    finally:
        await blob.close()
        await consensus.close()


@pytest.mark.parametrize("case", blob_suite.CASES)
def test_blob(url: str, case: Callable[[Blob], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(url) as (blob, _):
            await case(blob)

    asyncio.run(main())


@pytest.mark.parametrize("case", consensus_suite.CASES)
def test_consensus(url: str, case: Callable[[Consensus], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_log, "HEAD_BYTES_MAX", 100)  # segments come and go

    async def main() -> None:
        async with opened(url) as (_, consensus):
            await case(consensus)

    asyncio.run(main())


def test_two_handles_and_both_kinds_share_a_location(url: str) -> None:
    async def main() -> None:
        other = url.replace("/deep", "/deeper")
        async with opened(url) as (blob, log), opened(url) as (blob_2, log_2), opened(other) as (blob_3, log_3):
            await consensus_suite.agrees_between_handles(log, log_2, log_3)
            await blob_suite.agrees_between_handles(blob, blob_2, blob_3)
        async with opened(url) as (blob, log):
            assert await blob.list_prefix("") == [("s/stays", 1)], "consensus is not among the blobs"
            assert [version.seqno for version in await log.scan("shared", SeqNo(0))] == [4, 5]

    asyncio.run(main())


def test_processes_race_for_versions(url: str) -> None:
    race_processes(url)


def test_large_blobs_go_in_parts(url: str) -> None:
    async def main() -> None:
        async with opened(url) as (blob, _):
            value = bytes(range(256)) * ((17 << 20) // 256)
            await blob.set("s/big", value)
            assert await blob.get("s/big") == value
            assert await blob.list_prefix("s/") == [("s/big", len(value))]

    asyncio.run(main())


def test_a_missing_bucket_is_never_taken_for_missing_objects(url: str) -> None:
    async def main() -> None:
        async with opened(url.replace(S3_BUCKET, "no-such-bucket")) as (blob, consensus):
            for operation in (
                blob.get("s/a"),
                blob.delete("s/a"),
                blob.set("s/a", b""),
                blob.list_prefix("s/"),
                consensus.head("k"),
                consensus.scan("k", SeqNo(0)),
                consensus.list_keys(),
                consensus.compare_and_set("k", Versioned(SeqNo(0), b"")),
            ):
                with pytest.raises(StoreUnusable, match="create the bucket"):
                    await operation

    asyncio.run(main())


def test_unreachable_store_is_indeterminate_and_heals(url: str) -> None:
    async def main() -> None:
        async with proxied(url, "&connect_timeout=1s") as (blob, consensus, proxy):
            await blob.set("s/a", b"x")
            assert await consensus.compare_and_set("k", Versioned(SeqNo(0), b"")) is CasResult.COMMITTED
            proxy.refusing = True
            proxy.cut()
            with pytest.raises(Indeterminate):
                await blob.get("s/a")
            with pytest.raises(Indeterminate):
                await consensus.compare_and_set("k", Versioned(SeqNo(1), b""))
            with pytest.raises(Indeterminate):
                await consensus.head("k")
            proxy.refusing = False
            assert await blob.get("s/a") == b"x"
            assert await consensus.compare_and_set("k", Versioned(SeqNo(1), b"")) is CasResult.COMMITTED

    asyncio.run(main())


def test_a_store_that_is_not_up_yet_is_waited_for(url: str) -> None:
    async def main() -> None:
        async with proxied(url, "&connect_timeout=1s") as (_, _, proxy):
            proxy.refusing = True
            port = proxy.port
            endpoint = url.partition("endpoint=")[2].partition("&")[0]
            through = url.replace(endpoint, f"http://127.0.0.1:{port}")
            opening = asyncio.ensure_future(open_blob_when_ready(through, SystemClock()))
            await asyncio.wait_for(proxy.refused.wait(), 20)
            assert not opening.done()
            proxy.refusing = False
            blob = await asyncio.wait_for(opening, 20)
            assert await blob.get("s/a") is None
            await blob.close()
        with pytest.raises(StoreUnusable, match="create the bucket"):
            await open_blob_when_ready(url.replace(S3_BUCKET, "no-such-bucket"), SystemClock())

    asyncio.run(main())


def test_frozen_store_is_indeterminate_in_time(url: str) -> None:
    async def main() -> None:
        async with proxied(url, "&op_timeout=300ms") as (blob, consensus, proxy):
            await blob.set("s/a", b"x")
            proxy.freeze()
            with pytest.raises(Indeterminate, match=r"no answer within 0\.3 s"):
                await blob.get("s/a")
            with pytest.raises(Indeterminate, match=r"no answer within 0\.3 s"):
                await consensus.head("k")
            proxy.thaw()
            assert await blob.get("s/a") == b"x"

    asyncio.run(main())


def test_short_processes_end_orderly(url: str) -> None:
    """obstore's threads must not meet an interpreter that is being taken down: such a process would abort."""
    program = (
        "import asyncio, sys\n"
        "from penstock.persist import open_blob\n"
        "async def main():\n"
        "    blob = open_blob(sys.argv[1])\n"
        "    await asyncio.gather(*(blob.get(f's/{n}') for n in range(20)))\n"
        "asyncio.run(main())\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, url]) for _ in range(4)]
    assert [child.wait(timeout=60) for child in children] == [0] * 4


@asynccontextmanager
async def proxied(url: str, settings: str) -> AsyncIterator[tuple[Blob, Consensus, Proxy]]:
    """Both stores at `url`, through a network that can fail."""
    endpoint = urlsplit(url.partition("endpoint=")[2].partition("&")[0])

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(endpoint.hostname, endpoint.port)

    async with proxying(dial) as proxy:
        through = url.replace(f":{endpoint.port}", f":{proxy.port}") + settings
        async with opened(through) as (blob, consensus):
            yield blob, consensus, proxy
