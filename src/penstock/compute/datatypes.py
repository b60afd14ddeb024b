"""Arrow data types as text, so that plans can be stored, sent and read by people.

Types whose own name is enough (``int64``, ``timestamp[us, tz=UTC]``) are written by it, decimals as
``decimal128(15, 2)``; everything else (lists, structs, maps, extension types) as the Arrow IPC form of a
one-field schema, which is exhaustive and stable across Arrow versions.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache

import pyarrow as pa

_DECIMAL = re.compile(r"decimal(128|256)\((\d+), (-?\d+)\)")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=([^\]]+)\]")


@lru_cache(maxsize=4096)
def type_to_text(kind: pa.DataType) -> str:
    """The text form of `kind`; `type_from_text` gives it back exactly."""
    text = str(kind)
    try:
        if _plain(text) == kind:
            return text
    except ValueError:
        pass
    schema = pa.schema([pa.field("t", kind)])
    return "ipc:" + base64.b85encode(schema.serialize().to_pybytes()).decode("ascii")


@lru_cache(maxsize=4096)
def type_from_text(text: str) -> pa.DataType:
    """The type that `type_to_text` wrote. Raises `ValueError` for anything else."""
    if text.startswith("ipc:"):
        raw = base64.b85decode(text[4:])
        return pa.ipc.read_schema(pa.py_buffer(raw)).field(0).type
    return _plain(text)


def _plain(text: str) -> pa.DataType:
    if match := _DECIMAL.fullmatch(text):
        make = pa.decimal128 if match[1] == "128" else pa.decimal256
        return make(int(match[2]), int(match[3]))
    if match := _ZONED.fullmatch(text):
        return pa.timestamp(match[1], tz=match[2])
    if text in _ALIASES:
        return _ALIASES[text]
    raise ValueError(f"{text!r} names no Arrow type")


_ALIASES: dict[str, pa.DataType] = {
    str(kind): kind
    for kind in (
        pa.null(),
        pa.bool_(),
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint16(),
        pa.uint32(),
        pa.uint64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.date32(),
        pa.date64(),
        pa.time32("s"),
        pa.time32("ms"),
        pa.time64("us"),
        pa.time64("ns"),
        *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
        pa.month_day_nano_interval(),
    )
}
