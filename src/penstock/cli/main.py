"""Arguments of the ``penstock`` command. Rooms are imported by the command that needs them: ``--help`` is quick."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

import penstock

app = typer.Typer(
    name="penstock",
    help="A streaming SQL database: tables in, incrementally maintained views out, over the PostgreSQL protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class LogLevel(enum.StrEnum):
    """How much is logged to standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the committer's bearer token; without it PENSTOCK_COMMITTER_TOKEN.",
        envvar="PENSTOCK_COMMITTER_TOKEN_FILE",
    ),
]
TlsCert = Annotated[Path | None, typer.Option(help="PEM certificate that the committer's peers are shown.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM key of that certificate.")]
TlsCa = Annotated[Path | None, typer.Option(help="PEM certificate of the authority that signed the peers'.")]


@app.command()
def serve(
    data_dir: Annotated[
        Path,
        typer.Option(
            help="Where all data without a store of its own is kept; created when missing.", envvar="PENSTOCK_DATA_DIR"
        ),
    ] = Path("penstock-data"),
    consensus: Annotated[
        str,
        typer.Option(
            help="URL of the store of shard states: postgres://…, sqlite:FILE, s3://…, gs://…, az://…. "
            "A file in the data directory when not given.",
            envvar="PENSTOCK_CONSENSUS_URL",
        ),
    ] = "",
    blob: Annotated[
        str,
        typer.Option(
            help="URL of the store of data: s3://…, gs://…, az://…, file:DIRECTORY. "
            "Files in the data directory when not given.",
            envvar="PENSTOCK_BLOB_URL",
        ),
    ] = "",
    external_committer: Annotated[
        str,
        typer.Option(
            help="Address of a `penstock persistd`, unix:/path or host:port: coordinator and replicas reach the store "
            "of shard states through it; --consensus is then needed only where persist_consensus_use_committer is off.",
            envvar="PENSTOCK_EXTERNAL_COMMITTER",
        ),
    ] = "",
    token_file: TokenFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    host: Annotated[str, typer.Option(help="The address to listen on; only loopback addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.", min=0, max=65535)] = 6875,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log to standard error.")] = LogLevel.INFO,
) -> None:
    """Run the database: coordinator, committer and one replica process, until Ctrl-C or SIGTERM."""
    from penstock.cli.logs import configure_logs
    from penstock.cli.serve import Stores, run
    from penstock.committer import CredentialFiles

    configure_logs(log_level.value)
    files = CredentialFiles(token_file, tls_cert, tls_key, tls_ca)
    stores = Stores(consensus, blob, external_committer, files)
    raise typer.Exit(run(data_dir, host, port, stores))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def clusterd(context: typer.Context) -> None:
    """Run a replica: the process that computes dataflows. Its own --help tells its options."""
    from penstock.replica import main as replica

    raise typer.Exit(replica(context.args))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def inspect(context: typer.Context) -> None:
    """Look into the shards of a database, running or not: state, blobs, usage, transactions. See its own --help."""
    from penstock.cli.inspect import app as inspections

    inspections(context.args, prog_name="penstock inspect")


@app.command()
def persistd(
    listen: Annotated[
        str, typer.Option(help="unix:/path or host:port; other than loopback only with mutual TLS or a token.")
    ],
    consensus_url: Annotated[
        str, typer.Option(help="The consensus store, such as postgres://USER@HOST/DB.", envvar="PENSTOCK_CONSENSUS_URL")
    ],
    metrics_listen: Annotated[
        str | None, typer.Option(help="host:port for Prometheus; without it no metrics are served.")
    ] = None,
    stats_interval: Annotated[
        float, typer.Option(help="Seconds between lines that sum up what was done; 0 for none.", min=0)
    ] = 30.0,
    cache_shards: Annotated[int, typer.Option(help="Shards whose newest version is cached.", min=0)] = 10_000,
    token_file: TokenFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log to standard error.")] = LogLevel.INFO,
) -> None:
    """Run the consensus committer alone, next to the metadata store, until Ctrl-C or SIGTERM."""
    from penstock.cli.logs import configure_logs
    from penstock.cli.persistd import run
    from penstock.cli.stopping import refuse
    from penstock.committer import CredentialFiles, CredentialsError, PersistdConfig

    configure_logs(log_level.value)
    try:
        credentials = CredentialFiles(token_file, tls_cert, tls_key, tls_ca).load()
    except CredentialsError as error:
        raise typer.Exit(refuse(str(error))) from error
    config = PersistdConfig(
        consensus_url=consensus_url,
        listen=listen,
        credentials=credentials,
        metrics_listen=metrics_listen,
        stats_interval_s=stats_interval,
        cache_shards=cache_shards,
    )
    raise typer.Exit(run(config))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"penstock {penstock.__version__} (Python {sys.version.split()[0]})")


def main() -> None:
    """The entry point of the installed command; exits the process."""
    app()
