"""What a replica is told to run: the inputs, the objects computed from them, and where results go.

A description is a value that crosses processes and is kept in the controllers' command histories; it names
collections by id and carries everything a replica needs, so that a replica knows nothing of the catalog.
"""

from __future__ import annotations

import base64
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa

from penstock.compute import ir
from penstock.compute.ir import Rel
from penstock.runtime import DONE, Frontier, GlobalId, Timestamp


class ShardImport(msgspec.Struct, frozen=True, tag="shard"):
    """A durable collection. `schema`: its data columns. `txns`: it is written through transactions (a
    table).
    """

    shard: str
    schema: pa.Schema
    txns: bool


class IndexImport(msgspec.Struct, frozen=True, tag="index"):
    """An index of the same cluster, whose arrangement is shared. `on`: the collection it indexes; `schema`:
    its columns.
    """

    index: GlobalId
    on: GlobalId
    schema: pa.Schema


Import: TypeAlias = ShardImport | IndexImport


class IndexExport(msgspec.Struct, frozen=True, tag="index"):
    """Keep collection `on` in memory, arranged by the columns `key`, as index `id`."""

    id: GlobalId
    on: GlobalId
    key: tuple[int, ...]


class ViewSink(msgspec.Struct, frozen=True, tag="view"):
    """Write collection `on` to `shard` as collection `id`. `schema`: its data columns."""

    id: GlobalId
    on: GlobalId
    shard: str
    schema: pa.Schema


class SubscribeSink(msgspec.Struct, frozen=True, tag="subscribe"):
    """Send the changes of collection `on` as `id`. `with_snapshot`: first its contents at the as-of. Ends at
    `up_to`.
    """

    id: GlobalId
    on: GlobalId
    with_snapshot: bool = True
    up_to: Frontier = DONE


Export: TypeAlias = IndexExport | ViewSink | SubscribeSink


class DataflowDescription(msgspec.Struct, frozen=True):
    """One dataflow.

    `imports`: by the id that the objects' plans use. `objects`: collections computed here, each from
    imports and objects before it. `as_of`: the first time at which results are correct; earlier updates
    count as being at it. `until`: times at or beyond are not computed.
    """

    id: GlobalId
    imports: dict[GlobalId, Import]
    objects: tuple[tuple[GlobalId, Rel], ...]
    exports: tuple[Export, ...]
    as_of: Timestamp
    until: Frontier = DONE

    def schema_of(self, collection: GlobalId) -> pa.Schema:
        """The Arrow schema of an import or object. Raises `KeyError` for any other id."""
        for name, rel in self.objects:
            if name == collection:
                return rel.schema
        return self.imports[collection].schema

    def encode(self) -> bytes:
        """As bytes (MessagePack)."""
        return _encoder.encode(self)

    @staticmethod
    def decode(data: bytes) -> DataflowDescription:
        """The description that `encode` wrote. Raises `msgspec.ValidationError` on anything else."""
        return _decoder.decode(data)


def _encode_hook(value: Any) -> Any:
    if isinstance(value, pa.Schema):
        return base64.b64encode(value.serialize().to_pybytes()).decode("ascii")
    return ir.encode_hook(value)


def _decode_hook(kind: type, value: Any) -> Any:
    if kind is pa.Schema:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value)))
    return ir.decode_hook(kind, value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_decoder: msgspec.msgpack.Decoder[DataflowDescription] = msgspec.msgpack.Decoder(
    DataflowDescription, dec_hook=_decode_hook
)
