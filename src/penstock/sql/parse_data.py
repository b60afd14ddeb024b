"""INSERT, UPDATE, DELETE and COPY.

A VALUES list of literals is read straight from the tokens into cells, so that a bulk INSERT of thousands of rows never
becomes a tree: that costs a few microseconds per value instead of a hundred.
"""

from __future__ import annotations

from sqlglot.tokens import Token, TokenType

from penstock.runtime import SqlError
from penstock.sql.dialect import parse_expression, parse_select_list
from penstock.sql.parse_query import QUERY_WORDS, boolean, query, subscribe, tree_of
from penstock.sql.reader import Reader
from penstock.sql.statements import (
    Assignment,
    Cell,
    CellKind,
    CopyFormat,
    CopyFrom,
    CopyOptions,
    CopyTo,
    Delete,
    Insert,
    Name,
    Query,
    Rows,
    Subscribe,
    Update,
)


def insert(reader: Reader) -> Insert:
    """INSERT INTO name [AS alias] [(columns)] VALUES ... | query | DEFAULT VALUES [RETURNING ...]"""
    position, start = reader.position, reader.mark()
    reader.expect("INSERT", "INTO")
    table = reader.name()
    columns = None
    if reader.at("(") and reader.word(1) not in QUERY_WORDS:
        columns = reader.names_in_parentheses()
    if reader.at("OVERRIDING"):
        raise reader.unsupported("OVERRIDING")
    rows, source = None, None
    if not reader.accept("DEFAULT", "VALUES"):
        if reader.word() not in QUERY_WORDS:
            raise reader.error(detail="Expected VALUES, a query or DEFAULT VALUES")
        tokens = reader.until(("RETURNING",), ("ON", "CONFLICT"))
        if tokens[0].token_type == TokenType.VALUES:
            rows = _literal_rows(tokens)
        if rows is None:
            source = tree_of(tokens, reader.text)
    if reader.at("ON"):
        raise reader.unsupported("ON CONFLICT")
    returning = ()
    if reader.accept("RETURNING"):
        returning = parse_select_list(reader.rest(), reader.text)
    return Insert(
        sql=reader.text_since(start), position=position, table=table, columns=columns, rows=rows, source=source,
        returning=returning,
    )  # fmt: skip


_LITERALS = {
    TokenType.STRING: CellKind.STRING,
    TokenType.NUMBER: CellKind.NUMBER,
    TokenType.NULL: CellKind.NULL,
    TokenType.TRUE: CellKind.BOOLEAN,
    TokenType.FALSE: CellKind.BOOLEAN,
    TokenType.DEFAULT: CellKind.DEFAULT,
}


def _literal_rows(tokens: list[Token]) -> Rows | None:
    """The rows of ``VALUES (...), ...``; None when a value is not a plain literal.

    One pass over the tokens; the loop is per value because the tokens are Python objects already.
    """
    rows: list[tuple[Cell, ...]] = []
    row: list[Cell] = []
    literals, comma, opening, closing = _LITERALS, TokenType.COMMA, TokenType.L_PAREN, TokenType.R_PAREN
    at, count = 1, len(tokens)
    while at < count:
        if tokens[at].token_type != opening:
            return None
        at += 1
        row = []
        while at < count:
            token = tokens[at]
            kind = literals.get(token.token_type)
            text = token.text
            if kind is None:
                if at + 1 >= count or tokens[at + 1].token_type != TokenType.NUMBER:
                    return None
                if token.token_type == TokenType.DASH:
                    kind, text = CellKind.NUMBER, "-" + tokens[at + 1].text
                elif token.token_type == TokenType.PARAMETER:
                    kind, text = CellKind.PARAMETER, tokens[at + 1].text
                else:
                    return None
                at += 1
            row.append(Cell(kind, text, token.start + 1))
            at += 1
            if at >= count:
                return None
            separator = tokens[at].token_type
            at += 1
            if separator == closing:
                break
            if separator != comma:
                return None
        if rows and len(row) != len(rows[0]):
            raise SqlError("VALUES lists must all be the same length", sqlstate="42601", position=row[0].position)
        rows.append(tuple(row))
        if at < count:
            if tokens[at].token_type != comma or at + 1 == count:
                return None
            at += 1
    return tuple(rows) if rows else None


