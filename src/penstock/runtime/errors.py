"""The kinds of error, as types.

Who catches an error must be able to decide by its class what to do; messages are for people. Three questions
separate the classes: whose fault is it (the statement's, the data's, a store's, ours), did the operation happen
(determinate or not), and which SQLSTATE does a client see.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Root of all errors raised on purpose."""

    sqlstate = "XX000"

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class SqlError(PenstockError):
    """A statement cannot be carried out; the session goes on.

    `sqlstate`: five characters, PostgreSQL's wherever it has one. `position`: 1-based character offset into the
    statement's text, or None. `hint`: how to mend it.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str = "XX000",
        detail: str | None = None,
        hint: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.position = position


class DataError(SqlError):
    """A row made an expression fail: an error that is data, has a time and can be retracted."""


class InternalError(PenstockError):
    """An invariant of ours is broken. Names the ids and values; never caused by input alone."""


class ExternalError(PenstockError):
    """A store or a peer process failed. Its subclass says whether the operation may have happened."""

    sqlstate = "58000"


class Determinate(ExternalError):
    """The operation surely did not happen; it may be tried again at once."""


class Indeterminate(ExternalError):
    """The operation may or may not have happened; only reading back can tell."""
