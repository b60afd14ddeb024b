"""The log of one key as objects: a small head that is replaced, and immutable segments (docs/rfcs/0005).

Pure: everything here computes the next value of a log or turns one into bytes. Who writes it, and under which
condition, is `object_consensus`.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, NamedTuple, TypeVar

import msgspec

from penstock.persist.store import SEQNO_END, SeqNo, StoreUnusable, Versioned

T = TypeVar("T")

HEAD_BYTES_MAX = 64 << 10
"""A head that would grow beyond this moves its versions to a segment first (a single version may be larger)."""

_VERSION_OVERHEAD = 16
_HEAD_MAGIC = b"PSL1"
_SEGMENT_MAGIC = b"PSG1"
_SEGMENT_NAME = re.compile(r"(\d{13})-(\d{13})-[0-9a-f]{32}")


class Segment(NamedTuple):
    """Versions `first` to `last` in an object of their own. `id`: makes its name unique."""

    first: int
    last: int
    id: str

    @property
    def name(self) -> str:
        return f"{self.first:013}-{self.last:013}-{self.id}"


class Log(msgspec.Struct, frozen=True, array_like=True):
    """What the head object says: the live versions are `floor` to `head`, without gaps.

    `segments` hold those before `first`, in order, and may begin with some below `floor`; `versions` are those from
    `first` on, never none. New fields go at the end, with defaults.
    """

    floor: int
    segments: list[Segment]
    first: int
    versions: list[bytes]

    @property
    def head(self) -> Versioned:
        return Versioned(SeqNo(self.first + len(self.versions) - 1), self.versions[-1])

    @property
    def age(self) -> tuple[int, int]:
        """Grows with every change of the log."""
        return self.first + len(self.versions), self.floor

    def spill(self, id_: str) -> tuple[Segment, Log]:
        """All versions of the head as a segment, and the log that refers to it; to be appended to at once."""
        segment = Segment(self.first, self.head.seqno, id_)
        return segment, Log(self.floor, [*self.segments, segment], self.head.seqno + 1, [])

    def is_full(self, more: bytes) -> bool:
        sizes = sum(len(version) + _VERSION_OVERHEAD for version in self.versions)
        return bool(self.versions) and sizes + len(more) > HEAD_BYTES_MAX

    def append(self, data: bytes) -> Log:
        return Log(self.floor, self.segments, self.first, [*self.versions, bytes(data)])

    def truncate(self, seqno: int) -> Log:
        """Without the versions below `seqno`, which is live. Segments that hold only such are dropped."""
        assert self.floor <= seqno <= self.head.seqno, f"{seqno} is not in [{self.floor}, {self.head.seqno}]"
        segments = [segment for segment in self.segments if segment.last >= seqno]
        below = max(0, seqno - self.first)
        return Log(seqno, segments, self.first + below, self.versions[below:])

    def between(self, from_: int, end: int) -> list[Versioned]:
        """Versions of the head object in ``[from_, end)``."""
        start = max(0, from_ - self.first)
        chosen = self.versions[start : max(0, end - self.first)]
        return [Versioned(SeqNo(self.first + start + place), data) for place, data in enumerate(chosen)]


def first_log(data: bytes) -> Log:
    return Log(0, [], 0, [bytes(data)])


def is_garbage(name: str, log: Log) -> bool:
    """Whether the segment `name` is not and can never again be part of the log.

    Whoever writes a segment read a head first. One who read `log` or a later head writes from `log.floor` on; one who
    read an earlier head cannot replace the present one any more.
    """
    match = _SEGMENT_NAME.fullmatch(name)
    return match is not None and int(match[1]) < log.floor and all(name != segment.name for segment in log.segments)


def encode_head(log: Log) -> bytes:
    return _sealed(_HEAD_MAGIC, log)


def decode_head(data: bytes, what: str) -> Log:
    """Raises `StoreUnusable` for anything but a whole head."""
    log = _opened(_HEAD_MAGIC, data, Log, what)
    if not (log.versions and 0 <= log.floor <= log.head.seqno < SEQNO_END):
        raise StoreUnusable(f"{what} is damaged: versions {log.floor} to {log.first + len(log.versions) - 1}")
    return log


def encode_segment(versions: list[bytes]) -> bytes:
    return _sealed(_SEGMENT_MAGIC, versions)


def decode_segment(data: bytes, segment: Segment, what: str) -> list[Versioned]:
    """Raises `StoreUnusable` for anything but the whole segment."""
    versions = _opened(_SEGMENT_MAGIC, data, list[bytes], what)
    if len(versions) != segment.last - segment.first + 1:
        raise StoreUnusable(f"{what} is damaged: it has {len(versions)} versions")
    return [Versioned(SeqNo(segment.first + place), data) for place, data in enumerate(versions)]


def _sealed(magic: bytes, value: Any) -> bytes:
    body = msgspec.msgpack.encode(value)
    return magic + zlib.crc32(body).to_bytes(4, "big") + body


def _opened(magic: bytes, data: bytes, type_: type[T], what: str) -> T:
    body = data[8:]
    if len(data) < 8 or data[:4] != magic or zlib.crc32(body) != int.from_bytes(data[4:8], "big"):
        raise StoreUnusable(f"{what} is damaged, or no object of Penstock's: restore it from a backup")
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except msgspec.DecodeError as error:
        raise StoreUnusable(f"{what} cannot be read: {error}") from error
