"""DataFusion's exceptions as errors a client understands.

DataFusion raises plain exceptions with a text. What our functions raise inside it comes back as text too, marked with
its SQLSTATE; Arrow's own failures are recognised by their wording, which `tests/sql/test_semantics.py` pins.
"""

from __future__ import annotations

import re

from penstock.runtime import DataError, PenstockError, SqlError

_OURS = re.compile(r"\[ps:([0-9A-Z]{5})\] (.*?)(?:\\?'\)|\\?\"\)|, traceback|$)", re.DOTALL)
_TYPE_NAMES = {
    "Int16": "smallint", "Int32": "integer", "Int64": "bigint", "UInt16": "uint2", "UInt32": "uint4",
    "UInt64": "uint8", "Float32": "real", "Float64": "double precision",
}  # fmt: skip
_LEAST = {"32768": "smallint", "2147483648": "integer", "9223372036854775808": "bigint"}
_RANGE = re.compile(r"(?:Can't cast value \S+ to type|is out of range|out of range for type) (U?Int\d+|Float\d+)")


def mark(error: DataError) -> str:
    """The text under which a data error travels through DataFusion."""
    return f"[ps:{error.sqlstate}] {error.message}"


def map_datafusion_error(error: BaseException) -> PenstockError:
    """The error that `error`, raised by DataFusion, stands for.

    A `DataError` when a row made an expression fail (22xxx), a `SqlError` when the query is at fault; XX000 for what
    is neither. An error of ours is returned as it is.
    """
    if isinstance(error, PenstockError):
        return error
    text = str(error)
    ours = _OURS.search(text)
    if ours is not None:
        message = ours[2].replace("\\'", "'").replace('\\"', '"').replace("\\\\", "\\")
        return DataError(message, sqlstate=ours[1])
    if "ivide by zero" in text:
        return DataError("division by zero", sqlstate="22012")
    ranged = _RANGE.search(text)
    if ranged is not None:
        return DataError(f"{_TYPE_NAMES.get(ranged[1], ranged[1])} out of range", sqlstate="22003")
    if "too large to store in a Decimal" in text or "too small to store in a Decimal" in text:
        return DataError("numeric field overflow", sqlstate="22003")
    sized = re.search(r"\b(Int16|Int32|Int64)(?:Array)?\b.*overflow", text)
    if sized is not None:
        return DataError(f"{_TYPE_NAMES[sized[1]]} out of range", sqlstate="22003")
    if "overflow" in text.lower() and ("Arrow error" in text or "Arithmetic" in text):
        least = re.search(r"-(2147483648|9223372036854775808|32768) / -1", text)
        if least is not None:
            return DataError(f"{_LEAST[least[1]]} out of range", sqlstate="22003")
        return DataError("numeric field overflow", sqlstate="22003")
    if "more than one row" in text.lower():
        return DataError("more than one row returned by a subquery used as an expression", sqlstate="21000")
    if "Cast error" in text or "Parser error" in text:
        return DataError(_first_line(text), sqlstate="22P02")
    if "not implemented" in text or "nsupported" in text:
        return SqlError(_first_line(text), sqlstate="0A000")
    if "RecursionLimitExceeded" in text:
        return SqlError("statement is nested too deeply", sqlstate="54001")
    if "Resources exhausted" in text:
        return SqlError(_first_line(text), sqlstate="53200")
    if "during planning" in text or "chema error" in text:
        return SqlError(_first_line(text), sqlstate="42601")
    return SqlError(_first_line(text), sqlstate="XX000")


def _first_line(text: str) -> str:
    for prefix in ("DataFusion error: ", "Optimizer rule"):
        if text.startswith(prefix) and "caused by" in text:
            text = text.split("caused by", 1)[1].strip()
    return text.removeprefix("DataFusion error: ").strip().split("\n")[0]
