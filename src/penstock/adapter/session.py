"""One client's session: its variables, transaction and prepared statements, and who carries out each kind of
statement.

Statements that only concern the session are carried out here. The others go to the room's specialists (queries,
writes, objects, subscriptions, listings), which get the session as their context.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penstock.adapter.cursors import Cursor
from penstock.adapter.interrupts import Interruptible
from penstock.adapter.session_api import (
    Completed,
    CopyOut,
    Notice,
    Outcome,
    Parameters,
    Rows,
    StatementDescription,
    TransactionStatus,
)
from penstock.adapter.transaction import Transaction
from penstock.adapter.variables import SessionVariables, checked, duration_ms, lookup
from penstock.runtime import SqlError, Timestamp
from penstock.sql import statements as ast

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator

PREPARED_MAX = 1_000
CURSORS_MAX = 100


class Session:
    """See `session_api.Session` for the contract. Made by `Coordinator.connect`."""

    def __init__(
        self, coordinator: Coordinator, process_id: int, user: str, variables: SessionVariables, address: str
    ) -> None:
        self.coordinator = coordinator
        self.process_id = process_id
        self.secret = secrets.randbits(32)
        self.user = user
        self.address = address
        self.connected_at = coordinator.clock.now_ms()
        self.variables = variables
        self.notices: list[Notice] = []
        self.interrupts = Interruptible()
        self.seen = Timestamp(0)
        """The largest time this session has read or written: strong session serializable reads start there."""
        self.transaction: Transaction | None = None
        self._prepared: dict[str, ast.Prepare] = {}
        self._idle: asyncio.TimerHandle | None = None
        self._ended: SqlError | None = None
        """Why the open block cannot go on, to be told to whoever uses it next."""

    @property
    def parameters(self) -> dict[str, str]:
        return self.variables.reported()

    @property
    def transaction_status(self) -> TransactionStatus:
        if self.transaction is None or not self.transaction.explicit:
            return "I"
        return "E" if self.transaction.failed else "T"

    def notice(
        self, message: str, *, severity: str = "NOTICE", sqlstate: str = "00000", hint: str | None = None
    ) -> None:
        """Tell the client something beside the result, unless it wants to hear of graver things only."""
        if not self.variables.wants_notice(severity):
            return
        self.notices.append(Notice(message, severity, sqlstate, None, hint))

    # -- the contract with the server ----------------------------------------------------------------------------

    async def parse(self, text: str) -> Sequence[ast.Statement]:
        return self.coordinator.planner.parse(text)

    async def describe(self, statement: ast.Statement, parameter_types: Sequence[int]) -> StatementDescription:
        if isinstance(statement, ast.Execute):
            inner = self._prepared_statement(statement.name)
            types = [kind.oid for kind in inner.types]
            return StatementDescription([], (await self.describe(inner.statement, types)).columns)
        if isinstance(statement, ast.Fetch):
            return StatementDescription([], self._cursor(statement.name).desc)
        return await self.coordinator.describe(self, statement, parameter_types)

    async def execute(self, statement: ast.Statement, parameters: Parameters) -> Outcome:
        self._busy()
        transaction = self.open_transaction()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            raise ended
        if transaction.failed and not isinstance(statement, ast.Commit | ast.Rollback):
            raise SqlError(
                "current transaction is aborted, commands ignored until end of transaction block", sqlstate="25P02"
            )
        deadline = self.interrupts.deadline(self.variables.statement_timeout_s)
        outcome = await self.interrupts.run(self._dispatch(statement, parameters), deadline)
        if isinstance(outcome, Rows | CopyOut):
            source = statement.source if isinstance(statement, ast.CopyTo) else statement
            streaming = isinstance(source, ast.Subscribe | ast.Fetch)
            guarded = self.interrupts.guard(outcome.batches, None if streaming else deadline)
            return replace(outcome, batches=guarded)
        return outcome

    async def sync(self) -> None:
        transaction = self.transaction
        if transaction is None:
            return
        if not transaction.explicit:
            await self._end(commit=not transaction.failed)
            return
        timeout_s = self.variables.idle_timeout_s
        if timeout_s is not None and not transaction.failed:
            self._busy()
            self._idle = asyncio.get_running_loop().call_later(timeout_s, self._idle_too_long)

    def fail(self) -> None:
        if self.transaction is not None:
            self.transaction.failed = True
            self.transaction.take_writes()
            self.coordinator.locks.release(self)

    def _busy(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _idle_too_long(self) -> None:
        """Abort the block: it may hold locks that others wait for, and times that should be compacted."""
        self._idle = None
        if self.transaction is None or not self.transaction.explicit:
            return
        self.fail()
        self._ended = SqlError(
            "the transaction was aborted: it was idle for longer than idle_in_transaction_session_timeout",
            sqlstate="25P03",
        )
        self.coordinator.tasks.spawn(self.transaction.release(), "idle-transaction")

    async def close(self) -> None:
        self._busy()
        await self._end(commit=False)
        self.coordinator.disconnected(self)

    # -- transactions --------------------------------------------------------------------------------------------

    def open_transaction(self) -> Transaction:
        """The transaction that a statement runs in: the open one, or a new implicit one."""
        if self.transaction is None:
            self.transaction = Transaction(
                explicit=False, read_only=self.variables["default_transaction_read_only"] == "on"
            )
            self.variables.begin()
        return self.transaction

    async def flush_implicit(self) -> None:
        """Commit what an implicit transaction has buffered: a statement that follows must see it."""
        transaction = self.open_transaction()
        if not transaction.explicit and transaction.writes:
            await self.coordinator.writes.commit(self, transaction)

    async def _end(self, *, commit: bool) -> None:
        """Finish the open transaction, if any. When the commit fails it has been rolled back, and the error is
        raised."""
        transaction = self.transaction
        if transaction is None:
            return
        deadline = self.interrupts.deadline(self.variables.statement_timeout_s)
        committed = False
        try:
            if commit and transaction.writes:
                await self.interrupts.run(self.coordinator.writes.commit(self, transaction), deadline)
            committed = commit
        finally:
            self.transaction = None
            self._ended = None
            self.variables.end(committed=committed)
            self.coordinator.locks.release(self)
            await transaction.release()

    async def _begin(self, modes: ast.TransactionModes) -> Outcome:
        transaction = self.open_transaction()
        if transaction.explicit:
            self.notice("there is already a transaction in progress", severity="WARNING", sqlstate="25001")
        await self.flush_implicit()
        transaction.explicit = True
        self._apply_modes(transaction, modes)
        return Completed("BEGIN")

    def _apply_modes(self, transaction: Transaction, modes: ast.TransactionModes) -> None:
        if modes.isolation is not None:
            self.variables.set("transaction_isolation", modes.isolation, local=True)
        if modes.read_only is not None:
            if transaction.writes and modes.read_only:
                raise SqlError("SET TRANSACTION READ ONLY must come before any write", sqlstate="25001")
            transaction.read_only = modes.read_only
            self.variables.set("transaction_read_only", "on" if modes.read_only else "off", local=True)

    async def _finish_block(self, *, commit: bool) -> Outcome:
        transaction = self.open_transaction()
        word = "COMMIT" if commit else "ROLLBACK"
        if not transaction.explicit:
            self.notice("there is no transaction in progress", severity="WARNING", sqlstate="25P01")
        failed = transaction.failed
        await self._end(commit=commit and not failed)
        return Completed("ROLLBACK" if failed else word)

    def _set_transaction(self, statement: ast.SetTransaction) -> Outcome:
        if statement.session:
            if statement.modes.isolation is not None:
                self.variables.set("transaction_isolation", statement.modes.isolation)
            if statement.modes.read_only is not None:
                self.variables.set("default_transaction_read_only", "on" if statement.modes.read_only else "off")
            return Completed("SET")
        transaction = self.open_transaction()
        if not transaction.explicit:
            self.notice("SET TRANSACTION can only be used in transaction blocks", severity="WARNING", sqlstate="25P01")
        self._apply_modes(transaction, statement.modes)
        return Completed("SET")

    # -- dispatch ------------------------------------------------------------------------------------------------

    async def _dispatch(self, statement: ast.Statement, parameters: Parameters) -> Outcome:
        own = _OWN.get(type(statement))
        if own is not None:
            outcome = own(self, statement)
            return await outcome if isinstance(outcome, Awaitable) else outcome
        if isinstance(statement, ast.Execute):
            return await self._execute_prepared(statement)
        if isinstance(statement, ast.Declare):
            return await self._declare(statement, parameters)
        return await self.coordinator.execute(self, statement, parameters)

    async def _set(self, statement: ast.SetVariable) -> Outcome:
        if statement.scope is ast.VariableScope.SYSTEM:
            return await self.coordinator.objects.execute(self, statement)
        if statement.values is None:
            self.variables.reset(statement.name)
        else:
            value = ", ".join(statement.values)
            local = statement.scope is ast.VariableScope.LOCAL
            if lookup(statement.name).name == "transaction_read_only":
                checked(lookup(statement.name), value)
                read_only = value.lower() in ("on", "true", "yes", "1")
                self._apply_modes(self.open_transaction(), ast.TransactionModes(read_only=read_only))
                return Completed("SET")
            self.coordinator.check_variable(self, statement.name, value)
            self.variables.set(statement.name, value, local=local)
        return Completed("SET")

    async def _reset(self, statement: ast.ResetVariable) -> Outcome:
        if statement.scope is ast.VariableScope.SYSTEM:
            return await self.coordinator.objects.execute(self, statement)
        if statement.name is None:
            self.variables.reset_all()
        else:
            self.variables.reset(statement.name)
        return Completed("RESET")

    def _prepare(self, statement: ast.Prepare) -> Outcome:
        if statement.name in self._prepared:
            raise SqlError(f'prepared statement "{statement.name}" already exists', sqlstate="42P05")
        if len(self._prepared) >= PREPARED_MAX:
            raise SqlError(f"a session can have {PREPARED_MAX} prepared statements", sqlstate="53400")
        self._prepared[statement.name] = statement
        return Completed("PREPARE")

    def _deallocate(self, statement: ast.Deallocate) -> Outcome:
        if statement.name is None:
            self._prepared.clear()
            return Completed("DEALLOCATE ALL")
        self._prepared_statement(statement.name)
        del self._prepared[statement.name]
        return Completed("DEALLOCATE")

    def _prepared_statement(self, name: str) -> ast.Prepare:
        found = self._prepared.get(name)
        if found is None:
            raise SqlError(f'prepared statement "{name}" does not exist', sqlstate="26000")
        return found

    async def _execute_prepared(self, statement: ast.Execute) -> Outcome:
        prepared = self._prepared_statement(statement.name)
        types = [kind.oid for kind in prepared.types]
        described = await self.describe(prepared.statement, types)
        expected, given = len(described.parameters), len(statement.arguments)
        if expected != given:
            raise SqlError(
                f'wrong number of parameters for prepared statement "{statement.name}"',
                sqlstate="42601",
                detail=f"Expected {expected} parameters but got {given}.",
            )
        values = await self.coordinator.evaluate_arguments(self, statement, described.parameters)
        return await self._dispatch(prepared.statement, Parameters(values, types))

    async def _discard(self, statement: ast.Discard) -> Outcome:
        if statement.target is ast.DiscardTarget.ALL:
            self.open_transaction().refuse_block("DISCARD ALL")
            self._prepared.clear()
            self.variables.reset_all()
        return Completed(f"DISCARD {statement.target.value.upper()}")

    # -- cursors -------------------------------------------------------------------------------------------------

    async def _declare(self, statement: ast.Declare, parameters: Parameters) -> Outcome:
        transaction = self.open_transaction()
        if not transaction.explicit:
            raise SqlError("DECLARE CURSOR can only be used in transaction blocks", sqlstate="25P01")
        if statement.name in transaction.cursors:
            raise SqlError(f'cursor "{statement.name}" already exists', sqlstate="42P03")
        if len(transaction.cursors) >= CURSORS_MAX:
            raise SqlError(f"a transaction can have {CURSORS_MAX} cursors", sqlstate="53400")
        outcome = await self.coordinator.execute(self, statement.statement, parameters)
        assert isinstance(outcome, Rows), outcome
        streaming = isinstance(statement.statement, ast.Subscribe)
        batches: Any = outcome.batches
        transaction.cursors[statement.name] = Cursor(
            statement.name, statement.sql, outcome.desc, batches, streaming=streaming
        )
        return Completed("DECLARE CURSOR")

    def _cursor(self, name: str) -> Cursor:
        cursor = self.transaction.cursors.get(name) if self.transaction is not None else None
        if cursor is None:
            raise SqlError(f'cursor "{name}" does not exist', sqlstate="34000")
        return cursor

    async def _fetch(self, statement: ast.Fetch) -> Outcome:
        cursor = self._cursor(statement.name)
        timeout_s = None
        if statement.timeout is not None:
            timeout_ms = duration_ms(statement.timeout)
            if timeout_ms is None:
                raise SqlError(f'invalid FETCH option timeout: "{statement.timeout}"', sqlstate="22023")
            timeout_s = timeout_ms / 1000

        async def rows() -> AsyncGenerator[pa.RecordBatch, None]:
            for batch in await cursor.fetch(statement.count, timeout_s):
                yield batch

        return Rows(cursor.desc, rows(), lambda count: f"FETCH {count}")

    async def _close_cursor(self, statement: ast.CloseCursor) -> Outcome:
        transaction = self.open_transaction()
        if statement.name is None:
            names = list(transaction.cursors)
        else:
            names = [self._cursor(statement.name).name]
        for name in names:
            await transaction.cursors.pop(name).close()
        return Completed("CLOSE CURSOR" if statement.name is not None else "CLOSE CURSOR ALL")


_OWN: dict[type, Callable[[Session, Any], Outcome | Awaitable[Outcome]]] = {
    ast.Begin: lambda session, s: session._begin(s.modes),
    ast.Commit: lambda session, s: session._finish_block(commit=True),
    ast.Rollback: lambda session, s: session._finish_block(commit=False),
    ast.SetTransaction: Session._set_transaction,
    ast.SetVariable: Session._set,
    ast.ResetVariable: Session._reset,
    ast.Prepare: Session._prepare,
    ast.Deallocate: Session._deallocate,
    ast.Discard: Session._discard,
    ast.Fetch: Session._fetch,
    ast.CloseCursor: Session._close_cursor,
}
