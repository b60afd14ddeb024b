"""Stores by URL.

A library that a kind of store needs is imported here, when a URL asks for it, so that nobody pays for what he
does not use; where it is missing, the error says what to install.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import structlog

from penstock.persist.file import FileBlob, make_directory
from penstock.persist.mem import MemBlob, MemConsensus
from penstock.persist.sqlite import SqliteConsensus
from penstock.persist.store import Blob, Consensus, StoreUnusable
from penstock.persist.url import masked
from penstock.runtime import Clock, ExternalError

_log = structlog.get_logger("penstock.persist")

T = TypeVar("T")

_POSTGRES = {"postgres", "postgresql"}
_OBJECTS = {"s3", "gs", "az"}
_LOCAL = {"file", "sqlite", "mem"}

_PROBE = "LIVENESS"
"""A key that nobody writes: asking for it shows that the store answers."""

_PAUSE_S = 0.05
_PAUSE_MAX_S = 2.0
_LOG_FROM_ATTEMPT = 3


def open_blob(url: str) -> Blob:
    """The blob store at `url`: ``file:DIRECTORY`` (created when absent), an object store (``s3://BUCKET/PREFIX``,
    ``gs://BUCKET/PREFIX``, ``az://CONTAINER/PREFIX``) or ``mem:`` (a new, empty one).

    Nothing is connected yet. Raises `ValueError` for a URL that can never work.
    """
    kind = _scheme(url)
    if kind in _OBJECTS:
        return _with_extra("objects", lambda: _object_blob(url))
    scheme, path = _split(url)
    if scheme == "mem":
        return MemBlob()
    if scheme == "file" and path:
        return FileBlob(path)
    raise ValueError(
        f"{masked(url)!r} is not a blob store: use file:DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
        f"az://CONTAINER/PREFIX or mem:"
    )


def open_consensus(url: str, *, clock: Clock | None = None) -> Consensus:
    """The consensus store at `url`: ``sqlite:FILE`` (created when absent, with its directory),
    ``postgres://USER:PASSWORD@HOST/DATABASE``, an object store (as for `open_blob`) or ``mem:`` (a new one).

    Nothing is connected yet: a server that is not up shows in the first operation. Raises `ValueError` for a URL that
    can never work, `ExternalError` when a file cannot be opened.
    """
    kind = _scheme(url)
    if kind in _POSTGRES:
        return _with_extra("postgres", lambda: _postgres(url, clock))
    if kind in _OBJECTS:
        return _with_extra("objects", lambda: _object_consensus(url))
    scheme, path = _split(url)
    if scheme == "mem":
        return MemConsensus()
    if scheme == "sqlite" and path:
        make_directory(Path(path).absolute().parent)
        return SqliteConsensus(path)
    if scheme == "file":
        raise ValueError(
            f"{masked(url)!r} cannot keep consensus: a directory has no conditional replacement; use sqlite:FILE"
        )
    raise ValueError(
        f"{masked(url)!r} is not a consensus store: use postgres://…, sqlite:FILE, s3://BUCKET/PREFIX, "
        f"gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or mem:"
    )


def _object_blob(url: str) -> Blob:
    from penstock.persist.object_blob import ObjectBlob
    from penstock.persist.object_store import open_client

    return ObjectBlob(open_client(url, conditional=False))


def _object_consensus(url: str) -> Consensus:
    from penstock.persist.object_consensus import ObjectConsensus
    from penstock.persist.object_store import open_client

    return ObjectConsensus(open_client(url, conditional=True))


def open_existing_consensus(url: str) -> Consensus:
    """As `open_consensus`, for one more process that joins others on their store: it creates nothing, so that what was
    lost under them is reported (`SchemaMissing`) and not replaced by something empty. Raises `ValueError` also for a
    file that is not there.
    """
    if _scheme(url) in _POSTGRES:
        return _with_extra("postgres", lambda: _postgres(url, None, create=False))
    scheme, path = _split(url)
    if scheme == "sqlite" and not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    return open_consensus(url)


def open_consensus_for_reading(url: str) -> Consensus:
    """As `open_consensus`, but nothing is created and nothing can be written where the kind of store can see to it:
    in PostgreSQL, which then refuses writes. Local files have readers of their own (`penstock.persist.readonly`).
    """
    if _scheme(url) in _POSTGRES:
        return _with_extra("postgres", lambda: _postgres(url, None, read_only=True))
    return open_consensus(url)


async def open_blob_when_ready(url: str, clock: Clock) -> Blob:
    """The blob store at `url`, once it answers. Tries without limit: it may be started after its clients.

    Raises `ValueError` for a URL that can never work, `StoreUnusable` for what the store turns down. Cancellable.
    """
    blob = open_blob(url)
    pause_s, attempts = _PAUSE_S, 0
    try:
        while True:
            try:
                await blob.get(_PROBE)
                return blob
            except StoreUnusable:
                raise
            except ExternalError as error:
                attempts += 1
                if attempts >= _LOG_FROM_ATTEMPT:
                    _log.warning(f"waiting for the blob store: {error.message}", attempt=attempts)
            await clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _PAUSE_MAX_S)
    except BaseException:
        await blob.close()
        raise


def _postgres(url: str, clock: Clock | None, *, read_only: bool = False, create: bool = True) -> Consensus:
    from penstock.persist.postgres import PostgresConsensus

    return PostgresConsensus(url, clock=clock, read_only=read_only, create=create)


def _with_extra(extra: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except ImportError as error:
        raise ValueError(
            f"this kind of store needs a library that is not installed ({error}): pip install 'penstock[{extra}]'"
        ) from error


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        raise ValueError(f"{masked(url)} is not a URL") from None


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.netloc and parts.scheme in _LOCAL:
        raise ValueError(
            f"{masked(url)!r} names a host; a local path is written {parts.scheme}:/path or {parts.scheme}:path"
        )
    return parts.scheme, unquote(parts.path)
