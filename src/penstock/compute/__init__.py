"""From SQL plans to running dataflows.

The room owns the relational IR, its translation from Substrait, the evaluation of scalar expressions on
Arrow batches, the description of a dataflow and its rendering to operators, one-off query execution, and
the sinks that write results. It promises that a rendered view at a time equals its query run from scratch
on the inputs at that time, errors included. It knows nothing of controllers, sessions or the catalog.
"""

from penstock.compute.description import (
    DataflowDescription,
    Export,
    Import,
    IndexExport,
    IndexImport,
    ShardImport,
    SubscribeSink,
    ViewSink,
)
from penstock.compute.explain import explain
from penstock.compute.ir import Rel, Scalar, decode, encode
from penstock.compute.lower import from_substrait
from penstock.compute.query import execute
from penstock.compute.render import OnData, RenderedDataflow, render
from penstock.compute.scalar import compile_scalars
from penstock.storage import view_schema

__all__ = [
    "DataflowDescription",
    "Export",
    "Import",
    "IndexExport",
    "IndexImport",
    "OnData",
    "Rel",
    "RenderedDataflow",
    "Scalar",
    "ShardImport",
    "SubscribeSink",
    "ViewSink",
    "compile_scalars",
    "decode",
    "encode",
    "execute",
    "explain",
    "from_substrait",
    "render",
    "view_schema",
]
