"""The process that runs dataflows: command server, reconciliation, peeks, frontier reports.

The room carries out the compute protocol (`compute.proto`) for whoever connects: it builds dataflows from
descriptions, feeds them from shards, answers reads and reports frontiers. Its contract upwards: reported frontiers
never lie or regress within a session; trouble with one object is that object's status and its frozen frontier, while
everything else goes on; the process may be killed at any moment and told anew. It knows nothing of SQL, the catalog,
or why it runs what it runs.
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a replica (``penstock clusterd``) until it is told to end. Returns the exit code."""
    from penstock.replica.process import main  # controllers, which only speak the protocol, do not load all this

    return main(arguments)
