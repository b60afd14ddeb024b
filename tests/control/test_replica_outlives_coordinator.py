"""A replica process beside a persistd: its reads and writes of shards go on while its coordinator is dead.

Replicas that `penstock serve` starts end with it, because nobody else knows of them (`ProcessOrchestrator`); here, as
under an orchestrator that keeps processes apart, the replica is started by somebody else.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.committer import CredentialFiles, RpcConsensus, RpcPubSub
from penstock.persist import FileBlob, PersistClient
from penstock.runtime import Frontier, Timestamp
from penstock.storage import rows_to_shard, view_schema
from tests.committer.persistd_process import persistd
from tests.control.environment import SCHEMA, rows, shard_of

TOKEN = "a-token-of-some-length"
DEADLINE_S = 60


class Installation:
    """Where the processes are told to find each other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.committer = f"unix:{directory}/c.sock"
        self.replica = f"unix:{directory}/r.sock"
        self.token_file = directory / "token"
        self.token_file.write_text(TOKEN)
        self.replica_log = directory / "replica.log"

    def persistd_arguments(self) -> list[str]:
        store = f"sqlite:{self.directory}/c.db"
        return ["--listen", self.committer, "--consensus-url", store, "--token-file", str(self.token_file)]

    @contextmanager
    def replica_process(self) -> Iterator[subprocess.Popen[bytes]]:
        """`penstock clusterd`, with nobody's life tied to it."""
        command = [sys.executable, "-m", "penstock.cli", "clusterd", "--listen", self.replica]
        command += ["--consensus", self.committer, "--token-file", str(self.token_file)]
        with self.replica_log.open("wb") as log:
            child = subprocess.Popen([*command, "--blob", f"file:{self.directory}/blob"], stderr=log)
        try:
            yield child
        finally:
            child.kill()
            child.wait()

    @contextmanager
    def coordinator_process(self, epoch: int) -> Iterator[subprocess.Popen[str]]:
        """The controllers, once the replica is connected; killed with SIGKILL at the end."""
        command = [sys.executable, "-m", "tests.control.lone_coordinator", self.committer, str(self.token_file)]
        command += [f"{self.directory}/blob", self.replica, str(epoch)]
        log = self.directory / f"coordinator-{epoch}.log"
        with log.open("wb") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert child.stdout is not None
        try:
            lines = iter(child.stdout.readline, "")
            assert "READY\n" in lines, log.read_text()
            yield child
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


class Outsider:
    """Writes the view's input and reads the view, in the test's own process, through the persistd."""

    def __init__(self, installation: Installation) -> None:
        credentials = CredentialFiles(installation.token_file).load({})
        self._consensus = RpcConsensus(installation.committer, credentials=credentials)
        self._pubsub = RpcPubSub(installation.committer, credentials=credentials)
        blob = FileBlob(installation.directory / "blob")
        self._client = PersistClient(blob, self._consensus, pubsub=self._pubsub)
        self._time = 0

    async def open(self) -> None:
        schema = view_schema(SCHEMA)
        self._writer = await self._client.open_writer(shard_of("u1"), schema, purpose="test")
        self._reader = await self._client.open_reader(shard_of("u2"), schema, purpose="test")

    async def append(self) -> int:
        """One more row; returns its time."""
        self._time += 1
        new = rows_to_shard(rows((self._time, self._time, self._time, 1)), SCHEMA)
        lower = Frontier(self._time if self._time > 1 else 0)
        assert await self._writer.compare_and_append(new, lower, Frontier(self._time + 1)) is None
        return self._time

    async def view(self, time: int) -> Counter[int]:
        """The keys of the view at `time`, once it is complete there."""
        found: Counter[int] = Counter()
        async with asyncio.timeout(DEADLINE_S):
            async for updates in self._reader.snapshot(Timestamp(time)):
                for key, diff in zip(updates.rows.column(0).to_pylist(), updates.diffs.tolist(), strict=True):
                    found[key] += diff
        return found

    async def close(self) -> None:
        await self._client.close()
        await self._pubsub.close()
        await self._consensus.close()


@pytest.mark.crash
def test_a_replica_goes_on_while_its_coordinator_is_dead_and_is_adopted_by_the_next(tmp_path: Path) -> None:
    installation = Installation(tmp_path)

    async def follows(outsider: Outsider, appends: int) -> None:
        for _ in range(appends):
            time = await outsider.append()
            assert await outsider.view(time) == Counter(range(1, time + 1))

    async def main() -> None:
        outsider = Outsider(installation)
        await outsider.open()
        with installation.coordinator_process(epoch=1):
            await follows(outsider, 3)
        # Only the replica writes the view: it read its input and wrote its output with nobody to tell it to.
        await follows(outsider, 20)
        with installation.coordinator_process(epoch=2):
            await follows(outsider, 3)
        await outsider.close()

    with persistd(tmp_path, *installation.persistd_arguments()) as committer:
        committer.ready()
        with installation.replica_process() as replica:
            asyncio.run(main())
            assert replica.poll() is None, "one process, all the time"
    reconciled = [line.split() for line in installation.replica_log.read_text().splitlines() if " reconciled " in line]
    assert [word for line in reconciled for word in line if word.startswith("kept=")] == ["kept=0", "kept=1"]
