"""SHOW, variables, transactions, prepared statements and cursors."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp
from sqlglot.tokens import Token

from penstock.sql.dialect import parse_expression
from penstock.sql.parse_objects import data_type, object_type
from penstock.sql.parse_query import query, subscribe
from penstock.sql.reader import Reader
from penstock.sql.statements import (
    Begin,
    CloseCursor,
    Commit,
    Deallocate,
    Declare,
    Discard,
    DiscardTarget,
    Execute,
    Fetch,
    Name,
    Prepare,
    ResetVariable,
    Rollback,
    SetTransaction,
    SetVariable,
    ShowCreate,
    ShowKind,
    ShowObjects,
    ShowVariable,
    Statement,
    TransactionModes,
    VariableScope,
)
from penstock.sql.types import SqlType

_SHOW_KINDS = sorted(ShowKind, key=lambda kind: -len(kind.value.split()))


def show(reader: Reader) -> Statement:
    position, start = reader.position, reader.mark()
    reader.expect("SHOW")
    if reader.accept("CREATE"):
        kind = object_type(reader)
        name = reader.name()
        return ShowCreate(sql=reader.text_since(start), position=position, object_type=kind, name=name)
    for show_kind in _SHOW_KINDS:
        if reader.accept(*show_kind.value.upper().split()):
            return _show_objects(reader, show_kind, start, position)
    for word in ("PRIVILEGES", "ROLE", "INSPECT", "SUBSOURCES", "TYPES", "NETWORK"):
        if reader.at(word):
            raise reader.unsupported(f"SHOW {word}")
    return (
        ShowVariable(sql="", position=position, name=None)
        if reader.accept("ALL")
        else _show_variable(reader, start, position)
    )


def _show_variable(reader: Reader, start: int, position: int) -> ShowVariable:
    name = _variable_name(reader)
    return ShowVariable(sql=reader.text_since(start), position=position, name=name)


def _variable_name(reader: Reader) -> str:
    if reader.accept("TIME", "ZONE"):
        return "timezone"
    if reader.accept("TRANSACTION", "ISOLATION", "LEVEL"):
        return "transaction_isolation"
    if reader.accept("NAMES"):
        return "client_encoding"
    return ".".join(reader.name().parts)


def _show_objects(reader: Reader, kind: ShowKind, start: int, position: int) -> ShowObjects:
    within: Name | None = None
    cluster: Name | None = None
    like: str | None = None
    where: exp.Expression | None = None
    if reader.word() in ("FROM", "IN", "ON") and not reader.at("IN", "CLUSTER"):
        reader.skip()
        within = reader.name()
    elif kind is ShowKind.COLUMNS:
        raise reader.error(detail="Expected FROM")
    if reader.accept("IN", "CLUSTER"):
        cluster = reader.name()
    if reader.accept("LIKE"):
        like = reader.string()
    elif reader.accept("WHERE"):
        where = parse_expression(reader.rest(), reader.text)
    return ShowObjects(
        sql=reader.text_since(start), position=position, kind=kind, within=within, cluster=cluster, like=like,
        where=where,
    )  # fmt: skip


def set_variable(reader: Reader) -> Statement:
    position, start = reader.position, reader.mark()
    reader.expect("SET")
    if reader.accept("SESSION", "CHARACTERISTICS", "AS", "TRANSACTION"):
        modes = _modes(reader)
        return SetTransaction(sql=reader.text_since(start), position=position, modes=modes, session=True)
    scope = VariableScope.SESSION
    if reader.accept("LOCAL"):
        scope = VariableScope.LOCAL
    elif reader.at("SESSION") and reader.word(1) not in ("=", "TO"):
        reader.skip()
    if reader.accept("TRANSACTION"):
        modes = _modes(reader)
        return SetTransaction(sql=reader.text_since(start), position=position, modes=modes)
    return _assignment(reader, scope, start, position)


def _assignment(reader: Reader, scope: VariableScope, start: int, position: int) -> SetVariable:
    bare = reader.at("TIME", "ZONE") or reader.at("NAMES")
    name = _variable_name(reader)
    if not bare and not reader.accept("="):
        reader.expect("TO")
    values: tuple[str, ...] | None = None
    if not reader.accept("DEFAULT"):
        values = _values(reader)
    return SetVariable(sql=reader.text_since(start), position=position, scope=scope, name=name, values=values)


def _values(reader: Reader) -> tuple[str, ...]:
    values = [_value(reader)]
    while reader.accept(","):
        values.append(_value(reader))
    return tuple(values)


def _value(reader: Reader) -> str:
    """A string, a number with sign, or words such as ``strict serializable``."""
    if reader.at_string():
        return reader.string()
    if reader.done:
        raise reader.error()
    sign = "-" if reader.accept("-") else ""
    token = reader.token()
    if token.text[:1].isdigit() or sign:
        reader.skip()
        return sign + token.text
    words = [reader.identifier()]
    while not reader.done and reader.word().isalpha():
        words.append(reader.identifier())
    return " ".join(words)


def reset(reader: Reader) -> ResetVariable:
    position, start = reader.position, reader.mark()
    reader.expect("RESET")
    name = None if reader.accept("ALL") else _variable_name(reader)
    return ResetVariable(sql=reader.text_since(start), position=position, scope=VariableScope.SESSION, name=name)


def alter_system(reader: Reader) -> Statement:
    position, start = reader.position, reader.mark()
    reader.expect("ALTER", "SYSTEM")
    statement: Statement
    if reader.one_of("SET", "RESET") == "SET":
        statement = _assignment(reader, VariableScope.SYSTEM, start, position)
    else:
        name = None if reader.accept("ALL") else _variable_name(reader)
        statement = ResetVariable(
            sql=reader.text_since(start), position=position, scope=VariableScope.SYSTEM, name=name
        )
    reader.finish()
    return statement


_ISOLATION_LEVELS = (
    "SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED", "READ UNCOMMITTED", "STRICT SERIALIZABLE",
    "STRONG SESSION SERIALIZABLE",
)  # fmt: skip


def _modes(reader: Reader) -> TransactionModes:
    isolation: str | None = None
    read_only: bool | None = None
    while not reader.done:
        if reader.accept("ISOLATION", "LEVEL"):
            for level in _ISOLATION_LEVELS:
                if reader.accept(*level.split()):
                    isolation = level.lower()
                    break
            else:
                raise reader.error(detail="Expected an isolation level")
        elif reader.accept("READ", "ONLY"):
            read_only = True
        elif reader.accept("READ", "WRITE"):
            read_only = False
        elif not reader.accept("NOT", "DEFERRABLE"):
            if reader.at("DEFERRABLE"):
                raise reader.unsupported("DEFERRABLE")
            raise reader.error()
        reader.accept(",")
    return TransactionModes(isolation, read_only)


def begin(reader: Reader) -> Begin:
    position, start = reader.position, reader.mark()
    if reader.one_of("BEGIN", "START") == "START":
        reader.expect("TRANSACTION")
    elif not reader.accept("TRANSACTION"):
        reader.accept("WORK")
    modes = _modes(reader)
    return Begin(sql=reader.text_since(start), position=position, modes=modes)


def _end(reader: Reader) -> None:
    reader.skip()
    if not reader.accept("TRANSACTION"):
        reader.accept("WORK")
    if reader.at("AND", "CHAIN"):
        raise reader.unsupported("AND CHAIN")
    reader.accept("AND", "NO", "CHAIN")
    for words in (("TO",), ("PREPARED",)):
        if reader.at(*words):
            raise reader.unsupported("a savepoint or prepared transaction")


def commit(reader: Reader) -> Commit:
    position, start = reader.position, reader.mark()
    _end(reader)
    return Commit(sql=reader.text_since(start), position=position)


def rollback(reader: Reader) -> Rollback:
    position, start = reader.position, reader.mark()
    _end(reader)
    return Rollback(sql=reader.text_since(start), position=position)


def prepare(reader: Reader, statement: Callable[[list[Token], str], Statement]) -> Prepare:
    position, start = reader.position, reader.mark()
    reader.expect("PREPARE")
    name = reader.identifier()
    types: tuple[SqlType, ...] = ()
    if reader.accept("("):
        types = reader.list_until_close(lambda: data_type(reader, (",",)))
    reader.expect("AS")
    if reader.done:
        raise reader.error(detail="Expected a statement")
    inner = statement(reader.rest(), reader.text)
    return Prepare(sql=reader.text_since(start), position=position, name=name, types=types, statement=inner)


def execute(reader: Reader) -> Execute:
    position, start = reader.position, reader.mark()
    reader.expect("EXECUTE")
    name = reader.identifier()
    arguments: tuple[exp.Expression, ...] = ()
    if reader.accept("("):
        arguments = reader.list_until_close(lambda: parse_expression(reader.until((",",)), reader.text))
    return Execute(sql=reader.text_since(start), position=position, name=name, arguments=arguments)


def deallocate(reader: Reader) -> Deallocate:
    position, start = reader.position, reader.mark()
    reader.expect("DEALLOCATE")
    reader.accept("PREPARE")
    name = None if reader.accept("ALL") else reader.identifier()
    return Deallocate(sql=reader.text_since(start), position=position, name=name)


def declare(reader: Reader) -> Declare:
    position, start = reader.position, reader.mark()
    reader.expect("DECLARE")
    name = reader.identifier()
    for word in ("BINARY", "INSENSITIVE", "SCROLL"):
        if reader.at(word):
            raise reader.unsupported(f"{word} cursor")
    reader.accept("NO", "SCROLL")
    reader.expect("CURSOR")
    if reader.at("WITH", "HOLD"):
        raise reader.unsupported("WITH HOLD")
    reader.accept("WITHOUT", "HOLD")
    reader.expect("FOR")
    inner = subscribe(reader) if reader.at("SUBSCRIBE") else query(reader)
    return Declare(sql=reader.text_since(start), position=position, name=name, statement=inner)


def fetch(reader: Reader) -> Fetch:
    """FETCH [FORWARD] [count | ALL | NEXT] [FROM | IN] name [WITH (timeout = '...')]"""
    position, start = reader.position, reader.mark()
    reader.expect("FETCH")
    for word in ("PRIOR", "FIRST", "LAST", "ABSOLUTE", "RELATIVE", "BACKWARD"):
        if reader.at(word) and reader.word(1):
            raise reader.unsupported(f"FETCH {word}")
    reader.accept("FORWARD")
    count: int | None = 1
    if reader.accept("ALL"):
        count = None
    elif reader.word().isdigit():
        count = reader.integer()
    elif reader.word(1):
        reader.accept("NEXT")
    if not reader.accept("FROM"):
        reader.accept("IN")
    name = reader.identifier()
    timeout = None
    if reader.accept("WITH"):
        reader.expect("(", "TIMEOUT")
        reader.accept("=")
        timeout = reader.string() if reader.at_string() else str(reader.integer())
        reader.expect(")")
    return Fetch(sql=reader.text_since(start), position=position, name=name, count=count, timeout=timeout)


def close(reader: Reader) -> CloseCursor:
    position, start = reader.position, reader.mark()
    reader.expect("CLOSE")
    name = None if reader.accept("ALL") else reader.identifier()
    return CloseCursor(sql=reader.text_since(start), position=position, name=name)


def discard(reader: Reader) -> Discard:
    position, start = reader.position, reader.mark()
    reader.expect("DISCARD")
    word = reader.one_of("ALL", "PLANS", "SEQUENCES", "TEMP", "TEMPORARY")
    target = DiscardTarget(word.lower() if word != "TEMPORARY" else "temp")
    return Discard(sql=reader.text_since(start), position=position, target=target)
