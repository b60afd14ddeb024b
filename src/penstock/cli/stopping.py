"""How a process ends: asked by a signal it stops in order, asked twice or too slow it stops at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable
from contextlib import suppress

STOP_S = 4.5
"""A process that has not stopped by then is cut off."""


def stop_on_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set. From then on the process has `STOP_S` to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _begin_to_stop, stop)
    return stop


async def unless_stopped(work: Awaitable[None], stop: asyncio.Event) -> bool:
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


def cut_off_later() -> None:
    """End the process in `STOP_S` seconds whatever hangs: nothing acknowledged depends on an orderly end."""

    def cut_off() -> None:
        print("penstock: stopping took too long; cut off (nothing acknowledged is lost)", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(STOP_S, cut_off)
    timer.daemon = True
    timer.start()


def refuse(message: str) -> int:
    """Say on standard error why the process ends; returns the exit code for it."""
    print(f"penstock: {message}", file=sys.stderr, flush=True)
    return 1


def _begin_to_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)  # asked twice: at once
    stop.set()
    cut_off_later()
