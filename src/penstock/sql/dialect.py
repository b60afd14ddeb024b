"""How SQL text becomes sqlglot trees: PostgreSQL's grammar, with every function call left as it was written.

sqlglot knows hundreds of functions of many databases and rewrites calls into its own node types. The planner wants the
name and arguments the user wrote, so that it can resolve them like PostgreSQL does and say what is wrong with them in
the user's own words. Only calls with a grammar of their own (CAST, EXTRACT, ...) keep their parsers.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from itertools import pairwise
from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import ErrorLevel, ParseError, TokenError
from sqlglot.parsers.postgres import PostgresParser
from sqlglot.tokens import Token, TokenType

from penstock.runtime import SqlError


def _plain(kind: type[exp.Binary]) -> object:
    """A JSON operator that keeps its operands as written, instead of translating a literal into a path."""
    return lambda self, this, path: self.expression(kind(this=this, expression=path))


_JSON_OPERATORS = {
    TokenType.ARROW: _plain(exp.JSONExtract),
    TokenType.DARROW: _plain(exp.JSONExtractScalar),
    TokenType.HASH_ARROW: _plain(exp.JSONBExtract),
    TokenType.DHASH_ARROW: _plain(exp.JSONBExtractScalar),
    TokenType.PLACEHOLDER: _plain(exp.JSONBContains),
}

_SPECIAL_SYNTAX = ("CAST", "EXTRACT", "OVERLAY", "POSITION", "SUBSTRING", "TRIM")


class AssignmentCast(exp.Cast):
    """A conversion as INSERT and UPDATE do it: wider than an implicit one, and too long a text is an error.

    The parser never makes one; whoever writes a query on behalf of a statement does.
    """


class PenstockParser(PostgresParser):
    FUNCTIONS: ClassVar[dict[str, Any]] = {}
    FUNCTION_PARSERS: ClassVar = {
        name: parser for name, parser in PostgresParser.FUNCTION_PARSERS.items() if name in _SPECIAL_SYNTAX
    }
    NO_PAREN_FUNCTION_PARSERS: ClassVar = {
        name: parser for name, parser in PostgresParser.NO_PAREN_FUNCTION_PARSERS.items() if name in ("ANY", "CASE")
    }
    JSON_OPERATORS: ClassVar = _JSON_OPERATORS


class Penstock(Postgres):
    class Tokenizer(Postgres.Tokenizer):
        # Materialize's statements are read by our own parser, which wants tokens, not one long string.
        COMMANDS: ClassVar[set[TokenType]] = set()
        # oid, regclass and the like are types as any other, and so have array types
        KEYWORDS: ClassVar = {
            word: kind for word, kind in Postgres.Tokenizer.KEYWORDS.items() if kind is not TokenType.OBJECT_IDENTIFIER
        }

    Parser = PenstockParser


_DIALECT = Penstock()
_RECURSION_LIMIT = 6000
"""Python's frames for one parser: a level of parentheses takes about twenty. Deeper text is refused, 54001."""
_SLOW_WORDS = (TokenType.ARRAY, TokenType.STRUCT, TokenType.MAP, TokenType.NESTED, TokenType.OBJECT)
_SLOW_DEPTH = 4

sys.setrecursionlimit(max(sys.getrecursionlimit(), _RECURSION_LIMIT))


def tokenize(text: str) -> list[Token]:
    """The tokens of `text`. SqlError 42601 for an unterminated string or comment."""
    crowded = [match.end() for match in _CROWDED.finditer(text) if match["parameter"]] if "$" in text else []
    try:
        if not crowded:
            tokens: list[Token] = _DIALECT.tokenize(text)
            return tokens
        pieces = [text[start:end] for start, end in zip([0, *crowded], [*crowded, len(text)], strict=True)]
        tokens = _DIALECT.tokenize(" ".join(pieces))
    except TokenError as error:
        raise SqlError(
            "syntax error: " + _unterminated(text), sqlstate="42601", position=len(text) + 1, detail=str(error)
        ) from None
    widened = [position + number for number, position in enumerate(crowded)]
    for token in tokens:
        inserted = bisect_right(widened, token.start)
        token.start -= inserted
        token.end -= inserted
    return tokens


