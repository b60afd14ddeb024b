"""Catalog queries in PostgreSQL's words, rewritten into words that DataFusion knows.

What clients send uses operators, casts and functions that only a PostgreSQL has: ``OPERATOR(pg_catalog.~)``,
``::regclass``, ``pg_get_expr``, ``= ANY (array)``, ``ARRAY(SELECT ...)``. Each becomes an ordinary expression, a call
of one of our functions (`functions`), or a constant of the session. Subqueries over relations that are empty for good
are replaced by what they yield, which leaves few correlated ones (`subqueries`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlglot import exp

from penstock.adapter.pg_catalog import names
from penstock.adapter.pg_catalog.functions import FUNCTIONS
from penstock.adapter.pg_catalog.parameters import parameter_number
from penstock.adapter.pg_catalog.relations import is_always_empty
from penstock.adapter.pg_catalog.shapes import schema_of_relation, shapes
from penstock.adapter.pg_catalog.snapshot import Snapshot
from penstock.adapter.pg_catalog.subqueries import count_instead_of_exists, ease_scalar_subquery, has_aggregate
from penstock.runtime import SqlError
from penstock.sql.types import type_named

_OPERATORS: dict[str, Callable[[exp.Expression, exp.Expression], exp.Expression]] = {
    "=": lambda a, b: exp.EQ(this=a, expression=b),
    "<>": lambda a, b: exp.NEQ(this=a, expression=b),
    "!=": lambda a, b: exp.NEQ(this=a, expression=b),
    "<": lambda a, b: exp.LT(this=a, expression=b),
    ">": lambda a, b: exp.GT(this=a, expression=b),
    "<=": lambda a, b: exp.LTE(this=a, expression=b),
    ">=": lambda a, b: exp.GTE(this=a, expression=b),
    "||": lambda a, b: exp.DPipe(this=a, expression=b),
    "~": lambda a, b: exp.RegexpLike(this=a, expression=b),
    "~*": lambda a, b: exp.RegexpILike(this=a, expression=b),
    "!~": lambda a, b: exp.not_(exp.RegexpLike(this=a, expression=b)),
    "!~*": lambda a, b: exp.not_(exp.RegexpILike(this=a, expression=b)),
    "~~": lambda a, b: exp.Like(this=a, expression=b),
    "!~~": lambda a, b: exp.not_(exp.Like(this=a, expression=b)),
    "~~*": lambda a, b: exp.ILike(this=a, expression=b),
    "!~~*": lambda a, b: exp.not_(exp.ILike(this=a, expression=b)),
}
_NUMBERS_OF_NAMES = {
    "regclass",
    "regtype",
    "regnamespace",
    "regrole",
    "regproc",
    "regprocedure",
    "regoper",
    "regconfig",
}
_SHOWS_AS = {
    "regclass": "pg_regclass_name",
    "regtype": "pg_regtype_name",
    "regnamespace": "pg_regnamespace_name",
    "regrole": "pg_get_userbyid",
}
_TRUE_FOR_ALL = {
    *("pg_type_is_visible", "pg_function_is_visible", "pg_operator_is_visible", "pg_opclass_is_visible"),
    *("pg_opfamily_is_visible", "pg_collation_is_visible", "pg_conversion_is_visible", "pg_ts_config_is_visible"),
    *("pg_ts_dict_is_visible", "pg_ts_parser_is_visible", "pg_ts_template_is_visible"),
    *("pg_statistics_obj_is_visible",),
    *("has_table_privilege", "has_schema_privilege", "has_database_privilege", "has_column_privilege"),
    *("has_any_column_privilege", "has_function_privilege", "has_language_privilege", "has_server_privilege"),
    *("has_sequence_privilege", "has_tablespace_privilege", "has_type_privilege", "pg_has_role"),
}
_FALSE_FOR_ALL = {"pg_relation_is_publishable", "pg_is_in_recovery", "pg_is_other_temp_schema"}
_NULL_TEXTS = {
    *("pg_get_constraintdef", "pg_get_ruledef", "pg_get_triggerdef", "pg_get_partkeydef", "pg_get_function_result"),
    *("pg_get_function_arguments", "pg_get_function_identity_arguments", "pg_get_functiondef", "pg_size_pretty"),
    *(
        "pg_get_function_sqlbody",
        "pg_get_statisticsobjdef",
        "pg_get_statisticsobjdef_columns",
        "pg_tablespace_location",
    ),
    *("pg_get_function_arg_default", "pg_get_serial_sequence", "shobj_description", "inet_server_addr"),
    *("inet_client_addr", "pg_get_partition_constraintdef", "pg_describe_object", "pg_identify_object"),
}
_NULL_NUMBERS = {
    *("pg_relation_size", "pg_table_size", "pg_total_relation_size", "pg_indexes_size", "pg_database_size"),
    *("pg_tablespace_size", "inet_server_port", "inet_client_port", "txid_current", "pg_my_temp_schema", "age"),
}
_NEVER_FILLED = {"reloptions", "attoptions", "spcoptions", "relacl", "attacl", "nspacl", "datacl"}
_IGNORED_SETTINGS = {"jit", "extra_float_digits", "enable_seqscan", "enable_nestloop", "geqo"}
_TYPES = {
    "name": "VARCHAR", "oid": "BIGINT", "xid": "BIGINT", '"char"': "VARCHAR", "cstring": "VARCHAR", "text": "VARCHAR",
    "character varying": "VARCHAR", "character": "VARCHAR", "jsonb": "VARCHAR", "json": "VARCHAR", "uuid": "VARCHAR",
    "int2vector": "SMALLINT[]", "oidvector": "BIGINT[]", "aclitem": "VARCHAR", "anyarray": "VARCHAR[]",
}  # fmt: skip


_CATALOG_CALLS = (
    _TRUE_FOR_ALL | _FALSE_FOR_ALL | _NULL_TEXTS | _NULL_NUMBERS | FUNCTIONS.keys()
    | {"current_schemas", "current_setting", "set_config", "pg_get_expr"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rewritten:
    """`sql` for DataFusion; `relations` it reads (``schema.name``); `names` of its columns, None: as they come."""

    sql: str
    relations: frozenset[str]
    names: Sequence[str | None]


def is_catalog_query(tree: exp.Expression) -> bool:
    """Whether a query reads pg_catalog or information_schema, or only calls functions of a PostgreSQL's catalog."""
    tables = [table for table in tree.find_all(exp.Table) if isinstance(table.this, exp.Identifier)]
    local = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    tables = [table for table in tables if table.db or table.name.lower() not in local]
    if tables:
        return any(table_name(table) is not None for table in tables)
    if any(type_text(cast.to) in _NUMBERS_OF_NAMES for cast in tree.find_all(exp.Cast)):
        return True
    return any(str(call.this).lower() in _CATALOG_CALLS for call in tree.find_all(exp.Anonymous))


