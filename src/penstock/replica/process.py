"""``penstock clusterd``: the process that runs dataflows.

One asyncio loop for gRPC and persist, one thread for the dataflow worker, a few for queries. The process keeps
nothing that matters: it may be killed at any moment. It ends within a second of SIGTERM or SIGINT, or, with
``--end-with-stdin``, of its parent's death, which closes its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import structlog

from penstock.committer import (
    SERVER_OPTIONS,
    AddressError,
    CredentialFiles,
    CredentialsError,
    RoutedConsensus,
    RpcConsensus,
    RpcPubSub,
    check_address,
)
from penstock.dataflow import Dataflow, Worker
from penstock.persist import PersistClient, open_blob
from penstock.replica import compute_pb2 as pb
from penstock.replica import compute_pb2_grpc as pb_grpc
from penstock.replica.instance import Instance
from penstock.replica.server import ComputeService
from penstock.runtime import ExternalError, SystemClock

_log = structlog.get_logger("penstock.replica")

_SHUTDOWN_SECONDS = 0.8
_CONSENSUS_URL = "PENSTOCK_CONSENSUS_URL"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a replica until it is told to end. Returns the exit code."""
    options = _parse(arguments)
    _log_to_stderr()
    os.umask(0o077)  # the socket is for this user only
    asyncio.run(_serve(options))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="penstock clusterd", description="Run dataflows for a coordinator.")
    parser.add_argument("--listen", required=True, type=check_address, help="unix:/path or loopback host:port")
    parser.add_argument("--consensus", required=True, help="address of the committer")
    CredentialFiles.add_options(parser)
    parser.add_argument(
        "--blob",
        default=os.environ.get("PENSTOCK_BLOB_URL"),
        help="URL of the blob store, such as file:/path; one with a secret belongs into PENSTOCK_BLOB_URL instead",
    )
    parser.add_argument(
        "--end-with-stdin", action="store_true", help="end when standard input does: when the parent has died"
    )
    options = parser.parse_args(arguments)
    if not options.blob:
        parser.error("say where the blobs are: --blob URL or PENSTOCK_BLOB_URL")
    try:
        options.credentials = CredentialFiles.of(options).load()
        authenticated = options.credentials.token is not None or options.credentials.tls
        check_address(options.consensus, authenticated=authenticated)
    except (AddressError, CredentialsError) as error:
        parser.error(str(error))
    return options


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    if options.end_with_stdin:
        _stop_on_end_of_stdin(stop)
    clock = SystemClock()
    committer = RpcConsensus(options.consensus, credentials=options.credentials)
    consensus = RoutedConsensus(committer, os.environ.get(_CONSENSUS_URL))
    pubsub = RpcPubSub(options.consensus, credentials=options.credentials)
    blob = open_blob(options.blob)
    client = PersistClient(blob, consensus, clock=clock, pubsub=pubsub)
    worker = Worker(on_failure=lambda dataflow, error: _post_failure(loop, instance, dataflow, error))
    loop = asyncio.get_running_loop()
    instance = Instance(client, worker, clock, os.urandom(16), partial(_configure, consensus))
    halt = threading.Event()
    thread = threading.Thread(target=worker.run, args=(halt,), name="worker", daemon=True)
    thread.start()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    pb_grpc.add_ComputeServicer_to_server(ComputeService(instance), server)  # type: ignore[no-untyped-call]
    _make_way_for(options.listen)
    server.add_insecure_port(options.listen)
    await server.start()
    _log.info("replica ready", listen=options.listen, consensus=options.consensus, pid=os.getpid())
    await stop.wait()
    _log.info("replica ends")
    with suppress(TimeoutError):
        async with asyncio.timeout(_SHUTDOWN_SECONDS):
            await server.stop(grace=0)
            await instance.close()
            await client.close()
            await pubsub.close()
            await consensus.close()
            await committer.close()
            await blob.close()
    halt.set()
    worker.activate()
    sys.stderr.flush()
    os._exit(0)  # whatever still waits for a store must not hold the process; nothing here is worth waiting for


def _configure(consensus: RoutedConsensus, settings: pb.Configure) -> None:
    if not settings.bypass_committer:
        consensus.use_committer()
        return
    try:
        consensus.use_store()
    except (ValueError, ExternalError) as error:
        _log.error(f"the committer is not bypassed: {error}; {_CONSENSUS_URL} says where the store is")


def _log_to_stderr() -> None:
    """One plain line per event: the parent collects them in a file."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
    )


def _post_failure(
    loop: asyncio.AbstractEventLoop, instance: Instance, dataflow: Dataflow, error: BaseException
) -> None:
    with suppress(RuntimeError):  # the loop is closed: the process ends
        loop.call_soon_threadsafe(instance.dataflow_failed, dataflow, error)


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _begin_to_stop, stop)


def _stop_on_end_of_stdin(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        with suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(_begin_to_stop, stop)
        _exit_soon()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _begin_to_stop(stop: asyncio.Event) -> None:
    stop.set()
    _exit_soon()


def _exit_soon() -> None:
    """End the process even if the loop or the worker hangs."""
    timer = threading.Timer(1.0, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _make_way_for(listen: str) -> None:
    """Remove the socket that a killed process of this replica has left."""
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).unlink(missing_ok=True)