_CROWDED = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(?P<tag>[^\W\d]\w*)?\$.*?\$(?P=tag)?\$"""
    r"""|(?P<parameter>\$\d+)(?=[^\s\w])""",
    re.DOTALL,
)
"""Parameters with something right behind them, outside quotes and comments. sqlglot takes the ``$1,$`` of ``$1,$2``
for the beginning of a dollar-quoted string, whose tag may not begin with a digit in PostgreSQL; a space between
tells it.
"""


def _unterminated(text: str) -> str:
    quotes = text.count("'")
    if quotes % 2:
        return "unterminated quoted string"
    return "unterminated quoted identifier or comment" if '"' in text or "/*" in text else "invalid token"


def parse_query(tokens: list[Token], text: str) -> exp.Expression:
    """The query that `tokens` (a slice of the tokens of `text`) spell. SqlError 42601 otherwise."""
    tree = _parsed(tokens, text, None)
    if not isinstance(tree, exp.Query | exp.Values | exp.Table):
        raise syntax_error(tokens[0])
    return tree


def parse_expression(tokens: list[Token], text: str) -> exp.Expression:
    """The scalar expression that `tokens` spell. SqlError 42601 otherwise."""
    return _parsed(tokens, text, exp.Condition)


def parse_select_list(tokens: list[Token], text: str) -> tuple[exp.Expression, ...]:
    """Comma-separated expressions with optional aliases, as after SELECT or RETURNING."""
    select = Token(TokenType.SELECT, "SELECT", tokens[0].line, tokens[0].col, tokens[0].start, tokens[0].start)
    tree = _parsed([select, *tokens], text, None)
    if not isinstance(tree, exp.Select) or any(tree.args.get(key) for key in ("from_", "from", "where")):
        raise syntax_error(tokens[0])
    return tuple(tree.expressions)


def _parsed(tokens: list[Token], text: str, into: type[exp.Expression] | None) -> exp.Expression:
    if not tokens:
        raise SqlError("syntax error at end of input", sqlstate="42601", position=len(text) + 1)
    _refuse_slow_nesting(tokens)
    parser = _DIALECT.parser(error_level=ErrorLevel.IMMEDIATE)
    try:
        if into is None:
            trees = parser.parse(tokens, text)
        else:
            trees = parser.parse_into(into, tokens, text)
    except ParseError as error:
        raise _located(error, tokens, text) from None
    except RecursionError:
        raise SqlError("statement is nested too deeply", sqlstate="54001", position=tokens[0].start + 1) from None
    if len(trees) != 1 or trees[0] is None:
        raise syntax_error(tokens[0])
    tree: exp.Expression = trees[0]
    return tree


def _refuse_slow_nesting(tokens: list[Token]) -> None:
    """sqlglot's time for ARRAY[...] or STRUCT(...) in itself grows fourfold with each level: text must not do that."""
    if sum(token.token_type in _SLOW_WORDS for token in tokens) <= _SLOW_DEPTH:
        return
    opened: list[bool] = []
    for before, token in pairwise(tokens):
        if token.token_type in (TokenType.L_BRACKET, TokenType.L_PAREN):
            opened.append(before.token_type in _SLOW_WORDS)
        elif token.token_type in (TokenType.R_BRACKET, TokenType.R_PAREN) and opened:
            opened.pop()
        if sum(opened) > _SLOW_DEPTH:
            raise SqlError("arrays are nested too deeply", sqlstate="54001", position=token.start + 1)


def _located(error: ParseError, tokens: list[Token], text: str) -> SqlError:
    facts = error.errors[0] if error.errors else {}
    detail = str(facts.get("description") or "").rstrip(".")
    if detail.startswith("Required keyword"):
        detail = "Expected an expression"
    for token in tokens:
        if token.line == facts.get("line") and token.col == facts.get("col"):
            if token is tokens[-1] and "Expected" in detail:
                return SqlError("syntax error at end of input", sqlstate="42601", detail=detail, position=token.end + 2)
            return syntax_error(token, detail=detail, text=text)
    return SqlError("syntax error", sqlstate="42601", detail=detail or None, position=tokens[0].start + 1)


def syntax_error(token: Token, *, detail: str | None = None, text: str = "", hint: str | None = None) -> SqlError:
    """PostgreSQL's message for an unexpected token."""
    written = text[token.start : token.end + 1] or token.text
    return SqlError(
        f'syntax error at or near "{written}"',
        sqlstate="42601",
        detail=detail,
        hint=hint,
        position=token.start + 1,
    )
