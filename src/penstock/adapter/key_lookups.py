"""Which keys of an index, or which rows of a shard, a statement can be interested in, by what its WHERE clause says.

A narrowing at least: where the query runs with its whole filter over the rows that were found, the answer may name
keys too many, never too few, and where anything is unclear there is no answer. Where the keys say all that the filter
says and the statement asks for nothing but columns, the rows found under them are the result (`Lookup.rows_of`), and
no query need be planned or run over them.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from sqlglot import exp

from penstock.control import Comparison
from penstock.sql import QueryPlan
from penstock.sql import statements as ast
from penstock.sql.items import CatalogItem

KEYS_MAX = 10_000
_EXACT_TYPES = frozenset(
    ["smallint", "integer", "bigint", "uint2", "uint4", "uint8", "numeric", "date", "text", "character varying"]
)
"""Types of which a value has one spelling as far as Arrow reads it: ``'A0EE…'::uuid`` equals its lower-case form."""
_ORDERED_TYPES = _EXACT_TYPES | {"timestamp without time zone"}
"""Types whose values Arrow reads and orders as SQL does."""
_OPERATORS: dict[type[exp.Expression], tuple[str, str]] = {
    exp.EQ: ("=", "="),
    exp.NEQ: ("<>", "<>"),
    exp.LT: ("<", ">"),
    exp.LTE: ("<=", ">="),
    exp.GT: (">", "<"),
    exp.GTE: (">=", "<="),
}
"""How a comparison reads from its left side and from its right one."""
_ROW_BY_ROW = frozenset(["expressions", "from", "from_", "where"])
"""The clauses of a SELECT that answers for each row by itself."""
_PLAIN_TABLE = frozenset(["this", "db", "catalog", "alias"])
"""What may be said of a relation in FROM without changing what its rows are."""
_CUTTING_TYPES = frozenset(exp.DataType.Type[name] for name in ("CHAR", "NCHAR", "BPCHAR", "NAME"))
"""Types that are of a certain length without saying so."""
_TYPED_LITERALS = {exp.DataType.Type.DATE: "date", exp.DataType.Type.TIMESTAMP: "timestamp without time zone"}
"""How ``DATE '2026-01-01'`` is understood."""


@dataclass(frozen=True)
class Lookup:
    """A condition on the rows of the one relation that a statement reads, which it calls `alias`.

    `parameters`: the values of $1, $2, ... as the client sent them, None for NULL. `selected`: what the statement
    takes of each row that meets the condition, None where it does more with them than that.
    """

    alias: str
    condition: exp.Expression
    parameters: Sequence[object | None] = ()
    selected: tuple[exp.Expression, ...] | None = None

    @staticmethod
    def of_query(plan: QueryPlan, tree: exp.Expression, parameters: Sequence[object | None]) -> Lookup | None:
        """Of ``SELECT ... FROM item WHERE ...``; None for anything that reads more than one relation, or all of it.

        `plan` is the plan of `tree`.
        """
        if plan.uses != set(plan.inputs.values()):
            return None  # it names a view, whose columns are not those of what it reads
        if not isinstance(tree, exp.Select) or tree.args.get("joins"):
            return None
        source = tree.args.get("from_") or tree.args.get("from")
        where = tree.args.get("where")
        if source is None or where is None or not isinstance(source.this, exp.Table):
            return None
        if {name for name, value in source.this.args.items() if value} - _PLAIN_TABLE or source.this.alias_column_names:
            return None  # its columns go by other names, or its rows are not all
        if any(query is not tree for query in tree.find_all(exp.Query, exp.With)):
            return None  # what the condition says of its own relation is not said of those of EXISTS (SELECT ...)
        given = {name for name, value in tree.args.items() if value}
        selected = tuple(tree.expressions) if given <= _ROW_BY_ROW else None
        return Lookup(source.this.alias_or_name.lower(), where.this, parameters, selected)

    @staticmethod
    def of_change(statement: ast.Update | ast.Delete, parameters: Sequence[object | None]) -> Lookup | None:
        """Of ``UPDATE item ... WHERE ...`` and ``DELETE FROM item WHERE ...``."""
        where = statement.where
        if where is None or (isinstance(statement, ast.Delete) and statement.using):
            return None
        values = [a.expression for a in statement.assignments] if isinstance(statement, ast.Update) else []
        if any(tree is not None and tree.find(exp.Query) for tree in (where, *values)):
            return None
        selected = (exp.Star(),) if isinstance(statement, ast.Delete) else None
        return Lookup((statement.alias or statement.table.last).lower(), where, parameters, selected)

    def rows_of(self, item: CatalogItem, key: Sequence[int]) -> list[int] | None:
        """Positions of the columns of `item` that the statement answers with, for just the rows under `keys`.

        None where the condition says more than `keys` do, or the statement computes something.
        """
        assert item.desc is not None
        if self.selected is None:
            return None
        fixed = [self._fixed(term)[0] for term in _conjuncts(self.condition)]
        names = [self._name(column) for column in fixed if column is not None and self._mine(column)]
        if len(names) != len(fixed) or sorted(names) != sorted(item.desc.columns[i].name for i in key):
            return None
        positions: list[int] = []
        for term in self.selected:
            if isinstance(term, exp.Star) and not any(term.args.values()):
                positions += range(len(item.desc.columns))
                continue
            if not isinstance(term, exp.Column) or not self._mine(term):
                return None
            position = item.desc.index_of(self._name(term))
            if position is None:
                return None
            positions.append(position)
        return positions

    def keys(self, item: CatalogItem, key: Sequence[int]) -> pa.RecordBatch | None:
        """The keys (columns `key` of `item`) that rows of `item` must have to matter; None: any."""
        assert item.desc is not None
        columns = [item.desc.columns[position] for position in key]
        wanted: Mapping[str, _Values] = self._wanted()
        if not columns or any(c.name not in wanted or c.type.name not in _EXACT_TYPES for c in columns):
            return None
        schema = pa.schema([column.field.with_nullable(True) for column in columns])
        try:
            values = [wanted[field.name].array(field.type) for field in schema]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OverflowError):
            return None  # the constant needs the planner's understanding of it
        if math.prod(map(len, values)) > KEYS_MAX:
            return None
        combined = np.indices([len(array) for array in values]).reshape(len(values), -1)
        arrays = [array.take(pa.array(places)) for array, places in zip(values, combined, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def comparisons(self, item: CatalogItem) -> tuple[Comparison, ...]:
        """Comparisons of single columns with constants that every row of the result meets. Others are left out."""
        assert item.desc is not None
        found: list[Comparison] = []
        for column, operator, constant in self._compared():
            position = item.desc.index_of(self._name(column)) if self._mine(column) else None
            if position is None or item.desc.columns[position].type.name not in _ORDERED_TYPES:
                continue
            kind = item.desc.columns[position].type
            values = self._constants([_of_type(constant, kind.name)])
            value = values.only(kind.arrow) if values is not None else None
            if value is not None:
                found.append(Comparison(item.desc.columns[position].name, operator, value))
        return tuple(found)

    def _compared(self) -> Iterator[tuple[exp.Column, str, exp.Expression]]:
        """(column, operator, what it is compared with) of each term of the condition that is a comparison."""
        for term in _conjuncts(self.condition):
            if isinstance(term, exp.Between):
                if isinstance(term.this, exp.Column) and not term.args.get("symmetric"):
                    yield term.this, ">=", term.args["low"]
                    yield term.this, "<=", term.args["high"]
            elif type(term) in _OPERATORS:
                forwards, backwards = _OPERATORS[type(term)]
                if isinstance(term.left, exp.Column):
                    yield term.left, forwards, term.right
                elif isinstance(term.right, exp.Column):
                    yield term.right, backwards, term.left

    def _wanted(self) -> dict[str, _Values]:
        """Per column, as the statement writes its name, the constants that it must equal one of."""
        found: dict[str, _Values] = {}
        for term in _conjuncts(self.condition):
            column, values = self._fixed(term)
            if column is not None and self._mine(column):
                found.setdefault(self._name(column), values)
        return found

    def _mine(self, column: exp.Column) -> bool:
        return not column.table or column.table.lower() == self.alias

    @staticmethod
    def _name(column: exp.Column) -> str:
        return str(column.name if column.this.args.get("quoted") else column.name.lower())

    def _fixed(self, term: exp.Expression) -> tuple[exp.Column | None, _Values]:
        if isinstance(term, exp.EQ):
            for column, value in ((term.left, term.right), (term.right, term.left)):
                values = self._constants([value])
                if isinstance(column, exp.Column) and values is not None:
                    return column, values
        if isinstance(term, exp.In) and isinstance(term.this, exp.Column) and not term.args.get("query"):
            values = self._constants(term.expressions)
            if values is not None:
                return term.this, values
        return None, _Values()

    def _constants(self, terms: Sequence[exp.Expression]) -> _Values | None:
        """What the terms stand for when all are literals or all are parameters (one may be ``ANY`` of an array)."""
        texts: list[str] = []
        objects: list[object] = []
        for term in terms:
            term = _bare(term)
            if isinstance(term, exp.Any):
                inner = _bare(term.this)
                if isinstance(inner, exp.Array):
                    nested = self._constants(inner.expressions)
                    if nested is None:
                        return None
                    texts += nested.texts
                    objects += nested.objects
                    continue
                value = self._parameter(inner)
                if not isinstance(value, list):
                    return None
                objects += [element for element in value if element is not None]
                continue
            text = _literal(term)
            if text is not None:
                texts.append(text)
                continue
            value = self._parameter(term)
            if value is _NONE or isinstance(value, list):
                return None
            if value is not None:  # nothing equals NULL
                objects.append(value)
        return None if texts and objects else _Values(texts, objects)

    def _parameter(self, term: exp.Expression) -> object:
        if not isinstance(term, exp.Parameter) or not isinstance(term.this, exp.Literal):
            return _NONE
        number = int(term.this.this)
        return self.parameters[number - 1] if 0 < number <= len(self.parameters) else _NONE


_NONE = object()
"""No parameter: NULL is a value of one."""


@dataclass(frozen=True)
class _Values:
    """Constants: `texts` of literals, or `objects` as a driver sent them."""

    texts: list[str] = field(default_factory=list)
    objects: list[object] = field(default_factory=list)

    def array(self, kind: pa.DataType) -> pa.Array:
        """The distinct values as an array of `kind`. Raises Arrow's errors for what is none.

        Values of another type are compared by that type's rules (a date with a time of day, an integer as a float):
        that is the planner's affair.
        """
        if self.texts:
            return pa.array(list(dict.fromkeys(self.texts)), pa.string()).cast(kind).unique()
        if not {type(value) for value in self.objects} <= _own_types(kind) or any(map(_is_zoned, self.objects)):
            raise pa.ArrowTypeError(f"the constants are no {kind}")
        return pa.array(list(dict.fromkeys(self.objects)), kind)

    def only(self, kind: pa.DataType) -> pa.Scalar | None:
        """The one constant as exactly a value of `kind`; None for none, several, or one that is not."""
        try:
            array = self.array(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OverflowError):
            return None
        if len(array) != 1 or not array[0].is_valid:
            return None
        return array[0]


def _own_types(kind: pa.DataType) -> frozenset[type]:
    """The Python types whose values are values of `kind`, one of the types in `_ORDERED_TYPES`."""
    if pa.types.is_integer(kind):
        return frozenset([int])
    if pa.types.is_decimal(kind):
        return frozenset([int, decimal.Decimal])
    if pa.types.is_timestamp(kind):
        return frozenset([dt.datetime])
    return frozenset([dt.date]) if pa.types.is_date(kind) else frozenset([str])


def _is_zoned(value: object) -> bool:
    """Whether Arrow would turn `value` into another time of day."""
    return isinstance(value, dt.datetime) and value.tzinfo is not None


def _conjuncts(term: exp.Expression) -> list[exp.Expression]:
    term = term.unnest()
    if isinstance(term, exp.And):
        return [*_conjuncts(term.left), *_conjuncts(term.right)]
    return [term]


def _bare(term: exp.Expression) -> exp.Expression:
    """Without parentheses, and a parameter without a cast that gives it its type but cuts or rounds nothing."""
    term = term.unnest()
    if not isinstance(term, exp.Cast) or not isinstance(term.this, exp.Parameter):
        return term
    to = term.to
    while to.this is exp.DataType.Type.ARRAY and to.expressions and isinstance(to.expressions[0], exp.DataType):
        to = to.expressions[0]
    return term if to.expressions or to.this in _CUTTING_TYPES else term.this


def _of_type(term: exp.Expression, name: str) -> exp.Expression:
    """A literal without the cast to the type `name`, which is how Arrow reads it anyway; else `term` as it is."""
    term = term.unnest()
    if not isinstance(term, exp.Cast) or not isinstance(term.this, exp.Literal) or term.to.expressions:
        return term
    return term.this if term.this.is_string and _TYPED_LITERALS.get(term.to.this) == name else term


def _literal(value: exp.Expression) -> str | None:
    if isinstance(value, exp.Neg) and isinstance(value.this, exp.Literal) and not value.this.is_string:
        return "-" + str(value.this.this)
    return str(value.this) if isinstance(value, exp.Literal) else None
