"""What can be done to a shard, as pure functions ``(state, ...) -> Step``.

A `Step` carries the result and the diff to commit, or no diff when the state need not change. A command may
be run any number of times against newer and newer states until one of its diffs is committed; after an
attempt with an unknown outcome it also sees states that may already contain its own effect, and recognizes
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import pyarrow as pa
from msgspec.structs import replace

from penstock.persist.errors import Fenced, InvalidUsage, Mismatch
from penstock.persist.schema import (
    FIRST_SCHEMA,
    Evolved,
    ExpectationMismatch,
    Incompatible,
    SchemaId,
    decode_schema,
    encode_schema,
    find_schema,
    incompatibility,
)
from penstock.persist.state import (
    Claim,
    Critical,
    Diff,
    LinkedBatch,
    Part,
    Reader,
    Replace,
    Rollup,
    State,
    Writer,
    position,
)
from penstock.runtime import DONE, Frontier, meet

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """`diff` None: nothing to commit. Its seqno, time and rollup are filled in by the committer."""

    result: R
    diff: Diff | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """An append is in the state, by this attempt or an earlier one."""


class Applied(Enum):
    """Whether the state refers to a blob that was written for it. Only after NO may that blob be deleted."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


def register_schema(state: State, schema: pa.Schema) -> Step[SchemaId | None]:
    """The number of `schema`, which becomes the first one of a shard that has none. None: it is none of the shard's."""
    if state.tombstone:
        return Step(FIRST_SCHEMA)
    if not state.schemas:
        return Step(FIRST_SCHEMA, Diff(schema=encode_schema(schema)))
    return Step(find_schema(state.schemas, schema))


def evolve_schema(
    state: State, *, expected: SchemaId, new: pa.Schema, uncertain: bool
) -> Step[Evolved | ExpectationMismatch | Incompatible]:
    """Add `new` as the newest schema if that is number `expected` now. `uncertain`: an earlier attempt may have
    been committed.
    """
    if state.tombstone or not state.schemas:
        return Step(Incompatible("the shard is finalized" if state.tombstone else "the shard has no schema yet"))
    latest = SchemaId(len(state.schemas) - 1)
    current = decode_schema(state.schemas[latest])
    if current.equals(new) and (latest == expected or (uncertain and latest == expected + 1)):
        return Step(Evolved(latest))
    if latest != expected:
        return Step(ExpectationMismatch(latest, current))
    reason = incompatibility(current, new)
    if reason is not None:
        return Step(Incompatible(reason))
    return Step(Evolved(SchemaId(latest + 1)), Diff(schema=encode_schema(new)))


def append(
    state: State,
    *,
    writer: str,
    token: bytes,
    expected: Frontier,
    new: Frontier,
    parts: tuple[Part, ...],
    now_ms: int,
    lease_ms: int,
) -> Step[Appended | Mismatch]:
    """Add `parts` for ``[expected, new)`` if the shard's upper is `expected`."""
    known = state.writers.get(writer)
    if known is not None and known.token == token:
        assert known.upper == new, f"writer {writer} used a token for {known.upper} and for {new}"
        return Step(Appended())
    if state.upper != expected:
        return Step(Mismatch(Frontier(state.upper)))
    batch = LinkedBatch(state.seqno + 1, expected, 0, parts) if parts or not state.batches else None
    entry = Writer(token, new, now_ms, lease_ms)
    diff = Diff(upper=new, append=batch, writers={writer: entry})
    return Step(Appended(), diff)


def fence(state: State) -> Step[None]:
    """A version that changes nothing: every attempt that was made before it fails, and is thought over."""
    return Step(None) if state.tombstone or state.seqno < 0 else Step(None, Diff())


def replace_batches(
    state: State, *, ids: tuple[int, ...], since: Frontier, parts: tuple[Part, ...], uncertain: bool
) -> Step[Applied]:
    """Put a compaction's output in the place of its inputs `ids`, if they are all still there.

    `uncertain`: an earlier attempt may have been committed, so that a missing input proves nothing.
    """
    start = position(state.batches, ids)
    if start is None:
        keys = {key for batch in state.batches for key in batch.keys}
        outputs = LinkedBatch(0, 0, 0, parts).keys
        if outputs and outputs[0] in keys:
            return Step(Applied.YES)
        return Step(Applied.UNKNOWN if uncertain else Applied.NO)
    inputs = state.batches[start : start + len(ids)]
    batch = LinkedBatch(state.seqno + 1, inputs[0].lower, since, parts)
    _check_replacement(state, inputs, batch)
    kept = set(batch.keys)
    removed = tuple(key for one in inputs for key in one.keys if key not in kept)
    done: dict[int, Claim | None] = {
        key: None for key, claim in state.claims.items() if not set(ids).isdisjoint(claim.ids)
    }
    return Step(Applied.YES, Diff(replace=Replace(ids, batch, removed), claims=done))


