"""The sweep: blobs that were stored but that no state came to refer to, because a process died in between.

A blob says when it was written. It may be linked until `PersistConfig.link_ms` later (`Batch.check_age`), and is
swept once twice as old: by so much the clocks of processes may disagree. A process may be stopped for any time
between its check and its commit, so the sweep first commits a version of its own: attempts from before it fail, and
later ones check the age again. What a log outside the shard's state points to may be older: its owner names it. The
order makes this safe: list the blobs, ask what to keep, then read the state. A batch that moves from the log to the
state meanwhile is in one of the two.

One owner per environment runs a `Sweeper` (`sweeper`); two of them do the same work twice, and no harm.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock.persist import commands, metrics
from penstock.persist.collect import removed_keys, store_patiently
from penstock.persist.partstore import part_time_ms
from penstock.persist.shard import Shard
from penstock.persist.state import State

_DELETED_MAX = 1000
"""Per shard and turn; the rest is found by the next one."""

Keep = Callable[[], Awaitable[frozenset[str]]]
"""Keys, within the shard, that something outside its state refers to, and that nothing will come to refer to once they
are as old as what is swept. Asked anew each time there is something to sweep."""


async def sweep_orphans(shard: Shard, older_than_ms: int, keep: frozenset[str] | Keep) -> list[str]:
    """See `PersistClient.sweep`."""
    blobs = await store_patiently(shard, lambda: shard.parts.blob.list_prefix(f"{shard.id}/"), "list")
    state = await shard.fetch()
    written_before_ms = shard.clock.now_ms() - older_than_ms
    orphans = {key.partition("/")[2] for key, _ in blobs} - state.keys()
    orphans = {key for key in orphans if is_left_behind(key, state, written_before_ms)}
    orphans = await _not_removed(shard, orphans)
    if orphans:
        orphans -= keep if isinstance(keep, frozenset) else await keep()
    if not orphans:
        return []
    await shard.commit(lambda state, _: commands.fence(state), "fence")
    orphans = await _not_removed(shard, orphans - shard.state.keys())
    swept = sorted(orphans)[:_DELETED_MAX]
    await shard.parts.delete(shard.id, swept)
    metrics.SWEPT_BLOBS.inc(len(swept))
    return swept


async def _not_removed(shard: Shard, orphans: set[str]) -> set[str]:
    """Those of `orphans` that no live diff removed: that is the business of collection, readers may hold them."""
    if orphans:
        async for removed in removed_keys(shard, None):
            orphans = orphans - removed
    return orphans


def is_left_behind(key: str, state: State, written_before_ms: int) -> bool:
    """Whether the blob `key` (without the shard), to which nothing refers, can never be referred to any more."""
    owner, _, name = key.rpartition("/")
    written_ms = part_time_ms(name)
    if written_ms is not None:
        return written_ms < written_before_ms
    return owner[:1] == "v" and owner[1:].isdigit() and int(owner[1:]) < state.latest_rollup