def rewrite(
    tree: exp.Expression, snapshot: Snapshot, parameters: Sequence[exp.Expression], others: Collection[str] = ()
) -> Rewritten:
    """`tree` is left alone. `parameters`: what stands for $1, $2, ... `others`: further relations that there are.

    SqlError for what does not exist.
    """
    tree = tree.copy()
    columns = names.name_outputs(tree)
    rewriter = _Rewriter(snapshot, parameters, others)
    tree = rewriter.run(tree)
    return Rewritten(tree.sql(dialect="postgres"), frozenset(rewriter.relations), columns)


def table_name(table: exp.Table) -> str | None:
    """``schema.name`` of a reference to a catalog relation, None for any other."""
    schema, name = table.db.lower(), table.name.lower()
    if not isinstance(table.this, exp.Identifier):
        return None
    if not schema:
        schema = schema_of_relation().get(name, "")
    full = f"{schema}.{name}"
    return full if full in shapes() else None


def type_text(kind: exp.Expression) -> str:
    """The type of a cast in lower case, without its schema: ``regclass``, ``oid[]``."""
    return kind.sql(dialect="postgres").lower().removeprefix("pg_catalog.").strip()


class _Rewriter:
    def __init__(self, snapshot: Snapshot, parameters: Sequence[exp.Expression], others: Collection[str]) -> None:
        self._others = others
        self.relations: set[str] = set()
        self._snapshot = snapshot
        self._parameters = parameters

    def run(self, tree: exp.Expression) -> exp.Expression:
        local = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
        _strip_schemas(tree)
        _drop_branches_of_absent_types(tree)
        tree = self._prune_empty(tree, local)
        # children before parents, so that a rule sees arguments that are final
        for node in reversed(list(tree.walk(bfs=True))):
            replacement = self._node(node, local)
            if replacement is not node:
                if node is tree:
                    tree = replacement
                else:
                    node.replace(replacement)
        for exists in list(tree.find_all(exp.Exists)):
            count_instead_of_exists(exists)
        for select in list(tree.find_all(exp.Select)):
            ease_scalar_subquery(select)
        return tree

    # What is empty for good

    def _prune_empty(self, tree: exp.Expression, local: set[str]) -> exp.Expression:
        for select in reversed(list(tree.find_all(exp.Select))):
            outer = select.find_ancestor(exp.Select)
            # a subquery of a query without rows is never evaluated: any value will do
            if select is tree or not (self._is_empty(select, local) or (outer and self._is_empty(outer, local))):
                continue
            parent = select.parent
            if isinstance(parent, exp.Exists):
                parent.replace(exp.false())
            elif isinstance(parent, exp.Anonymous) and parent.name.lower() == "array":
                parent.replace(exp.Anonymous(this="pg_no_items"))
            elif isinstance(parent, exp.Subquery) and not isinstance(parent.parent, exp.From | exp.Join | exp.In):
                parent.replace(exp.null())
            elif isinstance(parent, exp.Union) and select.arg_key == "expression":
                self._drop_branch(parent)
        return tree

    @staticmethod
    def _drop_branch(union: exp.Union) -> None:
        """Drop the right side of a union; only below another union, so that DISTINCT and ORDER BY stay."""
        if isinstance(union.parent, exp.Union) and union.arg_key == "this" and not union.args.get("order"):
            union.replace(union.this)

    def _is_empty(self, select: exp.Select, local: set[str]) -> bool:
        """Whether an inner-joined relation of it never has rows, and it has no aggregate to make a row of none."""
        if has_aggregate(select):
            return False
        source = select.args.get("from_")
        joins = [join for join in select.args.get("joins") or [] if not join.side]
        tables = [source.this if source is not None else None, *(join.this for join in joins)]
        return any(
            isinstance(table, exp.Table)
            and table.name.lower() not in local
            and (name := table_name(table)) is not None
            and is_always_empty(name)
            for table in tables
        )

    # One rule per kind of node

    def _node(self, node: exp.Expression, local: set[str]) -> exp.Expression:
        match node:
            case exp.Table():
                return self._table(node, local)
            case exp.Operator():
                symbol = str(node.args["operator"]).rpartition(".")[2]
                if symbol not in _OPERATORS:
                    raise SqlError(f"operator {symbol} is not supported in catalog queries", sqlstate="0A000")
                return _OPERATORS[symbol](node.this, node.expression)
            case exp.Collate():
                return node.this
            case exp.Escape():
                return _with_backslash(node)
            case exp.Cast():
                return self._cast(node)
            case exp.CurrentUser() | exp.SessionUser():
                return exp.Literal.string(self._snapshot.session.user)
            case exp.CurrentCatalog():
                return exp.Literal.string(self._snapshot.session.database)
            case exp.Column() if node.db:
                node.set("db", None)  # pg_catalog.pg_class.oid
                return node
            case exp.Column() if not node.table and node.name.lower() in ("current_schema", "user"):
                return node if node.this.quoted else self._constant(node.name.lower(), []) or node
            case exp.Anonymous():
                return self._call(node)
            case exp.EQ() | exp.NEQ() if isinstance(node.expression, exp.Any | exp.All):
                return self._quantified(node)
            case exp.EQ() | exp.NEQ():
                return _array_literal_comparison(node)
            case exp.Parameter() | exp.Placeholder():
                return self._parameter(node)
        return node

    def _table(self, table: exp.Table, local: set[str]) -> exp.Expression:
        if isinstance(table.this, exp.Func | exp.Dot) or (not table.db and table.name.lower() in local):
            return table
        name = table_name(table)
        if name is None and f"{table.db}.{table.name}".lower() in self._others:
            name = f"{table.db}.{table.name}".lower()
        if name is None:
            written = ".".join(part.name for part in table.parts)
            raise SqlError(f'relation "{written}" does not exist', sqlstate="42P01")
        self.relations.add(name)
        table.set("alias", table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name)))
        table.set("this", exp.to_identifier(name, quoted=True))
        table.set("db", None)
        table.set("catalog", None)
        return table

    def _cast(self, cast: exp.Cast) -> exp.Expression:
        kind = type_text(cast.to)
        if kind in _NUMBERS_OF_NAMES:
            return self._object_identifier(cast, kind)
        if kind.endswith("[]"):
            element = kind.removesuffix("[]")
            if cast.this.is_string:
                return _array_of_literal(cast.this.name, element)
            target = _engine_type(element) + "[]"
        else:
            target = _engine_type(kind)
        return exp.Cast(this=cast.this, to=exp.DataType.build(target, dialect="postgres"))

    def _object_identifier(self, cast: exp.Cast, kind: str) -> exp.Expression:
        """A ``reg...`` value is a number where it is compared or cast on, and a name where it is shown."""
        value = cast.this
        shown = not _is_compared(cast)
        if kind not in _SHOWS_AS:
            if value.is_string and not shown:
                raise SqlError(f'function "{value.name}" does not exist', sqlstate="42883")
            return exp.cast(value.copy(), "VARCHAR")  # columns of procedures hold their names
        if value.is_string:
            number = self._lookup(kind, value.name)
            return exp.Literal.string(self._show(kind, number)) if shown else exp.Literal.number(number)
        return exp.Anonymous(this=_SHOWS_AS[kind], expressions=[_as_bigint(value)]) if shown else value

    def _lookup(self, kind: str, text: str) -> int:
        snapshot = self._snapshot
        if kind == "regclass":
            return snapshot.regclass(text)
        if kind == "regtype":
            return snapshot.regtype(text)
        objects = snapshot.namespaces if kind == "regnamespace" else {n: oid for oid, n in snapshot.roles.items()}
        if text not in objects:
            what, state = ("schema", "3F000") if kind == "regnamespace" else ("role", "42704")
            raise SqlError(f'{what} "{text}" does not exist', sqlstate=state)
        return objects[text]

    def _show(self, kind: str, number: int) -> str:
        snapshot = self._snapshot
        if kind == "regclass":
            return snapshot.regclass_name(number)
        if kind == "regtype":
            return snapshot.format_type(number, None) or "-"
        objects = {oid: n for n, oid in snapshot.namespaces.items()} if kind == "regnamespace" else snapshot.roles
        return objects[number]

    def _quantified(self, node: exp.Binary) -> exp.Expression:
        """``x = ANY (array)``, ``x <> ALL (array)``; over a subquery, IN."""
        quantifier = node.expression
        inner = quantifier.this.unnest() if isinstance(quantifier.this, exp.Paren) else quantifier.this
        value = node.this
        if isinstance(inner, exp.Query):
            test: exp.Expression = exp.In(this=value, query=exp.Subquery(this=inner.unnest()))
        else:
            if inner.is_string:
                inner = _array_of_literal(inner.name, None)
            test = exp.Anonymous(this="array_has", expressions=[inner, value])
        return test if isinstance(node, exp.EQ) else exp.not_(test)

    def _parameter(self, node: exp.Expression) -> exp.Expression:
        number = parameter_number(node)
        if not 1 <= number <= len(self._parameters):
            raise SqlError(f"there is no parameter ${number}", sqlstate="42P02")
        return self._parameters[number - 1].copy()

    def _call(self, call: exp.Anonymous) -> exp.Expression:
        name = str(call.this).lower()
        arguments = call.expressions
        constant = self._constant(name, arguments)
        if constant is not None:
            return constant
        if name == "array" and len(arguments) == 1 and isinstance(arguments[0], exp.Query):
            return _array_of_query(arguments[0])
        if name == "format" and arguments and arguments[0].is_string:
            return _format(arguments[0].name, arguments[1:])
        if name == "pg_no_items":
            return exp.cast(exp.Anonymous(this="make_array"), "VARCHAR[]", dialect="postgres")
        if name == "pg_get_expr":
            return arguments[0]
        if name in ("array_upper", "cardinality"):
            return _length(arguments[0])
        if name == "json_build_object":
            return _json_object(arguments)
        if name == "array_lower":
            return exp.Literal.number(1)
        if name in ("generate_subscripts", "_pg_expandarray"):
            one = exp.Literal.number(1)
            end = exp.Add(this=_length(arguments[0]), expression=one)
            series = exp.Anonymous(this="range", expressions=[one.copy(), end])
            return exp.Anonymous(this="unnest", expressions=[series])
        signature = FUNCTIONS.get(name)
        if signature is None:
            return call
        kinds = signature.arguments
        if len(arguments) < signature.required:
            raise SqlError(f"function {name} needs {signature.required} arguments", sqlstate="42883")
        given = [
            _as_bigint(value) if kind == "int" else exp.cast(value, "VARCHAR")
            for kind, value in zip(kinds, arguments, strict=False)
        ]
        given += [exp.Literal.number(0) if kind == "int" else exp.Literal.string("") for kind in kinds[len(given) :]]
        return exp.Anonymous(this=name, expressions=given)

    def _constant(self, name: str, arguments: Sequence[exp.Expression]) -> exp.Expression | None:
        session = self._snapshot.session
        if name in _TRUE_FOR_ALL:
            return exp.true()
        if name in _FALSE_FOR_ALL:
            return exp.false()
        if name in _NULL_TEXTS:
            return exp.cast(exp.null(), "VARCHAR")
        if name in _NULL_NUMBERS:
            return exp.cast(exp.null(), "BIGINT")
        texts = {
            "current_database": session.database,
            "current_catalog": session.database,
            "current_user": session.user,
            "session_user": session.user,
            "user": session.user,
            "version": session.version,
            "getdatabaseencoding": "UTF8",
            "pg_client_encoding": "UTF8",
        }
        if name in texts:
            return exp.Literal.string(texts[name])
        if name == "current_schema":
            schema = self._snapshot.current_schema
            return exp.cast(exp.null(), "VARCHAR") if schema is None else exp.Literal.string(schema)
        if name == "current_schemas":
            implicit = not (arguments and isinstance(arguments[0], exp.Boolean) and not arguments[0].this)
            path = [s for s in self._snapshot.path if implicit or s in session.search_path]
            return exp.Anonymous(this="make_array", expressions=[exp.Literal.string(s) for s in path])
        if name == "pg_backend_pid":
            return exp.Literal.number(session.process_id)
        if name in ("current_setting", "set_config") and arguments and arguments[0].is_string:
            return self._setting(name, arguments)
        return None

    def _setting(self, name: str, arguments: Sequence[exp.Expression]) -> exp.Expression:
        setting = arguments[0].name.lower()
        if name == "set_config":
            if setting not in _IGNORED_SETTINGS:
                raise SqlError(f"set_config of {setting} is not supported", sqlstate="0A000", hint="Use SET.")
            return arguments[1]  # a knob of an engine that is not ours
        found = {key.lower(): value for key, value in self._snapshot.session.settings.items()}.get(setting)
        if found is None and setting in _IGNORED_SETTINGS:
            found = "off"
        if found is None:
            if len(arguments) > 1 and isinstance(arguments[1], exp.Boolean) and arguments[1].this:
                return exp.cast(exp.null(), "VARCHAR")
            raise SqlError(f'unrecognized configuration parameter "{setting}"', sqlstate="42704")
        return exp.Literal.string(found)


