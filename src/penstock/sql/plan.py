"""From a query to a plan: resolved SQL for DataFusion, with everything about it that the rest of Penstock needs.

The same SQL is run for an ad-hoc SELECT and optimized into the plan that an incremental view maintains; that is how
both give the same answers. See docs/rfcs/0003-from-sql-to-plan.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import datafusion.substrait
import pyarrow as pa
from sqlglot import exp

from penstock.runtime import GlobalId, SqlError
from penstock.sql import casts, functions
from penstock.sql import statements as st
from penstock.sql.bound import BoundQuery, Facts, Session
from penstock.sql.errors import map_datafusion_error
from penstock.sql.items import CatalogView
from penstock.sql.null_aware import mark_null_aware
from penstock.sql.queries import Queries
from penstock.sql.scopes import Scope
from penstock.sql.types import TEXT, UNKNOWN, Column, RelationDesc, SqlType


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """A planned query.

    `desc`: its result, with PostgreSQL's column names, which may repeat (the SQL's own are distinct). `datafusion_sql`:
    for a context prepared by `sql.functions.register`, with the collections of `inputs` as tables. `parameters`: the
    types of $1, ...; `bind` fills them in. `temporal`: it calls ``mz_now()``. `volatile`: it may answer differently
    each time. `session_dependent`: it has values of this session or moment folded in, so it must not be kept.
    `uses`: the items it names itself; what views read is in `inputs` only.
    """

    desc: RelationDesc
    datafusion_sql: str
    inputs: Mapping[str, GlobalId]
    parameters: tuple[SqlType, ...] = ()
    temporal: bool = False
    volatile: bool = False
    session_dependent: bool = False
    recursive: bool = False
    uses: frozenset[GlobalId] = field(default_factory=frozenset)

    def check_count(self, given: int) -> None:
        """SqlError 08P01 when `given` is not the number of the plan's parameters."""
        if given != len(self.parameters):
            raise SqlError(
                f"statement requires {len(self.parameters)} parameters, but {given} were given", sqlstate="08P01"
            )

    def bind(self, values: Sequence[str | None]) -> QueryPlan:
        """The plan with parameters replaced by constants. `values`: their text representations, None for NULL.

        DataError 22P02 (or the type's own) when a text is no value of its parameter's type.
        """
        self.check_count(len(values))
        if not values:
            return self
        constants = [
            f"CAST(NULL AS {casts.df_type(kind)})" if value is None else casts.constant(value, kind)
            for value, kind in zip(values, self.parameters, strict=True)
        ]
        sql = substitute(self.datafusion_sql, constants)
        return replace(self, datafusion_sql=sql, parameters=())


_PARAMETER = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\d+)""")


def substitute(sql: str, constants: Sequence[str]) -> str:
    """`sql` with $1, $2, ... outside quotes replaced."""
    return _PARAMETER.sub(lambda m: constants[int(m[1]) - 1] if m[1] else m[0], sql)


def plan_query(
    query: st.Query | exp.Expression,
    catalog: CatalogView,
    parameter_types: Sequence[SqlType | None] = (),
    *,
    session: Session | None = None,
    for_view: bool = False,
    columns: Sequence[str] | None = None,
) -> QueryPlan:
    """Resolve and type a query. No I/O and no DataFusion: about a millisecond.

    `parameter_types`: types the client declared, None where it left them open. `for_view`: refuse what differs between
    sessions or moments. `columns`: names for the first columns, as CREATE VIEW gives them. SqlError with a position
    for everything that is wrong with the query (42P01, 42703, 42883, 42804, 42803, 0A000, ...).
    """
    facts = Facts(session or Session(), for_view=for_view)
    for index, kind in enumerate(parameter_types, 1):
        facts.parameters[index] = kind or UNKNOWN
    tree = query.tree if isinstance(query, st.Query) else query
    bound = bind(tree, facts, catalog)
    if for_view and facts.parameters:
        raise SqlError("there are no parameters in a view", sqlstate="42P02")
    plan = plan_of(bound, facts)
    return replace(plan, desc=_renamed(plan.desc, columns)) if columns is not None else plan


def bind(tree: exp.Expression, facts: Facts, catalog: CatalogView) -> BoundQuery:
    """`plan_query` without the packaging; recursion too deep is 54001."""
    try:
        return Queries(facts, catalog).query(tree, Scope())
    except RecursionError:
        raise SqlError("statement is nested too deeply", sqlstate="54001") from None


_NESTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\(SELECT\b|\b[a-z_][a-z0-9_]*\(|\bCASE\b|\bEND\b|[()]""")
_NESTED_MAX = 16


