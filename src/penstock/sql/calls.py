"""Scalar functions: resolution by name and argument types, and the SQL that computes them.

Most are listed in one table: argument types, result type and a template. Those whose result depends on their arguments
in other ways have a rule each. A function in neither is asked of DataFusion, whose answer for those argument types is
remembered; so its long tail of functions works without being listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa

from penstock.runtime import SqlError
from penstock.sql import functions
from penstock.sql.bound import Bound, Facts, Literal, combine, string
from penstock.sql.casts import (
    Context,
    as_numeric,
    cast,
    castable,
    coerce,
    common_type,
    df_type,
    family,
    resolve_unknown,
    texts,
    timestamp_constant,
    typed,
)
from penstock.sql.types import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT8,
    INT4,
    INT8,
    INTERVAL,
    JSONB,
    MZ_TIMESTAMP,
    OID,
    TEXT,
    TIMESTAMP,
    TIMESTAMPTZ,
    UNKNOWN,
    UUID,
    SqlType,
    array_of,
    default_type,
    numeric,
)


@dataclass(frozen=True, slots=True)
class Signature:
    """`template`: with {0}, {1}, ... for the arguments, {all} for all of them."""

    arguments: tuple[SqlType, ...]
    result: SqlType
    template: str


def _table() -> dict[str, list[Signature]]:
    found: dict[str, list[Signature]] = {}

    def add(names: str, arguments: tuple[SqlType, ...], result: SqlType, template: str | None = None) -> None:
        for name in names.split():
            made = template or f"{name}({{all}})"
            found.setdefault(name, []).append(Signature(arguments, result, made))

    t, i, f, s, sz = TEXT, INT4, FLOAT8, TIMESTAMP, TIMESTAMPTZ
    add("lower upper initcap reverse btrim ltrim rtrim trim", (t,), t)
    add("btrim ltrim rtrim", (t, t), t)
    add("length char_length character_length", (t,), i, "CAST(character_length({0}) AS INT)")
    add("length octet_length", (BYTEA,), i, "CAST(octet_length({0}) AS INT)")
    add("octet_length bit_length ascii", (t,), i)
    add("chr", (INT8,), t)
    add("substr substring", (t, INT8), t, "substr({all})")
    add("substr substring", (t, INT8, INT8), t, "substr({all})")
    add("left right repeat", (t, INT8), t)
    add("lpad rpad", (t, INT8), t)
    add("lpad rpad", (t, INT8, t), t)
    add("replace translate", (t, t, t), t)
    add("overlay", (t, t, INT8), t)
    add("overlay", (t, t, INT8, INT8), t)
    add("split_part", (t, t, INT8), t)
    add("strpos position", (t, t), i, "CAST(strpos({all}) AS INT)")
    add("starts_with", (t, t), BOOL)
    add("md5", (t,), t, "CAST(md5({0}) AS VARCHAR)")
    add("sha224 sha256 sha384 sha512", (BYTEA,), BYTEA)
    add("encode", (BYTEA, t), t)
    add("decode", (t, t), BYTEA)
    add("to_hex", (INT8,), t)
    add("regexp_replace", (t, t, t), t)
    add("regexp_replace", (t, t, t, t), t)
    add("regexp_match", (t, t), array_of(t))
    add("regexp_match", (t, t, t), array_of(t))
    add("string_to_array", (t, t), array_of(t))
    add("quote_literal", (t,), t, "concat('''', replace({0}, '''', ''''''), '''')")
    add("sqrt cbrt exp ln log10 log2 radians degrees", (f,), f)
    add("sin cos tan asin acos atan sinh cosh tanh cot", (f,), f)
    add("atan2", (f, f), f)
    add("log", (f,), f, "log10({0})")
    add("log", (f, f), f)
    add("power pow", (f, f), f, "power({all})")
    add("pi", (), f)
    add("gcd lcm", (INT8, INT8), INT8)
    add("factorial", (INT8,), INT8)
    add("date_trunc", (t, s), s)
    add("date_trunc", (t, sz), sz)
    add("date_part", (t, s), f, "CAST(date_part({all}) AS DOUBLE)")
    add("date_part", (t, sz), f, "CAST(date_part({all}) AS DOUBLE)")
    add("to_timestamp", (f,), sz, "arrow_cast(CAST({0} * 1000000 AS BIGINT), 'Timestamp(µs, \"UTC\")')")
    add("date_bin", (INTERVAL, s, s), s)
    add("date_bin", (INTERVAL, s), s)
    add("make_date", (i, i, i), DATE)
    add("timezone", (t, sz), s, "CAST({1} AS TIMESTAMP(6))")
    add("jsonb_typeof json_typeof", (JSONB,), t, "ps_json_typeof({0})")
    add("jsonb_array_length json_array_length", (JSONB,), i, "ps_json_array_length({0})")
    add("gen_random_uuid uuid_generate_v4", (), UUID, "CAST(uuid() AS VARCHAR)")
    add("random", (), f)
    for name in ("has_table_privilege", "has_schema_privilege", "pg_table_is_visible", "pg_type_is_visible"):
        add(name, (OID,), BOOL, "TRUE")
    return found


_TABLE = _table()
_VOLATILE = {"random", "gen_random_uuid", "uuid_generate_v4"}
_NEVER = {
    "arrow_cast", "arrow_typeof", "now", "uuid", "current_date", "current_time", "current_timestamp", "get_field",
    "named_struct", "struct", "union_extract", "union_tag", "version", "arrow_metadata", "map", "make_map", "today",
    "rand", "date_format", "datepart", "datetrunc", "from_unixtime", "generate_series", "make_time", "range",
    "to_date", "to_local_time", "to_time", "to_timestamp_micros", "to_timestamp_millis", "to_timestamp_nanos",
    "to_timestamp_seconds", "to_unixtime", "file_row_index", "arrow_field", "try_cast_to_type", "any_value",
    "approx_distinct", "approx_median", "approx_percentile_cont", "approx_percentile_cont_with_weight", "covar",
    "mean", "median", "percentile_cont", "quantile_cont", "regr_avgx", "regr_avgy", "regr_count", "regr_sxx",
    "regr_sxy", "regr_syy", "var", "var_population", "var_sample",
    "unnest", "input_file_name", "cast_to_type", "arrow_try_cast", "try_cast", "with_metadata", "row",
}  # fmt: skip


def call(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    """The call of a scalar function. SqlError 42883 when no function of that name takes these arguments."""
    rule = _RULES.get(name)
    if rule is not None:
        result = rule(name, arguments, facts, position)
    elif name in _TABLE:
        result = _from_table(name, arguments, facts, position)
    else:
        result = _from_datafusion(name, arguments, facts, position)
    if name in _VOLATILE:
        facts.depends_on_session(name, position)
        facts.volatile = True
        result = replace(result, volatile=True)
    return replace(result, position=position)


def unknown_function(name: str, arguments: list[Bound], position: int | None) -> SqlError:
    kinds = ", ".join(str(argument.type) for argument in arguments)
    return SqlError(
        f"function {name}({kinds}) does not exist",
        sqlstate="42883",
        hint="No function matches the given name and argument types. You might need to add explicit type casts.",
        position=position,
    )


def _from_table(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    fitting = [s for s in _TABLE[name] if _fits(s, arguments)]
    if not fitting:
        raise unknown_function(name, arguments, position)
    best = max(fitting, key=lambda s: _score(s, arguments))
    made = [coerce(a, k, facts) for a, k in zip(arguments, best.arguments, strict=True)]
    texts = [argument.sql for argument in made]
    return combine(best.template.format(*texts, all=", ".join(texts)), best.result, made, nullable=True)


_PREFERRED = (TEXT, TIMESTAMPTZ, FLOAT8)
"""Of several types that an argument could become, PostgreSQL takes these."""


def _score(signature: Signature, arguments: list[Bound]) -> int:
    pairs = zip(arguments, signature.arguments, strict=True)
    return sum(2 if a.type == kind else int(kind in _PREFERRED) for a, kind in pairs)


def _fits(signature: Signature, arguments: list[Bound]) -> bool:
    return len(arguments) == len(signature.arguments) and all(
        castable(argument.type, kind, Context.IMPLICIT)
        for argument, kind in zip(arguments, signature.arguments, strict=True)
    )


def _from_datafusion(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if name in _NEVER or name.startswith("ps_"):
        raise unknown_function(name, arguments, position)
    made = [resolve_unknown(argument, facts) for argument in arguments]
    result = _probe(name, tuple(argument.type for argument in made))
    if result is None:
        raise unknown_function(name, arguments, position)
    sql = f"{name}({', '.join(argument.sql for argument in made)})"
    kind = default_type(result)
    if result != kind.arrow:
        sql = f"CAST({sql} AS {df_type(kind)})"
    return combine(sql, kind, made, nullable=True)


@cache
def _probe(name: str, kinds: tuple[SqlType, ...]) -> pa.DataType | None:
    """What DataFusion's function `name` returns for arguments of `kinds`; None when there is none."""
    arguments = ", ".join(f'"c{i}"' for i in range(len(kinds)))
    ctx = functions.new_context()
    schema = pa.schema([pa.field(f"c{i}", kind.arrow) for i, kind in enumerate(kinds)])
    source = ""
    if kinds:
        ctx.from_arrow(pa.Table.from_batches([], schema), name="probe")
        source = " FROM probe"
    try:
        result = ctx.sql(f"SELECT {name}({arguments}) AS x{source}").schema()
        default_type(result.field(0).type)
    except Exception:  # DataFusion raises plain exceptions; any of them means "no such function"
        return None
    return result.field(0).type