def _strip_schemas(tree: exp.Expression) -> None:
    """``pg_catalog.f(...)`` -> ``f(...)``, for functions in expressions and in FROM."""
    for node in list(tree.walk()):
        if (
            isinstance(node, exp.Dot)
            and node.this.name.lower() == "pg_catalog"
            and isinstance(node.expression, exp.Func)
        ):
            node.replace(node.expression)
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Func) and node.db.lower() == "pg_catalog":
            node.set("db", None)


def _drop_branches_of_absent_types(tree: exp.Expression) -> None:
    """``CASE WHEN t.typtype = 'd' THEN ...``: there are no domains, composites, enums or ranges."""
    for case in reversed(list(tree.find_all(exp.Case))):
        kept = [branch for branch in case.args["ifs"] if not _asks_for_absent_type(branch.this)]
        if len(kept) == len(case.args["ifs"]):
            continue
        if kept:
            case.set("ifs", kept)
        else:
            case.replace(case.args.get("default") or exp.null())


def _asks_for_absent_type(test: exp.Expression) -> bool:
    if not isinstance(test, exp.EQ) or not isinstance(test.this, exp.Column) or not test.expression.is_string:
        return False
    return test.this.name.lower() == "typtype" and test.expression.name in "cderm"


def _engine_type(name: str) -> str:
    base = name.partition("(")[0].strip()
    if base in _TYPES:
        return _TYPES[base]
    canonical = type_named(name).name
    return _TYPES.get(canonical, name)


