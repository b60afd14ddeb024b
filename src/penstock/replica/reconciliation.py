"""What a replica keeps of its dataflows when a controller connects anew.

The controller sends what should run; a dataflow that runs already and matches is kept, with all its state, and
everything else is dropped and built. The rule is as simple as it can be and sound: the description is the same to the
byte, apart from the as-of; nothing it exports was compacted beyond the new as-of; no export is a subscription (its
reader has gone); and every index it imports is kept, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.runtime import Frontier


@dataclass(frozen=True)
class Running:
    """`compacted`: results before it may be lost. `indexes`: ids of imported indexes."""

    description: bytes
    compacted: Frontier
    exports: tuple[str, ...]
    indexes: tuple[str, ...]
    has_subscribe: bool


@dataclass(frozen=True)
class Wanted:
    id: str
    description: bytes
    as_of: Frontier


def kept(running: Mapping[str, Running], wanted: Iterable[Wanted]) -> set[str]:
    """Ids of the running dataflows that satisfy one that is wanted. `wanted`: an index before its importers."""
    keep: set[str] = set()
    indexes: set[str] = set()
    for flow in wanted:
        old = running.get(flow.id)
        if (
            old is not None
            and old.description == flow.description
            and old.compacted <= flow.as_of
            and not old.has_subscribe
            and indexes.issuperset(old.indexes)
        ):
            keep.add(flow.id)
            indexes.update(old.exports)
    return keep
