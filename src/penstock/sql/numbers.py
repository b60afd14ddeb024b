"""Number literals."""

from __future__ import annotations

import re
from decimal import Decimal

from penstock.runtime import DataError, SqlError
from penstock.sql.bound import Bound, Literal
from penstock.sql.casts import df_type
from penstock.sql.literals import round_numeric
from penstock.sql.types import FLOAT8, INT4, INT8, numeric

_NUMBER = re.compile(r"^(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?$")


def number(text: str, position: int | None) -> Bound:
    """A number literal: integer, bigint or numeric, whichever holds it first."""
    if not _NUMBER.match(text):  # the tokenizer takes 0E for a number
        raise SqlError(
            f'trailing junk after numeric literal at or near "{text[:40]}"', sqlstate="42601", position=position
        )
    value = Decimal(text)
    if value and abs(value.adjusted()) > 400:  # written out, an exponent can be gigabytes
        value = Decimal("1e400") if value.adjusted() > 0 else Decimal(0)
    if text.isdigit() and len(text) < 40 and int(text) <= 2**63:  # with a minus sign before it, 2**63 is a bigint
        kind = INT4 if int(text) < 2**31 else INT8 if int(text) < 2**63 else numeric(19, 0)
        plain = str(int(text))
        return Bound(plain, kind, nullable=False, literal=Literal.NUMBER, value=plain, position=position)
    plain = f"{value:f}"
    whole, _, fraction = plain.partition(".")
    whole = whole.lstrip("0")
    if len(whole) + len(fraction) > 38 or len(fraction) > 38:
        if len(whole) > 308:
            raise DataError(f'"{text[:40]}" is out of range', sqlstate="22003", position=position)
        if len(whole) > 22:  # beyond any numeric we carry
            return Bound(f"CAST('{float(text)!r}' AS DOUBLE)", FLOAT8, nullable=False, value=text, position=position)
        plain = f"{round_numeric(value, 16):f}"
        fraction = plain.partition(".")[2]
    kind = numeric(max(len(whole) + len(fraction), 1), len(fraction))
    plain = f"CAST('{plain}' AS {df_type(kind)})"
    return Bound(plain, kind, nullable=False, literal=None, value=text, position=position)
