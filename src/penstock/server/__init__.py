"""The PostgreSQL wire protocol, version 3.0, over asyncio.

The room owns sockets, framing, authentication, formats of values and COPY streams. It drives sessions
through the protocols of `penstock.adapter.session_api` and knows nothing of planning, dataflows or shards.
Its promises to clients: results stream with back-pressure both ways; "done" is said when it is durable; a
malformed message ends its own connection and nothing else.

    server = PgServer(coordinator, ServerConfig(port=6875))
    await server.start()
    ...
    await server.close()
"""

from penstock.server.authentication import Authenticator, AuthMethod, ScramVerifier, Verifiers
from penstock.server.listener import PgServer, ServerConfig

__all__ = ["AuthMethod", "Authenticator", "PgServer", "ScramVerifier", "ServerConfig", "Verifiers"]
