"""unknown_determinacy: an answer of a kind that the client does not know was taken for "it did not happen".

A server of another version may say what this client has no word for. Read as indeterminate, the caller reads back; read
as determinate, it would write again what may have happened.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.committer import RpcConsensus
from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.runtime import Determinate, Indeterminate
from tests.committer.batching import version


class FromTheFuture(pb_grpc.ConsensusServicer):
    """Answers with what `answer` makes of a request's id."""

    def __init__(self) -> None:
        self.answer = pb.Response()

    async def Operate(self, requests: Any, context: grpc.aio.ServicerContext) -> None:
        await context.write(pb.Responses())
        while (message := await context.read()) is not grpc.aio.EOF:
            for request in message.requests:
                self.answer.id = request.id
                await context.write(pb.Responses(responses=[self.answer]))


def test_what_is_not_known_may_have_happened(tmp_path: Path) -> None:
    async def main() -> None:
        service = FromTheFuture()
        server = grpc.aio.server()
        pb_grpc.add_ConsensusServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix:{tmp_path}/c")
        await server.start()
        client = RpcConsensus(f"unix:{tmp_path}/c")
        unknown = pb.Error(causes=["a new kind"])
        unknown.determinacy = 99  # type: ignore[assignment]
        for answer in (pb.Response(err=unknown), pb.Response(err=pb.Error()), pb.Response(), pb.Response(deleted=3)):
            service.answer = answer
            with pytest.raises(Indeterminate):
                await client.compare_and_set("s", version(0))
        service.answer = pb.Response(err=pb.Error(determinacy=pb.DETERMINATE, causes=["known"]))
        with pytest.raises(Determinate):
            await client.compare_and_set("s", version(0))
        await client.close()
        await server.stop(0)

    asyncio.run(main())
