"""Which names mean what at one place of a query."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field

from penstock.runtime import SqlError
from penstock.sql.bound import Bound, OutColumn, ident
from penstock.sql.items import CatalogItem
from penstock.sql.types import SqlType


@dataclass(slots=True)
class Relation:
    """Something in FROM. `alias`: how the query calls it; `emitted`: how the written SQL does, unique in it."""

    alias: str
    emitted: str
    columns: tuple[OutColumn, ...]
    item: CatalogItem | None = None
    nullable: bool = False
    """On the side of an outer join that may be filled with NULLs."""

    def bound(self, column: OutColumn, position: int | None = None) -> Bound:
        sql = f"{ident(self.emitted)}.{ident(column.ident)}"
        return Bound(
            sql, column.type, nullable=column.nullable or self.nullable, position=position,
            loose=((f"{self.alias}.{column.name}", position),),
        )  # fmt: skip

    def matches(self, qualifier: tuple[str, ...]) -> bool:
        """Whether ``qualifier.column`` may mean a column of this relation."""
        if len(qualifier) == 1:
            return qualifier[0] == self.alias
        if self.item is None or self.alias != self.item.name[2]:
            return False
        return self.item.name[-len(qualifier) :] == qualifier


@dataclass(slots=True)
class Merged:
    """A column of JOIN ... USING: one name for columns of several relations."""

    name: str
    bound: Bound
    members: list[tuple[Relation, OutColumn]]


@dataclass(frozen=True, slots=True)
class Cte:
    """A WITH entry that can be named in FROM."""

    emitted: str
    columns: tuple[OutColumn, ...]


@dataclass(slots=True)
class Scope:
    """The relations of one SELECT, and the scopes around it."""

    parent: Scope | None = None
    relations: list[Relation] = field(default_factory=list)
    merged: list[Merged] = field(default_factory=list)
    ctes: dict[str, Cte] = field(default_factory=dict)
    correlated: bool = False

    def cte(self, name: str) -> Cte | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.ctes:
                return scope.ctes[name]
            scope = scope.parent
        return None

    def without_relations(self) -> Scope:
        """A scope in which only the WITH entries of this one can be named."""
        ctes: dict[str, Cte] = {}
        scope: Scope | None = self
        while scope is not None:
            ctes = {**scope.ctes, **ctes}
            scope = scope.parent
        return Scope(ctes=ctes)

    def add(self, relation: Relation, position: int | None) -> Relation:
        if any(relation.alias == other.alias and relation.alias for other in self.relations):
            raise SqlError(
                f'table name "{relation.alias}" specified more than once', sqlstate="42712", position=position
            )
        self.relations.append(relation)
        return relation

    def column(self, qualifier: tuple[str, ...], name: str, position: int | None) -> Bound:
        """What a column reference means, here or in a scope around. 42703, 42702 or 42P01 when nothing or too much."""
        scope: Scope | None = self
        while scope is not None:
            found = scope._own(qualifier, name, position)
            if found is not None:
                inner: Scope | None = self
                while inner is not scope:
                    assert inner is not None
                    inner.correlated = True
                    inner = inner.parent
                return found if scope is self else _outer(found)
            scope = scope.parent
        raise self._missing(qualifier, name, position)

    def _own(self, qualifier: tuple[str, ...], name: str, position: int | None) -> Bound | None:
        found: list[Bound] = []
        hidden: set[tuple[int, str]] = set()
        if not qualifier:
            for merged in self.merged:
                if merged.name == name:
                    found.append(merged.bound)
                    hidden |= {(id(relation), column.ident) for relation, column in merged.members}
        for relation in self.relations:
            if qualifier and not relation.matches(qualifier):
                continue
            found.extend(
                relation.bound(column, position)
                for column in relation.columns
                if column.name == name and (id(relation), column.ident) not in hidden
            )
        if len(found) > 1:
            raise SqlError(f'column reference "{name}" is ambiguous', sqlstate="42702", position=position)
        return found[0] if found else None

    def whole_row(self, name: str) -> Relation | None:
        """The relation called `name`, for a reference to its row."""
        return next((relation for relation in self.relations if relation.alias == name), None)

    def star(self, qualifier: tuple[str, ...], position: int | None) -> Iterator[tuple[str, Bound]]:
        """The columns of ``*`` or ``qualifier.*``, merged ones first as the standard wants."""
        hidden: set[tuple[int, str]] = set()
        if not qualifier:
            if not self.relations:
                raise SqlError("SELECT * with no tables specified is not valid", sqlstate="42601", position=position)
            for merged in self.merged:
                yield merged.name, merged.bound
                hidden |= {(id(relation), column.ident) for relation, column in merged.members}
        matching = [r for r in self.relations if not qualifier or r.matches(qualifier)]
        if qualifier and not matching:
            if self.parent is not None:
                yield from self.parent.star(qualifier, position)
                return
            raise _missing_table(".".join(qualifier), position)
        for relation in matching:
            for column in relation.columns:
                if (id(relation), column.ident) not in hidden:
                    yield column.name, relation.bound(column, position)

    def _all(self) -> Iterator[Relation]:
        scope: Scope | None = self
        while scope is not None:
            yield from scope.relations
            scope = scope.parent

    def _missing(self, qualifier: tuple[str, ...], name: str, position: int | None) -> SqlError:
        relations = list(self._all())
        if qualifier:
            if not any(relation.matches(qualifier) for relation in relations):
                hidden = next((r for r in relations if r.item is not None and r.item.name[2] == qualifier[-1]), None)
                if hidden is not None:
                    return SqlError(
                        f'invalid reference to FROM-clause entry for table "{qualifier[-1]}"',
                        sqlstate="42P01",
                        hint=f'Perhaps you meant to reference the table alias "{hidden.alias}".',
                        position=position,
                    )
                return _missing_table(".".join(qualifier), position)
            written = f"column {'.'.join((*qualifier, name))} does not exist"
        else:
            written = f'column "{name}" does not exist'
        near = _nearest(name, [(r.alias, column.name) for r in relations for column in r.columns])
        hint = f'Perhaps you meant to reference the column "{near}".' if near else None
        return SqlError(written, sqlstate="42703", hint=hint, position=position)


def _outer(bound: Bound) -> Bound:
    """A column of an outer query is a constant in the inner one: the inner GROUP BY does not concern it."""
    return Bound(bound.sql, bound.type, nullable=bound.nullable, position=bound.position)


def _missing_table(name: str, position: int | None) -> SqlError:
    return SqlError(f'missing FROM-clause entry for table "{name}"', sqlstate="42P01", position=position)


def _nearest(name: str, candidates: list[tuple[str, str]]) -> str | None:
    names = {column: alias for alias, column in reversed(candidates)}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"{names[close[0]]}.{close[0]}" if close else None


def table_columns(item: CatalogItem) -> tuple[OutColumn, ...]:
    assert item.desc is not None, item
    return tuple(OutColumn(c.name, c.name, c.type, c.nullable) for c in item.desc.columns)


def renamed(
    columns: tuple[OutColumn, ...], names: list[str], alias: str, position: int | None
) -> tuple[OutColumn, ...]:
    """`columns` under new names, as ``AS alias (names)`` asks; those without a new name keep theirs."""
    if len(names) > len(columns):
        raise SqlError(
            f'table "{alias}" has {len(columns)} columns available but {len(names)} columns specified',
            sqlstate="42P10",
            position=position,
        )
    new = [*names, *(column.name for column in columns[len(names) :])]
    return tuple(
        OutColumn(name, column.ident, column.type, column.nullable) for name, column in zip(new, columns, strict=True)
    )


def unique_idents(names: list[str], kinds: list[SqlType], nullables: list[bool]) -> tuple[OutColumn, ...]:
    """Output columns whose `ident` differ although their names may not."""
    used: set[str] = set()
    out = []
    for index, (name, kind, nullable) in enumerate(zip(names, kinds, nullables, strict=True)):
        unique = name
        while not unique or unique.lower() in used:
            unique = f"{name or 'column'}_{index + 1}"
            index += len(names)
        used.add(unique.lower())
        out.append(OutColumn(name, unique, kind, nullable))
    return tuple(out)
