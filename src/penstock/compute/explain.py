"""Plans for people: one node per line, inputs indented, columns as ``#0``."""

from __future__ import annotations

import pyarrow as pa

from penstock.compute.ir import (
    Aggregate,
    Column,
    Constant,
    Distinct,
    Filter,
    Get,
    Join,
    Literal,
    Negate,
    Project,
    Reduce,
    Rel,
    Scalar,
    SingleRow,
    SortKey,
    TemporalFilter,
    TopK,
    Union,
    Window,
    batch_from_ipc,
    inputs_of,
    literal_scalar,
)
from penstock.compute.scalar_sql import render


def explain(rel: Rel) -> str:
    """The plan as indented text, one line per node, the result's node first."""
    lines: list[str] = []
    _walk(rel, 0, lines)
    return "\n".join(lines)


def _walk(rel: Rel, depth: int, lines: list[str]) -> None:
    lines.append("  " * depth + _node(rel))
    for child in inputs_of(rel):
        _walk(child, depth + 1, lines)


def _node(rel: Rel) -> str:
    match rel:
        case Get():
            return f"Get {rel.id}"
        case Constant():
            return f"Constant {batch_from_ipc(rel.rows).num_rows} rows"
        case Filter():
            return f"Filter {explain_scalar(rel.predicate)}"
        case Project():
            columns = [explain_scalar(expr) for expr in rel.exprs]
            if rel.names:
                columns = [f"{text} AS {name}" for text, name in zip(columns, rel.names, strict=True)]
            return f"Project {', '.join(columns)}"
        case TemporalFilter():
            lower = [f"mz_now() >= {explain_scalar(bound)}" for bound in rel.lower]
            upper = [f"mz_now() < {explain_scalar(bound)}" for bound in rel.upper]
            return f"TemporalFilter {' AND '.join(lower + upper)}"
        case Join():
            return _join(rel)
        case Reduce():
            key = ", ".join(f"#{i}" for i in rel.key)
            return f"Reduce by ({key}): {', '.join(_aggregate(a) for a in rel.aggregates)}"
        case Distinct():
            return "Distinct"
        case TopK():
            group = f" per ({', '.join(f'#{i}' for i in rel.group)})" if rel.group else ""
            limit = "" if rel.limit is None else f" limit {rel.limit}"
            return f"TopK{group} order by {_order(rel.order)}{limit}{f' offset {rel.offset}' if rel.offset else ''}"
        case Window():
            functions = [function.sql.format(*(f"#{i}" for i in function.args)) for function in rel.functions]
            return f"Window per ({', '.join(f'#{i}' for i in rel.partition)}): {', '.join(functions)}"
        case Union():
            return "Union"
        case Negate():
            return "Negate"
        case SingleRow():
            return "SingleRow"


def _join(join: Join) -> str:
    width = join.left.arity
    keys = [
        f"#{left} {'IS NOT DISTINCT FROM' if null_equal else '='} #{width + right}"
        for left, right, null_equal in zip(join.left_key, join.right_key, join.null_equal, strict=True)
    ]
    if join.residual is not None:
        keys.append(explain_scalar(join.residual))
    return f"Join {join.kind.value}" + (f" on {' AND '.join(keys)}" if keys else " (all pairs)")


def _aggregate(aggregate: Aggregate) -> str:
    args = ", ".join(f"#{i}" for i in aggregate.args) or "*"
    distinct = "DISTINCT " if aggregate.distinct else ""
    order = f" ORDER BY {_order(aggregate.order)}" if aggregate.order else ""
    return f"{aggregate.function}({distinct}{args}{order})"


def _order(order: tuple[SortKey, ...]) -> str:
    return (
        ", ".join(
            f"#{key.column}{' DESC' if key.descending else ''}{' NULLS FIRST' if key.nulls_first else ''}"
            for key in order
        )
        or "the whole row"
    )


def explain_scalar(scalar: Scalar) -> str:
    """An expression as SQL-like text; constants as people write them."""
    if isinstance(scalar, Literal):
        return _constant(scalar)
    return render(scalar, _column)


def _column(column: Column) -> str:
    return f"#{column.index}"


def _constant(literal: Literal) -> str:
    value = literal_scalar(literal).as_py()
    return f"'{value}'" if pa.types.is_string(literal.type) and value is not None else str(value)