def _as_bigint(value: exp.Expression) -> exp.Expression:
    return exp.cast(value.copy(), "BIGINT")


def _is_compared(node: exp.Expression) -> bool:
    """Whether the value goes into a comparison or a cast to a number, rather than out to the client."""
    parent = node.parent
    while isinstance(parent, exp.Paren):
        parent = parent.parent
    if isinstance(parent, exp.Cast):
        return type_text(parent.to) in ("oid", "int", "integer", "bigint", "int4", "int8")
    return isinstance(parent, exp.Predicate | exp.In | exp.Any) or (
        isinstance(parent, exp.Anonymous) and str(parent.this).lower() in FUNCTIONS
    )


def _length(array: exp.Expression) -> exp.Expression:
    return _as_bigint(exp.Anonymous(this="array_length", expressions=[array.copy()]))


def _json_object(arguments: Sequence[exp.Expression]) -> exp.Expression:
    """``json_build_object(name, value, ...)``; catalog queries put texts into it, and so values become strings."""
    pieces: list[exp.Expression] = []
    for index, argument in enumerate(arguments):
        text = exp.Anonymous(this="pg_json_string", expressions=[exp.cast(argument.copy(), "VARCHAR")])
        pieces.append(exp.Literal.string(" : " if index % 2 else ", " if index else "{"))
        pieces.append(exp.func("coalesce", text, exp.Literal.string("null")))
    return exp.Anonymous(this="concat", expressions=[*pieces, exp.Literal.string("}")])