# Functions with rules of their own

Rule = Callable[[str, list[Bound], Facts, "int | None"], Bound]


def _same_type(sql_name: str) -> Rule:
    """coalesce, greatest, least: any number of arguments of one type."""

    def rule(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
        if not arguments:
            raise unknown_function(name, arguments, position)
        made, kind = unify(arguments, facts, name.upper())
        sql = f"{sql_name}({', '.join(argument.sql for argument in made)})"
        return combine(sql, kind, made, nullable=all(argument.nullable for argument in made))

    return rule


def unify(arguments: list[Bound], facts: Facts, what: str) -> tuple[list[Bound], SqlType]:
    """`arguments` all in their common type. 42804 when they have none."""
    kind = common_type([argument.type for argument in arguments])
    if kind is None:
        kinds = [argument.type for argument in arguments if argument.type != UNKNOWN]
        clash = next((k for k in kinds[1:] if common_type([kinds[0], k]) is None), kinds[-1])
        raise SqlError(
            f"{what} types {kinds[0]} and {clash} cannot be matched",
            sqlstate="42804",
            position=next((a.position for a in arguments if a.type == clash), None),
        )
    kind = TEXT if kind == UNKNOWN else kind
    return [coerce(argument, kind, facts) for argument in arguments], kind


def _nullif(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if len(arguments) != 2:
        raise unknown_function(name, arguments, position)
    made, kind = unify(arguments, facts, "NULLIF")
    if not arguments[0].untyped:
        kind = arguments[0].type
    return combine(
        f"nullif({made[0].sql}, {made[1].sql})", common_type([kind, made[0].type]) or kind, made, nullable=True
    )


def _one_number(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    """The argument of abs, round, ... as a number."""
    if len(arguments) != 1:
        raise unknown_function(name, arguments, position)
    argument = arguments[0]
    if argument.untyped:
        argument = coerce(argument, FLOAT8, facts)
    if family(argument.type) not in ("int", "uint", "numeric", "float"):
        raise unknown_function(name, arguments, position)
    return argument


def _keeps_type(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    argument = typed(_one_number(name, arguments, facts, position))
    return argument.derive(f"{name}({argument.sql})", argument.type)


def _sign(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    argument = _one_number(name, arguments, facts, position)
    sign = argument.derive(f"signum({cast(argument, FLOAT8).sql})", FLOAT8)
    return cast(sign, numeric(38, 0)) if family(argument.type) == "numeric" else sign


def _array_to_string(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if len(arguments) not in (2, 3) or arguments[0].type.element is None:
        raise unknown_function(name, arguments, position)
    rest = [coerce(argument, TEXT, facts) for argument in arguments[1:]]
    made = ", ".join([texts(arguments[0].sql, arguments[0].type), *(argument.sql for argument in rest)])
    return combine(f"array_to_string({made})", TEXT, [arguments[0], *rest])


def _to_whole(sql_name: str) -> Rule:
    """ceil, floor: numeric stays numeric, everything else is double precision."""

    def rule(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
        argument = _one_number(name, arguments, facts, position)
        if family(argument.type) == "numeric":
            whole = replace(as_numeric(argument.type), modifier=((38 << 16) | 0) + 4)
            return argument.derive(f"CAST({sql_name}({argument.sql}) AS {df_type(whole)})", whole)
        made = coerce(argument, FLOAT8, facts)
        return argument.derive(f"{sql_name}({made.sql})", FLOAT8)

    return rule


def _round(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    """round and trunc: numeric exactly, with an optional constant number of digits; others as double precision."""
    digits = 0
    if len(arguments) == 2:
        digits = _constant_integer(arguments[1], f"{name} with a number of digits that is not a constant")
    argument = _one_number(name, arguments[:1], facts, position)
    if family(argument.type) == "float":
        if len(arguments) == 2:
            raise unknown_function(name, arguments, position)
        made = coerce(argument, FLOAT8, facts)
        if name == "round":  # halves to even, as the C library's rint
            half = f"round({made.sql} / CAST(2 AS DOUBLE)) * CAST(2 AS DOUBLE)"
            tie = f"abs({made.sql} - trunc({made.sql})) = CAST('0.5' AS DOUBLE)"
            return argument.derive(f"CASE WHEN {tie} THEN {half} ELSE round({made.sql}) END", FLOAT8)
        return argument.derive(f"{name}({made.sql})", FLOAT8)
    number = cast(argument, as_numeric(argument.type))
    if name == "trunc":
        cut = replace(number.type, modifier=((38 << 16) | max(min(digits, number.type.scale), 0)) + 4)
        return argument.derive(f"CAST(trunc({number.sql}, {digits}) AS {df_type(cut)})", cut)
    scale = max(min(digits, number.type.scale), 0)
    rounded = replace(number.type, modifier=((38 << 16) | scale) + 4)
    sql = number.sql if digits >= 0 else f"round({number.sql}, {digits})"
    return argument.derive(f"CAST({sql} AS {df_type(rounded)})", rounded)


def _constant_integer(bound: Bound, what: str) -> int:
    text = bound.value.strip("()")
    if bound.literal not in (Literal.NUMBER, Literal.STRING) or not text.lstrip("-").isdigit():
        raise SqlError(f"{what} is not supported", sqlstate="0A000", position=bound.position)
    return int(text)


def _mod(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    from penstock.sql.operators import arithmetic

    if len(arguments) != 2:
        raise unknown_function(name, arguments, position)
    return arithmetic("%" if name == "mod" else "/", arguments[0], arguments[1], facts, position)


def _concat(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    made = [coerce(argument, TEXT, facts, Context.ASSIGNMENT) for argument in arguments]
    for index, argument in enumerate(arguments):
        if argument.type == BOOL:  # as PostgreSQL's output function writes it
            made[index] = replace(made[index], sql=f"left({made[index].sql}, 1)")
    return combine(f"{name}({', '.join(a.sql for a in made)})", TEXT, made, nullable=name == "concat_ws")


def _clock(kind: SqlType) -> Rule:
    def rule(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
        facts.depends_on_session(name, position)
        return Bound(timestamp_constant(facts.session.now_us, kind), kind, nullable=False)

    return rule


def _today(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    facts.depends_on_session(name, position)
    days = facts.session.now_us // 86_400_000_000
    return Bound(f"CAST(CAST({days} AS INT) AS DATE)", DATE, nullable=False)


def _text_of_session(read: Callable[[Facts], str | None]) -> Rule:
    def rule(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
        facts.depends_on_session(name, position)
        value = read(facts)
        return Bound("CAST(NULL AS VARCHAR)" if value is None else string(value), TEXT, nullable=value is None)

    return rule


def _setting(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if not arguments or arguments[0].literal is not Literal.STRING:
        raise unknown_function(name, arguments, position)
    facts.depends_on_session(name, position)
    setting = arguments[0].value.lower()
    value = facts.session.settings.get(setting)
    if value is None and len(arguments) == 1:
        raise SqlError(f'unrecognized configuration parameter "{setting}"', sqlstate="42704", position=position)
    return Bound("CAST(NULL AS VARCHAR)" if value is None else string(value), TEXT, nullable=value is None)


def _process_id(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    facts.depends_on_session(name, position)
    return Bound(f"CAST({facts.session.process_id} AS INT)", INT4, nullable=False)


def _mz_now(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if arguments:
        raise unknown_function(name, arguments, position)
    facts.temporal = True
    return Bound("mz_now()", MZ_TIMESTAMP, nullable=False)


def _array_length(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if not arguments or arguments[0].type.element is None or len(arguments) > 2:
        raise unknown_function(name, arguments, position)
    counted = f"array_length({arguments[0].sql})" if name == "array_length" else f"cardinality({arguments[0].sql})"
    return combine(f"CAST({counted} AS INT)", INT4, arguments, nullable=True)


def _array_like(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    """array_append, array_prepend, array_remove, array_cat, array_position: of an array and an element."""
    from penstock.sql.operators import concatenate

    if len(arguments) != 2:
        raise unknown_function(name, arguments, position)
    if name == "array_cat":
        return concatenate(arguments[0], arguments[1], facts, position)
    array, element = (arguments[1], arguments[0]) if name == "array_prepend" else (arguments[0], arguments[1])
    if array.type.element is None:
        raise unknown_function(name, arguments, position)
    item = coerce(element, array.type.element, facts)
    both = f"{item.sql}, {array.sql}" if name == "array_prepend" else f"{array.sql}, {item.sql}"
    if name == "array_position":
        return array.derive(f"CAST(array_position({both}) AS INT)", INT4, item, nullable=True)
    return array.derive(f"{'array_remove_all' if name == 'array_remove' else name}({both})", array.type, item)


def _jsonb_build(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    """to_jsonb, jsonb_build_object, jsonb_build_array: JSON texts concatenated, then made canonical."""
    if name == "to_jsonb":
        if len(arguments) != 1:
            raise unknown_function(name, arguments, position)
        return arguments[0].derive(json_of(arguments[0], facts).sql, JSONB)
    if name == "jsonb_build_object" and len(arguments) % 2:
        raise SqlError("argument list must have even number of elements", sqlstate="22023", position=position)
    made = [f"coalesce({json_of(argument, facts).sql}, 'null')" for argument in arguments]
    if name == "jsonb_build_object":
        keys = [f"ps_text_to_json_string({coerce(a, TEXT, facts, Context.ASSIGNMENT).sql})" for a in arguments[::2]]
        made = [f"{key}, ':', {value}" for key, value in zip(keys, made[1::2], strict=True)]
    opening, closing = "{}" if name == "jsonb_build_object" else "[]"
    inner = ", ',', ".join(made)
    parts = f"'{opening}', {inner}, '{closing}'" if made else f"'{opening}{closing}'"
    return combine(f"ps_text_to_jsonb(concat({parts}))", JSONB, arguments, nullable=False)


def json_of(bound: Bound, facts: Facts) -> Bound:
    """A value as jsonb: numbers and booleans as themselves, everything else as a string."""
    bound = resolve_unknown(bound, facts)
    if bound.type == JSONB:
        return bound
    if family(bound.type) in ("int", "uint", "float", "numeric", "bool"):
        return replace(bound, sql=cast(bound, TEXT).sql, type=JSONB)
    return replace(bound, sql=f"ps_text_to_json_string({cast(bound, TEXT).sql})", type=JSONB)


def _age(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    raise SqlError(
        "function age is not supported", sqlstate="0A000", hint="Subtract the timestamps.", position=position
    )


def _typeof(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    if len(arguments) != 1:
        raise unknown_function(name, arguments, position)
    return Bound(string(arguments[0].type.name), TEXT, nullable=False)


def _to_char(name: str, arguments: list[Bound], facts: Facts, position: int | None) -> Bound:
    """to_char(timestamp, template), for constant templates."""
    if len(arguments) != 2:
        raise unknown_function(name, arguments, position)
    value, template = arguments
    if value.type not in (DATE, TIMESTAMP, TIMESTAMPTZ) or template.literal is not Literal.STRING:
        raise SqlError(f"to_char({value.type}, ...) is not supported", sqlstate="0A000", position=position)
    stamp = cast(value, TIMESTAMP)
    return value.derive(f"to_char({stamp.sql}, {string(strftime_format(template.value, position))})", TEXT)


_TEMPLATES = {
    "HH24": "%H", "HH12": "%I", "HH": "%I", "MI": "%M", "SS": "%S", "MS": "%3f", "US": "%6f", "YYYY": "%Y",
    "YY": "%y", "IYYY": "%G", "MM": "%m", "Mon": "%b", "DDD": "%j", "DD": "%d", "Dy": "%a", "IW": "%V", "ID": "%u",
    "AM": "%p", "PM": "%p", "FMMonth": "%B", "FMDay": "%A", "TZ": "UTC",
}  # fmt: skip
_TEMPLATE = re.compile("|".join(sorted(_TEMPLATES, key=len, reverse=True)) + r'|"[^"]*"|[A-Za-z]+|[^A-Za-z"]+')


def strftime_format(template: str, position: int | None) -> str:
    """PostgreSQL's template patterns as strftime's. 0A000 for those that strftime lacks."""
    out = []
    for match in _TEMPLATE.finditer(template):
        piece = match[0]
        if piece in _TEMPLATES:
            out.append(_TEMPLATES[piece])
        elif piece[0].isalpha():
            raise SqlError(f'the pattern "{piece}" of to_char is not supported', sqlstate="0A000", position=position)
        else:
            out.append(piece.strip('"').replace("%", "%%"))
    return "".join(out)


_RULES: dict[str, Rule] = {
    "to_char": _to_char,
    "coalesce": _same_type("coalesce"),
    "greatest": _same_type("greatest"),
    "least": _same_type("least"),
    "nullif": _nullif,
    "abs": _keeps_type,
    "sign": _sign,
    "ceil": _to_whole("ceil"),
    "ceiling": _to_whole("ceil"),
    "floor": _to_whole("floor"),
    "round": _round,
    "trunc": _round,
    "mod": _mod,
    "div": _mod,
    "concat": _concat,
    "concat_ws": _concat,
    "now": _clock(TIMESTAMPTZ),
    "current_timestamp": _clock(TIMESTAMPTZ),
    "transaction_timestamp": _clock(TIMESTAMPTZ),
    "statement_timestamp": _clock(TIMESTAMPTZ),
    "clock_timestamp": _clock(TIMESTAMPTZ),
    "localtimestamp": _clock(TIMESTAMP),
    "current_date": _today,
    "mz_now": _mz_now,
    "current_user": _text_of_session(lambda facts: facts.session.user),
    "user": _text_of_session(lambda facts: facts.session.user),
    "current_role": _text_of_session(lambda facts: facts.session.user),
    "session_user": _text_of_session(lambda facts: facts.session.session_user),
    "current_database": _text_of_session(lambda facts: facts.session.database),
    "current_catalog": _text_of_session(lambda facts: facts.session.database),
    "current_schema": _text_of_session(lambda facts: facts.session.schema),
    "version": _text_of_session(lambda facts: facts.session.version),
    "mz_version": _text_of_session(lambda facts: facts.session.mz_version),
    "current_setting": _setting,
    "pg_backend_pid": _process_id,
    "array_length": _array_length,
    "cardinality": _array_length,
    "array_to_string": _array_to_string,
    "array_append": _array_like,
    "array_prepend": _array_like,
    "array_remove": _array_like,
    "array_cat": _array_like,
    "array_position": _array_like,
    "to_jsonb": _jsonb_build,
    "jsonb_build_object": _jsonb_build,
    "jsonb_build_array": _jsonb_build,
    "age": _age,
    "pg_typeof": _typeof,
}
