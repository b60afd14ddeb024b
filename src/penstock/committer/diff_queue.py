"""The bounded queue of pushed diffs that both ends of the pub-sub stream keep for the other."""

from __future__ import annotations

from collections import deque

from prometheus_client import Counter

from penstock.committer import committer_pb2 as pb
from penstock.committer import wire
from penstock.persist import ShardId, Versioned

DIFFS_MAX = 8_192
BYTES_MAX = 32 << 20
MESSAGE_DIFFS_MAX = 1_024
MESSAGE_BYTES_MAX = 1 << 20


class DiffQueue:
    """At most `DIFFS_MAX` diffs and `BYTES_MAX` bytes; what is too much drops the oldest, and `dropped`
    counts it.

    The oldest, because the newest tells a reader most: from a gap it sees at once that it must fetch.
    """

    def __init__(self, dropped: Counter) -> None:
        self._diffs: deque[tuple[ShardId, Versioned]] = deque()
        self._nbytes = 0
        self._dropped = dropped

    def __len__(self) -> int:
        return len(self._diffs)

    def put(self, shard: ShardId, version: Versioned) -> None:
        self._diffs.append((shard, version))
        self._nbytes += len(version.data)
        while len(self._diffs) > DIFFS_MAX or (self._nbytes > BYTES_MAX and len(self._diffs) > 1):
            _, oldest = self._diffs.popleft()
            self._nbytes -= len(oldest.data)
            self._dropped.inc()

    def take_message(self) -> list[pb.PushDiff]:
        """Take the oldest diffs, as many as one message should carry; empty when there are none."""
        taken: list[pb.PushDiff] = []
        nbytes = 0
        while self._diffs and len(taken) < MESSAGE_DIFFS_MAX and nbytes < MESSAGE_BYTES_MAX:
            shard, version = self._diffs.popleft()
            nbytes += len(version.data)
            taken.append(pb.PushDiff(shard=shard, version=wire.to_version(version)))
        self._nbytes -= nbytes
        return taken