def check_nesting(sql: str) -> None:
    """54001 for calls nested so deeply that DataFusion would plan for seconds.

    Its time doubles with every call around a call and grows fourfold with every CASE in a CASE.
    """
    weights = [0]
    total = most = 0
    for match in _NESTED.finditer(sql):
        text = match[0]
        if text in (")", "END"):
            total -= weights.pop() if len(weights) > 1 else 0
        elif text[0] not in "'\"":
            weight = -total if text == "(SELECT" else 0 if text == "(" else 2 if text == "CASE" else 1
            weights.append(weight)
            total += weight
            most = max(most, total)
    if most > _NESTED_MAX:
        raise SqlError(
            "function calls or CASE expressions are nested too deeply",
            sqlstate="54001",
            detail=f"A call counts one level, a CASE two; at most {_NESTED_MAX} are possible.",
            hint="Compute the inner parts in a subquery in FROM.",
        )


def plan_of(bound: BoundQuery, facts: Facts) -> QueryPlan:
    check_nesting(bound.sql)
    return QueryPlan(
        desc=RelationDesc(tuple(Column(c.name, c.type, c.nullable) for c in bound.columns)),
        datafusion_sql=bound.sql,
        inputs=dict(facts.inputs),
        parameters=_parameters(facts),
        temporal=facts.temporal,
        volatile=facts.volatile,
        session_dependent=facts.session_dependent,
        recursive=facts.recursive,
        uses=frozenset(facts.uses),
    )


def _parameters(facts: Facts) -> tuple[SqlType, ...]:
    count = max(facts.parameters, default=0)
    kinds = []
    for index in range(1, count + 1):
        kind = facts.parameters.get(index, UNKNOWN)
        kinds.append(TEXT if kind == UNKNOWN else kind)
    return tuple(kinds)


def _renamed(desc: RelationDesc, names: Sequence[str]) -> RelationDesc:
    if len(names) > len(desc.columns):
        raise SqlError(
            f"view definition names {len(names)} columns, but its query has {len(desc.columns)}", sqlstate="42P10"
        )
    renamed = [replace(c, name=n) for c, n in zip(desc.columns, names, strict=False)]
    return RelationDesc((*renamed, *desc.columns[len(names) :]))


def check_names(desc: RelationDesc) -> None:
    """42701 when two columns of a relation have one name."""
    seen: set[str] = set()
    for column in desc.columns:
        if column.name in seen:
            raise SqlError(
                f'column "{column.name}" specified more than once',
                sqlstate="42701",
                hint="Give the columns different names with AS.",
            )
        seen.add(column.name)


def optimize(plan: QueryPlan, schemas: Mapping[str, pa.Schema]) -> bytes:
    """DataFusion's optimized logical plan of `plan` as Substrait. `schemas`: per name in ``plan.inputs``.

    SqlError when DataFusion cannot plan the query, DataError when a constant expression fails.
    """
    ctx = planning_context(schemas)
    try:
        logical = ctx.sql(plan.datafusion_sql).optimized_logical_plan()
        encoded = datafusion.substrait.Producer.to_substrait_plan(logical, ctx).encode()
    except Exception as error:  # DataFusion raises plain exceptions
        raise map_datafusion_error(error) from error
    return mark_null_aware(logical, encoded)


def explain(plan: QueryPlan, schemas: Mapping[str, pa.Schema], *, optimized: bool = True) -> str:
    """DataFusion's plan as text, for EXPLAIN."""
    ctx = planning_context(schemas)
    try:
        frame = ctx.sql(plan.datafusion_sql)
        logical = frame.optimized_logical_plan() if optimized else frame.logical_plan()
        return str(logical.display_indent())
    except Exception as error:  # DataFusion raises plain exceptions
        raise map_datafusion_error(error) from error


def planning_context(schemas: Mapping[str, pa.Schema]) -> datafusion.SessionContext:
    """A context that can plan over empty tables with `schemas`."""
    ctx = functions.new_context()
    for name, schema in schemas.items():
        ctx.from_arrow(pa.Table.from_batches([], schema), name=name)
    return ctx
