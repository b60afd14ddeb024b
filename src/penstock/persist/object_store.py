"""Objects in S3, Google Cloud Storage and Azure through obstore: what blobs and consensus on them share.

Three things here are not obvious.

* *Retries.* A retried conditional write may meet its own first attempt and be told that the condition fails.
  So a client is opened either for unconditional, repeatable operations, which the library retries, or for
  conditional ones, which go out exactly once.
* *Missing bucket.* Stores answer 404 for a missing object and for a missing bucket alike. The second must never
  be taken for the first: it would look as if all data were gone for good.
* *Exit.* A process that ends right after an asynchronous call may abort: the library's threads still hand over a
  result to the interpreter that is being taken down (PyO3/pyo3-async-runtimes#40). A short pause at exit, after
  which these threads are idle, prevents it.
"""

from __future__ import annotations

import asyncio
import atexit
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from penstock.persist.store import StoreFull, StoreRefused, StoreUnusable
from penstock.persist.url import StoreUrl
from penstock.runtime import Determinate, ExternalError, Indeterminate

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

Tag: TypeAlias = tuple[str | None, str | None]
"""What a store calls one content of an object: its entity tag, and its version or generation where it has one."""

_EXIT_PAUSE_S = 0.05
_MULTIPART_FROM_BYTES = 16 << 20
_PART_BYTES = 8 << 20
_RETRIES_MAX = 3
_IDLE = timedelta(seconds=15)
"""Servers close idle connections after some 20 s; a write that meets one of those has an unknown outcome."""

_LIST_PAGE = 1000
_PATH_MAX = 800
"""Of the 1024 bytes that stores allow for a name; the prefix takes some."""

_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist|container does not exist", re.IGNORECASE)
_NOT_OFFERED = re.compile(r"\b501\b|NotImplemented")
_FULL = re.compile(
    r"\b507\b|StorageFull|InsufficientStorage|QuotaExceeded|AccountStorageLimit|No space left", re.IGNORECASE
)
_SECRETS = re.compile(r"((?:sig|signature|token)=)[^&\s\"')]+", re.IGNORECASE)

atexit.register(time.sleep, _EXIT_PAUSE_S)


class Changed(Exception):
    """The condition of a write does not hold: somebody else wrote, or wrote first. This write did not happen."""


class Unchanged(Exception):
    """The object still has the content that the caller knows."""


@dataclass(frozen=True)
class ObjectLimits:
    """`operation_s`: with all retries; `attempt_s`: one request with its body; `requests` at once."""

    operation_s: float = 180.0
    attempt_s: float = 90.0
    connect_s: float = 7.0
    requests: int = 64


