"""`penstock serve --external-committer`: the committer as a process that outlives coordinators."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
import pyarrow as pa
import pytest

from penstock.committer import CredentialFiles, RpcConsensus, RpcPubSub
from penstock.persist import FileBlob, PersistClient, PersistConfig, new_shard_id
from penstock.runtime import Frontier, Timestamp, Updates
from tests.committer.persistd_process import PersistdProcess
from tools.serving import Server

T = TypeVar("T")
Eventually = Callable[[Callable[[], T]], T]

SCHEMA = pa.schema([pa.field("k", pa.int64())])
TOKEN = "a-token-of-some-length"


class Installation:
    """A persistd on SQLite and a server that dials it, each of which can be killed and started again."""

    def __init__(self, directory: Path, **environment: str) -> None:
        """`environment`: more of it for the server."""
        self._directory = directory
        self.consensus_url = f"sqlite:{directory}/c.db"
        token_file = directory / "token"
        token_file.write_text(TOKEN)
        self.credentials = CredentialFiles(token_file).load({})
        self.address = f"unix:{directory}/c.sock"
        self._arguments = ["--listen", self.address, "--consensus-url", self.consensus_url]
        self._arguments += ["--token-file", str(token_file)]
        self.start_persistd()
        self.environment = {
            "PENSTOCK_EXTERNAL_COMMITTER": self.address,
            "PENSTOCK_COMMITTER_TOKEN_FILE": str(token_file),
        }
        try:
            self.start_server(**environment)
        except BaseException:
            self.persistd.end()
            raise

    def start_persistd(self) -> None:
        self.persistd = PersistdProcess(self._directory, *self._arguments)
        self.persistd.ready()

    def start_server(self, **environment: str) -> None:
        """`environment`: besides what tells it of the committer."""
        self.server = Server(self._directory, environment=self.environment | environment)
        self.server.start()

    def end(self) -> None:
        self.server.stop()
        self.persistd.end()


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    running = Installation(tmp_path)
    try:
        yield running
    finally:
        running.end()


def count(connection: psycopg.Connection, what: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {what}").fetchone()
    assert row is not None
    return int(row[0])


class Bystander:
    """A process's worth of persist, as a replica has it: writes a shard and follows it, all through the committer."""

    def __init__(self, installation: Installation, directory: Path) -> None:
        self.consensus = RpcConsensus(installation.address, credentials=installation.credentials)
        self.pubsub = RpcPubSub(installation.address, credentials=installation.credentials)
        # Polls so seldom that only pub-sub can be what tells it of news.
        config = PersistConfig(poll_min_ms=60_000, poll_max_ms=60_000)
        self.client = PersistClient(
            FileBlob(directory / "bystander"), self.consensus, pubsub=self.pubsub, config=config
        )

    async def close(self) -> None:
        await self.client.close()
        await self.pubsub.close()
        await self.consensus.close()


def test_a_killed_coordinator_disturbs_nobody_else_on_the_committer(
    installation: Installation, tmp_path: Path, eventually: Eventually
) -> None:
    """Writes and reads of another process go on, undisturbed, while the coordinator is killed and started again."""
    server = installation.server
    with server.connect() as db:
        db.execute("CREATE TABLE t (a int)")
        db.execute("CREATE MATERIALIZED VIEW v AS SELECT a * 2 AS b FROM t")
        db.execute("INSERT INTO t VALUES (1), (2)")
        assert count(db, "v") == 2

    async def main() -> int:
        writing, reading = Bystander(installation, tmp_path), Bystander(installation, tmp_path)
        shard = new_shard_id()
        writer = await writing.client.open_writer(shard, SCHEMA, purpose="test")
        reader = await reading.client.open_reader(shard, SCHEMA, purpose="test")
        seen: list[int] = []

        async def follow() -> None:
            async for event in await reader.listen(Timestamp(0)):
                seen.append(event.progress)

        following = asyncio.ensure_future(follow())
        restarted = threading.Event()

        def restart() -> None:
            server.kill()
            server.start()
            restarted.set()

        restarting = asyncio.ensure_future(asyncio.to_thread(restart))
        loop = asyncio.get_running_loop()
        longest_s, time = 0.0, 0
        while not restarted.is_set():
            time += 1
            started = loop.time()
            rows = Updates.at(pa.record_batch([[time]], schema=SCHEMA), Timestamp(time))
            assert await writer.compare_and_append(rows, Frontier(time if time > 1 else 0), Frontier(time + 1)) is None
            longest_s = max(longest_s, loop.time() - started)
            await asyncio.sleep(0.005)
        await restarting
        async with asyncio.timeout(20):
            while not following.done() and (not seen or seen[-1] <= time):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not following.done(), following.exception()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert longest_s < 2.5, f"a write took {longest_s} s while the coordinator was away"
        await writing.close()
        await reading.close()
        return time

    assert asyncio.run(main()) > 10
    with server.connect() as db:
        assert eventually(lambda: count(db, "v")) == 2
        db.execute("INSERT INTO t VALUES (3)")
        assert count(db, "v") == 3


