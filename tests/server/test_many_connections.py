"""Two thousand idle connections are cheap, and do not slow the one that works."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest
from pygwire import messages as m

from tests.server.fake_session import FakeCoordinator, serving
from tests.server.wire_client import WireClient, kinds

COUNT = 2000


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * COUNT + 200, reason="the limit of open files is too low"
)
def test_two_thousand_idle_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * COUNT + 200)), hard))

    async def main() -> None:
        coordinator = FakeCoordinator()
        async with serving(coordinator) as server:
            startup = m.StartupMessage({"user": "u", "database": "d"}).to_wire()
            before = _resident_bytes()
            writers = []
            for start in range(0, COUNT, 100):
                opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)))
                for reader, writer in opened:
                    writer.write(startup)
                    await reader.readuntil(b"Z\x00\x00\x00\x05I")
                    writers.append(writer)
                assert server.connections == start + 100
            grown = _resident_bytes() - before
            assert grown / COUNT < 64 << 10, grown  # both ends of each connection are in this process
            client = await WireClient.started(server.port)
            began = time.perf_counter()
            for _ in range(50):
                client.send(m.Query("set x to y"))
                assert "CommandComplete" in kinds(await client.until(m.ReadyForQuery))
            assert time.perf_counter() - began < 5
            for writer in writers:
                writer.close()
            client.close()
            await coordinator.until(lambda: server.connections == 0, 30)
        assert coordinator.closed == COUNT + 1

    asyncio.run(main())