def update(reader: Reader) -> Update:
    """UPDATE name [[AS] alias] SET column = expression, ... [WHERE condition]"""
    position, start = reader.position, reader.mark()
    reader.expect("UPDATE")
    table = reader.name()
    alias = _alias(reader, "SET")
    reader.expect("SET")
    assignments: list[Assignment] = []
    while True:
        if reader.at("("):
            raise reader.unsupported("assignment to a list of columns", hint="Assign each column by itself.")
        column = reader.name()
        reader.expect("=")
        tokens = reader.until((",",), ("WHERE",), ("FROM",), ("RETURNING",))
        if len(tokens) == 1 and tokens[0].token_type == TokenType.DEFAULT:
            assignments.append(Assignment(column, None))
        else:
            if not tokens:
                raise reader.error(detail="Expected an expression")
            assignments.append(Assignment(column, parse_expression(tokens, reader.text)))
        if not reader.accept(","):
            break
    if reader.at("FROM"):
        raise reader.unsupported("UPDATE ... FROM", hint="Use a subquery in SET or WHERE.")
    where = None
    if reader.accept("WHERE"):
        where = parse_expression(reader.until(("RETURNING",)), reader.text)
    if reader.at("RETURNING"):
        raise reader.unsupported("UPDATE ... RETURNING")
    return Update(
        sql=reader.text_since(start), position=position, table=table, alias=alias,
        assignments=tuple(assignments), where=where,
    )  # fmt: skip


def delete(reader: Reader) -> Delete:
    """DELETE FROM name [[AS] alias] [USING tables] [WHERE condition]"""
    position, start = reader.position, reader.mark()
    reader.expect("DELETE", "FROM")
    table = reader.name()
    alias = _alias(reader, "USING", "WHERE", "RETURNING")
    using = ()
    if reader.accept("USING"):
        tokens = reader.until(("WHERE",), ("RETURNING",))
        head = reader.tokens[0]
        select = Token(TokenType.SELECT, "SELECT", head.line, head.col, head.start, head.end)
        number = Token(TokenType.NUMBER, "1", head.line, head.col, head.start, head.end)
        origin = Token(TokenType.FROM, "FROM", head.line, head.col, head.start, head.end)
        tree = tree_of([select, number, origin, *tokens], reader.text)
        using = (tree.args["from_"].this, *tree.args.get("joins", ()))
    where = None
    if reader.accept("WHERE"):
        where = parse_expression(reader.until(("RETURNING",)), reader.text)
    if reader.at("RETURNING"):
        raise reader.unsupported("DELETE ... RETURNING")
    return Delete(sql=reader.text_since(start), position=position, table=table, alias=alias, using=using, where=where)


def _alias(reader: Reader, *stops: str) -> str | None:
    if reader.accept("AS"):
        return reader.identifier()
    if reader.done or reader.word() in stops:
        return None
    return reader.identifier()


def copy(reader: Reader) -> CopyFrom | CopyTo:
    """COPY name [(columns)] FROM STDIN | {name | (query)} TO STDOUT [[WITH] options]"""
    position, start = reader.position, reader.mark()
    reader.expect("COPY")
    if reader.at("("):
        source = _copy_source(reader)
        reader.expect("TO", "STDOUT")
        options = _copy_options(reader)
        return CopyTo(sql=reader.text_since(start), position=position, source=source, options=options)
    table = reader.name()
    columns = reader.names_in_parentheses() if reader.at("(") else None
    direction = reader.one_of("FROM", "TO")
    if reader.at_string() or reader.at("PROGRAM"):
        raise reader.unsupported("COPY with a file or URL", hint="Use COPY ... FROM STDIN or COPY ... TO STDOUT.")
    reader.expect("STDIN" if direction == "FROM" else "STDOUT")
    options = _copy_options(reader)
    sql = reader.text_since(start)
    if direction == "FROM":
        return CopyFrom(sql=sql, position=position, table=table, columns=columns, options=options)
    return CopyTo(sql=sql, position=position, source=_table_query(table, columns), options=options)


def _copy_source(reader: Reader) -> Query | Subscribe:
    tokens = reader.parenthesised()
    if not tokens:
        raise reader.error(detail="Expected a query")
    inner = Reader(tokens, reader.text)
    return subscribe(inner) if inner.at("SUBSCRIBE") else query(inner)


