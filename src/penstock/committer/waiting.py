"""Opening a consensus store that may not be up yet."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from penstock.committer.wire import cause_chain
from penstock.persist import Consensus, StoreFull, StoreUnusable, open_consensus
from penstock.persist.store import SchemaOwner
from penstock.persist.url import masked
from penstock.runtime import Clock, ExternalError

_log = structlog.get_logger("penstock.committer")

_BACKOFF_S = 0.05
_BACKOFF_MAX_S = 2.0
_LOG_FROM_ATTEMPT = 3
_PROBE = "penstock-probe"
"""A key that nobody writes: reading its head costs next to nothing and shows that the store answers."""


class HopelessStore(Exception):
    """The store's URL can never work as it is; says why, without its password."""


async def open_when_ready(url: str, clock: Clock, *, open_: Callable[[str], Consensus] = open_consensus) -> Consensus:
    """The consensus store at `url`, once it answers, with its schema.

    Tries without limit, with pauses that double to 2 s, because whoever starts everything at once starts the store's
    clients before the store. Raises `HopelessStore` for what waiting cannot mend: an unknown scheme, credentials or
    rights that the server turns down. Cancellable.
    """
    shown = masked(url)
    _log.info("opening the consensus store", url=shown)
    attempt = 0
    pause_s = _BACKOFF_S
    while True:
        attempt += 1
        try:
            store = await _opened(url, open_)
        except ValueError as error:
            raise HopelessStore(f"the consensus URL cannot work: {str(error).replace(url, shown)}") from error
        except StoreUnusable as error:
            if not isinstance(error, StoreFull):
                raise HopelessStore(f"the consensus store {shown} refuses: {error}") from error
            cause = str(error)
        except ExternalError as error:
            cause = "; caused by: ".join(cause_chain(error))
        else:
            _log.info("consensus store ready", url=shown, attempts=attempt)
            return store
        if attempt >= _LOG_FROM_ATTEMPT:
            _log.warning(f"waiting for the consensus store: {cause}", attempt=attempt)
        await clock.sleep(pause_s)
        pause_s = min(pause_s * 2, _BACKOFF_MAX_S)


async def connected_when_ready(committer: Consensus, clock: Clock) -> None:
    """Return once a remote `committer` answers. Tries without limit; its client paces the attempts.

    Raises `StoreUnusable` when the committer does not admit us, or its store refuses. Cancellable.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            await committer.head(_PROBE)
        except StoreUnusable:
            raise
        except ExternalError as error:
            _log.warning(f"waiting for the committer: {error}", attempt=attempt)
            await clock.sleep(_BACKOFF_S)
        else:
            return


async def _opened(url: str, open_: Callable[[str], Consensus]) -> Consensus:
    store = open_(url)
    try:
        if isinstance(store, SchemaOwner):
            await store.ensure_schema()
        else:
            await store.head(_PROBE)
    except BaseException:
        await store.close()
        raise
    return store
