"""The user-defined functions of Penstock: their names, types and kernels, and how DataFusion learns them.

Planned SQL calls them by the names below (`ps_...`), and names travel through Substrait, so every context that executes
planned SQL must `register` them first. The incremental engine looks kernels up in `KERNELS` instead; both call the
same Python functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import datafusion
import pyarrow as pa

from penstock.runtime import DataError
from penstock.sql import kernels as k
from penstock.sql import literals as lit
from penstock.sql.errors import mark

_TEXT = pa.string()
_INTERVAL = pa.month_day_nano_interval()
_STAMP = pa.timestamp("us")
_STAMP_TZ = pa.timestamp("us", "UTC")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function on columns. `arguments` and `result` are exact; `function` takes and returns arrays of one length."""

    name: str
    arguments: tuple[pa.DataType, ...]
    result: pa.DataType
    function: Callable[..., k.Array]


def _integer(kind: str) -> Callable[[str], int]:
    return lambda text: lit.read_integer(text, kind)


def _stamp(zoned: bool) -> Callable[[str], int]:
    return lambda text: lit.read_timestamp(text, zoned=zoned)


NUMERIC_SCALES = range(17)
"""Scales of the left operand for which there is a ``ps_numeric_mul_N`` and a ``ps_numeric_div_N``."""


def _numeric(name: str, function: Callable[..., k.Array]) -> tuple[Kernel, ...]:
    right = pa.decimal128(38, 16)
    return tuple(
        Kernel(f"ps_numeric_{name}_{scale}", (pa.decimal128(38, scale), right), right, function)
        for scale in NUMERIC_SCALES
    )


_LIST = (
    *_numeric("mul", k.multiply_numeric),
    *_numeric("div", k.divide_numeric),
    Kernel("ps_nonzero_f64", (pa.float64(),), pa.float64(), k.nonzero),
    Kernel("ps_nonzero_f32", (pa.float32(),), pa.float32(), k.nonzero),
    Kernel("ps_f64_to_i16", (pa.float64(),), pa.int16(), k.float_to_int("smallint")),
    Kernel("ps_f64_to_i32", (pa.float64(),), pa.int32(), k.float_to_int("integer")),
    Kernel("ps_f64_to_i64", (pa.float64(),), pa.int64(), k.float_to_int("bigint")),
    Kernel("ps_text_to_i16", (_TEXT,), pa.int16(), k.text_reader(_integer("smallint"), pa.int16())),
    Kernel("ps_text_to_i32", (_TEXT,), pa.int32(), k.text_reader(_integer("integer"), pa.int32())),
    Kernel("ps_text_to_i64", (_TEXT,), pa.int64(), k.text_reader(_integer("bigint"), pa.int64())),
    Kernel("ps_text_to_u16", (_TEXT,), pa.uint16(), k.text_reader(_integer("uint2"), pa.uint16())),
    Kernel("ps_text_to_u32", (_TEXT,), pa.uint32(), k.text_reader(_integer("uint4"), pa.uint32())),
    Kernel("ps_text_to_u64", (_TEXT,), pa.uint64(), k.text_reader(_integer("uint8"), pa.uint64())),
    Kernel(
        "ps_text_to_f32", (_TEXT,), pa.float32(),
        k.text_reader(lambda text: lit.read_float(text, "real"), pa.float32(), fast=False),
    ),
    Kernel(
        "ps_text_to_f64", (_TEXT,), pa.float64(),
        k.text_reader(lambda text: lit.read_float(text, "double precision"), pa.float64(), fast=False),
    ),
    Kernel("ps_text_to_numeric", (_TEXT,), pa.decimal256(76, 38), k.read_decimal),
    Kernel("ps_text_to_bool", (_TEXT,), pa.bool_(), k.text_reader(lit.read_boolean, pa.bool_(), fast=False)),
    Kernel("ps_text_to_date", (_TEXT,), pa.date32(), k.text_reader(lit.read_date, pa.date32())),
    Kernel("ps_text_to_time", (_TEXT,), pa.time64("us"), k.text_reader(lit.read_time, pa.time64("us"), fast=False)),
    Kernel("ps_text_to_timestamp", (_TEXT,), _STAMP, k.text_reader(_stamp(False), _STAMP)),
    Kernel("ps_text_to_timestamptz", (_TEXT,), _STAMP_TZ, k.text_reader(_stamp(True), _STAMP_TZ, fast=False)),
    Kernel(
        "ps_text_to_interval", (_TEXT,), _INTERVAL,
        k.text_reader(lit.read_interval, _INTERVAL, fast=False, wrap=k.interval_arrow),
    ),
    Kernel("ps_text_to_uuid", (_TEXT,), _TEXT, k.text_reader(lit.read_uuid, _TEXT, fast=False)),
    Kernel("ps_text_to_jsonb", (_TEXT,), _TEXT, k.text_reader(lit.read_jsonb, _TEXT, fast=False)),
    Kernel("ps_text_to_bytea", (_TEXT,), pa.binary(), k.text_reader(lit.read_bytea, pa.binary(), fast=False)),
    Kernel("ps_f64_to_text", (pa.float64(),), _TEXT, k.float_text(17)),
    Kernel("ps_f32_to_text", (pa.float32(),), _TEXT, k.float_text(9)),
    Kernel("ps_numeric_to_text", (pa.decimal128(38, 16),), _TEXT, k.trim_numeric),
    Kernel("ps_timestamp_to_text", (_STAMP,), _TEXT, k.timestamp_text),
    Kernel("ps_timestamptz_to_text", (_STAMP_TZ,), _TEXT, k.timestamp_text),
    Kernel("ps_time_to_text", (pa.time64("us"),), _TEXT, k.time_text),
    Kernel("ps_interval_to_text", (_INTERVAL,), _TEXT, k.interval_text),
    Kernel("ps_array_to_text", (pa.list_(_TEXT),), _TEXT, k.array_text),
    Kernel("ps_bytea_to_text", (pa.binary(),), _TEXT, k.bytea_text),
    Kernel("ps_check_length", (_TEXT, pa.int64()), _TEXT, k.check_length),
    Kernel("ps_timestamp_sub", (_STAMP, _STAMP), _INTERVAL, k.subtract_timestamps),
    Kernel("ps_interval_mul", (_INTERVAL, pa.float64()), _INTERVAL, k.multiply_interval),
    Kernel("ps_interval_neg", (_INTERVAL,), _INTERVAL, k.negate_interval),
    Kernel("ps_json_field", (_TEXT, _TEXT), _TEXT, k.each_distinct(k.json_field, _TEXT)),
    Kernel("ps_json_element", (_TEXT, pa.int32()), _TEXT, k.each_distinct(k.json_element, _TEXT)),
    Kernel("ps_json_text", (_TEXT,), _TEXT, k.each_distinct(k.json_text, _TEXT)),
    Kernel("ps_json_path", (_TEXT, pa.list_(_TEXT)), _TEXT, k.json_path_column),
    Kernel("ps_json_contains", (_TEXT, _TEXT), pa.bool_(), k.each_distinct(k.json_contains, pa.bool_())),
    Kernel("ps_json_has_key", (_TEXT, _TEXT), pa.bool_(), k.each_distinct(k.json_has_key, pa.bool_())),
    Kernel("ps_json_typeof", (_TEXT,), _TEXT, k.each_distinct(k.json_typeof, _TEXT)),
    Kernel("ps_json_array_length", (_TEXT,), pa.int32(), k.each_distinct(k.json_array_length, pa.int32())),
    Kernel(
        "ps_json_to_numeric", (_TEXT,), pa.decimal128(38, 16), k.each_distinct(k.json_numeric, pa.decimal128(38, 16))
    ),
    Kernel("ps_json_to_bool", (_TEXT,), pa.bool_(), k.each_distinct(k.json_boolean, pa.bool_())),
    Kernel("ps_text_to_json_string", (_TEXT,), _TEXT, k.quote_json),
)  # fmt: skip

KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in _LIST}
"""Every function that planned SQL may call and DataFusion does not have, by name. `mz_now()` is not among them."""

_UDFS: list[datafusion.user_defined.ScalarUDF] = []


def register(ctx: datafusion.SessionContext, *, mz_now: int | None = None) -> None:
    """Make `ctx` able to plan and run planned SQL.

    `mz_now`: the query's time in milliseconds, which ``mz_now()`` then answers. Without it the function can be planned
    but not run, and nothing is computed from it at planning.
    """
    if not _UDFS:
        _UDFS.extend(
            datafusion.udf(_marked(kernel.function), list(kernel.arguments), kernel.result, "immutable", kernel.name)
            for kernel in KERNELS.values()
        )
    for function in _UDFS:
        ctx.register_udf(function)
    ctx.register_udf(_mz_now(mz_now))


class KernelError(Exception):
    """Carries a data error's SQLSTATE through DataFusion, which keeps only the text of an exception."""


def _marked(function: Callable[..., k.Array]) -> Callable[..., k.Array]:
    def kernel(*columns: k.Array) -> k.Array:
        try:
            return function(*columns)
        except DataError as error:
            raise KernelError(mark(error)) from None

    return kernel


def _mz_now(time: int | None) -> datafusion.user_defined.ScalarUDF:
    def answer(*_: k.Array) -> k.Array:
        if time is None:
            raise RuntimeError("mz_now() has no value here: register the functions with a time")
        return pa.array([time], type=pa.uint64())

    # volatile: DataFusion must neither fold it while planning nor merge it with anything
    return datafusion.udf(answer, [], pa.uint64(), "volatile" if time is None else "immutable", "mz_now")


def session_config(partitions: int = 1) -> datafusion.SessionConfig:
    """The settings under which planned SQL means what it says; `partitions`: threads of one query."""
    return (
        datafusion.SessionConfig()
        .with_target_partitions(partitions)
        .set("datafusion.sql_parser.parse_float_as_decimal", "true")
        .set("datafusion.sql_parser.map_string_types_to_utf8view", "false")
        .set("datafusion.sql_parser.dialect", "PostgreSQL")
        .set("datafusion.sql_parser.recursion_limit", "500")
        .set("datafusion.execution.time_zone", "UTC")
        .set("datafusion.execution.collect_statistics", "false")
        .set("datafusion.execution.parquet.schema_force_view_types", "false")
    )


def new_context(*, partitions: int = 1, mz_now: int | None = None) -> datafusion.SessionContext:
    """A DataFusion context with our settings and functions. About 2 ms."""
    ctx = datafusion.SessionContext(session_config(partitions))
    register(ctx, mz_now=mz_now)
    return ctx
