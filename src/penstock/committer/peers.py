"""Who connects and who is turned away, said once per peer and not once per call."""

from __future__ import annotations

import structlog

from penstock.committer import metrics

_log = structlog.get_logger("penstock.committer")

PEERS_MAX = 1_000
"""Remembered per kind of event; beyond that only the metrics tell."""


class Peers:
    """What was logged about whom. `peer` is gRPC's text, ``ipv4:10.0.0.7:4711``; its port is left out."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def connected(self, peer: str) -> None:
        """Log `connection from ADDR` for the first one of an address."""
        if self._first("connection", _address(peer)):
            _log.info("connection from", address=_address(peer))

    def refused(self, peer: str, reason: str, why: str) -> None:
        """Count what was turned away, by `reason` (a word); log it for the first time from an address."""
        metrics.REFUSED.labels(reason).inc()
        if self._first(reason, _address(peer)):
            _log.warning("refused", address=_address(peer), reason=reason, why=why)

    def _first(self, event: str, address: str) -> bool:
        seen = self._seen.setdefault(event, set())
        if address in seen or len(seen) >= PEERS_MAX:
            return False
        seen.add(address)
        return True


def _address(peer: str) -> str:
    if peer.startswith("unix"):
        return "unix socket"
    return peer.rpartition(":")[0] or peer
