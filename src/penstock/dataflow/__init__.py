"""Incremental dataflow: keeps the result of a query up to date at the cost of the change.

The room owns the graph of operators, the worker that runs it, frontiers on its edges and the arrangements
that operators keep. Its contract with the rooms above: what a collection shows at a time below its frontier
is exactly what the operators say about the inputs at that time, however the updates were batched; errors are
data with times; a broken operator freezes its own dataflow and nothing else. It knows nothing of shards, SQL,
plans or processes.

An operator sees only what is sent to it, so several workers can each run a copy of a graph on a partition by
key.
"""

from penstock.dataflow.aggregates import Aggregate, Function, output_field
from penstock.dataflow.arrangement import Arrange, arrange
from penstock.dataflow.compose import (
    anti_join,
    cross_join,
    distinct,
    full_join,
    left_join,
    reduce,
    rename,
    right_join,
    semi_join,
)
from penstock.dataflow.graph import ERRORS_SCHEMA, Collection, Dataflow
from penstock.dataflow.input import InputHandle
from penstock.dataflow.join import join
from penstock.dataflow.linear import (
    BatchFunction,
    BatchResult,
    constant,
    map_filter,
    negate,
    project,
    union,
    with_schema,
)
from penstock.dataflow.order import SortKey
from penstock.dataflow.temporal import temporal_filter
from penstock.dataflow.top_k import top_k
from penstock.dataflow.trace import IndexTrace, NegativeMultiplicity, NotReadable, index
from penstock.dataflow.worker import Worker

__all__ = [
    "ERRORS_SCHEMA",
    "Aggregate",
    "Arrange",
    "BatchFunction",
    "BatchResult",
    "Collection",
    "Dataflow",
    "Function",
    "IndexTrace",
    "InputHandle",
    "NegativeMultiplicity",
    "NotReadable",
    "SortKey",
    "Worker",
    "anti_join",
    "arrange",
    "constant",
    "cross_join",
    "distinct",
    "full_join",
    "index",
    "join",
    "left_join",
    "map_filter",
    "negate",
    "output_field",
    "project",
    "reduce",
    "rename",
    "right_join",
    "semi_join",
    "temporal_filter",
    "top_k",
    "union",
    "with_schema",
]
