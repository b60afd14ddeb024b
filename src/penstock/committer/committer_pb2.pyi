from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Determinacy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DETERMINACY_UNSPECIFIED: _ClassVar[Determinacy]
    DETERMINATE: _ClassVar[Determinacy]
    INDETERMINATE: _ClassVar[Determinacy]
    INVALID: _ClassVar[Determinacy]
DETERMINACY_UNSPECIFIED: Determinacy
DETERMINATE: Determinacy
INDETERMINATE: Determinacy
INVALID: Determinacy

class Version(_message.Message):
    __slots__ = ("seqno", "data")
    SEQNO_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    seqno: int
    data: bytes
    def __init__(self, seqno: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("determinacy", "causes", "store_full", "store_unusable")
    DETERMINACY_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    STORE_FULL_FIELD_NUMBER: _ClassVar[int]
    STORE_UNUSABLE_FIELD_NUMBER: _ClassVar[int]
    determinacy: Determinacy
    causes: _containers.RepeatedScalarFieldContainer[str]
    store_full: bool
    store_unusable: bool
    def __init__(self, determinacy: _Optional[_Union[Determinacy, str]] = ..., causes: _Optional[_Iterable[str]] = ..., store_full: _Optional[bool] = ..., store_unusable: _Optional[bool] = ...) -> None: ...

class HeadRequest(_message.Message):
    __slots__ = ("key", "linearized")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LINEARIZED_FIELD_NUMBER: _ClassVar[int]
    key: str
    linearized: bool
    def __init__(self, key: _Optional[str] = ..., linearized: _Optional[bool] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("key", "from_seqno", "limit")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQNO_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    key: str
    from_seqno: int
    limit: int
    def __init__(self, key: _Optional[str] = ..., from_seqno: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class CompareAndSetRequest(_message.Message):
    __slots__ = ("key", "seqno", "data")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SEQNO_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    key: str
    seqno: int
    data: bytes
    def __init__(self, key: _Optional[str] = ..., seqno: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TruncateRequest(_message.Message):
    __slots__ = ("key", "seqno")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SEQNO_FIELD_NUMBER: _ClassVar[int]
    key: str
    seqno: int
    def __init__(self, key: _Optional[str] = ..., seqno: _Optional[int] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "compare_and_set", "head", "scan", "truncate", "list_keys")
    ID_FIELD_NUMBER: _ClassVar[int]
    COMPARE_AND_SET_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SCAN_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    LIST_KEYS_FIELD_NUMBER: _ClassVar[int]
    id: int
    compare_and_set: CompareAndSetRequest
    head: HeadRequest
    scan: ScanRequest
    truncate: TruncateRequest
    list_keys: ListKeysRequest
    def __init__(self, id: _Optional[int] = ..., compare_and_set: _Optional[_Union[CompareAndSetRequest, _Mapping]] = ..., head: _Optional[_Union[HeadRequest, _Mapping]] = ..., scan: _Optional[_Union[ScanRequest, _Mapping]] = ..., truncate: _Optional[_Union[TruncateRequest, _Mapping]] = ..., list_keys: _Optional[_Union[ListKeysRequest, _Mapping]] = ...) -> None: ...

class Requests(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[Request]
    def __init__(self, requests: _Optional[_Iterable[_Union[Request, _Mapping]]] = ...) -> None: ...

class HeadResult(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: Version
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class ScanResult(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ...) -> None: ...

class ListKeysResult(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[_Iterable[str]] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("id", "committed", "head", "scan", "deleted", "list_keys", "err")
    ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SCAN_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    LIST_KEYS_FIELD_NUMBER: _ClassVar[int]
    ERR_FIELD_NUMBER: _ClassVar[int]
    id: int
    committed: bool
    head: HeadResult
    scan: ScanResult
    deleted: int
    list_keys: ListKeysResult
    err: Error
    def __init__(self, id: _Optional[int] = ..., committed: _Optional[bool] = ..., head: _Optional[_Union[HeadResult, _Mapping]] = ..., scan: _Optional[_Union[ScanResult, _Mapping]] = ..., deleted: _Optional[int] = ..., list_keys: _Optional[_Union[ListKeysResult, _Mapping]] = ..., err: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Responses(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[Response]
    def __init__(self, responses: _Optional[_Iterable[_Union[Response, _Mapping]]] = ...) -> None: ...

class PushDiff(_message.Message):
    __slots__ = ("shard", "version")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    shard: str
    version: Version
    def __init__(self, shard: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("unsubscribe", "subscribe", "diffs")
    UNSUBSCRIBE_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBE_FIELD_NUMBER: _ClassVar[int]
    DIFFS_FIELD_NUMBER: _ClassVar[int]
    unsubscribe: _containers.RepeatedScalarFieldContainer[str]
    subscribe: _containers.RepeatedScalarFieldContainer[str]
    diffs: _containers.RepeatedCompositeFieldContainer[PushDiff]
    def __init__(self, unsubscribe: _Optional[_Iterable[str]] = ..., subscribe: _Optional[_Iterable[str]] = ..., diffs: _Optional[_Iterable[_Union[PushDiff, _Mapping]]] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("diffs",)
    DIFFS_FIELD_NUMBER: _ClassVar[int]
    diffs: _containers.RepeatedCompositeFieldContainer[PushDiff]
    def __init__(self, diffs: _Optional[_Iterable[_Union[PushDiff, _Mapping]]] = ...) -> None: ...
