"""What a session does by itself: blocks that lie idle, read-only blocks, notices, without a database behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, cast

import pytest

from penstock.adapter.coordinator import Coordinator
from penstock.adapter.group_commit import Delta
from penstock.adapter.locks import TableLocks
from penstock.adapter.planning import Planner
from penstock.adapter.session import Session
from penstock.adapter.session_api import Completed, Outcome, Parameters
from penstock.adapter.variables import SessionVariables
from penstock.runtime import GlobalId, SqlError, SystemClock, TaskOwner


class Writes:
    """Counts what is committed."""

    def __init__(self) -> None:
        self.committed: list[dict[GlobalId, list[Delta]]] = []

    async def commit(self, session: Session, transaction: Any) -> None:
        self.committed.append(transaction.take_writes())


class Backend:
    """The part of a coordinator that a session uses here: every INSERT takes the lock of table u1."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.locks = TableLocks()
        self.planner = Planner()
        self.tasks = TaskOwner("test")
        self.writes = Writes()

    async def execute(self, session: Session, statement: Any, parameters: Sequence[object]) -> Outcome:
        session.open_transaction().begin_write("INSERT")
        await self.locks.acquire(session, ["u1"], exclusive=True)
        return Completed("INSERT 0 1")

    def check_variable(self, session: Session, name: str, value: str) -> None:
        return None

    def disconnected(self, session: Session) -> None:
        return None


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 20))


def session_on(backend: Backend, **variables: str) -> Session:
    return Session(cast(Coordinator, backend), 1, "materialize", SessionVariables(variables), "test")


async def run_sql(session: Session, *texts: str) -> list[str]:
    tags = []
    for text in texts:
        try:
            for statement in await session.parse(text):
                outcome = await session.execute(statement, Parameters())
                tags.append(outcome.tag if isinstance(outcome, Completed) else str(outcome))
        except SqlError as error:
            session.fail()
            tags.append(error.sqlstate)
        await session.sync()
    return tags


def test_a_block_that_lies_idle_gives_its_locks_back_and_says_so_once() -> None:
    async def main() -> None:
        backend = Backend()
        idle = session_on(backend, idle_in_transaction_session_timeout="20ms")
        assert await run_sql(idle, "BEGIN", "INSERT INTO t VALUES (1)") == ["BEGIN", "INSERT 0 1"]
        await backend.locks.acquire("other", ["u1"], exclusive=True)  # waits until the block is aborted
        assert idle.transaction_status == "E"
        assert await run_sql(idle, "INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (2)", "COMMIT") == [
            "25P03",
            "25P02",
            "ROLLBACK",
        ]
        assert backend.writes.committed == []
        await backend.tasks.close()

    run(main())


def test_a_busy_block_is_left_alone() -> None:
    async def main() -> None:
        backend = Backend()
        busy = session_on(backend, idle_in_transaction_session_timeout="10s")
        assert await run_sql(busy, "BEGIN", "INSERT INTO t VALUES (1)", "COMMIT") == ["BEGIN", "INSERT 0 1", "COMMIT"]
        assert busy.transaction_status == "I"
        assert SessionVariables({}).idle_timeout_s is None
        await busy.close()

    run(main())


@pytest.mark.parametrize(
    ("statements", "tags"),
    [
        (["BEGIN READ ONLY", "INSERT INTO t VALUES (1)"], ["BEGIN", "25006"]),
        (["BEGIN", "SET transaction_read_only = on", "INSERT INTO t VALUES (1)"], ["BEGIN", "SET", "25006"]),
        (["SET transaction_read_only = maybe"], ["22023"]),
        (["SET default_transaction_read_only = on", "INSERT INTO t VALUES (1)"], ["SET", "25006"]),
        (["COMMIT", "ROLLBACK"], ["COMMIT", "ROLLBACK"]),
        (["BEGIN", "BEGIN", "ROLLBACK"], ["BEGIN", "BEGIN", "ROLLBACK"]),
    ],
)
def test_transaction_modes(statements: list[str], tags: list[str]) -> None:
    async def main() -> None:
        session = session_on(Backend())
        assert await run_sql(session, *statements) == tags

    run(main())


def test_notices_below_the_wanted_severity_are_not_sent() -> None:
    async def main() -> None:
        session = session_on(Backend())
        await run_sql(session, "COMMIT")
        assert [notice.sqlstate for notice in session.notices] == ["25P01"]
        session.notices.clear()
        await run_sql(session, "SET client_min_messages = error", "COMMIT")
        assert session.notices == []

    run(main())


def test_the_default_isolation_is_the_isolation() -> None:
    async def main() -> None:
        session = session_on(Backend())
        await run_sql(session, "SET default_transaction_isolation = 'serializable'")
        assert session.variables["transaction_isolation"] == "serializable"

    run(main())
