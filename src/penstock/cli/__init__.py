"""The ``penstock`` command.

The room owns arguments, exit codes, signals, logs and the data directory; everything else it asks of the rooms below.
Exit codes: 0 for an orderly end, 1 when the server could not start or had to stop, 2 for wrong arguments.
"""

from penstock.cli.main import main

__all__ = ["main"]
