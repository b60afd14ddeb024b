"""The server's door: calls without the token are turned away before any of their messages is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from penstock.committer.credentials import Credentials
from penstock.committer.peers import Peers

_OPEN_PREFIX = "/grpc.health.v1.Health/"
"""Probes carry no secret, and learn none."""


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls that do not show the token of `credentials`."""

    def __init__(self, credentials: Credentials, peers: Peers) -> None:
        self._credentials = credentials
        self._peers = peers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        if method.startswith(_OPEN_PREFIX) or self._credentials.admits(metadata):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, requests: Any, context: grpc.aio.ServicerContext) -> None:
        why = "a call without the committer's token, or with a wrong one"
        self._peers.refused(context.peer(), "token", why)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