class ObjectClient:
    """Objects by name below one prefix of one bucket. Names are any strings; the store sees them escaped.

    Failures are `Determinate` where the store turned a request down without doing it, `Indeterminate` otherwise.
    A cancelled call is done or not done.
    """

    def __init__(self, store: ObjectStore, shown: str, limits: ObjectLimits | None = None) -> None:
        """`shown`: the location, for people, without secrets."""
        self.shown = shown
        self._store = store
        self._limits = limits or ObjectLimits()
        self._requests = asyncio.Semaphore(self._limits.requests)
        self._closed = False

    async def get(self, name: str, *, known: Tag | None = None) -> tuple[bytes, Tag] | None:
        """The object and its tag, None when there is none. Raises `Unchanged` when it still is what `known` tags."""
        async with self._request(f"read {name}", missing_is_none=True) as request:
            etag = known[0] if known else None
            options = {"if_none_match": etag} if etag else None
            got = await obstore.get_async(self._store, _path(name), options=cast(Any, options))
            data = bytes(await got.bytes_async())
            if len(data) != got.meta["size"]:
                raise Indeterminate(f"read {len(data)} of {got.meta['size']} bytes of {name} in {self.shown}")
            return data, (got.meta["e_tag"], got.meta["version"])
        assert request.missing
        return None

    async def put(self, name: str, data: bytes) -> None:
        """Write the object, whatever is there."""
        async with self._request(f"write {name} ({len(data)} bytes)"):
            many = len(data) > _MULTIPART_FROM_BYTES
            await obstore.put_async(self._store, _path(name), data, use_multipart=many, chunk_size=_PART_BYTES)

    async def put_if(self, name: str, data: bytes, expected: Tag | None) -> Tag:
        """Write the object if it is what `expected` tags (None: if there is none). Returns the new tag.

        Raises `Changed` when it is not. `Determinate` also says that nothing was written (a conflict with a
        write under way).
        """
        mode: PutMode = "create"
        if expected is not None:
            etag, version = expected
            mode = cast("PutMode", {k: v for k, v in (("e_tag", etag), ("version", version)) if v is not None})
            if not mode:
                raise StoreUnusable(f"{self.shown} has no entity tags: nothing can be written on a condition there")
        async with self._request(f"write {name} ({len(data)} bytes)"):
            result = await obstore.put_async(self._store, _path(name), data, mode=mode, use_multipart=False)
            return result["e_tag"], result["version"]
        raise AssertionError("unreachable: a write is not answered by a missing object")

    async def size(self, name: str) -> int | None:
        """Bytes of the object, None when there is none."""
        async with self._request(f"look for {name}", missing_is_none=True):
            return (await obstore.head_async(self._store, _path(name)))["size"]
        return None

    async def delete(self, name: str) -> None:
        """Remove the object; none is as good."""
        async with self._request(f"delete {name}", missing_is_none=True):
            await obstore.delete_async(self._store, _path(name))

    async def list(self, prefix: str) -> list[tuple[str, int]]:
        """(name, bytes) of every object whose name starts with the string `prefix`, sorted. Reads page by page."""
        found: list[tuple[str, int]] = []
        # A store lists by whole segments; the last one may be a part of one here.
        folder = _path(prefix.rpartition("/")[0]) if "/" in prefix else None
        async with self._request(f"list {prefix}*"):
            pages = obstore.list(self._store, folder, chunk_size=_LIST_PAGE)
            async for page in pages:
                names = ((_name(meta["path"]), meta["size"]) for meta in page)
                found += [(name, size) for name, size in names if name.startswith(prefix)]
        return sorted(found)

    def close(self) -> None:
        """Refuse further calls; the library has nothing to give back."""
        self._closed = True

    @asynccontextmanager
    async def _request(self, what: str, *, missing_is_none: bool = False) -> AsyncIterator[_Request]:
        """One operation with its deadline; its failures become ours. Leaves the block when the object is missing."""
        if self._closed:
            raise Determinate(f"cannot {what}: the store {self.shown} is closed")
        request = _Request()
        try:
            async with self._requests, asyncio.timeout(self._limits.operation_s):
                yield request
        except AlreadyExistsError as error:
            raise Changed(what) from error
        except PreconditionError as error:
            raise Changed(what) from error
        except NotModifiedError as error:
            raise Unchanged(what) from error
        except TimeoutError as error:
            raise Indeterminate(
                f"cannot {what} in {self.shown}: no answer within {self._limits.operation_s:g} s"
            ) from error
        except (BaseError, OSError, NotImplementedError) as error:
            if missing_is_none and isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error)):
                request.missing = True
                return
            # The library's text may quote a signed URL, so that it is told without that and not as a cause.
            raise _classify(error, f"cannot {what} in {self.shown}") from None


@dataclass
class _Request:
    missing: bool = False


def _classify(error: Exception, what: str) -> ExternalError:
    """Determinate only for what the store turned down by itself, in an answer to the only or the last attempt."""
    text = _SECRETS.sub(r"\1***", str(error).partition("\n\nDebug source")[0].strip())
    said = f"{what}: {text or type(error).__name__}"
    if _FULL.search(text):
        return StoreFull(f"{said}; make room and try again")
    if _NO_BUCKET.search(text):
        return StoreUnusable(f"{said}; create the bucket, or correct its name")
    if isinstance(error, NotSupportedError | NotImplementedError) or _NOT_OFFERED.search(text):
        return StoreUnusable(f"{said}; this store does not offer what is needed")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return StoreRefused(f"{said}; check the credentials and their rights")
    return Indeterminate(said)


# Names: each segment is escaped with "=", which no store and no layer in between interprets. An empty segment is a
# lone "=", and a leading dot is escaped, because "." and ".." mean something to many.

_SAFE = "-_."


def _path(name: str) -> str:
    path = "/".join(_escape(segment) for segment in name.split("/"))
    if len(path) > _PATH_MAX:
        raise Determinate(f"{name[:80]!r}… is too long for the name of an object")
    return path


