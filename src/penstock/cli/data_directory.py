"""The data directory of an embedded database: its layout, its lock, and the short directory for its sockets.

Layout: ``consensus.sqlite`` (shard states), ``blob/`` (data parts), ``LOCK`` (held while a server runs; its text
says which). Sockets cannot live there: the system allows 107 bytes for a socket's path, and data directories may be
longer.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType


def consensus_url(directory: Path) -> str:
    """Where the states of shards are, in a data directory."""
    return f"sqlite:{directory / 'consensus.sqlite'}"


def blob_url(directory: Path) -> str:
    """Where the parts of shards are, in a data directory."""
    return f"file:{directory / 'blob'}"


class DirectoryInUse(Exception):
    """Another server runs on the directory."""


class DataDirectory:
    """An existing, locked data directory; a context manager that gives the lock back."""

    def __init__(self, path: Path) -> None:
        """Create `path` where needed and lock it. Raises `DirectoryInUse`, or OSError when it cannot be written."""
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._lock, 64).decode(errors="replace").strip()
            os.close(self._lock)
            raise DirectoryInUse(
                f"another penstock server{f' (process {owner})' if owner else ''} is running on {self.path}"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    @property
    def consensus_url(self) -> str:
        return consensus_url(self.path)

    @property
    def blob_url(self) -> str:
        return blob_url(self.path)

    def run_directory(self) -> Path:
        """A private, short directory for sockets; the same one for every server on this data directory."""
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        name = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        directory = base / f"penstock-{os.getuid()}-{name}"
        if len(str(directory)) > 70:
            directory = Path("/tmp") / directory.name
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise OSError(f"{directory} belongs to somebody else or is open to others; remove it and start again")
        return directory

    def remove_run_directory(self) -> None:
        """Sockets and replica logs of a server that has ended orderly are of no use any more."""
        shutil.rmtree(self.run_directory(), ignore_errors=True)

    def close(self) -> None:
        """Give the lock back. May be called twice."""
        if self._lock >= 0:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
