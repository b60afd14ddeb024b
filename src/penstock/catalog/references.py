"""Rename an object in stored SQL.

Stored statements name objects in full, database.schema.name, so a rename is a change of tokens: no planning, and
nothing else in the text (comments, spelling, aliases) moves.
"""

from __future__ import annotations

from sqlglot.dialects.postgres import Postgres
from sqlglot.tokens import Token, TokenType

from penstock.sql.statements import quote_ident

_NAMES = {TokenType.VAR, TokenType.IDENTIFIER}


def rename_references(sql: str, old: tuple[str, str, str], new: tuple[str, str, str]) -> str:
    """`sql` with every full name `old` replaced by `new`."""
    tokens = Postgres().tokenize(sql)
    pieces = []
    copied = 0
    index = 0
    while index < len(tokens):
        parts = _qualified(tokens, index)
        if tuple(_text(sql, part) for part in parts[:3]) == old:
            pieces += [sql[copied : parts[0].start], ".".join(map(quote_ident, new))]
            copied = parts[2].end + 1
        index += max(1, 2 * len(parts) - 1)
    return "".join([*pieces, sql[copied:]])


def _qualified(tokens: list[Token], start: int) -> list[Token]:
    """The name tokens of a dotted name that begins at `start`; empty when none does."""
    parts = []
    index = start
    while index < len(tokens) and _is_name(tokens[index]):
        parts.append(tokens[index])
        if index + 1 >= len(tokens) or tokens[index + 1].token_type is not TokenType.DOT:
            break
        index += 2
    return parts


def _is_name(token: Token) -> bool:
    # keywords may be parts of a dotted name too (materialize.public.date): what matters is that it reads like a word
    return token.token_type in _NAMES or token.text.replace("_", "a").isalnum()


def _text(sql: str, token: Token) -> str:
    """What the token denotes: quoted names as they are, others in lower case."""
    return token.text if sql[token.start] == '"' else token.text.lower()
