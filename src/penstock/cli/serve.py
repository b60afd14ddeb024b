"""``penstock serve``: one process with everything embedded, and a child per replica.

The order of the end matters: first no new statements (the listener closes and clients are told), then the
coordinator, then the replicas, then the stores, then the lock. Whatever hangs is cut off after a while: nothing
acknowledged depends on an orderly end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import structlog

import penstock
from penstock.adapter import Environment, EnvironmentConfig
from penstock.cli.data_directory import DataDirectory, DirectoryInUse
from penstock.cli.stopping import cut_off_later, refuse, stop_on_signals, unless_stopped
from penstock.committer import CredentialFiles
from penstock.runtime import PenstockError
from penstock.server import PgServer, ServerConfig

_log = structlog.get_logger("penstock.serve")


@dataclass(frozen=True)
class Stores:
    """Where state is; what is empty is in the data directory. With an external committer, `consensus` says where that
    one's store is, for bypassing it, and may be empty.
    """

    consensus: str = ""
    blob: str = ""
    external_committer: str = ""
    committer_credentials: CredentialFiles = field(default_factory=CredentialFiles)


def run(data_dir: Path, host: str, port: int, stores: Stores) -> int:
    """Serve until told to stop. Returns the exit code; says on standard error why it is not 0."""
    if "mem:" in (stores.consensus, stores.blob):
        return refuse("a store in memory serves no database: its replicas could not see it, and nothing would last")
    try:
        server_config = ServerConfig(host=host, port=port)
        with DataDirectory(data_dir) as directory:
            code = asyncio.run(_serve(directory, server_config, stores))
            if code == 0:
                directory.remove_run_directory()
            return code
    except DirectoryInUse as error:
        return refuse(f"{error}. Stop it first, or choose another --data-dir.")
    except OSError as error:
        return refuse(f"cannot use the data directory {data_dir}: {error}")


async def _serve(directory: DataDirectory, config: ServerConfig, stores: Stores) -> int:
    stop = stop_on_signals()
    environment = Environment(
        EnvironmentConfig(
            consensus_url=stores.consensus or ("" if stores.external_committer else directory.consensus_url),
            blob_url=stores.blob or directory.blob_url,
            run_dir=directory.run_directory(),
            external_committer=stores.external_committer,
            committer_credentials=stores.committer_credentials,
        )
    )
    try:
        if not await unless_stopped(environment.open(), stop):
            return 0
        server = PgServer(environment.coordinator, config)
        try:
            await server.start()
        except OSError as error:
            return refuse(f"cannot listen on {config.host} port {config.port}: {error.strerror or error}")
        try:
            _say_ready(config.host, server.port)
            await unless_stopped(environment.failed(), stop)
        finally:
            await server.close()
        if environment.failure is not None:
            return refuse(f"the server had to stop: {environment.failure}")
        return 0
    except PenstockError as error:
        _log.error("start failed", exc_info=error)
        return refuse(f"the server could not start: {error.message}")
    finally:
        cut_off_later()
        await environment.close()
        _log.info("stopped")


def _say_ready(host: str, port: int) -> None:
    print(
        f"penstock {penstock.__version__} is ready. Connect with: psql -h {host} -p {port} -U materialize materialize",
        flush=True,
    )