def _check_replacement(state: State, inputs: tuple[LinkedBatch, ...], output: LinkedBatch) -> None:
    """Refuse what would change the shard's contents. Raises `InvalidUsage`."""
    ids = [batch.id for batch in inputs]
    if output.since > state.since:
        raise InvalidUsage(f"compaction of batches {ids} to {output.since}, beyond the shard's since {state.since}")
    known = max(batch.since for batch in inputs)
    if output.since < known:
        raise InvalidUsage(f"compaction of batches {ids} to {output.since}, before {known}, where one already is")
    before = _wrapped(sum(part.diff_sum for batch in inputs for part in batch.parts))
    after = _wrapped(sum(part.diff_sum for part in output.parts))
    if before != after:
        raise InvalidUsage(f"compaction of batches {ids} changed the sum of diffs from {before} to {after}")
    rows = sum(batch.rows for batch in inputs)
    if output.rows > rows:
        raise InvalidUsage(f"compaction of batches {ids} made {output.rows} updates of {rows}")
    first = min((part.time_min for part in output.parts), default=DONE)
    if first < output.since:
        raise InvalidUsage(f"compaction of batches {ids} to {output.since} left updates at {first}")


def claim(state: State, *, ids: tuple[int, ...], claimant: str, now_ms: int, lease_ms: int) -> Step[bool]:
    """Keep others from compacting the batches `ids` for `lease_ms`. False: some are gone, or somebody else has them."""
    if state.tombstone or position(state.batches, ids) is None:
        return Step(False)
    present = {batch.id for batch in state.batches}
    void: dict[int, Claim | None] = {
        key: None for key, known in state.claims.items() if not known.live(now_ms) or present.isdisjoint(known.ids)
    }
    for key, known in state.claims.items():
        if key in void or set(known.ids).isdisjoint(ids):
            continue
        if known.claimant != claimant:
            return Step(False)
        void[key] = None  # its own, of an attempt that failed
    return Step(True, Diff(claims=void | {ids[0]: Claim(ids, claimant, now_ms, lease_ms)}))


def claimed(state: State, *, claimant: str, now_ms: int) -> frozenset[int]:
    """Batches that others than `claimant` are compacting."""
    claims = [one for one in state.claims.values() if one.claimant != claimant and one.live(now_ms)]
    return frozenset(id_ for one in claims for id_ in one.ids)


def _wrapped(total: int) -> int:
    """`total` as a 64-bit sum would give it: sums of diffs are taken modulo 2**64."""
    return (total + 2**63) % 2**64 - 2**63


def register_reader(
    state: State, *, reader: str, schema: bytes, now_ms: int, lease_ms: int, purpose: str
) -> Step[Reader]:
    """Add a leased reader. It starts at the critical readers' since: what they let go, nobody new can rely
    on.
    """
    if reader in state.readers:
        return Step(state.readers[reader])
    criticals = meet(*(Frontier(critical.since) for critical in state.criticals.values()))
    since = max(state.since, criticals) if state.criticals else state.since
    entry = Reader(state.seqno + 1, since, now_ms, lease_ms, purpose)
    if state.tombstone:
        return Step(replace(entry, since=DONE))
    return Step(entry, Diff(readers={reader: entry}, schema=None if state.schemas else schema))


def downgrade_reader(state: State, *, reader: str, since: Frontier, hold: int, now_ms: int) -> Step[Reader | None]:
    """Let a reader's since and hold go forward, and the shard's since with them. None: the reader has
    expired.
    """
    entry = state.readers.get(reader)
    if entry is None:
        return Step(None)
    changed = replace(
        entry,
        since=max(entry.since, since),
        hold=max(entry.hold, hold),
        heartbeat_ms=max(entry.heartbeat_ms, now_ms),
    )
    return Step(changed, with_since(state, Diff(readers={reader: changed})))


def expire_reader(state: State, *, reader: str) -> Step[None]:
    """Remove a leased reader. The shard's since stays: it moves with the next downgrade of anyone who is
    still there.
    """
    if reader not in state.readers:
        return Step(None)
    return Step(None, Diff(readers={reader: None}))


