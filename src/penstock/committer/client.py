"""`RpcConsensus`: the consensus store of a process that does not host the committer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer import wire
from penstock.committer.address import CHANNEL_OPTIONS, check_address
from penstock.persist import SCAN_ALL, CasResult, SeqNo, Versioned
from penstock.runtime import Indeterminate

_log = structlog.get_logger("penstock.committer")

TIMEOUT_S = 10.0


class RpcConsensus:
    """A `Consensus` over gRPC. `target` is ``unix:/path`` or ``host:port`` (loopback only, else
    `AddressError`).

    Raises `Indeterminate` when the transport fails in any way or no answer comes within `timeout_s`,
    `Determinate` only when the committer says so, and `InvalidRequest` for arguments outside the protocol's
    limits. A call made while the server is away waits for it until its deadline, so that a restart of the
    server costs callers one wait, not a storm of failures. Belongs to the event loop of its first call. A
    cancelled call may or may not have happened.
    """

    def __init__(self, target: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._target = check_address(target)
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._connected = False
        self._closed = False

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        wire.check_key(key)
        request = pb.HeadRequest(key=key, linearized=linearized)
        ok = await self._call("Head", request, f"reading the head of {key}")
        return wire.from_version(ok.version) if ok.HasField("version") else None

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        wire.check_key(key)
        wire.check_version(new)
        request = pb.CompareAndSetRequest(key=key, version=wire.to_version(new))
        ok = await self._call("CompareAndSet", request, f"setting {key} at seqno {new.seqno}")
        return CasResult.COMMITTED if ok.committed else CasResult.MISMATCH

    async def scan(self, key: str, from_: SeqNo, limit: int = SCAN_ALL) -> list[Versioned]:
        wire.check_key(key)
        wire.check_seqno(from_)
        request = pb.ScanRequest(key=key, from_seqno=from_, limit=limit)
        ok = await self._call("Scan", request, f"reading {key} from seqno {from_}")
        return [wire.from_version(version) for version in ok.versions]

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        wire.check_key(key)
        wire.check_seqno(seqno)
        request = pb.TruncateRequest(key=key, seqno=seqno)
        return int((await self._call("Truncate", request, f"truncating {key} to seqno {seqno}")).deleted)

    async def list_keys(self) -> list[str]:
        return list((await self._call("ListKeys", pb.ListKeysRequest(), "listing the keys")).keys)

    async def close(self) -> None:
        """Ends the connection. Calls in flight fail with `Indeterminate`, as do later ones."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def _call(self, method: str, request: Any, doing: str) -> Any:
        doing = f"{doing} through the committer at {self._target}"
        if self._closed:
            raise Indeterminate(f"{doing}: the client is closed")
        call: Callable[..., Any] = getattr(self._open_stub(), method)
        try:
            response = await call(request, timeout=self._timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise Indeterminate(f"{doing}: {error.code().name}: {error.details()}") from error
        except grpc.aio.UsageError as error:
            raise Indeterminate(f"{doing}: the client was closed meanwhile") from error
        except asyncio.CancelledError as error:
            # Closing a channel cancels its calls; to the caller that is a failure, not a cancellation of its
            # task.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise Indeterminate(f"{doing}: the client was closed meanwhile") from error
        if not self._connected:
            self._connected = True
            _log.info("connected to the committer", target=self._target)
        match response.WhichOneof("result"):
            case "ok":
                return response.ok
            case "err":
                raise wire.from_error(response.err, doing)
            case _:
                raise Indeterminate(f"{doing}: the response has neither a result nor an error")

    def _open_stub(self) -> Any:
        if self._stub is None:
            # Here and not in the constructor: a channel binds to the running event loop.
            _log.info("connecting to the committer", target=self._target)
            self._channel = grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS)
            self._stub = pb_grpc.ConsensusStub(self._channel)  # type: ignore[no-untyped-call]
        return self._stub
