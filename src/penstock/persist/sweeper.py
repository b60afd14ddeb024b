"""The sweeper: sees to all shards of an environment, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from penstock.persist import metrics
from penstock.persist.client import PersistClient
from penstock.persist.errors import ClientClosed
from penstock.persist.store import ShardId
from penstock.runtime import PenstockError

_log = structlog.get_logger("penstock.persist")

_AGE_PER_LINK = 2
"""What has waited for so many times `PersistConfig.link_ms` is swept."""
_LIST_MS = 60 * 60 * 1000


class Sweeper:
    """Sweeps one shard after the other, for ever and slowly. `keep` tells what the transaction log points to.

    Whose turn it is follows from the time alone, so that a process that is restarted often gets around as well.
    """

    def __init__(self, client: PersistClient, keep: Callable[[ShardId], Awaitable[frozenset[str]]]) -> None:
        self._client = client
        self._keep = keep
        self._clock = client.clock
        self._shards: list[ShardId] = []
        self._listed_ms = 0

    async def run(self) -> None:
        """Until cancelled. Failures are logged and counted; the next round comes."""
        config = self._client.config
        if not config.sweep:
            return
        while True:
            await self._clock.sleep(config.sweep_pause_ms / 1000)
            try:
                await self.turn()
                metrics.SWEEPS.labels("done").inc()
            except ClientClosed:
                return
            except PenstockError as error:
                metrics.SWEEPS.labels("failed").inc()
                _log.warning("sweep interrupted", error=error.message)

    async def turn(self) -> list[str]:
        """Sweep the shard whose turn it is now; returns the deleted keys."""
        config, now_ms = self._client.config, self._clock.now_ms()
        if not self._shards or now_ms >= self._listed_ms + _LIST_MS:
            self._shards, self._listed_ms = await self._client.shards(), now_ms
        if not self._shards:
            return []
        shard = self._shards[now_ms // max(1, config.sweep_pause_ms) % len(self._shards)]
        swept = await self._client.sweep(
            shard, older_than_ms=_AGE_PER_LINK * config.link_ms, keep=lambda: self._keep(shard)
        )
        if swept:
            _log.info("blobs swept that crashes had left", shard=shard, blobs=len(swept))
        return swept
