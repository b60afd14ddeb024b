"""``penstock serve``: one process with everything embedded, and a child per replica.

The order of the end matters: first no new statements (the listener closes and clients are told), then the
coordinator, then the replicas, then the stores, then the lock. Whatever hangs is cut off after `STOP_S`: nothing
acknowledged depends on an orderly end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import structlog

import penstock
from penstock.adapter import Environment, EnvironmentConfig
from penstock.cli.data_directory import DataDirectory, DirectoryInUse
from penstock.runtime import PenstockError
from penstock.server import PgServer, ServerConfig

_log = structlog.get_logger("penstock.serve")

STOP_S = 4.5
"""A server that has not stopped by then is cut off."""


def run(data_dir: Path, host: str, port: int) -> int:
    """Serve until told to stop. Returns the exit code; says on standard error why it is not 0."""
    try:
        server_config = ServerConfig(host=host, port=port)
        with DataDirectory(data_dir) as directory:
            code = asyncio.run(_serve(directory, server_config))
            if code == 0:
                directory.remove_run_directory()
            return code
    except DirectoryInUse as error:
        return _refuse(f"{error}. Stop it first, or choose another --data-dir.")
    except OSError as error:
        return _refuse(f"cannot use the data directory {data_dir}: {error}")


async def _serve(directory: DataDirectory, config: ServerConfig) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _begin_to_stop, stop)
    environment = Environment(
        EnvironmentConfig(
            consensus_url=directory.consensus_url,
            blob_url=directory.blob_url,
            run_dir=directory.run_directory(),
        )
    )
    try:
        if not await _unless_stopped(environment.open(), stop):
            return 0
        server = PgServer(environment.coordinator, config)
        try:
            await server.start()
        except OSError as error:
            return _refuse(f"cannot listen on {config.host} port {config.port}: {error.strerror or error}")
        try:
            _say_ready(config.host, server.port)
            await _unless_stopped(environment.failed(), stop)
        finally:
            await server.close()
        if environment.failure is not None:
            return _refuse(f"the server had to stop: {environment.failure}")
        return 0
    except PenstockError as error:
        _log.error("start failed", exc_info=error)
        return _refuse(f"the server could not start: {error.message}")
    finally:
        _cut_off_later()
        await environment.close()
        _log.info("stopped")


async def _unless_stopped(work: Awaitable[None], stop: asyncio.Event) -> bool:
    """Await `work`; give it up as soon as `stop` is set. True when it ended by itself; raises what it raised."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return False


def _say_ready(host: str, port: int) -> None:
    print(
        f"penstock {penstock.__version__} is ready. Connect with: psql -h {host} -p {port} -U materialize materialize",
        flush=True,
    )


def _begin_to_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)  # asked twice: at once
    stop.set()
    _cut_off_later()


def _cut_off_later() -> None:
    def cut_off() -> None:
        print("penstock: stopping took too long; cut off (nothing acknowledged is lost)", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(STOP_S, cut_off)
    timer.daemon = True
    timer.start()


def _refuse(message: str) -> int:
    print(f"penstock: {message}", file=sys.stderr, flush=True)
    return 1
