"""Where replicas run. `ProcessOrchestrator` runs each as a child process on this machine.

A child ends with its parent, however the parent ends: it watches its standard input, whose other end only the
parent holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog

from penstock.control.specs import ReplicaId
from penstock.runtime import Clock, SystemClock, TaskOwner

_log = structlog.get_logger("penstock.control.orchestrator")

_BACKOFF_SECONDS_MIN = 0.05
_BACKOFF_SECONDS_MAX = 5.0
_STABLE_SECONDS = 30.0
_TERMINATE_SECONDS = 5.0
_LOG_BYTES_MAX = 64 << 20
_SOCKET_PATH_BYTES_MAX = 100  # the kernel's limit is 108, with its prefix and end


class Orchestrator(Protocol):
    """Keeps one process per replica alive. Two live copies of one replica must be harmless to its users."""

    async def ensure(self, replica: ReplicaId) -> str:
        """Start the replica unless it runs; returns its address at once, which may not answer yet."""
        ...

    async def drop(self, replica: ReplicaId) -> None:
        """End the replica; returns when its process is gone."""
        ...

    async def close(self) -> None:
        """End all of them."""
        ...


class ProcessOrchestrator:
    """Children of this process: ``python -m penstock.replica``, restarted with backoff when they end.

    A child writes its log to ``<run_dir>/<replica>.log``; the one before it is kept when it grew beyond 64
    MiB.
    """

    def __init__(
        self,
        run_dir: Path,
        consensus: str,
        blob: str,
        *,
        clock: Clock | None = None,
        arguments: Sequence[str] = (),
        consensus_url: str = "",
    ) -> None:
        """`run_dir`: sockets and logs. `consensus`: RPC target of a committer. `blob`: URL of the blob
        store. `arguments`: more of them for every replica, such as where the committer's credentials are.
        `consensus_url`: of the store itself, for replicas that are told to bypass the committer.
        """
        self._run_dir, self._consensus = run_dir, consensus
        self._arguments = list(arguments)
        # Not arguments: the URLs may hold secrets, and everybody on the machine can read a process's arguments.
        self._environment = {"PENSTOCK_BLOB_URL": blob, "PENSTOCK_CONSENSUS_URL": consensus_url}
        self._clock = clock or SystemClock()
        self._children: dict[ReplicaId, _Child] = {}
        self._tasks = TaskOwner("orchestrator")
        self._socket_dir: tempfile.TemporaryDirectory[str] | None = None

    async def ensure(self, replica: ReplicaId) -> str:
        child = self._children.get(replica)
        if child is None:
            child = _Child(replica, self._socket(replica), self._run_dir / f"{replica}.log", self._clock)
            arguments = [
                "--listen",
                child.address,
                "--consensus",
                self._consensus,
                *self._arguments,
                "--end-with-stdin",
            ]
            environment = {**os.environ, **self._environment}
            child.watch = self._tasks.spawn(child.keep_alive(arguments, environment), f"watch-{replica}")
            self._children[replica] = child
        return child.address

    async def drop(self, replica: ReplicaId) -> None:
        child = self._children.pop(replica, None)
        if child is not None:
            await child.stop()

    async def close(self) -> None:
        children, self._children = self._children, {}
        await asyncio.gather(*(child.stop() for child in children.values()))
        await self._tasks.close()
        if self._socket_dir is not None:
            self._socket_dir.cleanup()

    def pids(self) -> dict[ReplicaId, int]:
        """Process ids of the children that run at this moment."""
        running = ((replica, child.process) for replica, child in self._children.items())
        return {replica: process.pid for replica, process in running if process and process.returncode is None}

    def restarts(self, replica: ReplicaId) -> int:
        """How often the replica's process has ended by itself."""
        return self._children[replica].restarts

    def _socket(self, replica: ReplicaId) -> Path:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        path = self._run_dir.absolute() / f"{replica}.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
            return path
        if self._socket_dir is None:
            self._socket_dir = tempfile.TemporaryDirectory(prefix="penstock-")
        return Path(self._socket_dir.name) / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


class _Child:
    def __init__(self, replica: ReplicaId, socket: Path, log: Path, clock: Clock) -> None:
        self.replica = replica
        self.address = f"unix:{socket}"
        self.process: Process | None = None
        self.watch: asyncio.Task[None] | None = None
        self.restarts = 0
        self._log_path = log
        self._clock = clock

    async def keep_alive(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Start the process again each time it ends, until cancelled."""
        backoff = _BACKOFF_SECONDS_MIN
        while True:
            started = self._clock.monotonic()
            self.process = await self._spawn(arguments, environment)
            _log.info("replica started", replica=self.replica, pid=self.process.pid)
            code = await self.process.wait()
            self.restarts += 1
            lived = self._clock.monotonic() - started
            backoff = _BACKOFF_SECONDS_MIN if lived > _STABLE_SECONDS else min(backoff * 2, _BACKOFF_SECONDS_MAX)
            _log.warning(
                "replica ended and is restarted",
                replica=self.replica,
                pid=self.process.pid,
                code=code,
                lived_seconds=round(lived, 3),
                backoff_seconds=backoff,
                log=str(self._log_path),
            )
            await self._clock.sleep(backoff)

    async def stop(self) -> None:
        """End the watch, then the process: politely, after a while by force."""
        if self.watch is not None:
            self.watch.cancel()
            await asyncio.gather(self.watch, return_exceptions=True)
        process = self.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _TERMINATE_SECONDS)
        except TimeoutError:
            _log.warning("replica does not end and is killed", replica=self.replica, pid=process.pid)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _spawn(self, arguments: list[str], environment: dict[str, str]) -> Process:
        with suppress(FileNotFoundError):
            if self._log_path.stat().st_size > _LOG_BYTES_MAX:
                self._log_path.replace(self._log_path.with_suffix(".log.1"))
        with self._log_path.open("ab") as log:
            spawning = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "penstock.replica",
                    *arguments,
                    stdin=PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            )
            try:
                return await asyncio.shield(spawning)
            except asyncio.CancelledError:
                self.process = await spawning  # it may have been started already: `stop` must see it
                raise