def _with_backslash(node: exp.Escape) -> exp.Expression:
    """``LIKE pattern ESCAPE '/'`` with the backslash that DataFusion escapes with."""
    like, escape = node.this, node.expression.name
    if escape != "\\":
        pattern = exp.Anonymous(
            this="replace", expressions=[like.expression, exp.Literal.string(escape), exp.Literal.string("\\")]
        )
        like.set("expression", pattern)
    return like


def _array_of_literal(text: str, element: str | None) -> exp.Expression:
    """``'{1,2}'`` as an array. Without a known element type: numbers when all items are."""
    items = [item.strip().strip('"') for item in text.strip().strip("{}").split(",") if item.strip()]
    numeric = all(item.lstrip("-").isdigit() for item in items) and bool(items)
    target = _engine_type(element) if element is not None else "BIGINT" if numeric else "VARCHAR"
    values = [exp.Literal.number(item) if numeric else exp.Literal.string(item) for item in items]
    array = exp.Anonymous(this="make_array", expressions=values)
    return exp.cast(array, f"{target}[]", dialect="postgres")


def _format(template: str, arguments: Sequence[exp.Expression]) -> exp.Expression:
    """``format('%s.%I', a, b)`` as a concatenation, in which NULL is empty."""
    pieces: list[exp.Expression] = []
    values = iter(arguments)
    for text in re.split(r"(%[sIL%])", template):
        if text in ("%s", "%I", "%L"):
            value = exp.cast(next(values, exp.null()).copy(), "VARCHAR")
            name = {"%I": "quote_ident", "%L": "quote_literal"}.get(text)
            pieces.append(value if name is None else exp.Anonymous(this=name, expressions=[value]))
        elif text:
            pieces.append(exp.Literal.string("%" if text == "%%" else text))
    return exp.Anonymous(this="concat", expressions=pieces)


