"""loopback_to_self_deadlocks: the host of a service called itself over the network, on the event loop that serves it.

Under load such a call waits for itself. The coordinator hosts the committer, so nothing in its process may dial it: an
environment opens, writes and reads with the client of the committer out of reach.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import penstock.adapter.environment as bootstrap
import penstock.committer.client as client
from penstock.adapter import Environment, EnvironmentConfig
from penstock.committer import InProcessConsensus


class Dialled(AssertionError):
    """The host of the committer calls itself."""


def refuse(*_: Any, **__: Any) -> None:
    raise Dialled("the process that hosts the committer dials it")


def test_the_host_of_the_committer_never_dials_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []
    direct = InProcessConsensus.compare_and_set

    async def counted(self: InProcessConsensus, key: str, new: Any) -> Any:
        reached.append(key)
        return await direct(self, key, new)

    monkeypatch.setattr(client.RpcConsensus, "__init__", refuse)
    monkeypatch.setattr(bootstrap, "RpcPubSub", refuse)
    monkeypatch.setattr(InProcessConsensus, "compare_and_set", counted)

    async def main() -> None:
        config = EnvironmentConfig(f"sqlite:{tmp_path}/c.db", f"file:{tmp_path}/blob", tmp_path / "run")
        (tmp_path / "run").mkdir()
        environment = Environment(config)
        try:
            async with asyncio.timeout(60):
                await environment.open()
            assert environment.coordinator is not None
        finally:
            await environment.close()

    asyncio.run(main())
    assert reached, "the catalog was written, so the committer was called directly"
