"""The catalog as one session sees it: its database, its search path, and the system relations that are in no shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.catalog.state import CatalogState
from penstock.catalog.transaction import SYSTEM_SCHEMAS
from penstock.runtime import SqlError
from penstock.sql.items import CatalogItem

IMPLICIT_SCHEMAS = ("mz_catalog", "pg_catalog")
"""Searched before the session's own path, as PostgreSQL does with pg_catalog."""


class SessionCatalog:
    """A `CatalogView` over one state. `system`: relations by (schema, name)."""

    def __init__(
        self,
        state: CatalogState,
        *,
        database: str = "materialize",
        search_path: Sequence[str] = ("public",),
        system: Mapping[tuple[str, str], CatalogItem] | None = None,
    ) -> None:
        self.state = state
        self._database = database
        self._search_path = tuple(search_path)
        self._system = system or {}

    @property
    def database(self) -> str:
        return self._database

    @property
    def search_path(self) -> Sequence[str]:
        return self._search_path

    def resolve(self, parts: tuple[str, ...]) -> CatalogItem:
        """The item that `parts` means. SqlError 42P01, 3F000 or 3D000 when there is none."""
        found = self.find(parts)
        if found is not None:
            return found
        self._check_qualifiers(parts)
        raise SqlError(f'unknown catalog item "{".".join(parts)}"', sqlstate="42P01", hint=self._hint(parts[-1]))

    def find(self, parts: tuple[str, ...]) -> CatalogItem | None:
        """As `resolve`, but None when there is no such item."""
        if len(parts) == 1:
            for schema in self._effective_path():
                found = self._in_schema(self._database, schema, parts[0])
                if found is not None:
                    return found
            return None
        if len(parts) == 2:
            return self._in_schema(self._database, *parts)
        if len(parts) == 3:
            return self._in_schema(*parts)
        raise SqlError(f"improper qualified name (too many dotted names): {'.'.join(parts)}", sqlstate="42601")

    def full_name(self, parts: tuple[str, ...]) -> tuple[str, str, str]:
        """Where a new object of this name goes. SqlError 3F000 when no schema of the search path exists."""
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
        if len(parts) == 2:
            return self._database, parts[0], parts[1]
        for schema in self._search_path:
            if self.state.schema_id(self._database, schema) is not None:
                return self._database, schema, parts[0]
        raise SqlError(
            "no schema has been selected to create in",
            sqlstate="3F000",
            hint="SET search_path = public, or CREATE SCHEMA.",
        )

    def _in_schema(self, database: str, schema: str, name: str) -> CatalogItem | None:
        if schema in SYSTEM_SCHEMAS:
            return self._system.get((schema, name))
        return self.state.items_by_name.get((database, schema, name))

    def _effective_path(self) -> Sequence[str]:
        return (*(schema for schema in IMPLICIT_SCHEMAS if schema not in self._search_path), *self._search_path)

    def _check_qualifiers(self, parts: tuple[str, ...]) -> None:
        database = parts[0] if len(parts) == 3 else self._database
        if self.state.database_id(database) is None:
            raise SqlError(f'database "{database}" does not exist', sqlstate="3D000")
        if len(parts) > 1 and parts[-2] not in SYSTEM_SCHEMAS and self.state.schema_id(database, parts[-2]) is None:
            raise SqlError(f'schema "{parts[-2]}" does not exist', sqlstate="3F000")

    def _hint(self, name: str) -> str | None:
        """Where a relation of that name is, when it is elsewhere."""
        elsewhere = [full for full in self.state.items_by_name if full[2] == name]
        if not elsewhere:
            return None
        return f"There is {'.'.join(elsewhere[0])}: qualify the name, or add its schema to search_path."
