"""Push of committed state diffs to whoever caches that shard's state.

Only an optimization: messages may be lost, doubled or reordered. A receiver applies a diff that is exactly
its next version and fetches from consensus when it sees a gap; polling goes on behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from penstock.persist.store import ShardId, Versioned

OnDiff = Callable[[Versioned], None]


class PubSub(Protocol):
    """Best-effort delivery of `Versioned` diffs by shard."""

    def publish(self, shard: ShardId, version: Versioned) -> None:
        """Send a committed diff to the subscribers of `shard`. Never blocks; may drop."""
        ...

    def subscribe(self, shard: ShardId, on_diff: OnDiff) -> Callable[[], None]:
        """Call `on_diff`, on the subscriber's event loop, for every diff that arrives. Returns how to end
        it.
        """
        ...


class LocalPubSub:
    """A `PubSub` among the clients of one event loop. A publisher hears its own diffs and ignores them by
    seqno.
    """

    def __init__(self) -> None:
        self._subscribers: dict[ShardId, list[OnDiff]] = {}

    def publish(self, shard: ShardId, version: Versioned) -> None:
        for on_diff in list(self._subscribers.get(shard, ())):
            on_diff(version)

    def subscribe(self, shard: ShardId, on_diff: OnDiff) -> Callable[[], None]:
        subscribers = self._subscribers.setdefault(shard, [])
        subscribers.append(on_diff)

        def unsubscribe() -> None:
            if on_diff in subscribers:
                subscribers.remove(on_diff)
            if not subscribers and self._subscribers.get(shard) is subscribers:
                del self._subscribers[shard]

        return unsubscribe
