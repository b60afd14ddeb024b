"""Queries with their AS OF, SUBSCRIBE and EXPLAIN."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from sqlglot import exp
from sqlglot.tokens import Token, TokenType

from penstock.sql.dialect import parse_expression, syntax_error
from penstock.sql.dialect import parse_query as query_tree
from penstock.sql.reader import Reader
from penstock.sql.statements import (
    AsOf,
    CreateIndex,
    CreateMaterializedView,
    CreateView,
    Explain,
    ExplainFormat,
    ExplainStage,
    ObjectType,
    Query,
    Statement,
    Subscribe,
)

QUERY_WORDS = ("SELECT", "VALUES", "TABLE", "WITH", "(")
_AFTER_A_COMMA = {"FROM", "WHERE", "GROUP BY", "ORDER BY", "HAVING", "LIMIT", "UNION", ")"}


def query_statement(reader: Reader) -> Query:
    """A query up to the end of the statement."""
    return query(reader)


def query(reader: Reader) -> Query:
    """A query and its AS OF, up to the end of what `reader` has."""
    position, start = reader.position, reader.mark()
    if reader.word() not in QUERY_WORDS:
        raise reader.error(detail="Expected a query")
    tokens = reader.until(("AS", "OF"))
    tree = tree_of(tokens, reader.text)
    as_of = _as_of(reader)
    reader.finish()
    return Query(sql=reader.text_since(start), position=position, tree=tree, as_of=as_of)


def tree_of(tokens: list[Token], text: str) -> exp.Expression:
    """The query that `tokens` spell, after checks that sqlglot leaves out."""
    for token, following in pairwise(tokens):
        if token.token_type == TokenType.COMMA and following.text.upper() in _AFTER_A_COMMA:
            raise syntax_error(following, text=text)
    return query_tree(tokens, text)


def subscribe(reader: Reader) -> Subscribe:
    """SUBSCRIBE [TO] name | (query) [WITH (...)] [AS OF ...] [UP TO ...]"""
    position, start = reader.position, reader.mark()
    reader.skip()
    reader.accept("TO")
    name, source = None, None
    if reader.at("("):
        inner_start = reader.position
        tokens = reader.parenthesised()
        if not tokens:
            raise syntax_error(reader.tokens[0], text=reader.text)
        tree = tree_of(tokens, reader.text)
        text = reader.text[tokens[0].start : tokens[-1].end + 1]
        source = Query(sql=text, position=inner_start + 1, tree=tree)
    elif reader.word() in ("SELECT", "VALUES", "WITH"):
        raise reader.error(hint="Put the query in parentheses: SUBSCRIBE (SELECT ...).")
    else:
        name = reader.name()
    for words in (("ENVELOPE",), ("WITHIN", "TIMESTAMP")):
        if reader.at(*words):
            raise reader.unsupported(f"SUBSCRIBE ... {' '.join(words)}")
    options = _flags(reader, ("SNAPSHOT", "PROGRESS")) if reader.accept("WITH") else {}
    as_of = _as_of(reader)
    up_to = None
    if reader.accept("UP", "TO"):
        up_to = parse_expression(reader.rest(), reader.text)
    reader.finish()
    return Subscribe(
        sql=reader.text_since(start),
        position=position,
        name=name,
        query=source,
        snapshot=options.get("SNAPSHOT", True),
        progress=options.get("PROGRESS", False),
        as_of=as_of,
        up_to=up_to,
    )


def _as_of(reader: Reader) -> AsOf | None:
    if not reader.accept("AS", "OF"):
        return None
    at_least = reader.accept("AT", "LEAST")
    return AsOf(parse_expression(reader.until(("UP", "TO"), (";",)), reader.text), at_least)


def _flags(reader: Reader, known: tuple[str, ...]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    reader.expect("(")
    while True:
        if reader.word() not in known:
            raise reader.error(detail=f"Expected {' or '.join(known)}")
        flag = reader.one_of(*known)
        reader.accept("=")
        value = True
        if not reader.at(",") and not reader.at(")"):
            value = boolean(reader)
        found[flag] = value
        if not reader.accept(","):
            reader.expect(")")
            return found


def boolean(reader: Reader) -> bool:
    """TRUE, FALSE, ON, OFF, 1 or 0, also as strings."""
    text = reader.string().upper() if reader.at_string() else reader.word()
    if text in ("TRUE", "ON", "1", "T", "YES"):
        value = True
    elif text in ("FALSE", "OFF", "0", "F", "NO"):
        value = False
    else:
        raise reader.error(detail="Expected TRUE or FALSE")
    if reader.word() == text:
        reader.skip()
    return value


_EXPLAINED_OBJECTS = {
    ("MATERIALIZED", "VIEW"): ObjectType.MATERIALIZED_VIEW,
    ("VIEW",): ObjectType.VIEW,
    ("INDEX",): ObjectType.INDEX,
}


def explain(reader: Reader, statement: Callable[[list[Token], str], Statement]) -> Explain:
    """EXPLAIN [OPTIMIZED | PHYSICAL PLAN [AS TEXT | JSON] FOR | TIMESTAMP [AS ...] FOR] what"""
    position, start = reader.position, reader.mark()
    reader.expect("EXPLAIN")
    stage, named = _explain_stage(reader)
    form = ExplainFormat.TEXT
    if named and reader.accept("WITH"):
        raise reader.unsupported("EXPLAIN ... WITH (options)")
    if named and reader.accept("AS"):
        reader.accept("VERBOSE")
        form = ExplainFormat(reader.one_of("TEXT", "JSON").lower())
    if named:
        reader.expect("FOR")
    for words, object_type in _EXPLAINED_OBJECTS.items():
        if named and reader.accept(*words):
            name = reader.name()
            reader.finish()
            return Explain(
                sql=reader.text_since(start), position=position, stage=stage, format=form, query=None,
                object_type=object_type, name=name,
            )  # fmt: skip
    target_start = reader.position
    if reader.done:
        raise reader.error(detail="Expected a statement")
    inner = statement(reader.rest(), reader.text)
    if not isinstance(inner, Query | CreateMaterializedView | CreateIndex | CreateView):
        raise reader.unsupported("EXPLAIN of this statement", position=target_start)
    return Explain(sql=reader.text_since(start), position=position, stage=stage, format=form, query=inner)


def _explain_stage(reader: Reader) -> tuple[ExplainStage, bool]:
    if reader.accept("OPTIMIZED"):
        reader.expect("PLAN")
        return ExplainStage.OPTIMIZED, True
    if reader.accept("PHYSICAL"):
        reader.expect("PLAN")
        return ExplainStage.PHYSICAL, True
    if reader.accept("PLAN"):
        return ExplainStage.PHYSICAL, True
    if reader.accept("TIMESTAMP"):
        return ExplainStage.TIMESTAMP, True
    for word in ("RAW", "DECORRELATED", "LOCALLY", "ANALYZE", "FILTER", "KEY", "VALUE", "(", "VERBOSE"):
        if reader.at(word) and not (word == "(" and reader.word(1) in QUERY_WORDS):
            raise reader.unsupported(
                f"EXPLAIN {word}", hint="Use EXPLAIN OPTIMIZED PLAN FOR or EXPLAIN PHYSICAL PLAN FOR."
            )
    return ExplainStage.PHYSICAL, False
