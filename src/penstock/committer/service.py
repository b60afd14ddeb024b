"""The gRPC service `Consensus`: checks requests, calls the committer, and sends results and errors as
data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import structlog

from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.committer import metrics, wire
from penstock.persist import CasResult, Consensus, SeqNo
from penstock.runtime import Clock, Determinate

_log = structlog.get_logger("penstock.committer")

Answer = TypeVar("Answer")


class ConsensusService(pb_grpc.ConsensusServicer):
    """Answers every call with ``ok`` or ``err``; only a broken transport shows as a status."""

    def __init__(self, consensus: Consensus, clock: Clock) -> None:
        self._consensus = consensus
        self._clock = clock

    async def Head(self, request: pb.HeadRequest, context: grpc.aio.ServicerContext) -> pb.HeadResponse:
        async def head() -> pb.HeadResponse:
            wire.check_key(request.key)
            version = await self._consensus.head(request.key, linearized=request.linearized)
            return pb.HeadResponse(ok=pb.HeadResult(version=None if version is None else wire.to_version(version)))

        return await self._answer("head", request.key, head, lambda err: pb.HeadResponse(err=err))

    async def Scan(self, request: pb.ScanRequest, context: grpc.aio.ServicerContext) -> pb.ScanResponse:
        async def scan() -> pb.ScanResponse:
            wire.check_key(request.key)
            wire.check_seqno(request.from_seqno)
            if not 0 < request.limit <= wire.SEQNO_MAX:
                raise wire.InvalidRequest(f"a scan of {request.limit} versions")
            versions = await self._consensus.scan(request.key, SeqNo(request.from_seqno), request.limit)
            return pb.ScanResponse(ok=pb.ScanResult(versions=[wire.to_version(v) for v in versions]))

        return await self._answer("scan", request.key, scan, lambda err: pb.ScanResponse(err=err))

    async def CompareAndSet(
        self, request: pb.CompareAndSetRequest, context: grpc.aio.ServicerContext
    ) -> pb.CompareAndSetResponse:
        async def compare_and_set() -> pb.CompareAndSetResponse:
            wire.check_key(request.key)
            if not request.HasField("version"):
                raise wire.InvalidRequest("a compare-and-set without a version")
            version = wire.from_version(request.version)
            wire.check_version(version)
            result = await self._consensus.compare_and_set(request.key, version)
            return pb.CompareAndSetResponse(ok=pb.CompareAndSetResult(committed=result is CasResult.COMMITTED))

        return await self._answer(
            "compare_and_set", request.key, compare_and_set, lambda err: pb.CompareAndSetResponse(err=err)
        )

    async def Truncate(self, request: pb.TruncateRequest, context: grpc.aio.ServicerContext) -> pb.TruncateResponse:
        async def truncate() -> pb.TruncateResponse:
            wire.check_key(request.key)
            wire.check_seqno(request.seqno)
            deleted = await self._consensus.truncate(request.key, SeqNo(request.seqno))
            return pb.TruncateResponse(ok=pb.TruncateResult(deleted=deleted))

        return await self._answer("truncate", request.key, truncate, lambda err: pb.TruncateResponse(err=err))

    async def ListKeys(self, request: pb.ListKeysRequest, context: grpc.aio.ServicerContext) -> pb.ListKeysResponse:
        async def list_keys() -> pb.ListKeysResponse:
            return pb.ListKeysResponse(ok=pb.ListKeysResult(keys=await self._consensus.list_keys()))

        return await self._answer("list_keys", "", list_keys, lambda err: pb.ListKeysResponse(err=err))

    async def _answer(
        self,
        op: str,
        key: str,
        call: Callable[[], Awaitable[Answer]],
        failed: Callable[[pb.Error], Answer],
    ) -> Answer:
        started = self._clock.monotonic()
        inflight = metrics.INFLIGHT.labels(op)
        inflight.inc()
        result = "cancelled"
        try:
            answer = await call()
            result = "ok"
            return answer
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # Everything a store can throw must reach the client with its causes: an escaped exception would
            # become a bare status without them.
            result = _kind(error)
            if result == "indeterminate":
                _log.warning("the consensus store failed", op=op, shard=key, causes=wire.cause_chain(error))
            return failed(wire.to_error(error))
        finally:
            inflight.dec()
            metrics.RPC_TOTAL.labels(op, result).inc()
            metrics.RPC_SECONDS.labels(op).observe(self._clock.monotonic() - started)


def _kind(error: Exception) -> str:
    if isinstance(error, wire.InvalidRequest):
        return "invalid"
    return "determinate" if isinstance(error, Determinate) else "indeterminate"
