"""From text to statements.

The text is split into tokens once. Queries and scalar expressions go to sqlglot; everything else is read by hand,
because Materialize's statements are its own and an error should say what was expected where. A statement that Penstock
does not have is refused by name (0A000) when PostgreSQL or Materialize has it, and is a syntax error (42601) otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot.tokens import Token, TokenType

from penstock.runtime import SqlError
from penstock.sql import parse_data, parse_objects, parse_query, parse_session
from penstock.sql.dialect import syntax_error, tokenize
from penstock.sql.reader import Reader
from penstock.sql.statements import Statement

_RULES: dict[str, Callable[[Reader], Statement]] = {
    "SELECT": parse_query.query_statement,
    "VALUES": parse_query.query_statement,
    "TABLE": parse_query.query_statement,
    "WITH": parse_query.query_statement,
    "(": parse_query.query_statement,
    "SUBSCRIBE": parse_query.subscribe,
    "TAIL": parse_query.subscribe,
    "INSERT": parse_data.insert,
    "UPDATE": parse_data.update,
    "DELETE": parse_data.delete,
    "COPY": parse_data.copy,
    "CREATE": parse_objects.create,
    "DROP": parse_objects.drop,
    "COMMENT": parse_objects.comment,
    "SHOW": parse_session.show,
    "SET": parse_session.set_variable,
    "RESET": parse_session.reset,
    "BEGIN": parse_session.begin,
    "START": parse_session.begin,
    "COMMIT": parse_session.commit,
    "END": parse_session.commit,
    "ROLLBACK": parse_session.rollback,
    "ABORT": parse_session.rollback,
    "EXECUTE": parse_session.execute,
    "DEALLOCATE": parse_session.deallocate,
    "FETCH": parse_session.fetch,
    "CLOSE": parse_session.close,
    "DISCARD": parse_session.discard,
    "DECLARE": parse_session.declare,
}

_REFUSED = {
    "GRANT", "REVOKE", "ANALYZE", "VACUUM", "TRUNCATE", "LOCK", "LISTEN", "NOTIFY", "UNLISTEN", "MERGE", "CALL", "DO",
    "SAVEPOINT", "RELEASE", "CLUSTER", "REINDEX", "REFRESH", "LOAD", "MOVE", "REASSIGN", "SECURITY", "IMPORT",
    "CHECKPOINT", "VALIDATE", "RAISE", "INSPECT",
}  # fmt: skip
_INSTEAD = {"TRUNCATE": "Use DELETE FROM the table.", "MERGE": "Use UPDATE and INSERT."}

_COMMENT_MARKS = ("--", "/*")


def parse(text: str) -> list[Statement]:
    """The statements of `text`, in order; an empty list when there is none.

    SqlError 42601 for text that is no statement and 0A000 for one that is not supported, both with a position.
    """
    statements: list[Statement] = []
    tokens = tokenize(text)
    start = 0
    for index, token in enumerate(tokens):
        if token.token_type == TokenType.SEMICOLON:
            if index > start:
                statements.append(_statement(tokens[start:index], text))
            start = index + 1
    if len(tokens) > start:
        statements.append(_statement(tokens[start:], text))
    return statements


def parse_one(text: str) -> Statement:
    """The only statement of `text`. SqlError 42601 when there are none or several."""
    statements = parse(text)
    if len(statements) != 1:
        raise SqlError(f"expected one statement, found {len(statements)}", sqlstate="42601")
    return statements[0]


def _statement(tokens: list[Token], text: str) -> Statement:
    reader = Reader(tokens, text)
    first = reader.word()
    if first == "EXPLAIN":
        return parse_query.explain(reader, _statement)
    if first == "PREPARE":
        return parse_session.prepare(reader, _statement)
    if first == "ALTER":
        if reader.at("ALTER", "SYSTEM"):
            return parse_session.alter_system(reader)
        return parse_objects.alter(reader)
    rule = _RULES.get(first)
    if rule is None:
        if first in _REFUSED:
            raise reader.unsupported(first, hint=_INSTEAD.get(first))
        raise syntax_error(tokens[0], text=text)
    statement = rule(reader)
    reader.finish()
    return statement