def _table_query(table: Name, columns: tuple[Name, ...] | None) -> Query:
    """The query that COPY of a table reads; its positions are those of the COPY's own names."""
    from sqlglot import exp

    def identifier(part: str, position: int) -> exp.Identifier:
        made = exp.Identifier(this=part, quoted=True)
        made.meta.update(start=position - 1, end=position - 2 + len(part))
        return made

    names = [identifier(part, table.position) for part in table.parts]
    relation = exp.Table(this=names[-1], db=names[-2] if len(names) > 1 else None)
    if len(names) > 2:
        relation.set("catalog", names[-3])
    selected: list[exp.Expression] = [exp.Star()]
    if columns is not None:
        selected = [exp.Column(this=identifier(c.last, c.position)) for c in columns]
    tree = exp.Select(expressions=selected, from_=exp.From(this=relation))
    listed = "*" if columns is None else ", ".join(map(str, columns))
    return Query(sql=f"SELECT {listed} FROM {table}", position=table.position, tree=tree)


_COPY_WORDS = ("FORMAT", "DELIMITER", "NULL", "HEADER", "QUOTE", "ESCAPE")


def _copy_options(reader: Reader) -> CopyOptions:
    """Both spellings: ``WITH (FORMAT csv, HEADER)`` and ``CSV HEADER DELIMITER ';'``."""
    given: dict[str, str | bool] = {}
    reader.accept("WITH")
    position = reader.position
    if reader.accept("("):
        while True:
            _copy_option(reader, given)
            if not reader.accept(","):
                reader.expect(")")
                break
    else:
        while not reader.done:
            if reader.word() in ("CSV", "BINARY"):
                given["FORMAT"] = reader.one_of("CSV", "BINARY").lower()
            else:
                _copy_option(reader, given)
    reader.finish()
    return _complete(given, position)


def _copy_option(reader: Reader, given: dict[str, str | bool]) -> None:
    option = reader.word()
    if option not in _COPY_WORDS:
        raise reader.unsupported(f"COPY option {option or 'here'}")
    if option in given:
        raise SqlError("conflicting or redundant options", sqlstate="42601", position=reader.position)
    reader.skip()
    if option == "HEADER":
        written = bool(reader.word()) and not reader.at(",") and not reader.at(")")
        given[option] = boolean(reader) if written and reader.word() not in _COPY_WORDS else True
    elif option == "FORMAT":
        position = reader.position
        name = reader.string() if reader.at_string() else reader.identifier()
        if name.lower() not in list(CopyFormat):
            raise SqlError(f'COPY format "{name}" not recognized', sqlstate="22023", position=position)
        given[option] = name.lower()
    else:
        reader.accept("AS")
        given[option] = reader.string()


def _complete(given: dict[str, str | bool], position: int) -> CopyOptions:
    """Defaults of the format, and PostgreSQL's checks of what fits together."""

    def refuse(message: str, sqlstate: str = "22023") -> SqlError:
        return SqlError(message, sqlstate=sqlstate, position=position)

    form = CopyFormat(str(given.get("FORMAT", "text")))
    if form is CopyFormat.BINARY and len(given) > 1:
        raise refuse("cannot specify DELIMITER, NULL, HEADER, QUOTE or ESCAPE in BINARY mode", "42601")
    csv = form is CopyFormat.CSV
    for option in ("QUOTE", "ESCAPE"):
        if option in given and not csv:
            raise refuse(f"COPY {option} requires CSV mode", "0A000")
    quote = str(given.get("QUOTE", '"'))
    options = CopyOptions(
        format=form,
        delimiter=str(given.get("DELIMITER", "," if csv else "\t")),
        null=str(given.get("NULL", "" if csv else "\\N")),
        header=bool(given.get("HEADER", False)),
        quote=quote,
        escape=str(given.get("ESCAPE", quote)),
    )
    for option in ("delimiter", "quote", "escape"):
        if len(getattr(options, option).encode()) != 1:
            raise refuse(f"COPY {option} must be a single one-byte character", "0A000")
    if csv and options.delimiter == options.quote:
        raise refuse("COPY delimiter and quote must be different")
    if options.delimiter in options.null:
        raise refuse("COPY delimiter character must not appear in the NULL specification")
    if any(mark in options.null + options.delimiter for mark in "\r\n"):
        raise refuse("COPY delimiter and null representation cannot use newline or carriage return")
    return options
