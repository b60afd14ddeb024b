"""Who may use a committer: mutual TLS, a bearer token, or both.

A token comes from a file or an environment variable, never from an argument, which every user of the machine could
read. Certificates and keys are PEM files.
"""

from __future__ import annotations

import argparse
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from penstock.committer.address import AddressError, unix_path

TOKEN_VARIABLE = "PENSTOCK_COMMITTER_TOKEN"
TOKEN_BYTES_MIN = 16
_HEADER = "authorization"


class CredentialsError(ValueError):
    """The credentials cannot be used; says which file or variable and why."""


@dataclass(frozen=True)
class Credentials:
    """What one end shows the other and demands of it. Without any: `None` in its place."""

    token: str | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    authority: bytes | None = None
    """Certificate of the authority that must have signed the other end's."""

    def __repr__(self) -> str:  # a token in a traceback is a token in a log
        return f"Credentials(token={'***' if self.token else None}, tls={self.tls})"

    @property
    def tls(self) -> bool:
        return self.authority is not None or self.certificate is not None

    @property
    def authenticates_clients(self) -> bool:
        """Whether a server with these knows its clients."""
        return self.token is not None or (self.certificate is not None and self.authority is not None)

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For a server's TLS port; clients must show a certificate when there is an authority. None: no TLS."""
        if not self.tls:
            return None
        if self.certificate is None or self.key is None:
            raise CredentialsError("a server needs a certificate and its key for TLS")
        pair = [(self.key, self.certificate)]
        mutual = self.authority is not None
        return grpc.ssl_server_credentials(pair, root_certificates=self.authority, require_client_auth=mutual)

    def channel(self, target: str, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        """A channel to `target`, not connected yet. Binds to the running event loop."""
        if not self.tls:
            return grpc.aio.insecure_channel(target, options=options)
        if unix_path(target) is not None:
            raise AddressError(f"TLS is for TCP addresses, {target!r} is a Unix socket")
        credentials = grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
        return grpc.aio.secure_channel(target, credentials, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return () if self.token is None else ((_HEADER, f"Bearer {self.token}"),)

    def admits(self, metadata: Mapping[str, str | bytes]) -> bool:
        """Whether a call with `metadata` shows the token, if there is one."""
        if self.token is None:
            return True
        shown = metadata.get(_HEADER, "")
        shown = shown.encode() if isinstance(shown, str) else shown
        return hmac.compare_digest(shown, f"Bearer {self.token}".encode())


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True)
class CredentialFiles:
    """Where credentials are. As arguments of a process these are harmless; what they lead to is not."""

    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def load(self, environment: Mapping[str, str] = os.environ) -> Credentials:
        """Read the files; without a token file the token is the variable `TOKEN_VARIABLE`, if set.

        Raises `CredentialsError`.
        """
        if (self.certificate is None) != (self.key is None):
            raise CredentialsError("a TLS certificate and its key go together: give both or neither")
        return Credentials(
            token=_token(self.token_file, environment),
            certificate=_read(self.certificate, "TLS certificate"),
            key=_read(self.key, "TLS key"),
            authority=_read(self.authority, "TLS authority"),
        )

    def arguments(self) -> list[str]:
        """What makes another process of ours use the same ones; it inherits the variable by itself."""
        files = zip(_OPTIONS, (self.token_file, self.certificate, self.key, self.authority), strict=True)
        return [text for option, path in files if path is not None for text in (option, str(path.absolute()))]

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        for option, what in _OPTIONS.items():
            parser.add_argument(option, type=Path, help=what)

    @classmethod
    def of(cls, options: argparse.Namespace) -> CredentialFiles:
        """What the options of `add_options` say."""
        return cls(options.token_file, options.tls_cert, options.tls_key, options.tls_ca)


_OPTIONS = {
    "--token-file": f"file with the committer's bearer token; without it the variable {TOKEN_VARIABLE}",
    "--tls-cert": "PEM certificate that the committer is shown",
    "--tls-key": "PEM key of that certificate",
    "--tls-ca": "PEM certificate of the authority that signed the committer's",
}


def _token(path: Path | None, environment: Mapping[str, str]) -> str | None:
    if path is not None:
        where = f"the token file {path}"
        token = (_read(path, "token file") or b"").decode(errors="replace").strip()
    elif TOKEN_VARIABLE in environment:
        where = f"the variable {TOKEN_VARIABLE}"
        token = environment[TOKEN_VARIABLE].strip()
    else:
        return None
    if len(token) < TOKEN_BYTES_MIN or not token.isascii() or not token.isprintable():
        raise CredentialsError(f"{where} holds no token: it must be at least {TOKEN_BYTES_MIN} printable characters")
    return token


def _read(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read the {what} {path}: {error.strerror or error}") from error
