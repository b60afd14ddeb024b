"""What library errors mean in SQL.

DataFusion's are the sql room's to read (`map_datafusion_error`); Arrow kernels, which views run directly, say the same
things in their own words. One-off queries and maintained views report an error alike.
"""

from __future__ import annotations

import pyarrow as pa

from penstock.runtime import DataError, PenstockError
from penstock.sql.errors import map_datafusion_error


def explain_failure(error: BaseException) -> PenstockError:
    """`error`, raised by DataFusion, Arrow or a function of ours while evaluating, as the error a client sees."""
    if isinstance(error, pa.ArrowInvalid):
        text = str(error).lower()
        if "divide by zero" in text:
            return DataError("division by zero", sqlstate="22012")
        if "not in range" in text or "overflow" in text:
            return DataError(f"{_range_of(str(error))} out of range", sqlstate="22003")
        if "rescal" in text or "does not fit" in text or "precision" in text:
            return DataError("numeric field overflow", sqlstate="22003")
    mapped = map_datafusion_error(error)
    if mapped.sqlstate == "XX000":
        text = str(error).lower()
        for words, sqlstate, message in _FUNCTIONS:
            if words in text:
                return DataError(message, sqlstate=sqlstate)
    return mapped


_FUNCTIONS = (
    ("regex parse error", "2201B", "invalid regular expression"),
    ("regular expression did not compile", "2201B", "invalid regular expression"),
    ("square root of a negative", "2201F", "cannot take square root of a negative number"),
    ("negative count not allowed", "22011", "negative substring length not allowed"),
)
"""What DataFusion's functions say about arguments they do not take."""


def _range_of(text: str) -> str:
    """The type a value is out of the range of, as Arrow's text shows it by its bounds."""
    for bound, name in ((" 32767", "smallint"), (" 2147483647", "integer"), (" 9223372036854775807", "bigint")):
        if bound in text:
            return name
    return "integer"
