"""A blob store in a directory of the local file system.

Layout: the first segment of a key is a directory, the rest a file in it (percent-encoded, so that "/" and
any other character are safe and prefixes stay prefixes). A write goes to a temporary file, is fsynced,
renamed into place, and the directory is fsynced: a crash leaves either no object or a whole one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from penstock.persist.store import StoreFull, StoreUnusable
from penstock.runtime import Determinate, Indeterminate

T = TypeVar("T")

_TEMPORARY = ".tmp"
_TEMPORARY_AGE_MAX_S = 86_400
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class FileBlob:
    """A `Blob` under `root`, which is created when absent. Several processes may share one directory."""

    def __init__(self, root: str | os.PathLike[str], *, threads: int = 4, prepare: bool = True) -> None:
        """`prepare`: create what is missing and remove what killed writers left; False for one who only reads."""
        self._root = Path(root)
        self._temporary = self._root / _TEMPORARY
        if prepare:
            make_directory(self._temporary)
        self._directories: set[str] = set()
        self._syncs: dict[Path, _DirectorySync] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="file-blob")
        if prepare:
            self._remove_stale_temporaries()

    async def get(self, key: str) -> bytes | None:
        return await self._run(lambda: self._get(key), f"read blob {key}")

    async def set(self, key: str, value: bytes) -> None:
        await self._run(lambda: self._set(key, value), f"write blob {key} ({len(value)} bytes)")

    async def delete(self, key: str) -> int | None:
        return await self._run(lambda: self._delete(key), f"delete blob {key}")

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        return await self._run(lambda: self._list(prefix), f"list blobs {prefix}*")

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown, True)

    async def _run(self, operation: Callable[[], T], what: str) -> T:
        """Run in a thread; unknown failures may have struck after the rename, so they are indeterminate."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, operation)
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFull(
                    f"cannot {what} in {self._root}: {error.strerror}; make room there and try again"
                ) from error
            if error.errno in _REFUSED:
                raise StoreUnusable(f"cannot {what} in {self._root}: {error}") from error
            raise Indeterminate(f"cannot {what} in {self._root}: {error}") from error

    def _path(self, key: str) -> Path:
        first, separator, rest = key.partition("/")
        if not first or (separator and not rest):
            raise Determinate(f"{key!r} is not a blob key: it has an empty first or last segment")
        name = _escape(rest) if separator else ""
        if max(len(_escape(first)), len(name)) > 255:
            raise Determinate(f"blob key {key!r} is too long for a file name")
        # A key of one segment lives in the directory of its own name, under a name that no rest can have.
        return self._root / _escape(first) / (name or "%")

    def _get(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def _set(self, key: str, value: bytes) -> None:
        path = self._path(key)
        self._make_directory(path.parent)
        temporary = self._temporary / uuid.uuid4().hex
        try:
            with open(temporary, "xb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._sync_of(path.parent).changed()

    def _delete(self, key: str) -> int | None:
        path = self._path(key)
        sync = self._sync_of(path.parent)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            sync.catch_up()  # whoever deleted it may have been told that it may come back
            return None
        sync.changed()  # or it comes back with a power failure, after those who knew of it are gone
        return size

    def _sync_of(self, directory: Path) -> _DirectorySync:
        return self._syncs.setdefault(directory, _DirectorySync(directory))

    def _list(self, prefix: str) -> list[tuple[str, int]]:
        first, separator, _ = prefix.partition("/")
        found: list[tuple[str, int]] = []
        for directory in [_escape(first)] if separator else _names(self._root):
            segment = urllib.parse.unquote(directory)
            if directory == _TEMPORARY or not segment.startswith(first):
                continue
            for name in _names(self._root / directory):
                key = segment if name == "%" else f"{segment}/{urllib.parse.unquote(name)}"
                if not key.startswith(prefix):
                    continue
                try:
                    found.append((key, (self._root / directory / name).stat().st_size))
                except FileNotFoundError:
                    continue  # deleted while listing
        return sorted(found)

    def _make_directory(self, directory: Path) -> None:
        if directory.name in self._directories:
            return
        directory.mkdir(exist_ok=True)
        _fsync_directory(self._root)
        self._directories.add(directory.name)

    def _remove_stale_temporaries(self) -> None:
        """What a crash left behind. Young files may belong to a live process that shares the directory."""
        for name in _names(self._temporary):
            path = self._temporary / name
            try:
                if time.time() - path.stat().st_mtime > _TEMPORARY_AGE_MAX_S:
                    path.unlink()
            except FileNotFoundError:
                continue


class _DirectorySync:
    """Makes changes of one directory durable, those of several threads at once where they come together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = threading.Lock()
        self._syncing = threading.Lock()
        self._changes = 0
        self._durable = 0

    def changed(self) -> None:
        """Something was changed just now; durable on return."""
        with self._numbers:
            self._changes += 1
            number = self._changes
        self._sync_up_to(number)

    def catch_up(self) -> None:
        """See to it that no earlier change is left over from an fsync that failed."""
        self._sync_up_to(self._changes)

    def _sync_up_to(self, number: int) -> None:
        if self._durable >= number:
            return
        with self._syncing:
            if self._durable < number:
                changes = self._changes
                _fsync_directory(self._directory)
                self._durable = changes


def make_directory(path: Path) -> None:
    """Create `path` and the directories above it where missing, each durable before anything is put into it."""
    path = path.absolute()
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        _fsync_directory(directory.parent)


def _escape(text: str) -> str:
    escaped = urllib.parse.quote(text, safe="")
    return escaped.replace(".", "%2E") if escaped.startswith(".") else escaped


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
