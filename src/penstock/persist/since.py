"""Critical sinces: holds on a shard that no lease ends, fenced between the epochs of their holder."""

from __future__ import annotations

from penstock.persist import commands
from penstock.persist.errors import Fenced
from penstock.persist.shard import Shard
from penstock.persist.state import Critical
from penstock.persist.store import ShardId
from penstock.runtime import Frontier


class SinceHandle:
    """The critical reader `reader_id` of one shard. `since` and `opaque`: as this handle last saw them."""

    def __init__(self, shard: Shard, reader_id: str, entry: Critical) -> None:
        self._shard = shard
        self._reader = reader_id
        self.since = Frontier(entry.since)
        self.opaque = entry.opaque

    @property
    def shard(self) -> ShardId:
        return self._shard.id

    async def compare_and_downgrade_since(
        self, expected_opaque: int, new_opaque: int, since: Frontier
    ) -> Fenced | None:
        """If the durable opaque is `expected_opaque`, set it to `new_opaque` and let the since go up to
        `since`.

        A `since` below the current one leaves that where it is. `Fenced`: another holder has put its own
        opaque there; the answer is as new as the call. Durable on None.
        """
        result = await self._attempt(expected_opaque, new_opaque, since)
        if isinstance(result, Fenced):
            await self._shard.fetch()  # the cached state may have been behind
            result = await self._attempt(expected_opaque, new_opaque, since)
        if isinstance(result, Fenced):
            return result
        self.since, self.opaque = Frontier(result.since), result.opaque
        return None

    async def _attempt(self, expected_opaque: int, new_opaque: int, since: Frontier) -> Critical | Fenced:
        return await self._shard.commit(
            lambda state, attempt: commands.downgrade_critical(
                state,
                reader=self._reader,
                expected_opaque=expected_opaque,
                new_opaque=new_opaque,
                since=since,
                uncertain=attempt.uncertain,
            ),
            "compare_and_downgrade_since",
        )
