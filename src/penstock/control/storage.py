"""The storage controller: which durable collections there are, and how far back each can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from penstock.control.holds import ReadHold
from penstock.control.specs import CollectionSpec, Frontiers
from penstock.runtime import Clock, Frontier, GlobalId, SystemClock

if TYPE_CHECKING:
    from penstock.persist import PersistClient
    from penstock.persist.txn import TxnsReader


class StorageController:
    """Holds a critical since per shard, fenced by the coordinator's epoch."""

    @staticmethod
    async def open(
        client: PersistClient, txns: TxnsReader, epoch: int, *, clock: Clock | None = None
    ) -> StorageController:
        """Take over from controllers of lower epochs."""
        return StorageController(client, txns, epoch, clock or SystemClock())

    def __init__(self, client: PersistClient, txns: TxnsReader, epoch: int, clock: Clock) -> None:
        self._client, self._txns, self._epoch, self._clock = client, txns, epoch, clock

    async def create_collections(self, specs: Sequence[CollectionSpec]) -> None:
        """Begin to hold these collections at their durable since. Raises `Fenced` under a higher epoch."""
        raise NotImplementedError

    async def drop_collections(self, ids: Iterable[GlobalId]) -> None:
        """Forget them; a shard is finalized once nobody holds it any more."""
        raise NotImplementedError

    def initialization_complete(self) -> None:
        """All dataflows hold their inputs: from now on sinces follow the uppers."""
        raise NotImplementedError

    def acquire_hold(self, id_: GlobalId, at: Frontier | None = None) -> ReadHold:
        """A hold at `at`, or at the earliest time possible. Raises `SinceError`, or `KeyError` for unknown
        ids.
        """
        raise NotImplementedError

    def frontiers(self, id_: GlobalId) -> Frontiers:
        """Where the collection can be read now."""
        raise NotImplementedError

    async def close(self) -> None:
        """End background work; the durable sinces stay where they are."""
        raise NotImplementedError
