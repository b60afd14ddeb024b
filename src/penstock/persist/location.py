"""Stores by URL.

A library that a kind of store needs is imported here, when a URL asks for it, so that nobody pays for what he
does not use; where it is missing, the error says what to install.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from penstock.persist.file import FileBlob
from penstock.persist.mem import MemBlob, MemConsensus
from penstock.persist.sqlite import SqliteConsensus
from penstock.persist.store import Blob, Consensus
from penstock.persist.url import masked
from penstock.runtime import Clock

T = TypeVar("T")

_POSTGRES = {"postgres", "postgresql"}


def open_blob(url: str) -> Blob:
    """The blob store at `url`: ``file:DIRECTORY`` (created when absent) or ``mem:`` (a new, empty one).

    Raises `ValueError` for a URL that can never work.
    """
    scheme, path = _split(url)
    if scheme == "mem":
        return MemBlob()
    if scheme == "file" and path:
        return FileBlob(path)
    raise ValueError(f"{masked(url)!r} is not a blob store: use file:DIRECTORY or mem:")


def open_consensus(url: str, *, clock: Clock | None = None) -> Consensus:
    """The consensus store at `url`: ``sqlite:FILE`` (created when absent, with its directory),
    ``postgres://USER:PASSWORD@HOST/DATABASE`` or ``mem:`` (a new one).

    Nothing is connected yet: a server that is not up shows in the first operation. Raises `ValueError` for a URL that
    can never work, `ExternalError` when a file cannot be opened.
    """
    if urlsplit(url).scheme in _POSTGRES:
        return _with_extra("postgres", lambda: _postgres(url, clock))
    scheme, path = _split(url)
    if scheme == "mem":
        return MemConsensus()
    if scheme == "sqlite" and path:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        return SqliteConsensus(path)
    raise ValueError(f"{masked(url)!r} is not a consensus store: use postgres://…, sqlite:FILE or mem:")


def _postgres(url: str, clock: Clock | None) -> Consensus:
    from penstock.persist.postgres import PostgresConsensus

    return PostgresConsensus(url, clock=clock)


def _with_extra(extra: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except ImportError as error:
        raise ValueError(
            f"this kind of store needs a library that is not installed ({error}): pip install 'penstock[{extra}]'"
        ) from error


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.netloc:
        raise ValueError(
            f"{masked(url)!r} names a host; a local path is written {parts.scheme}:/path or {parts.scheme}:path"
        )
    return parts.scheme, unquote(parts.path)
