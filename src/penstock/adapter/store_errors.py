"""What a client is told when a store fails: a SQLSTATE that says what to do, and the cause in words."""

from __future__ import annotations

import errno

from penstock.persist import StoreFull
from penstock.runtime import Indeterminate, SqlError


def client_error(error: BaseException) -> SqlError:
    """The `SqlError` for a failed store operation: 53100 for a full disk, 08007 for an unknown outcome, else 58030."""
    if isinstance(error, SqlError):
        return error
    causes = list(_chain(error))
    text = ": ".join(dict.fromkeys(str(cause) for cause in causes if str(cause)))
    if any(_is_disk_full(cause) for cause in causes):
        return SqlError(
            "could not write: no space left on the device",
            sqlstate="53100",
            detail=text,
            hint="Free space on the data directory's device and try again. Reads go on meanwhile.",
        )
    if isinstance(error, Indeterminate):
        return SqlError(
            "the outcome of the write is unknown: the store did not answer",
            sqlstate="08007",
            detail=text,
            hint="Check whether the rows are there before writing them again.",
        )
    return SqlError("the store failed; nothing was written", sqlstate="58030", detail=text)


def _chain(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _is_disk_full(error: BaseException) -> bool:
    return isinstance(error, StoreFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
