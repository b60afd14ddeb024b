"""What library errors mean in SQL: message texts of DataFusion and Arrow to SQLSTATEs.

Both libraries report all failures of an expression as one exception type with a text, so that texts are all
there is to go by. The same table serves one-off queries and maintained views: an error reads the same in
both.
"""

from __future__ import annotations

import re

from penstock.runtime import DataError, SqlError

_TABLE: tuple[tuple[re.Pattern[str], str, str | None], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), sqlstate, message)
    for pattern, sqlstate, message in (
        (r"divide by zero|division by zero", "22012", "division by zero"),
        (r"scalar subquery returned more than one row", "21000", "more than one record produced in subquery"),
        (r"cannot cast string '(?P<a>.*)' to value of (?P<b>\w+)", "22P02", None),
        (r"failed to parse|error parsing (timestamp|date|time)|parser error", "22007", None),
        (r"can'?t cast value|cannot cast to decimal|too large to store|too small to store", "22003", None),
        (r"not in range|out of (range|bounds)|does not fit", "22003", None),
        (r"overflow", "22003", None),
        (r"square root of a negative", "2201F", "cannot take square root of a negative number"),
        (r"negative count|negative substring", "22011", "negative substring length not allowed"),
        (r"regex parse error|regular expression did not compile|invalid regex", "2201B", None),
        (r"invalid utf-?8|invalid string conversion", "22021", None),
        (r"resources exhausted|memory", "53200", None),
        (r"this feature is not implemented|not implemented", "0A000", None),
        (r"invalid function", "42883", None),
        (r"table '.*' not found", "42P01", None),
        (r"no field named", "42703", None),
        (r"granularity|unsupported date part|date part", "22023", None),
    )
)

_MARKED = re.compile(r"\[(?P<sqlstate>[0-9A-Z]{5})\] ?(?P<message>[^\n\"]*)")
"""How a function of ours writes its SQLSTATE into an exception that must pass through the library."""


def explain_failure(error: BaseException) -> SqlError:
    """`error`, raised by DataFusion or Arrow while evaluating, as the error a client sees.

    Errors that already are `SqlError` come back as they are. An unknown text keeps its wording under XX000.
    """
    known = _own(error)
    if known is not None:
        return known
    text = _clean(str(error))
    for pattern, sqlstate, message in _TABLE:
        match = pattern.search(text)
        if match is None:
            continue
        return DataError(message or _wording(sqlstate, match, text), sqlstate=sqlstate)
    return SqlError(text)


def _own(error: BaseException) -> SqlError | None:
    """The `SqlError` that the exception is, was raised from, or quotes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SqlError):
            return seen
        seen = seen.__cause__ or seen.__context__
    match = _MARKED.search(str(error))
    return DataError(match["message"].strip(), sqlstate=match["sqlstate"]) if match else None


def _wording(sqlstate: str, match: re.Match[str], text: str) -> str:
    if sqlstate == "22P02" and match.groupdict().get("a") is not None:
        return f'invalid input syntax for type {_sql_name(match["b"])}: "{match["a"]}"'
    return text


def _sql_name(arrow: str) -> str:
    return _NAMES.get(arrow, arrow.lower())


_NAMES = {
    "Int8": "tinyint",
    "Int16": "smallint",
    "Int32": "integer",
    "Int64": "bigint",
    "Float32": "real",
    "Float64": "double precision",
    "Boolean": "boolean",
    "Date32": "date",
}


def _clean(text: str) -> str:
    """The innermost cause, without the library's layers around it."""
    text = text.strip()
    for prefix in ("Optimizer rule 'simplify_expressions' failed", "DataFusion error:", "caused by"):
        text = text.replace(prefix, "")
    text = re.sub(
        r"^(\s*(Arrow error|Execution error|Compute error|Cast error|External error|Invalid argument error):\s*)+",
        "",
        text,
    )
    return " ".join(text.split())
