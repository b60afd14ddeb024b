"""Where replicas run. `ProcessOrchestrator` runs each as a child process on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from penstock.control.specs import ReplicaId


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
    """Children of this process: ``python -m penstock.replica``."""

    def __init__(self, run_dir: Path, consensus: str, blob: str) -> None:
        """`run_dir`: sockets and logs. `consensus`: RPC target of a committer. `blob`: URL of the blob
        store.
        """
        self._run_dir, self._consensus, self._blob = run_dir, consensus, blob

    async def ensure(self, replica: ReplicaId) -> str:
        raise NotImplementedError

    async def drop(self, replica: ReplicaId) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
