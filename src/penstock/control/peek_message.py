"""A peek as the message that replicas understand."""

from __future__ import annotations

import pyarrow as pa

from penstock.control.answers import PEEK_CREDIT_CHUNKS
from penstock.control.specs import Comparison, Constant, IndexRead, Peek, PeekInput, ShardRead
from penstock.replica import compute_pb2 as pb
from penstock.replica.wire import schema_to_ipc, to_ipc
from penstock.runtime import InternalError


def peek_message(uuid: bytes, peek: Peek) -> pb.Peek:
    """`peek` under the name `uuid`. Raises `InternalError` when it has no query and not exactly one input."""
    if peek.query is None and len(peek.inputs) != 1:
        raise InternalError(f"a peek without a query has {len(peek.inputs)} inputs")
    return pb.Peek(
        uuid=uuid,
        timestamp=peek.timestamp,
        query=peek.query,
        inputs={name: _input_message(input_) for name, input_ in peek.inputs.items()},
        result_bytes_max=peek.max_result_bytes,
        credit=PEEK_CREDIT_CHUNKS,
    )


def _input_message(input_: PeekInput) -> pb.PeekInput:
    match input_:
        case IndexRead():
            keys = None if input_.keys is None else to_ipc([input_.keys], input_.keys.schema)
            return pb.PeekInput(index=pb.IndexRead(id=input_.id, keys_ipc=keys))
        case ShardRead():
            return pb.PeekInput(
                shard=pb.ShardRead(
                    shard=input_.shard,
                    schema_ipc=schema_to_ipc(input_.schema),
                    is_table=input_.is_table,
                    all_columns=input_.columns is None,
                    columns=input_.columns or (),
                    comparisons=[_comparison_message(one) for one in input_.comparisons],
                )
            )
        case Constant():
            return pb.PeekInput(constant_ipc=input_.data)


def _comparison_message(comparison: Comparison) -> pb.Comparison:
    value = pa.RecordBatch.from_arrays([pa.array([comparison.value], comparison.value.type)], names=[comparison.column])
    return pb.Comparison(
        column=comparison.column, operator=comparison.operator, value_ipc=to_ipc([value], value.schema)
    )
