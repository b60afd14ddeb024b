"""What the binders of expressions share: where an expression stands, and what a part may ask of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sqlglot import exp

from penstock.sql.bound import Bound, BoundQuery, Facts, folded
from penstock.sql.scopes import Scope


class Sources(Protocol):
    """The binder of FROM."""

    def bind(self, tree: exp.Expression, scope: Scope) -> str: ...


class Queries(Protocol):
    """What expressions need of the query binder."""

    def subquery(self, tree: exp.Expression, scope: Scope) -> BoundQuery: ...

    @property
    def sources(self) -> Sources: ...

    def regclass(self, name: str, position: int | None) -> int: ...


@dataclass(slots=True)
class Place:
    """Where an expression stands: what it may contain. `clause` names it in errors. `grouped`: how grouping expressions
    are written, once there are some. `rolled_up`: by grouping sets, which put NULL for what they leave out."""

    scope: Scope
    clause: str
    aggregates: bool = False
    windows: bool = False
    grouped: Mapping[str, str] | None = None
    named_windows: dict[str, exp.Expression] | None = None
    rolled_up: bool = False

    @property
    def filters(self) -> bool:
        """Whether this is a condition on rows: only there can DataFusion run EXISTS and IN as joins."""
        return self.clause in ("WHERE", "HAVING", "JOIN/ON")


class Binder(Protocol):
    """What the parts of an expression are bound with."""

    @property
    def facts(self) -> Facts: ...

    @property
    def queries(self) -> Queries: ...

    def bind(self, node: exp.Expression, place: Place) -> Bound: ...

    def typed(self, node: exp.Expression, place: Place) -> Bound: ...

    def condition(self, node: exp.Expression, place: Place, what: str) -> Bound: ...


def call_name(node: exp.Expression) -> str:
    """The name of a called function, folded."""
    name = node.this
    return folded(name) if isinstance(name, exp.Identifier) else str(name).lower()


def direction(item: exp.Expression) -> str:
    """DESC and NULLS FIRST/LAST of one ORDER BY entry; NULLs are greatest unless said otherwise."""
    descending = bool(item.args.get("desc"))
    nulls_first = item.args.get("nulls_first")
    first = descending if nulls_first is None else bool(nulls_first)
    return f"{' DESC' if descending else ' ASC'} NULLS {'FIRST' if first else 'LAST'}"
