"""ALTER SYSTEM: settings of the whole environment, changed at run time.

The catalog keeps them; what they change is told to all processes after it has them, and again at each start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.adapter.session_api import Completed, Outcome
from penstock.adapter.variables import SYSTEM_VARIABLES, Variable, checked, lookup
from penstock.catalog import CATALOG_SHARD
from penstock.committer import RoutedConsensus
from penstock.runtime import ExternalError, SqlError
from penstock.sql import statements as ast

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator

USE_COMMITTER = "persist_consensus_use_committer"
_TOUCH_S = 10.0


def bypasses_committer(settings: Mapping[str, str]) -> bool:
    """Whether the catalog's `settings` say that persist reaches the consensus store directly."""
    return settings.get(USE_COMMITTER, SYSTEM_VARIABLES[USE_COMMITTER].default) == "off"


async def bypass_committer(consensus: RoutedConsensus) -> None:
    """Send this process's consensus straight to the store, once that is known to be the committer's.

    Raises `ValueError` when it is not or cannot be, `ExternalError` when it does not answer.
    """
    await consensus.check_store(CATALOG_SHARD)
    consensus.use_store()


class SystemVariables:
    """Carries out ALTER SYSTEM, one at a time, and tells what holds."""

    def __init__(self, coordinator: Coordinator, consensus: RoutedConsensus) -> None:
        self._c = coordinator
        self._consensus = consensus

    def all(self) -> list[tuple[str, str, str]]:
        """Name, value and description of every system variable."""
        settings = self._c.catalog.state.settings
        return [(v.name, settings.get(v.name, v.default), v.description) for v in SYSTEM_VARIABLES.values()]

    def get(self, name: str) -> str | None:
        """The value of a system variable, in any case; None when it is none."""
        return next((value for known, value, _ in self.all() if known == name.lower()), None)

    async def alter(self, statement: ast.SetVariable | ast.ResetVariable) -> Outcome:
        """Carry out the statement. Durable and in force in this process on return; replicas hear of it at once.

        SqlError 42704 (unknown), 0A000 (belongs to sessions), 22023 (bad value), 55000 (cannot be done here).
        """
        transaction = self._c.catalog.begin()
        if isinstance(statement, ast.ResetVariable) and statement.name is None:
            for name in SYSTEM_VARIABLES:
                transaction.set_setting(name, None)
        else:
            variable = _system_variable(statement.name or "")
            given = statement.values if isinstance(statement, ast.SetVariable) else None
            transaction.set_setting(variable.name, None if given is None else checked(variable, ", ".join(given)))
        bypass = bypasses_committer(transaction.state.settings)
        bypassed = not self._consensus.uses_committer
        if bypass is not bypassed:
            await self._change_way(bypass)
        try:
            await self._c.commit_catalog(transaction)
        except BaseException:
            self._take_way(bypassed)
            raise
        self._c.compute.configure(bypass_committer=bypass)
        return Completed("ALTER SYSTEM")

    def _take_way(self, bypass: bool) -> None:
        if bypass:
            self._consensus.use_store()
        else:
            self._consensus.use_committer()

    async def _change_way(self, bypass: bool) -> None:
        """Take the other way, if both lead to one store: what was written just now over the one is seen over both."""
        try:
            await self._consensus.check_store(CATALOG_SHARD)  # fails soon where a commit would be patient
            async with asyncio.timeout(_TOUCH_S):
                await self._c.catalog.touch()
            await self._consensus.check_store(CATALOG_SHARD)
            self._take_way(bypass)
        except (ValueError, ExternalError, TimeoutError) as error:
            raise SqlError(
                f"the way to the consensus store stays as it is: {error}",
                sqlstate="55000",
                hint="The server's --consensus says where the store is; the committer must be up, and serve the same.",
            ) from error


def _system_variable(name: str) -> Variable:
    variable = SYSTEM_VARIABLES.get(name.lower())
    if variable is None:
        raise SqlError(
            f'parameter "{lookup(name).name}" belongs to sessions, not to the system',
            sqlstate="0A000",
            hint="Use SET in each session.",
        )
    return variable
