"""A cursor over the tokens of one statement, for the statements that are read by hand.

Words are compared in upper case; quoted identifiers and strings are never words. sqlglot joins some keywords into one
token ("ORDER BY", "NOT NULL"); the reader takes them apart again, so that a grammar rule reads like the grammar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from sqlglot.tokens import Token, TokenType

from penstock.runtime import SqlError
from penstock.sql.dialect import syntax_error
from penstock.sql.statements import Name

T = TypeVar("T")

_STRINGS = frozenset(
    (TokenType.STRING, TokenType.HEREDOC_STRING, TokenType.BYTE_STRING, TokenType.RAW_STRING, TokenType.UNICODE_STRING)
)
_OPENING = frozenset((TokenType.L_PAREN, TokenType.L_BRACKET))
_CLOSING = frozenset((TokenType.R_PAREN, TokenType.R_BRACKET))


class Lexeme(NamedTuple):
    """`word`: upper-case text of a word or symbol, "" for strings and quoted identifiers. `token_index`:
    of its token.
    """

    word: str
    token: Token
    token_index: int


class Reader:
    """Reads `tokens` of `text` from left to right. Errors are SqlError 42601 with a position."""

    def __init__(self, tokens: list[Token], text: str) -> None:
        self.text = text
        self.tokens = tokens
        self._lexemes = _split(tokens)
        self._at = 0

    # Looking

    @property
    def done(self) -> bool:
        return self._at >= len(self._lexemes)

    @property
    def position(self) -> int:
        """1-based offset of the next token, or just past the last one."""
        if self.done:
            return (self.tokens[-1].end + 2) if self.tokens else 1
        return self._lexemes[self._at].token.start + 1

    def word(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._lexemes[at].word if at < len(self._lexemes) else ""

    def token(self) -> Token:
        if self.done:
            raise self.error()
        return self._lexemes[self._at].token

    def at(self, *words: str) -> bool:
        """Whether the next words are `words`."""
        return all(self.word(ahead) == word for ahead, word in enumerate(words))

    def error(self, *, hint: str | None = None, detail: str | None = None) -> SqlError:
        """A syntax error at the next token."""
        if self.done:
            return SqlError(
                "syntax error at end of input",
                sqlstate="42601",
                position=self.position,
                hint=hint,
                detail=detail,
            )
        return syntax_error(self._lexemes[self._at].token, text=self.text, hint=hint, detail=detail)

    def unsupported(self, what: str, *, hint: str | None = None, position: int | None = None) -> SqlError:
        """A refusal, with the place where the thing stands."""
        return SqlError(f"{what} is not supported", sqlstate="0A000", hint=hint, position=position or self.position)

    # Taking

    def skip(self) -> None:
        self._at += 1

    def accept(self, *words: str) -> bool:
        """Take `words` if they are next."""
        if not self.at(*words):
            return False
        self._at += len(words)
        return True

    def expect(self, *words: str) -> None:
        for word in words:
            if not self.accept(word):
                raise self.error(detail=f"Expected {word}")

    def one_of(self, *words: str) -> str:
        """Take the next word, which must be one of `words`, and return it."""
        found = self.word()
        if found not in words:
            raise self.error(detail=f"Expected {' or '.join(words)}")
        self._at += 1
        return found

    def finish(self) -> None:
        """Assert that nothing is left."""
        if not self.done:
            raise self.error()

    def identifier(self) -> str:
        """An identifier, folded to lower case unless quoted."""
        token = self.token()
        if token.token_type == TokenType.IDENTIFIER:
            self._at += 1
            return token.text
        word = self.word()
        if not word or not (word[0].isalpha() or word[0] == "_"):
            raise self.error(detail="Expected a name")
        self._at += 1
        return word.lower() if word.isascii() else token.text.lower()

    def name(self) -> Name:
        """A name of one or more parts separated by dots."""
        position = self.position
        parts = [self.identifier()]
        while self.accept("."):
            parts.append(self.identifier())
        return Name(tuple(parts), position)

    def string(self) -> str:
        token = self.token()
        if token.token_type not in _STRINGS:
            raise self.error(detail="Expected a string")
        self._at += 1
        return token.text

    def at_string(self) -> bool:
        return not self.done and self._lexemes[self._at].token.token_type in _STRINGS

    def integer(self) -> int:
        token = self.token()
        if token.token_type != TokenType.NUMBER or not token.text.isdigit():
            raise self.error(detail="Expected an integer")
        self._at += 1
        return int(token.text)

    def names_in_parentheses(self) -> tuple[Name, ...]:
        self.expect("(")
        return self.list_until_close(self.name)

    def list_until_close(self, item: Callable[[], T]) -> tuple[T, ...]:
        """Comma-separated items up to and including the closing parenthesis."""
        items = [item()]
        while self.accept(","):
            items.append(item())
        self.expect(")")
        return tuple(items)

    # Slices of tokens, for sqlglot

    def mark(self) -> int:
        return self._at

    def since(self, mark: int) -> list[Token]:
        """The tokens taken since `mark`."""
        return self._slice(mark, self._at)

    def text_since(self, mark: int) -> str:
        """The text of the tokens taken since `mark`."""
        tokens = self.since(mark)
        return self.text[tokens[0].start : tokens[-1].end + 1] if tokens else ""

    def rest(self) -> list[Token]:
        """Take everything that is left."""
        start, self._at = self._at, len(self._lexemes)
        return self._slice(start, self._at)

    def until(self, *stops: tuple[str, ...]) -> list[Token]:
        """Take tokens up to the first place outside parentheses where one of the word sequences `stops` begins."""
        start, depth, cases = self._at, 0, 0
        while not self.done:
            lexeme = self._lexemes[self._at]
            if depth == 0 and cases == 0 and any(self.at(*stop) for stop in stops):
                break
            kind = lexeme.token.token_type
            if kind in _OPENING:
                depth += 1
            elif kind in _CLOSING:
                if depth == 0:
                    break
                depth -= 1
            elif lexeme.word == "CASE":
                cases += 1
            elif lexeme.word == "END" and cases:
                cases -= 1
            self._at += 1
        return self._slice(start, self._at)

    def parenthesised(self) -> list[Token]:
        """Take ``( ... )`` and return the tokens between the parentheses."""
        self.expect("(")
        start, depth = self._at, 1
        while depth:
            if self.done:
                raise self.error(detail="Expected )")
            kind = self._lexemes[self._at].token.token_type
            depth += (kind in _OPENING) - (kind in _CLOSING)
            self._at += 1
        return self._slice(start, self._at - 1)

    def _slice(self, start: int, stop: int) -> list[Token]:
        if start >= stop:
            return []
        return self.tokens[self._lexemes[start].token_index : self._lexemes[stop - 1].token_index + 1]


def _split(tokens: list[Token]) -> list[Lexeme]:
    lexemes: list[Lexeme] = []
    for index, token in enumerate(tokens):
        kind = token.token_type
        if kind in _STRINGS or kind == TokenType.IDENTIFIER:
            lexemes.append(Lexeme("", token, index))
            continue
        word = token.text.upper()
        if " " in word or "\n" in word or "\t" in word:
            lexemes.extend(Lexeme(part, token, index) for part in word.split())
        else:
            lexemes.append(Lexeme(word, token, index))
    return lexemes