def _escape(segment: str) -> str:
    if not segment:
        return "="
    escaped = quote(segment, safe=_SAFE).replace("~", "%7E").replace("%", "=")
    return "=2E" + escaped[1:] if escaped.startswith(".") else escaped


def _name(path: str) -> str:
    return "/".join("" if segment == "=" else unquote(segment.replace("=", "%")) for segment in path.split("/"))


def segment(text: str) -> str:
    """`text` as one segment of a name: a "/" in it does not divide."""
    return text.replace("%", "%25").replace("/", "%2F")


def segment_text(name: str) -> str:
    """The inverse of `segment`."""
    return name.replace("%2F", "/").replace("%25", "%")


_LIMIT_SETTINGS = "op_timeout, attempt_timeout, connect_timeout, requests_max"
_S3_TEXTS = ("endpoint", "region", "access_key_id", "secret_access_key", "session_token")
_GS_TEXTS = ("service_account", "service_account_key", "base_url")
_AZ_TEXTS = ("endpoint", "account_name", "account_key", "sas_key", "tenant_id", "client_id", "client_secret")


def open_client(url: str, *, conditional: bool) -> ObjectClient:
    """The objects at ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``az://CONTAINER/PREFIX``.

    `conditional`: for writes with a condition, which are never repeated. Credentials come from the settings of the
    URL or from where the provider's tools look for them. Nothing is connected yet. `ValueError` for a URL that can
    never work.
    """
    settings = StoreUrl(url)
    prefix = settings.path.removeprefix("/").removesuffix("/")
    if not settings.host or "@" in settings.host or ":" in settings.host:
        raise ValueError(
            f"{settings.shown} names no bucket: write {settings.scheme}://BUCKET/PREFIX; "
            f"a server and credentials are settings (?endpoint=…&access_key_id=…) or come from the environment"
        )
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise ValueError(f"{settings.shown}: the prefix has an empty segment or one of dots")
    defaults = ObjectLimits(operation_s=60.0, attempt_s=30.0) if conditional else ObjectLimits()
    limits = ObjectLimits(
        operation_s=settings.duration_s("op_timeout", defaults.operation_s),
        attempt_s=settings.duration_s("attempt_timeout", defaults.attempt_s),
        connect_s=settings.duration_s("connect_timeout", defaults.connect_s),
        requests=settings.count("requests_max", defaults.requests, low=1, high=10_000),
    )
    return ObjectClient(_open(settings, prefix, limits, 0 if conditional else _RETRIES_MAX), settings.shown, limits)


def _open(settings: StoreUrl, prefix: str, limits: ObjectLimits, retries: int) -> ObjectStore:
    known = {"s3": _S3_TEXTS, "gs": _GS_TEXTS, "az": _AZ_TEXTS}[settings.scheme]
    config: dict[str, Any] = {name: value for name in known if (value := settings.text(name)) is not None}
    flags = {"s3": ("virtual_hosted_style_request", "skip_signature"), "gs": ("skip_signature",)}.get(
        settings.scheme, ("use_emulator", "skip_signature")
    )
    config |= {name: True for name in flags if settings.flag(name, False)}
    settings.finish(", ".join((*known, *flags, _LIMIT_SETTINGS)))
    endpoint = config.get("endpoint") or config.get("base_url") or ""
    if endpoint and not re.match(r"https?://[^/]+", endpoint):
        raise ValueError(f"{settings.shown}: the endpoint must be a http:// or https:// URL")
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=limits.attempt_s),
        "connect_timeout": timedelta(seconds=limits.connect_s),
        "pool_idle_timeout": _IDLE,
    }
    if endpoint.startswith("http://") or config.get("use_emulator"):
        options["allow_http"] = True
    again: dict[str, Any] = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=limits.operation_s),
        "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2},
    }
    arguments: dict[str, Any] = {"config": config, "client_options": options, "retry_config": again}
    if prefix:
        arguments["prefix"] = prefix
    try:
        if settings.scheme == "s3":
            config["disable_bulk_delete"] = True  # one at a time here, and not every imitation of S3 has the other
            return S3Store(settings.host, **arguments)
        if settings.scheme == "gs":
            return GCSStore(settings.host, **arguments)
        return AzureStore(settings.host, **arguments)
    except (BaseError, OSError, ValueError) as error:
        text = _SECRETS.sub(r"\1***", str(error).partition("\n\nDebug source")[0])
        raise ValueError(f"{settings.shown} cannot be opened: {text}") from None
