"""Stores by URL."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from penstock.persist.file import FileBlob
from penstock.persist.mem import MemBlob, MemConsensus
from penstock.persist.sqlite import SqliteConsensus
from penstock.persist.store import Blob, Consensus


def open_blob(url: str) -> Blob:
    """The blob store at `url`: ``file:DIRECTORY`` (created when absent) or ``mem:`` (a new, empty one).

    Raises `ValueError` for a URL that can never work.
    """
    scheme, path = _split(url)
    if scheme == "mem":
        return MemBlob()
    if scheme == "file" and path:
        return FileBlob(path)
    raise ValueError(f"{url!r} is not a blob store: use file:DIRECTORY or mem:")


def open_consensus(url: str) -> Consensus:
    """The consensus store at `url`: ``sqlite:FILE`` (created when absent, with its directory) or ``mem:``
    (a new one).

    Raises `ValueError` for a URL that can never work, `ExternalError` when the file cannot be opened.
    """
    scheme, path = _split(url)
    if scheme == "mem":
        return MemConsensus()
    if scheme == "sqlite" and path:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        return SqliteConsensus(path)
    raise ValueError(f"{url!r} is not a consensus store: use sqlite:FILE or mem:")


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.netloc:
        raise ValueError(f"{url!r} names a host; a local path is written {parts.scheme}:/path or {parts.scheme}:path")
    return parts.scheme, unquote(parts.path)
