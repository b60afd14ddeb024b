"""What can go wrong with a shard, and the answers that are results rather than errors."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.runtime import Frontier, InternalError, PenstockError


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An append was computed against another upper than the shard's. Nothing was appended."""

    current_upper: Frontier


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another holder has taken a critical since over. `opaque` and `since` are the current ones."""

    opaque: int
    since: Frontier


class SinceError(PenstockError):
    """A read below `since`: the detail at that time is gone. The smallest readable time is `since`."""

    sqlstate = "22023"

    def __init__(self, shard: str, as_of: int, since: Frontier) -> None:
        super().__init__(f"shard {shard} cannot be read at {as_of}: its since is {since}")
        self.as_of = as_of
        self.since = since


class ReaderExpired(PenstockError):
    """A reader lost its lease (its process slept or hung for longer than the lease). Open a new one."""

    sqlstate = "55000"

    def __init__(self, shard: str, reader: str) -> None:
        super().__init__(
            f"reader {reader} of shard {shard} has expired: it did not renew its lease in time; open a new reader"
        )
        self.shard = shard
        self.reader = reader


class LeaseLost(PenstockError):
    """A part that was handed on for fetching is gone, and so is the lease that kept it: it came too late, or whoever
    leased it has expired. Begin the read anew.
    """

    sqlstate = "55000"

    def __init__(self, shard: str, reader: str, key: str) -> None:
        super().__init__(
            f"part {key} of shard {shard} is gone: reader {reader} has expired, or has returned its lease on the part"
        )
        self.shard = shard
        self.reader = reader


class StatisticsViolated(PenstockError):
    """A part has rows that pass a filter, although its statistics say that it has none. Reads with filters cannot be
    trusted for this part.
    """

    sqlstate = "XX001"

    def __init__(self, shard: str, key: str, filter_: object, rows: int) -> None:
        super().__init__(
            f"part {key} of shard {shard} was left out by its statistics, but {rows} of its rows pass the filter "
            f"{filter_}. This is a defect of Penstock: report it with the part; read without filters until then"
        )
        self.shard = shard
        self.key = key


class CorruptBlobError(PenstockError):
    """A stored part or rollup is missing or damaged. Only this shard is affected."""

    sqlstate = "XX001"

    def __init__(self, shard: str, key: str, problem: str) -> None:
        super().__init__(
            f"blob {key} of shard {shard} is corrupt: {problem}. Restore the object from a backup or replica "
            f"of the blob store under this key, or drop and recreate what has its data in this shard; "
            f"other shards are not affected"
        )
        self.shard = shard
        self.key = key


class CorruptStateError(PenstockError):
    """The state of a shard cannot be rebuilt from consensus and rollups."""

    sqlstate = "XX001"

    def __init__(self, shard: str, problem: str) -> None:
        super().__init__(
            f"the state of shard {shard} cannot be read: {problem}. Restore the consensus store and the blob "
            f"store of this environment from the same backup; other shards are not affected"
        )
        self.shard = shard
        self.problem = problem


class SchemaMismatch(PenstockError):
    """A shard was opened with other columns than it was created with."""

    sqlstate = "42804"


class InvalidUsage(InternalError):
    """A caller broke the contract of a handle (bounds inverted, updates outside, foreign batch). Never
    retried.
    """


class BatchTooOld(PenstockError):
    """A stored batch was kept for longer than it may wait: a sweep may have deleted its blobs. Store it anew."""

    sqlstate = "55000"

    def __init__(self, shard: str, waited_ms: int, limit_ms: int) -> None:
        super().__init__(
            f"a batch for shard {shard} was stored {waited_ms / 1000:.0f} s ago, but can be appended for "
            f"{limit_ms / 1000:.0f} s only (was this process stopped?); write its updates again"
        )
        self.shard = shard


class ClientClosed(PenstockError):
    """The persist client was closed while an operation was under way."""

    sqlstate = "57P01"