def _array_literal_comparison(node: exp.Binary) -> exp.Expression:
    literal = node.expression
    if literal.is_string and literal.name.startswith("{") and literal.name.endswith("}"):
        node.set("expression", _array_of_literal(literal.name, None))
    return node


def _unnested(select: exp.Expression) -> exp.Expression | None:
    """``ARRAY(SELECT x FROM unnest(items) x)`` is `items`, and nothing for columns that are never filled."""
    source = select.args.get("from_")
    call = source.this if source is not None else None
    call = call.this if isinstance(call, exp.Table) else call
    if not isinstance(call, exp.Anonymous | exp.Unnest) or len(call.expressions) != 1:
        return None
    if isinstance(call, exp.Anonymous) and str(call.this).lower() != "unnest":
        return None
    items = call.expressions[0]
    if isinstance(select.expressions[0], exp.Column):
        return items
    if items.name.lower() in _NEVER_FILLED:
        return exp.cast(exp.Anonymous(this="make_array"), "VARCHAR[]", dialect="postgres")
    return None


def _array_of_query(query: exp.Expression) -> exp.Expression:
    """``ARRAY(SELECT x ... ORDER BY y)`` as ``(SELECT array_agg(x ORDER BY y) ...)``, empty instead of NULL."""
    select = query.unnest()
    unnested = _unnested(select)
    if unnested is not None:
        return unnested
    if not isinstance(select, exp.Select):
        raise SqlError("ARRAY over a set operation is not supported in catalog queries", sqlstate="0A000")
    value = select.expressions[0].unalias()
    order = select.args.get("order")
    select.set("order", None)
    if order is not None:
        for key in order.expressions:
            if key.this.is_int:  # ORDER BY 1
                key.set("this", value.copy())
        value = exp.Order(this=value, expressions=order.expressions)
    select.set("expressions", [exp.Anonymous(this="array_agg", expressions=[value])])
    return exp.Subquery(this=select)
