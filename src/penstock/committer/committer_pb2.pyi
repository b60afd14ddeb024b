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

class HeadResult(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: Version
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class HeadResponse(_message.Message):
    __slots__ = ("ok", "err")
    OK_FIELD_NUMBER: _ClassVar[int]
    ERR_FIELD_NUMBER: _ClassVar[int]
    ok: HeadResult
    err: Error
    def __init__(self, ok: _Optional[_Union[HeadResult, _Mapping]] = ..., err: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("key", "from_seqno", "limit")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQNO_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    key: str
    from_seqno: int
    limit: int
    def __init__(self, key: _Optional[str] = ..., from_seqno: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ScanResult(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("ok", "err")
    OK_FIELD_NUMBER: _ClassVar[int]
    ERR_FIELD_NUMBER: _ClassVar[int]
    ok: ScanResult
    err: Error
    def __init__(self, ok: _Optional[_Union[ScanResult, _Mapping]] = ..., err: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class CompareAndSetRequest(_message.Message):
    __slots__ = ("key", "version")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    key: str
    version: Version
    def __init__(self, key: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class CompareAndSetResult(_message.Message):
    __slots__ = ("committed",)
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    def __init__(self, committed: _Optional[bool] = ...) -> None: ...

class CompareAndSetResponse(_message.Message):
    __slots__ = ("ok", "err")
    OK_FIELD_NUMBER: _ClassVar[int]
    ERR_FIELD_NUMBER: _ClassVar[int]
    ok: CompareAndSetResult
    err: Error
    def __init__(self, ok: _Optional[_Union[CompareAndSetResult, _Mapping]] = ..., err: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class TruncateRequest(_message.Message):
    __slots__ = ("key", "seqno")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SEQNO_FIELD_NUMBER: _ClassVar[int]
    key: str
    seqno: int
    def __init__(self, key: _Optional[str] = ..., seqno: _Optional[int] = ...) -> None: ...

class TruncateResult(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class TruncateResponse(_message.Message):
    __slots__ = ("ok", "err")
    OK_FIELD_NUMBER: _ClassVar[int]
    ERR_FIELD_NUMBER: _ClassVar[int]
    ok: TruncateResult
    err: Error
    def __init__(self, ok: _Optional[_Union[TruncateResult, _Mapping]] = ..., err: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListKeysResult(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("ok", "err")
    OK_FIELD_NUMBER: _ClassVar[int]
    ERR_FIELD_NUMBER: _ClassVar[int]
    ok: ListKeysResult
    err: Error
    def __init__(self, ok: _Optional[_Union[ListKeysResult, _Mapping]] = ..., err: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

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
