"""A pub-sub that loses, doubles, delays and reorders what it carries."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass

from penstock.persist import ShardId, Versioned
from penstock.persist.pubsub import OnDiff
from sim.world import Process, World


@dataclass
class PubSubRates:
    """Probabilities per message and subscriber, and the longest delay."""

    lost: float = 0.0
    doubled: float = 0.0
    delay_s: float = 0.005


@dataclass(frozen=True)
class _Subscription:
    process: Process
    on_diff: OnDiff
    context: Context


class Hub:
    """The subscribers of all processes."""

    def __init__(self, world: World, rates: PubSubRates) -> None:
        self.rates = rates
        self._world = world
        self._random = world.random("pubsub")
        self._subscribers: dict[ShardId, dict[int, _Subscription]] = {}
        self._serial = 0

    def publish(self, shard: ShardId, version: Versioned) -> None:
        dice = self._random
        for subscription in list(self._subscribers.get(shard, {}).values()):
            if dice.random() < self.rates.lost:
                continue
            for _ in range(2 if dice.random() < self.rates.doubled else 1):
                delay = dice.random() * self.rates.delay_s
                self._world.loop.call_later(delay, subscription.on_diff, version, context=subscription.context)

    def subscribe(self, process: Process, shard: ShardId, on_diff: OnDiff) -> Callable[[], None]:
        self._serial += 1
        number = self._serial
        subscribers = self._subscribers.setdefault(shard, {})
        subscribers[number] = _Subscription(process, on_diff, copy_context())

        def unsubscribe() -> None:
            subscribers.pop(number, None)

        return unsubscribe


class ProcessPubSub:
    """A `PubSub` as one process sees it."""

    def __init__(self, process: Process, hub: Hub) -> None:
        self._process = process
        self._hub = hub

    def publish(self, shard: ShardId, version: Versioned) -> None:
        self._hub.publish(shard, version)

    def subscribe(self, shard: ShardId, on_diff: OnDiff) -> Callable[[], None]:
        return self._hub.subscribe(self._process, shard, on_diff)
