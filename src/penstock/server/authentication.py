"""Who may connect: SCRAM-SHA-256 (RFC 5802, RFC 7677) and, where the line is safe, cleartext passwords.

Only verifiers are kept, in PostgreSQL's notation ``SCRAM-SHA-256$iterations:salt$stored key:server key``,
so that neither the catalog nor a dump of memory has a password in it. A name that does not exist goes
through the same motions with a verifier made of the server's own secret, and ends with the same error: one
cannot probe for names.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from penstock.runtime import SqlError
from penstock.server.messages import AUTHENTICATION_CLEARTEXT, ProtocolViolation, Reader, sasl
from penstock.server.wire import Wire

ITERATIONS = 4096
_MECHANISM = "SCRAM-SHA-256"
_SASL, _SASL_CONTINUE, _SASL_FINAL = 10, 11, 12


class AuthMethod(enum.Enum):
    SCRAM = "scram-sha-256"
    CLEARTEXT = "password"


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What proves a password without being one."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    @staticmethod
    def of_password(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> ScramVerifier:
        salt = secrets.token_bytes(16) if salt is None else salt
        salted = hashlib.pbkdf2_hmac("sha256", _prepared(password), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return ScramVerifier(iterations, salt, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @staticmethod
    def parse(text: str) -> ScramVerifier:
        """PostgreSQL's notation. ValueError when it is none."""
        mechanism, parameters, keys = text.split("$")
        iterations, salt = parameters.split(":")
        stored, server = keys.split(":")
        if mechanism != _MECHANISM:
            raise ValueError(f"verifier of the unknown kind {mechanism!r}")
        return ScramVerifier(int(iterations), *(base64.b64decode(part) for part in (salt, stored, server)))

    def __str__(self) -> str:
        salt, stored, server = map(_b64, (self.salt, self.stored_key, self.server_key))
        return f"{_MECHANISM}${self.iterations}:{salt}${stored}:{server}"

    def accepts(self, password: str) -> bool:
        other = ScramVerifier.of_password(password, salt=self.salt, iterations=self.iterations)
        return hmac.compare_digest(other.stored_key, self.stored_key)


Verifiers = Callable[[str], Awaitable[ScramVerifier | None]]
"""Looks up the verifier of a user name; None when there is no such user or it has no password."""


class Authenticator:
    """Runs one method over a wire until the client is known or refused."""

    def __init__(self, method: AuthMethod, verifiers: Verifiers) -> None:
        self.method = method
        self._verifiers = verifiers
        self._pepper = secrets.token_bytes(32)

    async def authenticate(self, wire: Wire, user: str, *, safe_line: bool) -> None:
        """Return when `user` has proved itself; SqlError 28P01 or 28000 otherwise.

        `safe_line`: TLS, or the client is on this host; a cleartext password is asked for on no other.
        """
        verifier = await self._verifiers(user)
        known = verifier is not None
        if verifier is None:
            salt = _hmac(self._pepper, user.encode())[:16]
            verifier = ScramVerifier(ITERATIONS, salt, _hmac(self._pepper, salt), _hmac(self._pepper, salt))
        if self.method is AuthMethod.SCRAM:
            accepted = await self._scram(wire, verifier)
        elif safe_line:
            wire.send(AUTHENTICATION_CLEARTEXT)
            body = await _password_message(wire)
            accepted = verifier.accepts(Reader("PasswordMessage", body).cstring())
        else:
            raise SqlError(
                "password authentication in clear text needs an encrypted connection",
                sqlstate="28000",
                hint="Connect with sslmode=require.",
            )
        if not (accepted and known):
            raise SqlError(f'password authentication failed for user "{user}"', sqlstate="28P01")

    async def _scram(self, wire: Wire, verifier: ScramVerifier) -> bool:
        wire.send(sasl(_SASL, _MECHANISM.encode() + b"\x00\x00"))
        reader = Reader("SASLInitialResponse", await _password_message(wire))
        mechanism = reader.cstring()
        if mechanism != _MECHANISM:
            raise ProtocolViolation("client selected an invalid SASL authentication mechanism")
        exchange = ScramExchange(verifier, secrets.token_urlsafe(18))
        first = exchange.first(_ascii(reader.take(reader.int32())))
        wire.send(sasl(_SASL_CONTINUE, first.encode()))
        final = exchange.final(_ascii(await _password_message(wire)))
        if final is None:
            return False
        wire.send(sasl(_SASL_FINAL, final.encode()))
        return True


class ScramExchange:
    """The server's side of one exchange: two messages in, two out; no I/O."""

    def __init__(self, verifier: ScramVerifier, nonce: str) -> None:
        self._verifier = verifier
        self._nonce = nonce
        self._client_first_bare = ""
        self._server_first = ""
        self._header = ""

    def first(self, client_first: str) -> str:
        """Answer client-first-message with server-first-message."""
        binding, _, rest = client_first.partition(",")
        authzid, _, bare = rest.partition(",")
        if binding.startswith("p="):
            raise ProtocolViolation("channel binding was not offered by the server")
        if binding not in ("n", "y") or authzid:
            raise ProtocolViolation("malformed SCRAM message: bad channel binding or authorization identity")
        attributes = bare.split(",")
        if len(attributes) < 2 or not attributes[0].startswith("n=") or not attributes[1].startswith("r="):
            raise ProtocolViolation("malformed SCRAM message: user and nonce expected")
        self._header = f"{binding},,"
        self._client_first_bare = bare
        self._nonce = attributes[1][2:] + self._nonce
        self._server_first = f"r={self._nonce},s={_b64(self._verifier.salt)},i={self._verifier.iterations}"
        return self._server_first

    def final(self, client_final: str) -> str | None:
        """Check client-final-message; the server's signature, or None when the proof is wrong."""
        without_proof, separator, proof_text = client_final.rpartition(",p=")
        expected = f"c={_b64(self._header.encode())},r={self._nonce}"
        if not separator or without_proof != expected:
            raise ProtocolViolation("malformed SCRAM message: channel binding or nonce does not match")
        try:
            proof = base64.b64decode(proof_text, validate=True)
        except binascii.Error:
            raise ProtocolViolation("malformed SCRAM message: proof is not base64") from None
        signed = ",".join((self._client_first_bare, self._server_first, without_proof)).encode()
        signature = _hmac(self._verifier.stored_key, signed)
        if len(proof) != len(signature):
            return None
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key):
            return None
        return f"v={_b64(_hmac(self._verifier.server_key, signed))}"


async def _password_message(wire: Wire) -> bytes:
    kind, body = await wire.receive()
    if kind != b"p":
        raise ProtocolViolation(f"expected a password message, got type {kind!r}")
    return body


def _prepared(password: str) -> bytes:
    """SASLprep as far as it changes anything in practice: compatibility composition (RFC 4013, 2.2)."""
    return password.encode() if password.isascii() else unicodedata.normalize("NFKC", password).encode()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _ascii(data: bytes) -> str:
    try:
        return data.decode("ascii" if data.isascii() else "utf-8")
    except UnicodeDecodeError:
        raise ProtocolViolation("malformed SCRAM message: not UTF-8") from None
