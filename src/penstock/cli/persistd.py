"""``penstock persistd``: the committer as a process of its own, until told to stop."""

from __future__ import annotations

import asyncio

import structlog

import penstock
from penstock.cli.stopping import cut_off_later, refuse, stop_on_signals, unless_stopped
from penstock.committer import AddressError, CredentialsError, HopelessStore, Persistd, PersistdConfig

_log = structlog.get_logger("penstock.persistd")


def run(config: PersistdConfig) -> int:
    """Serve until told to stop. Returns the exit code; says on standard error why it is not 0."""
    try:
        daemon = Persistd(config)
    except AddressError as error:
        return refuse(f"persistd: {error}")
    return asyncio.run(_serve(daemon))


async def _serve(daemon: Persistd) -> int:
    stop = stop_on_signals()
    try:
        if not await unless_stopped(daemon.open(), stop):
            return 0
        print(f"penstock {penstock.__version__} persistd is ready on {daemon.address}", flush=True)
        await stop.wait()
        return 0
    except (AddressError, CredentialsError, HopelessStore) as error:
        return refuse(f"persistd could not start: {error}")
    finally:
        cut_off_later()
        await daemon.close()
        _log.info("stopped")
