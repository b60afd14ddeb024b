"""`RpcConsensus`: the consensus store of a process that does not host the committer."""

from __future__ import annotations

from collections.abc import Callable

from penstock.committer import committer_pb2 as pb
from penstock.committer import wire
from penstock.committer.address import check_address
from penstock.committer.credentials import NO_CREDENTIALS, Credentials
from penstock.committer.operations import CallFailed, ConnectionLog, Fill, OperationStream
from penstock.persist import SCAN_ALL, CasResult, SeqNo, Versioned
from penstock.runtime import Clock, Indeterminate, SystemClock

TIMEOUT_S = 10.0


class RpcConsensus:
    """A `Consensus` over gRPC. `target` is ``unix:/path`` or ``host:port`` (loopback only unless `credentials` say
    who we are, else `AddressError`).

    Raises `Indeterminate` when the transport fails in any way or no answer comes within `timeout_s`,
    `Determinate` only when the committer says so, `InvalidRequest` for arguments outside the protocol's
    limits, and `StoreUnusable` when the committer does not admit us. A call made while the server is away waits for it
    until its deadline, so that a restart of the server costs callers one wait, not a storm of failures. Belongs to the
    event loop of its first call. A cancelled call may or may not have happened.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: Credentials = NO_CREDENTIALS,
        timeout_s: float = TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        authenticated = credentials.token is not None or credentials.tls
        self._target = check_address(target, authenticated=authenticated)
        clock = clock if clock is not None else SystemClock()
        # Two streams: an answer of many megabytes must not stand in the way of the small ones, which are waited for.
        log = ConnectionLog(self._target)
        self._small = OperationStream(self._target, credentials, timeout_s, clock, log)
        self._large = OperationStream(self._target, credentials, timeout_s, clock, log)

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        wire.check_key(key)

        def fill(request: pb.Request) -> None:
            request.head.key = key
            request.head.linearized = linearized

        result = await self._call(self._small, fill, 0, "head", lambda: f"reading the head of {key}")
        return wire.from_version(result.head.version) if result.head.HasField("version") else None

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        wire.check_key(key)
        wire.check_version(new)

        def fill(request: pb.Request) -> None:
            change = request.compare_and_set
            change.key = key
            change.seqno = new.seqno
            change.data = new.data

        doing = lambda: f"setting {key} at seqno {new.seqno}"  # noqa: E731
        result = await self._call(self._small, fill, len(new.data), "committed", doing)
        return CasResult.COMMITTED if result.committed else CasResult.MISMATCH

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        wire.check_key(key)
        wire.check_seqno(from_)
        wire.check_limit(limit)

        def fill(request: pb.Request) -> None:
            request.scan.key = key
            request.scan.from_seqno = from_
            request.scan.limit = limit

        result = await self._call(self._large, fill, 0, "scan", lambda: f"reading {key} from seqno {from_}")
        return [wire.from_version(version) for version in result.scan.versions]

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        wire.check_key(key)
        wire.check_seqno(seqno)

        def fill(request: pb.Request) -> None:
            request.truncate.key = key
            request.truncate.seqno = seqno

        result = await self._call(self._large, fill, 0, "deleted", lambda: f"truncating {key} to seqno {seqno}")
        return int(result.deleted)

    async def list_keys(self) -> list[str]:
        result = await self._call(
            self._large, lambda request: request.list_keys.SetInParent(), 0, "list_keys", lambda: "listing the keys"
        )
        return list(result.list_keys.keys)

    async def close(self) -> None:
        """Ends the connection. Calls in flight fail with `Indeterminate`, as do later ones."""
        await self._small.close()
        await self._large.close()

    async def _call(
        self, stream: OperationStream, fill: Fill, nbytes: int, expected: str, doing: Callable[[], str]
    ) -> pb.Response:
        try:
            response = await stream.call(fill, nbytes)
        except CallFailed as failed:
            raise failed.kind(f"{self._saying(doing)}: {failed}") from failed.__cause__
        kind = response.WhichOneof("result")
        if kind == "err":
            raise wire.from_error(response.err, self._saying(doing))
        if kind != expected:
            raise Indeterminate(f"{self._saying(doing)}: the answer has {kind or 'neither a result nor an error'}")
        return response

    def _saying(self, doing: Callable[[], str]) -> str:
        return f"{doing()} through the committer at {self._target}"
