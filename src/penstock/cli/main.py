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


@app.command()
def serve(
    data_dir: Annotated[
        Path, typer.Option(help="Where all data is kept; created when it does not exist.", envvar="PENSTOCK_DATA_DIR")
    ] = Path("penstock-data"),
    host: Annotated[str, typer.Option(help="The address to listen on; only loopback addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.", min=0, max=65535)] = 6875,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log to standard error.")] = LogLevel.INFO,
) -> None:
    """Run the database: coordinator, committer and one replica process, until Ctrl-C or SIGTERM."""
    from penstock.cli.logs import configure_logs
    from penstock.cli.serve import run

    configure_logs(log_level.value)
    raise typer.Exit(run(data_dir, host, port))


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
def version() -> None:
    """Print the version."""
    typer.echo(f"penstock {penstock.__version__} (Python {sys.version.split()[0]})")


def main() -> None:
    """The entry point of the installed command; exits the process."""
    app()
