"""Where a committer listens, and how channels to it are set up.

The service accepts writes to any shard of its environment. Without a secret it is reached over a Unix socket (mode
0600: the same user) or loopback only; any other address is refused at both ends unless the two authenticate
(`penstock.committer.credentials`).
"""

from __future__ import annotations

import ipaddress

_MESSAGES = [
    # State of a busy shard passes gRPC's default of 4 MiB, and a client that repeats an oversized call spins
    # for ever.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

_KEEPALIVE = [
    # Keepalive alone misses a frozen peer: its timer for the answer is a minute unless `ping_timeout_ms` is
    # set.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

_QUICK_KEEPALIVE = [
    # What waits for a frozen committer holds up every write: it is noticed within 2 seconds.
    ("grpc.keepalive_time_ms", 900),
    ("grpc.keepalive_timeout_ms", 900),
    ("grpc.http2.ping_timeout_ms", 900),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

_RECONNECT = [
    # The default waits up to two minutes before it looks for a server that came back.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
    # A connection of its own: a large scan must not stand in the way of pushed diffs.
    ("grpc.use_local_subchannel_pool", 1),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_MESSAGES,
    *_KEEPALIVE,
    # The clients' pings are wanted: without this the server ends connections that ping "too often".
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    # A second server on the port is an error, not a partner to share connections with.
    ("grpc.so_reuseport", 0),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [*_MESSAGES, *_KEEPALIVE, *_RECONNECT]
"""Of a channel between any two processes of an environment."""

COMMITTER_CHANNEL_OPTIONS: list[tuple[str, int]] = [*_MESSAGES, *_QUICK_KEEPALIVE, *_RECONNECT]
"""Of a channel to a committer."""


class AddressError(ValueError):
    """The address cannot be used for a committer."""


def check_address(address: str, *, authenticated: bool = False) -> str:
    """`address` as gRPC wants it: ``unix:/path`` or ``host:port``. Raises `AddressError`.

    Unless `authenticated`, the host must be a loopback address.
    """
    if address.startswith("unix:"):
        path = unix_path(address)
        if not path:
            raise AddressError(f"no path in {address!r}; write unix:/path/to/socket")
        if len(path.encode()) > 107:
            raise AddressError(f"the socket path {path!r} has more than 107 bytes, the system's limit")
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise AddressError(f"{address!r} is neither unix:/path nor host:port")
    if not authenticated and not is_loopback(host):
        raise AddressError(
            f"{address!r} can be reached from other hosts, and nothing says who may use it: use unix:/path, a loopback"
            " address, or authenticate with mutual TLS or a token"
        )
    return address


def unix_path(address: str) -> str | None:
    """The path of a Unix socket address, None for others."""
    if not address.startswith("unix:"):
        return None
    path = address.removeprefix("unix:")
    return path.removeprefix("//") if path.startswith("///") else path


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or ``localhost``, can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
