"""Substrait expressions to IR scalars.

Two constructs are not scalars: an uncorrelated scalar subquery and a window function. They are handed to
the caller through `Attachments`, which makes columns of them, and the expression refers to those columns.
"""

from __future__ import annotations

from typing import Any, Protocol

import pyarrow as pa

from penstock.compute.ir import (
    FALSE,
    TRUE,
    Call,
    Case,
    Cast,
    Column,
    InList,
    Literal,
    Scalar,
    When,
    make_literal,
)
from penstock.compute.substrait_values import SubstraitValues
from penstock.runtime import SqlError

VOLATILE = frozenset(
    {
        "random",
        "uuid",
        "gen_random_uuid",
        "now",
        "current_timestamp",
        "current_date",
        "current_time",
        "localtimestamp",
        "today",
        "clock_timestamp",
        "statement_timestamp",
    }
)
"""Functions whose answer is not a function of their arguments: two replicas would not agree on a view that
uses them.
"""

_BOOLEAN = frozenset({"not", "like", "ilike", "and", "or", "similar_to", "starts_with"})


class Attachments(Protocol):
    """Where the parts of an expression that need a relation of their own go; both return the column that
    stands for it.
    """

    def subquery(self, relation: Any) -> Column: ...

    def window(self, function: Any) -> Column: ...


class ScalarLowering:
    """Translates the expressions of one plan. `functions`: names by anchor, as the plan declares them."""

    def __init__(self, functions: dict[int, str], values: SubstraitValues) -> None:
        self._functions = functions
        self._values = values

    def function_name(self, anchor: int) -> str:
        """The name of a function; its signature suffix, if any, removed."""
        return self._functions[anchor].split(":", 1)[0]

    def scalar(self, message: Any, types: tuple[pa.DataType, ...], attachments: Attachments | None = None) -> Scalar:
        """The IR of `message` over an input with columns of `types`. Raises `SqlError` 0A000 for what has
        none.
        """
        kind = message.WhichOneof("rex_type")

        def lower(part: Any) -> Scalar:
            return self.scalar(part, types, attachments)

        match kind:
            case "literal":
                return self._values.literal(message.literal)
            case "selection":
                return _column(message.selection, types)
            case "scalar_function":
                return self._call(message.scalar_function, lower)
            case "cast":
                cast = message.cast
                return _simplify_cast(Cast(lower(cast.input), self._values.type(cast.type), cast.failure_behavior == 1))
            case "if_then":
                return self._case(message.if_then, lower)
            case "singular_or_list":
                options = tuple(lower(option) for option in message.singular_or_list.options)
                return InList(lower(message.singular_or_list.value), options)
            case "subquery" if attachments is not None:
                return _subquery(message.subquery, attachments)
            case "window_function" if attachments is not None:
                return attachments.window(message.window_function)
            case "window_function":
                raise SqlError("a window function cannot be used here in a maintained view", sqlstate="0A000")
        raise SqlError(f"expression kind {kind} cannot be used in a maintained view", sqlstate="0A000")

    def _call(self, function: Any, lower: Any) -> Scalar:
        name = self.function_name(function.function_reference)
        if name in VOLATILE:
            raise SqlError(
                f"function {name}() cannot be used in a maintained view: its answer changes with every call",
                sqlstate="0A000",
                hint="Use mz_now() in WHERE or HAVING to compare with the current time.",
            )
        args = tuple(lower(argument.value) for argument in function.arguments)
        if function.HasField("output_type"):
            kind = self._values.type(function.output_type)
        elif name in _BOOLEAN or name.startswith("is_"):
            kind = pa.bool_()
        else:
            raise SqlError(f"the plan does not say what type function {name}() returns", sqlstate="XX000")
        if name in ("like", "ilike") and len(args) == 3 and args[2] == Literal(None, args[2].type):
            args = args[:2]
        if name == "in_list" and args:
            return InList(args[0], args[1:])
        return Call(name, args, kind)

    def _case(self, message: Any, lower: Any) -> Scalar:
        operand: Scalar | None = None
        whens = []
        for clause in message.ifs:
            condition = lower(getattr(clause, "if"))
            if not clause.HasField("then"):
                operand = condition  # CASE operand WHEN ...: the producer writes the operand as a clause of its own
                continue
            if operand is not None:
                condition = _matches(operand, condition)
            whens.append(When(condition, lower(clause.then)))
        otherwise = lower(getattr(message, "else")) if message.HasField("else") else None
        results = [when.result for when in whens] + ([otherwise] if otherwise is not None else [])
        kind = next((part.type for part in results if not pa.types.is_null(part.type)), pa.null())
        return Case(tuple(whens), otherwise, kind)


def _matches(operand: Scalar, value: Scalar) -> Scalar:
    if operand == TRUE:
        return value
    if operand == FALSE:
        return Call("not", (value,), pa.bool_())
    return Call("equal", (operand, value), pa.bool_())


def _column(selection: Any, types: tuple[pa.DataType, ...]) -> Scalar:
    if selection.WhichOneof("root_type") == "outer_reference":
        raise SqlError(
            "a correlated subquery that cannot be turned into a join cannot be used in a maintained view",
            sqlstate="0A000",
            hint="Write it as a join with GROUP BY.",
        )
    reference = selection.direct_reference
    if reference.WhichOneof("reference_type") != "struct_field" or reference.struct_field.HasField("child"):
        raise SqlError("a nested field reference cannot be used in a maintained view", sqlstate="0A000")
    index = reference.struct_field.field
    return Column(index, types[index])


def _subquery(subquery: Any, attachments: Attachments) -> Scalar:
    kind = subquery.WhichOneof("subquery_type")
    if kind != "scalar":
        raise SqlError(
            f"a subquery of kind {kind} at this place cannot be used in a maintained view",
            sqlstate="0A000",
            hint="Use EXISTS or IN directly in WHERE, or write it as a join.",
        )
    return attachments.subquery(subquery.scalar.input)


def _simplify_cast(cast: Cast) -> Scalar:
    if cast.arg.type == cast.type:
        return cast.arg
    if isinstance(cast.arg, Literal) and cast.arg.value is None:
        return Literal(None, cast.type)
    return cast if cast.lenient else _checked_arithmetic(cast) or cast


def _checked_arithmetic(cast: Cast) -> Scalar | None:
    """``bigint(decimal(a) + decimal(b))``, which is how planned SQL writes bigint arithmetic that checks its range."""
    call = cast.arg
    if not isinstance(call, Call) or cast.type != pa.int64() or call.name not in ("add", "subtract", "multiply"):
        return None
    operands = [_as_integer(operand) for operand in call.args]
    if len(operands) != 2 or operands[0] is None or operands[1] is None:
        return None
    return Call(f"checked_{call.name}", (operands[0], operands[1]), pa.int64())


def _as_integer(scalar: Scalar) -> Scalar | None:
    """The bigint that `scalar` widens to a decimal without digits after the point; None for anything else."""
    if not pa.types.is_decimal128(scalar.type) or scalar.type.scale != 0:
        return None
    if isinstance(scalar, Literal):
        fits = scalar.value is not None and abs(int(scalar.value)) < 2**63
        return make_literal(int(scalar.value or 0), pa.int64()) if fits else None
    if isinstance(scalar, Cast) and pa.types.is_integer(scalar.arg.type) and not pa.types.is_uint64(scalar.arg.type):
        return scalar.arg if scalar.arg.type == pa.int64() else Cast(scalar.arg, pa.int64())
    return None