def expire_writer(state: State, *, writer: str) -> Step[None]:
    if writer not in state.writers:
        return Step(None)
    return Step(None, Diff(writers={writer: None}))


def register_critical(state: State, *, reader: str, opaque: int, purpose: str) -> Step[Critical]:
    """Add a critical reader at the shard's since, or return the one that is there."""
    if reader in state.criticals:
        return Step(state.criticals[reader])
    entry = Critical(state.since, opaque, purpose)
    if state.tombstone:
        return Step(entry)
    return Step(entry, Diff(criticals={reader: entry}))


def downgrade_critical(
    state: State,
    *,
    reader: str,
    expected_opaque: int,
    new_opaque: int,
    since: Frontier,
    uncertain: bool,
) -> Step[Critical | Fenced]:
    """Fence and move a critical since. A negative answer comes without a commit: the caller reads the head
    first.

    `since` below the current one leaves it where it is; the opaque is stored all the same. `uncertain`: an
    earlier attempt may have been committed, so finding the new opaque in place is success.
    """
    entry = state.criticals.get(reader)
    if state.tombstone:
        return Step(Critical(DONE, new_opaque, ""))
    if entry is None:
        return Step(Fenced(-1, Frontier(state.since)))
    if uncertain and entry.opaque == new_opaque and entry.since >= since:
        return Step(entry)
    if entry.opaque != expected_opaque:
        return Step(Fenced(entry.opaque, Frontier(entry.since)))
    changed = replace(entry, since=max(entry.since, since), opaque=new_opaque)
    if changed == entry:
        return Step(entry)
    return Step(changed, with_since(state, Diff(criticals={reader: changed})))


def with_since(state: State, diff: Diff) -> Diff:
    """`diff` with the shard's since raised to what all readers of the resulting state allow."""
    sinces = [reader.since for reader in (state.readers | diff.readers).values() if reader is not None]
    sinces += [critical.since for critical in (state.criticals | diff.criticals).values() if critical is not None]
    if not sinces or min(sinces) <= state.since:
        return diff
    return replace(diff, since=min(sinces))


ROLLUPS_MAX = 16
_UNCOLLECTED_MAX = 4 * ROLLUPS_MAX


def add_rollup(state: State, *, seqno: int, rollup: Rollup, uncertain: bool) -> Step[Applied]:
    """List a rollup of version `seqno`. NO: it is of no use (any more). `uncertain`: as for
    `replace_batches`.

    At most `ROLLUPS_MAX` are listed of versions that a reader holds, about evenly over these: however long he holds
    them, what is collected in one go afterwards is a fraction of them. Those that nobody holds go with their
    versions: somebody may be collecting up to any of them, and the oldest anchors the oldest version in consensus.
    Only where collection fails for long are these made fewer as well.
    """
    if state.rollups.get(seqno) == rollup:
        return Step(Applied.YES)
    if state.tombstone or seqno <= state.latest_rollup:
        return Step(Applied.UNKNOWN if uncertain else Applied.NO)
    changes: dict[int, Rollup | None] = {seqno: rollup}
    removed: tuple[str, ...] = ()
    listed = [*sorted(state.rollups), seqno]
    gaps = {listed[i]: listed[i + 1] - listed[i - 1] for i in range(1, len(listed) - 1)}
    held = [one for one in gaps if one > state.seqno_since]
    thinned = held if len(held) + 2 > ROLLUPS_MAX else list(gaps) if len(listed) > _UNCOLLECTED_MAX else []
    if thinned:
        dropped = min(thinned, key=lambda one: gaps[one])
        changes[dropped] = None
        removed = (state.rollups[dropped].key,)
    return Step(Applied.YES, Diff(rollups=changes, removed_rollups=removed, rollup=rollup.key))


def collect(state: State, *, seqno: int) -> Step[None]:
    """Record that versions below `seqno` are gone, and with them the use of older rollups."""
    if state.tombstone or seqno <= state.collected:
        return Step(None)
    useless = {old: rollup.key for old, rollup in state.rollups.items() if old < seqno}
    diff = Diff(rollups=dict.fromkeys(useless), removed_rollups=tuple(useless.values()), collected=seqno)
    return Step(None, diff)


def finalize(state: State) -> Step[None]:
    """Turn the shard into a tombstone: no reads, no writes, nothing stored."""
    if state.tombstone:
        return Step(None)
    return Step(None, Diff(tombstone=True, collected=state.collected))
