"""SCRAM against libpq and asyncpg, cleartext passwords, TLS, and what is refused without them."""

from __future__ import annotations

import asyncio
import base64
import shutil
import ssl
import struct
import subprocess
from pathlib import Path

import asyncpg
import psycopg
import pytest
from pygwire import messages as m

from penstock.server import Authenticator, AuthMethod, PgServer, ScramVerifier, ServerConfig
from penstock.server.authentication import ScramExchange
from penstock.server.connection import Connection
from penstock.server.messages import ProtocolViolation
from tests.server.fake_session import FakeCoordinator, Serving, serving
from tests.server.wire_client import WireClient

PASSWORD = "pässword ½"


async def _verifiers(user: str) -> ScramVerifier | None:
    return ScramVerifier.of_password(PASSWORD) if user == "materialize" else None


@pytest.fixture(params=list(AuthMethod))
def guarded(request: pytest.FixtureRequest) -> Authenticator:
    return Authenticator(request.param, _verifiers)


def test_the_right_password_and_no_other_gets_in(guarded: Authenticator) -> None:
    with Serving(FakeCoordinator(), authenticator=guarded) as live:
        with psycopg.connect(live.dsn, password=PASSWORD, autocommit=True) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        for user, password in (("materialize", "wrong"), ("nobody", PASSWORD), ("materialize", "")):
            dsn = live.dsn.replace("user=materialize", f"user={user}")
            with pytest.raises(psycopg.OperationalError) as caught:
                psycopg.connect(dsn, password=password or "\u00a0")
            assert f'password authentication failed for user "{user}"' in str(caught.value)

        async def with_asyncpg() -> None:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=live.port, user="materialize", password=PASSWORD, database="d", ssl=False
            )
            assert await connection.fetchval("select 1") == 1
            await connection.close()
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(
                    host="127.0.0.1", port=live.port, user="materialize", password="no", database="d", ssl=False
                )

        asyncio.run(with_asyncpg())
        assert len(live.coordinator.connects) == 2


def test_a_verifier_survives_its_text_form_and_is_no_password() -> None:
    verifier = ScramVerifier.of_password(PASSWORD)
    text = str(verifier)
    assert ScramVerifier.parse(text) == verifier
    assert text.startswith("SCRAM-SHA-256$4096:")
    assert PASSWORD not in text
    assert verifier.accepts(PASSWORD)
    assert not verifier.accepts(PASSWORD + "x")
    assert str(ScramVerifier.of_password(PASSWORD)) != text  # salted
    for bad in ("", "md5abc", "SCRAM-SHA-1$1:a$b:c", "SCRAM-SHA-256$x:a$b:c"):
        with pytest.raises(ValueError):
            ScramVerifier.parse(bad)


def test_scram_matches_the_example_of_rfc_7677() -> None:
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    exchange = ScramExchange(ScramVerifier.of_password("pencil", salt=salt), "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    first = exchange.first("n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    assert first == "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    proof = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    final = f"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p={proof}"
    assert exchange.final(final) == "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert exchange.final(final.replace("dHzb", "dHzc")) is None
    for bad in (
        "",
        "c=biws",
        final.replace("c=biws", "c=eSws"),
        final.replace("p=", "p=!"),
        final.replace("r=rO", "r=rX"),
    ):
        with pytest.raises(ProtocolViolation):
            exchange.final(bad)
    for bad in ("", "p=tls-unique,,n=,r=x", "n,a=me,n=,r=x", "n,,r=x", "q,,n=,r=x"):
        with pytest.raises(ProtocolViolation):
            exchange.first(bad)


def test_messages_before_authentication_are_bounded_and_typed(guarded: Authenticator) -> None:
    async def main() -> None:
        coordinator = FakeCoordinator()
        async with serving(coordinator, authenticator=guarded) as server:
            for data in (
                m.Query("select 1").to_wire(),
                b"p" + struct.pack("!i", 100_000) + bytes(100),
                b"p\x00\x00\x00\x05x",
                b"p\x00\x00\x00\x04",
            ):
                client = await WireClient.open(server.port)
                client.send_raw(m.StartupMessage({"user": "materialize"}).to_wire() + data)
                assert b"08P01" in await client.to_the_end()
            assert coordinator.connects == []

    asyncio.run(main())


def test_without_passwords_only_loopback_is_served() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", ""):
        with pytest.raises(ValueError, match="without passwords"):
            PgServer(FakeCoordinator(), ServerConfig(host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        PgServer(FakeCoordinator(), ServerConfig(host=host))
    PgServer(FakeCoordinator(), ServerConfig(host="0.0.0.0", authenticator=Authenticator(AuthMethod.SCRAM, _verifiers)))
    with pytest.raises(ValueError, match="TLS context"):
        PgServer(FakeCoordinator(), ServerConfig(require_tls=True))


def test_cleartext_is_not_asked_for_on_an_unsafe_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "_peer", lambda self: ("192.0.2.1:5", False))
    cleartext = Authenticator(AuthMethod.CLEARTEXT, _verifiers)
    refused = pytest.raises(psycopg.OperationalError, match="needs an encrypted connection")
    with Serving(FakeCoordinator(), authenticator=cleartext) as live, refused:
        psycopg.connect(live.dsn, password=PASSWORD)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    place: Path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-keyout {place}/key -out {place}/cert".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{place}/cert", f"{place}/key")
    return context


def test_tls_carries_queries_and_passwords(tls: ssl.SSLContext, guarded: Authenticator) -> None:
    with Serving(FakeCoordinator(), tls=tls, require_tls=True, authenticator=guarded) as live:
        secure = live.dsn.replace("sslmode=disable", "sslmode=require")
        with psycopg.connect(secure, password=PASSWORD, autocommit=True) as connection:
            assert connection.pgconn.ssl_in_use
            rows = connection.execute("select n, repeat('x', 100) from range(100000) t(n)").fetchall()
            assert len(rows) == 100_000
        with pytest.raises(psycopg.OperationalError, match="accepts encrypted connections only"):
            psycopg.connect(live.dsn, password=PASSWORD)


def test_plaintext_smuggled_before_tls_is_refused(tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with serving(FakeCoordinator(), tls=tls) as server:
            client = await WireClient.open(server.port)
            client.send_raw(struct.pack("!ii", 8, 80_877_103) + m.StartupMessage({"user": "u"}).to_wire())
            assert b"unencrypted data after SSL request" in await client.to_the_end()
            client = await WireClient.open(server.port)
            client.send_raw(struct.pack("!ii", 8, 80_877_103))
            assert await client.reader.readexactly(1) == b"S"
            client.send_raw(b"this is no handshake" * 10)
            await client.to_the_end()
            (await WireClient.started(server.port)).close()

    asyncio.run(main())
