"""A fixed 64-bit hash per row of Arrow columns, without a Python loop over rows.

Arrangements, consolidation and exchange narrow their search with it; equality is always verified on the
columns themselves, so a collision costs time, never a wrong answer. The function has no seed: two replicas
must agree on every value. NULL hashes to one constant of its own, ``-0.0`` like ``0.0``, and all NaNs alike.

Mixing is SplitMix64's finalizer (Steele, Lea, Flood 2014). Variable-length values are hashed as a polynomial
over their bytes modulo 2**64 whose exponent counts from each value's own start.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

U64 = npt.NDArray[np.uint64]

_NULL_HASH = np.uint64(0x9E3779B97F4A7C15)
_ROW_SEED = np.uint64(0x2545F4914F6CDD1D)
_COMBINE = np.uint64(0x9FB21C651E98DF25)
_POLYNOMIAL = 0x100000001B3


def hash_columns(columns: Iterable[pa.Array], length: int) -> U64:
    """Hash of each row over `columns` (each of `length` values). No columns: one constant for every row."""
    hashes = np.full(length, _ROW_SEED, dtype=np.uint64)
    for column in columns:
        hashes = _mix((hashes * _COMBINE) ^ hash_array(column))
    return hashes


def hash_array(column: pa.Array) -> U64:
    """Hash of each value of one array, in order."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    hashes = _hash_valid(column)
    if column.null_count:
        hashes = np.where(_is_null(column), _NULL_HASH, hashes)
    return hashes


def _hash_valid(column: pa.Array) -> U64:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), _NULL_HASH, dtype=np.uint64)
    if pa.types.is_boolean(kind):
        return _mix(column.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64))
    if pa.types.is_floating(kind):
        values = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64) + 0.0
        words = values.view(np.uint64).copy()
        words[np.isnan(values)] = np.uint64(0x7FF8000000000000)
        return _mix(words)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _hash_bytes(column, np.int32)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _hash_bytes(column, np.int64)
    if pa.types.is_list(kind):
        return _hash_lists(column)
    if pa.types.is_struct(kind):
        return hash_columns([column.field(i) for i in range(kind.num_fields)], len(column))
    if pa.types.is_dictionary(kind):
        return hash_array(column.dictionary_decode())
    if "view" in str(kind):
        return hash_array(column.cast(pa.string() if "string" in str(kind) else pa.binary()))
    return _hash_fixed_width(column)


def _hash_fixed_width(column: pa.Array) -> U64:
    """Integers, dates, times, timestamps, decimals, intervals, fixed-size binary: hashed as 64-bit words."""
    width = column.type.bit_width // 8
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint8) if len(column) else np.empty(0, np.uint8)
    raw = raw[column.offset * width : (column.offset + len(column)) * width]
    if width in (1, 2, 4, 8):
        signed = raw.view(f"i{width}").astype(np.int64)  # widening keeps 1::int2 and 1::int8 alike
        return _mix(signed.view(np.uint64))
    if width % 8 == 0:
        words = raw.view(np.uint64).reshape(len(column), width // 8)
    else:
        padded = np.zeros((len(column), -(-width // 8) * 8), dtype=np.uint8)
        padded[:, :width] = raw.reshape(len(column), width)
        words = padded.view(np.uint64)
    hashes = np.full(len(column), _ROW_SEED, dtype=np.uint64)
    for word in range(words.shape[1]):
        hashes = _mix((hashes * _COMBINE) ^ words[:, word])
    return hashes


def _hash_bytes(column: pa.Array, offset_type: type) -> U64:
    count = len(column)
    if count == 0:
        return np.empty(0, np.uint64)
    raw: npt.NDArray[np.int64] = np.frombuffer(column.buffers()[1], dtype=offset_type)[
        column.offset : column.offset + count + 1
    ]
    offsets: npt.NDArray[np.int64] = raw.astype(np.int64)
    lengths = np.diff(offsets)
    total = int(offsets[-1] - offsets[0])
    if total == 0:
        return _mix(lengths.astype(np.uint64))
    data = np.frombuffer(column.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    positions = np.arange(total, dtype=np.int64) - np.repeat(starts, lengths)
    terms = (data.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[positions]
    sums = np.zeros(count, dtype=np.uint64)
    nonempty = lengths > 0
    # reduceat needs strictly valid, non-empty slices; empty values keep a sum of zero
    sums[nonempty] = np.add.reduceat(terms, starts[nonempty])
    return _mix(sums ^ _mix(lengths.astype(np.uint64)))


def _hash_lists(column: pa.Array) -> U64:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    sums = np.zeros(len(column), dtype=np.uint64)
    if int(lengths.sum()):
        ends = np.cumsum(lengths)
        starts = ends - lengths
        positions = np.arange(ends[-1], dtype=np.int64) - np.repeat(starts, lengths)
        terms = hash_array(column.flatten()) * _powers(int(lengths.max()))[positions]
        nonempty = lengths > 0
        sums[nonempty] = np.add.reduceat(terms, starts[nonempty])
    return _mix(sums ^ _mix(lengths.astype(np.uint64)))


def _powers(count: int) -> U64:
    factors = np.full(count, _POLYNOMIAL, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _mix(words: U64) -> U64:
    words = words ^ (words >> np.uint64(30))
    words = words * np.uint64(0xBF58476D1CE4E5B9)
    words = words ^ (words >> np.uint64(27))
    words = words * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _is_null(column: pa.Array) -> npt.NDArray[np.bool_]:
    return column.is_null().to_numpy(zero_copy_only=False)
