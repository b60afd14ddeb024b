"""What travels between the committer and its clients: values, and errors with their determinacy.

`committer_pb2*.py` are generated from `committer.proto` by ``make proto`` and committed; the path below the
include directory must stay the package's path, because generated code imports itself by it::

    python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src --grpc_python_out=src \
        src/penstock/committer/committer.proto

Errors of the store travel as data, never as gRPC statuses. A status speaks of the transport only and always
means "may or may not have happened"; a determinate error that arrived as one would be retried differently
from what the store said, or for ever.
"""

from __future__ import annotations

from penstock.committer import committer_pb2 as pb
from penstock.persist import SeqNo, StoreFull, StoreUnusable, Versioned
from penstock.runtime import Determinate, ExternalError, Indeterminate

SEQNO_MAX = 2**63 - 1
KEY_BYTES_MAX = 512
DATA_BYTES_MAX = 1 << 30
"""A message must stay below protobuf's own limit of 2 GiB."""

_CAUSES_MAX = 16
_CAUSE_CHARACTERS_MAX = 4_000


class InvalidRequest(StoreUnusable):
    """The request can never succeed: a bug of the caller, or garbage. Nothing reached the store."""


def to_version(version: Versioned) -> pb.Version:
    return pb.Version(seqno=version.seqno, data=version.data)


def from_version(version: pb.Version) -> Versioned:
    return Versioned(SeqNo(version.seqno), version.data)


def check_key(key: str) -> None:
    """Raises `InvalidRequest` unless `key` is a non-empty text of at most `KEY_BYTES_MAX` bytes."""
    size = len(key.encode("utf-8", errors="surrogatepass"))
    if not 0 < size <= KEY_BYTES_MAX:
        raise InvalidRequest(f"a key has 1 to {KEY_BYTES_MAX} bytes, this one {size}: {key[:80]!r}")


def check_seqno(seqno: int) -> None:
    if not 0 <= seqno < SEQNO_MAX:
        raise InvalidRequest(f"seqno {seqno} is outside [0, {SEQNO_MAX})")


def check_version(version: Versioned) -> None:
    check_seqno(version.seqno)
    if len(version.data) > DATA_BYTES_MAX:
        raise InvalidRequest(f"{len(version.data)} bytes at seqno {version.seqno}; {DATA_BYTES_MAX} are possible")


def check_limit(limit: int) -> None:
    if not 0 < limit <= SEQNO_MAX:
        raise InvalidRequest(f"a scan of {limit} versions")


def cause_chain(error: BaseException) -> list[str]:
    """`error` and what caused it, outermost first: the innermost has the store's own words and its
    SQLSTATE.
    """
    causes: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(causes) < _CAUSES_MAX:
        seen.add(id(current))
        name = "" if isinstance(current, ExternalError) else f"{type(current).__name__}: "
        sqlstate = getattr(current, "sqlstate", None)
        suffix = f" (SQLSTATE {sqlstate})" if sqlstate and not isinstance(current, ExternalError) else ""
        causes.append(f"{name}{current}{suffix}"[:_CAUSE_CHARACTERS_MAX])
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return causes


def to_error(error: Exception) -> pb.Error:
    """`error` as data. What is not known to be determinate is indeterminate."""
    if isinstance(error, InvalidRequest):
        determinacy = pb.INVALID
    elif isinstance(error, Determinate):
        determinacy = pb.DETERMINATE
    else:
        determinacy = pb.INDETERMINATE
    return pb.Error(
        determinacy=determinacy,
        causes=cause_chain(error),
        store_full=isinstance(error, StoreFull),
        store_unusable=isinstance(error, StoreUnusable),
    )


def from_error(error: pb.Error, doing: str) -> Exception:
    """The exception that `error` stands for; `doing` says what was tried, and where."""
    message = f"{doing}: " + "; caused by: ".join(error.causes or ["the committer gave no cause"])
    if error.determinacy == pb.DETERMINATE:
        if error.store_full:
            return StoreFull(message)
        return StoreUnusable(message) if error.store_unusable else Determinate(message)
    if error.determinacy == pb.INVALID:
        return InvalidRequest(message)
    return Indeterminate(message)
