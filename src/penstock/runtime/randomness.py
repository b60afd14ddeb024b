"""The only source of randomness.

Ids, tokens and dice come from here: from the operating system as a rule, and from a seed inside ``seeded``. The
source is a context variable, so it reaches every task and callback that is started inside, and no other: a
simulation that is seeded does not disturb what runs beside it.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_system = random.SystemRandom()
_source: ContextVar[random.Random] = ContextVar("penstock_randomness", default=_system)


def randomness() -> random.Random:
    """The source that belongs to the caller's context."""
    return _source.get()


def random_uuid() -> uuid.UUID:
    """A new version 4 UUID. Unique, unless the same seed was used before."""
    source = _source.get()
    if source is _system:
        return uuid.uuid4()
    return uuid.UUID(int=source.getrandbits(128), version=4)


@contextmanager
def seeded(source: random.Random) -> Iterator[None]:
    """Within the block, and in all tasks that are started in it, randomness comes from `source`."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
