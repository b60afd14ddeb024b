from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("hello", "create_instance", "create_dataflow", "schedule", "allow_compaction", "allow_writes", "peek", "cancel_peek", "peek_credit", "initialization_complete", "configure")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CREATE_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_DATAFLOW_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_COMPACTION_FIELD_NUMBER: _ClassVar[int]
    ALLOW_WRITES_FIELD_NUMBER: _ClassVar[int]
    PEEK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_PEEK_FIELD_NUMBER: _ClassVar[int]
    PEEK_CREDIT_FIELD_NUMBER: _ClassVar[int]
    INITIALIZATION_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    create_instance: CreateInstance
    create_dataflow: CreateDataflow
    schedule: Schedule
    allow_compaction: AllowCompaction
    allow_writes: AllowWrites
    peek: Peek
    cancel_peek: CancelPeek
    peek_credit: PeekCredit
    initialization_complete: InitializationComplete
    configure: Configure
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., create_instance: _Optional[_Union[CreateInstance, _Mapping]] = ..., create_dataflow: _Optional[_Union[CreateDataflow, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., allow_compaction: _Optional[_Union[AllowCompaction, _Mapping]] = ..., allow_writes: _Optional[_Union[AllowWrites, _Mapping]] = ..., peek: _Optional[_Union[Peek, _Mapping]] = ..., cancel_peek: _Optional[_Union[CancelPeek, _Mapping]] = ..., peek_credit: _Optional[_Union[PeekCredit, _Mapping]] = ..., initialization_complete: _Optional[_Union[InitializationComplete, _Mapping]] = ..., configure: _Optional[_Union[Configure, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("epoch", "nonce")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    nonce: bytes
    def __init__(self, epoch: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class CreateInstance(_message.Message):
    __slots__ = ("txns_shard",)
    TXNS_SHARD_FIELD_NUMBER: _ClassVar[int]
    txns_shard: str
    def __init__(self, txns_shard: _Optional[str] = ...) -> None: ...

class Configure(_message.Message):
    __slots__ = ("bypass_committer",)
    BYPASS_COMMITTER_FIELD_NUMBER: _ClassVar[int]
    bypass_committer: bool
    def __init__(self, bypass_committer: _Optional[bool] = ...) -> None: ...

class CreateDataflow(_message.Message):
    __slots__ = ("id", "description", "as_of", "exports")
    ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    description: bytes
    as_of: int
    exports: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., description: _Optional[bytes] = ..., as_of: _Optional[int] = ..., exports: _Optional[_Iterable[str]] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class AllowCompaction(_message.Message):
    __slots__ = ("id", "frontier")
    ID_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    id: str
    frontier: int
    def __init__(self, id: _Optional[str] = ..., frontier: _Optional[int] = ...) -> None: ...

class AllowWrites(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class Peek(_message.Message):
    __slots__ = ("uuid", "timestamp", "query", "inputs", "result_bytes_max", "credit")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: PeekInput
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[PeekInput, _Mapping]] = ...) -> None: ...
    UUID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    uuid: bytes
    timestamp: int
    query: str
    inputs: _containers.MessageMap[str, PeekInput]
    result_bytes_max: int
    credit: int
    def __init__(self, uuid: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., query: _Optional[str] = ..., inputs: _Optional[_Mapping[str, PeekInput]] = ..., result_bytes_max: _Optional[int] = ..., credit: _Optional[int] = ...) -> None: ...

class PeekInput(_message.Message):
    __slots__ = ("index", "shard", "constant_ipc")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_IPC_FIELD_NUMBER: _ClassVar[int]
    index: IndexRead
    shard: ShardRead
    constant_ipc: bytes
    def __init__(self, index: _Optional[_Union[IndexRead, _Mapping]] = ..., shard: _Optional[_Union[ShardRead, _Mapping]] = ..., constant_ipc: _Optional[bytes] = ...) -> None: ...

class IndexRead(_message.Message):
    __slots__ = ("id", "keys_ipc")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_IPC_FIELD_NUMBER: _ClassVar[int]
    id: str
    keys_ipc: bytes
    def __init__(self, id: _Optional[str] = ..., keys_ipc: _Optional[bytes] = ...) -> None: ...

class ShardRead(_message.Message):
    __slots__ = ("shard", "schema_ipc", "is_table", "all_columns", "columns", "comparisons")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_IPC_FIELD_NUMBER: _ClassVar[int]
    IS_TABLE_FIELD_NUMBER: _ClassVar[int]
    ALL_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    shard: str
    schema_ipc: bytes
    is_table: bool
    all_columns: bool
    columns: _containers.RepeatedScalarFieldContainer[str]
    comparisons: _containers.RepeatedCompositeFieldContainer[Comparison]
    def __init__(self, shard: _Optional[str] = ..., schema_ipc: _Optional[bytes] = ..., is_table: _Optional[bool] = ..., all_columns: _Optional[bool] = ..., columns: _Optional[_Iterable[str]] = ..., comparisons: _Optional[_Iterable[_Union[Comparison, _Mapping]]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("column", "operator", "value_ipc")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    VALUE_IPC_FIELD_NUMBER: _ClassVar[int]
    column: str
    operator: str
    value_ipc: bytes
    def __init__(self, column: _Optional[str] = ..., operator: _Optional[str] = ..., value_ipc: _Optional[bytes] = ...) -> None: ...

class CancelPeek(_message.Message):
    __slots__ = ("uuid",)
    UUID_FIELD_NUMBER: _ClassVar[int]
    uuid: bytes
    def __init__(self, uuid: _Optional[bytes] = ...) -> None: ...

class PeekCredit(_message.Message):
    __slots__ = ("uuid", "chunks")
    UUID_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    uuid: bytes
    chunks: int
    def __init__(self, uuid: _Optional[bytes] = ..., chunks: _Optional[int] = ...) -> None: ...

class InitializationComplete(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Response(_message.Message):
    __slots__ = ("ready", "frontiers", "peek_rows", "peek_end", "subscribe_batch", "status")
    READY_FIELD_NUMBER: _ClassVar[int]
    FRONTIERS_FIELD_NUMBER: _ClassVar[int]
    PEEK_ROWS_FIELD_NUMBER: _ClassVar[int]
    PEEK_END_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBE_BATCH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ready: Ready
    frontiers: FrontierReports
    peek_rows: PeekRows
    peek_end: PeekEnd
    subscribe_batch: SubscribeBatch
    status: Status
    def __init__(self, ready: _Optional[_Union[Ready, _Mapping]] = ..., frontiers: _Optional[_Union[FrontierReports, _Mapping]] = ..., peek_rows: _Optional[_Union[PeekRows, _Mapping]] = ..., peek_end: _Optional[_Union[PeekEnd, _Mapping]] = ..., subscribe_batch: _Optional[_Union[SubscribeBatch, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("nonce", "process")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    process: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., process: _Optional[bytes] = ...) -> None: ...

class FrontierReports(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[Frontiers]
    def __init__(self, reports: _Optional[_Iterable[_Union[Frontiers, _Mapping]]] = ...) -> None: ...

class Frontiers(_message.Message):
    __slots__ = ("id", "write", "input", "output")
    ID_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    id: str
    write: int
    input: int
    output: int
    def __init__(self, id: _Optional[str] = ..., write: _Optional[int] = ..., input: _Optional[int] = ..., output: _Optional[int] = ...) -> None: ...

class PeekRows(_message.Message):
    __slots__ = ("uuid", "ipc")
    UUID_FIELD_NUMBER: _ClassVar[int]
    IPC_FIELD_NUMBER: _ClassVar[int]
    uuid: bytes
    ipc: bytes
    def __init__(self, uuid: _Optional[bytes] = ..., ipc: _Optional[bytes] = ...) -> None: ...

class PeekEnd(_message.Message):
    __slots__ = ("uuid", "complete", "error", "canceled")
    UUID_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CANCELED_FIELD_NUMBER: _ClassVar[int]
    uuid: bytes
    complete: Complete
    error: Error
    canceled: Canceled
    def __init__(self, uuid: _Optional[bytes] = ..., complete: _Optional[_Union[Complete, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., canceled: _Optional[_Union[Canceled, _Mapping]] = ...) -> None: ...

class Complete(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Canceled(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Error(_message.Message):
    __slots__ = ("sqlstate", "message", "detail", "hint", "definite")
    SQLSTATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    DEFINITE_FIELD_NUMBER: _ClassVar[int]
    sqlstate: str
    message: str
    detail: str
    hint: str
    definite: bool
    def __init__(self, sqlstate: _Optional[str] = ..., message: _Optional[str] = ..., detail: _Optional[str] = ..., hint: _Optional[str] = ..., definite: _Optional[bool] = ...) -> None: ...

class SubscribeBatch(_message.Message):
    __slots__ = ("id", "lower", "upper", "updates_ipc", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    UPDATES_IPC_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    lower: int
    upper: int
    updates_ipc: bytes
    error: Error
    def __init__(self, id: _Optional[str] = ..., lower: _Optional[int] = ..., upper: _Optional[int] = ..., updates_ipc: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("id", "stalled", "message")
    ID_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    stalled: bool
    message: str
    def __init__(self, id: _Optional[str] = ..., stalled: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...
