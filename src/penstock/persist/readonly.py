"""Stores that can only be read, for looking at a database while it runs, or after it broke.

Nothing is created, migrated or cleaned up by opening one: a store that is not there is an error. Only the reading
half of each interface is offered, so that no write can even be expressed; the local stores are opened so that the
system refuses writes as well, and PostgreSQL is told to.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from penstock.persist.file import FileBlob
from penstock.persist.location import open_blob, open_consensus_for_reading
from penstock.persist.sqlite import SqliteConsensus
from penstock.persist.store import SCAN_ALL, SeqNo, StoreUnusable, Versioned


class BlobReader(Protocol):
    """The reading half of `Blob`."""

    async def get(self, key: str) -> bytes | None: ...
    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]: ...
    async def close(self) -> None: ...


class ConsensusReader(Protocol):
    """The reading half of `Consensus`."""

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None: ...
    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]: ...
    async def list_keys(self) -> list[str]: ...
    async def close(self) -> None: ...


class _SqliteReader(SqliteConsensus):
    """The SQLite file at `path`, opened read-only: SQLite itself refuses writes."""

    def _open_connection(self) -> sqlite3.Connection:
        uri = f"file:{quote(os.path.abspath(self._path))}?mode=ro"
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA busy_timeout=10000")
            connection.execute("PRAGMA query_only=ON")
            connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone()
        except sqlite3.Error as error:
            raise StoreUnusable(f"cannot read the consensus store {self._path}: {error}") from error
        return connection


class _FileReader(FileBlob):
    """The blob directory at `root`, which must exist; unlike a writer this one cleans nothing up."""

    def __init__(self, root: str) -> None:
        if not Path(root).is_dir():
            raise StoreUnusable(f"cannot read the blob store {root}: there is no such directory")
        super().__init__(root, prepare=False)


@asynccontextmanager
async def open_for_reading(consensus_url: str, blob_url: str) -> AsyncIterator[tuple[ConsensusReader, BlobReader]]:
    """The two stores of a database, to be read only; closed at the end.

    Raises `ValueError` for a URL that can never work and `ExternalError` for a store that is not there.
    """
    consensus = _consensus(consensus_url)
    try:
        blob = _blob(blob_url)
    except BaseException:
        await consensus.close()
        raise
    try:
        yield consensus, blob
    finally:
        await blob.close()
        await consensus.close()


def _consensus(url: str) -> ConsensusReader:
    parts = urlsplit(url)
    if parts.scheme == "sqlite" and parts.path and not parts.netloc:
        return _SqliteReader(unquote(parts.path))
    return open_consensus_for_reading(url)


def _blob(url: str) -> BlobReader:
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return _FileReader(unquote(parts.path))
    return open_blob(url)
