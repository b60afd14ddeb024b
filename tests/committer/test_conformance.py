"""persist's conformance suite over the committer: in this process, through the wire, and as a process of its own.

Each form stands on each kind of store: memory, SQLite, PostgreSQL.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from penstock.committer import CommitterServer, CredentialFiles, InProcessConsensus, RpcConsensus, ShardCache
from penstock.persist import Consensus, LocalPubSub, open_consensus
from tests.committer.batching import BatchingMemConsensus
from tests.committer.persistd_process import PersistdProcess, certificates
from tests.persist.consensus_suite import admits_one_winner_per_version, conforms

FORMS = [
    "in process",
    "in process, no cache",
    "rpc by unix socket",
    "rpc by tcp",
    "rpc, no committer",
    "persistd by unix socket",
    "persistd by tcp with a token",
    "persistd by tcp with mutual tls",
]
BACKINGS = ["memory", "memory in batches", "sqlite", "postgres"]
PAIRS = [
    (form, backing)
    for form in FORMS
    for backing in BACKINGS
    if not ("persistd" in form and "in batches" in backing)  # a process cannot have the tests' own store
]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "postgres":
        served = request.getfixturevalue("postgres_url")
        name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name.lower())
        return f"{served}&table={name[-60:].lstrip('_')}"
    return {"sqlite": f"sqlite:{tmp_path}/c.db", "memory": "mem:", "memory in batches": "mem: in batches"}[
        request.param
    ]


@asynccontextmanager
async def opened(form: str, url: str, path: Path) -> AsyncIterator[Consensus]:
    async with AsyncExitStack() as stack:
        if "persistd" in form:
            client = _persistd(form, url, path, stack)
            stack.push_async_callback(client.close)
            yield client
            return
        backing = BatchingMemConsensus() if "in batches" in url else open_consensus(url)
        cache = ShardCache(shards_max=0) if "no cache" in form else ShardCache()
        store = backing if "no committer" in form else InProcessConsensus(backing, cache=cache)
        stack.push_async_callback(store.close)
        if "rpc" not in form:
            yield store
            return
        server = CommitterServer(store, LocalPubSub())
        client = RpcConsensus(await server.listen("127.0.0.1:0" if "tcp" in form else f"unix:{path}/c.sock"))
        stack.push_async_callback(server.close, 0.1)
        stack.push_async_callback(client.close)
        yield client


def _persistd(form: str, url: str, path: Path, stack: AsyncExitStack) -> RpcConsensus:
    files = CredentialFiles()
    if "token" in form:
        files = CredentialFiles(path / "token")
        (path / "token").write_text("a-token-of-some-length")
    elif "tls" in form:
        pem = certificates(path)
        files = CredentialFiles(None, pem["cert"], pem["key"], pem["ca"])
    listen = f"unix:{path}/c.sock" if "unix" in form else "127.0.0.1:0"
    process = PersistdProcess(path, "--listen", listen, "--consensus-url", url, *files.arguments())
    stack.callback(process.end)
    return RpcConsensus(process.ready(), credentials=files.load({}))


@pytest.mark.parametrize(("form", "url"), PAIRS, indirect=["url"])
def test_the_committer_conforms(form: str, url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(form, url, tmp_path) as store:
            await conforms(store)

    asyncio.run(main())


@pytest.mark.parametrize("url", BACKINGS, indirect=True)
@pytest.mark.parametrize("form", ["in process", "rpc by unix socket"])
def test_the_committer_admits_one_winner_per_version(form: str, url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(form, url, tmp_path) as store:
            await admits_one_winner_per_version(store)

    asyncio.run(main())