def test_killing_persistd_stalls_writes_and_loses_nothing(installation: Installation, eventually: Eventually) -> None:
    server = installation.server
    with server.connect() as db:
        db.execute("CREATE TABLE t (a int)")
        db.execute("CREATE MATERIALIZED VIEW v AS SELECT a FROM t")
    acknowledged: list[int] = []
    stop = threading.Event()

    def insert() -> None:
        with server.connect() as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("INSERT INTO t VALUES (%s)", [number])
                acknowledged.append(number)

    inserting = threading.Thread(target=insert)
    inserting.start()
    try:
        eventually(lambda: len(acknowledged) > 5)
        installation.persistd.end()
        at_kill = len(acknowledged)
        eventually(lambda: all("no connection to the committer" in log.read_text() for log in server.logs()))
        assert len(acknowledged) <= at_kill + 1, "nothing is acknowledged that is not durable"
        installation.start_persistd()
        eventually(lambda: len(acknowledged) > at_kill + 5)
    finally:
        stop.set()
        inserting.join(60)
    with server.connect() as db:
        eventually(lambda: count(db, "v") == count(db, "t"))
        rows = db.execute("SELECT a, count(*) FROM v GROUP BY a").fetchall()
        assert {row[0] for row in rows} >= set(acknowledged), "no acknowledged row is lost"
        assert {row[1] for row in rows} == {1}, "and none is doubled"


def test_the_committer_is_bypassed_at_run_time_by_coordinator_and_replica(
    installation: Installation, eventually: Eventually
) -> None:
    """With persistd killed, only who reaches the store by himself can write: both must, for a view to move."""
    installation.server.stop()
    installation.start_server(PENSTOCK_CONSENSUS_URL=installation.consensus_url)
    server = installation.server
    with server.connect() as db:
        db.execute("CREATE TABLE t (a int)")
        db.execute("CREATE MATERIALIZED VIEW v AS SELECT a * 2 AS b FROM t")
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("ALTER SYSTEM SET persist_consensus_use_committer = off")
        eventually(lambda: all("consensus goes directly to the store" in log.read_text() for log in server.logs()))
        installation.persistd.end()
        for number in (2, 3):
            db.execute("INSERT INTO t VALUES (%s)", [number])
            assert count(db, "v") == number
        os.kill(server.replica_pids()[0], signal.SIGKILL)
        db.execute("INSERT INTO t VALUES (4)")
        assert eventually(lambda: count(db, "v")) == 4, "a replica that starts later is told too"

        installation.start_persistd()
        db.execute("ALTER SYSTEM RESET persist_consensus_use_committer")
        eventually(lambda: all("consensus goes through the committer" in log.read_text() for log in server.logs()))
        db.execute("INSERT INTO t VALUES (5)")
        assert eventually(lambda: count(db, "v")) == 5


def test_a_wrong_token_is_told_at_once(installation: Installation, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    environment = {
        "PENSTOCK_EXTERNAL_COMMITTER": installation.address,
        "PENSTOCK_COMMITTER_TOKEN": "not-the-token-of-that-committer",
    }
    with pytest.raises(RuntimeError, match="the token is missing or wrong"):
        Server(directory, environment=environment).start()
