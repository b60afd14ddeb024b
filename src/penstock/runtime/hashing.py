"""A fixed 64-bit hash per row of Arrow columns, without a Python loop over rows.

Arrangements, consolidation and exchange narrow their search with it; equality is always verified on the
columns themselves, so a collision costs time, never a wrong answer. The function has no seed: two replicas
must agree on every value. NULL hashes to one constant of its own, ``-0.0`` like ``0.0``, and all NaNs alike.

Mixing is SplitMix64's finalizer (Steele, Lea, Flood 2014), a bijection, so that one column of at most 64 bits has
no collisions. A string is the sum of its mixed eight-byte words, each offset by its place. Rows are taken in blocks
that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

U64 = npt.NDArray[np.uint64]

_NULL_WORD = np.uint64(0x9E3779B97F4A7C15)
_ROW_SEED = np.uint64(0x2545F4914F6CDD1D)
_COMBINE = np.uint64(0x9FB21C651E98DF25)
_POLYNOMIAL = 0x100000001B3
_BLOCK_ROWS = 1 << 14
_HEAD_BYTES = 64
"""Of a string, this much is hashed word by word over all rows; what is longer has its rows spread over its words."""

_WORD_OFFSETS = np.arange(_HEAD_BYTES >> 3, dtype=np.uint64) * _COMBINE


def hash_columns(columns: Iterable[pa.Array], length: int) -> U64:
    """Hash of each row over `columns` (each of `length` values). No columns: one constant for every row."""
    arrays = [_plain(column) for column in columns]
    if not arrays:
        return np.full(length, _ROW_SEED, dtype=np.uint64)
    if length <= _BLOCK_ROWS:
        return _hash_block(arrays)
    hashes = np.empty(length, dtype=np.uint64)
    for start in range(0, length, _BLOCK_ROWS):
        block = [array.slice(start, _BLOCK_ROWS) for array in arrays]
        hashes[start : start + _BLOCK_ROWS] = _hash_block(block)
    return hashes


def hash_array(column: pa.Array) -> U64:
    """Hash of each value of one array, in order."""
    return hash_columns([column], len(column))


def _hash_block(arrays: Sequence[pa.Array]) -> U64:
    hashes = _mix(_words(arrays[0]))
    for array in arrays[1:]:
        hashes *= _COMBINE
        hashes ^= _words(array)
        hashes = _mix(hashes)
    return hashes


def _plain(column: pa.Array) -> pa.Array:
    """The column in a layout that `_words` knows: one chunk, no extension, no dictionary, no view."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_binary_view(kind):
        return column.cast(pa.binary())
    return column


def _words(column: pa.Array) -> U64:
    """A 64-bit word per value, equal where values are; for types of at most 64 bits different where they differ."""
    words = _valid_words(column)
    if column.null_count:
        words = np.where(_is_null(column), _NULL_WORD, words)
    return words


def _valid_words(column: pa.Array) -> U64:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), _NULL_WORD, dtype=np.uint64)
    if pa.types.is_boolean(kind):
        return np.asarray(column.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64))
    if pa.types.is_floating(kind):
        values = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64) + 0.0
        words = values.view(np.uint64)
        words[np.isnan(values)] = np.uint64(0x7FF8000000000000)
        return words
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _hash_bytes(column, np.int32)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _hash_bytes(column, np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _hash_lists(column)
    if pa.types.is_struct(kind):
        return hash_columns([column.field(i) for i in range(kind.num_fields)], len(column))
    return _fixed_width_words(column)


def _fixed_width_words(column: pa.Array) -> U64:
    """Integers, dates, times, timestamps, decimals, intervals, fixed-size binary."""
    width = column.type.bit_width // 8
    if len(column) == 0 or column.buffers()[1] is None:
        return np.zeros(len(column), np.uint64)
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    raw = raw[column.offset * width : (column.offset + len(column)) * width]
    if width in (1, 2, 4, 8):
        signed = raw.view(f"i{width}").astype(np.int64)  # widening keeps 1::int2 and 1::int8 alike
        return signed.view(np.uint64)
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
    raw: npt.NDArray[Any] = np.frombuffer(column.buffers()[1], dtype=offset_type)
    offsets = raw[column.offset : column.offset + count + 1].astype(np.int64)
    lengths = np.diff(offsets)
    sums = np.zeros(count, np.uint64)
    first, last = int(offsets[0]), int(offsets[-1])
    if first < last:
        # Eight bytes of padding make a 64-bit load legal at every byte.
        data = np.zeros(last - first + 8, dtype=np.uint8)
        data[:-8] = np.frombuffer(column.buffers()[2], dtype=np.uint8)[first:last]
        loads: U64 = np.ndarray(shape=(last - first + 1,), dtype="<u8", buffer=data, strides=(1,))
        starts = offsets[:-1] - first
        sums = _mix(_low_bytes(loads[starts], lengths))
        longest = int(lengths.max())
        for at in range(8, min(longest, _HEAD_BYTES), 8):  # once per word of a value, not per value
            longer = np.flatnonzero(lengths > at)
            words = _low_bytes(loads[starts[longer] + at], lengths[longer] - at)
            words += _WORD_OFFSETS[at >> 3]
            sums[longer] += _mix(words)
        if longest > _HEAD_BYTES:
            longer = np.flatnonzero(lengths > _HEAD_BYTES)
            sums[longer] += _hash_tails(loads, starts[longer] + _HEAD_BYTES, lengths[longer] - _HEAD_BYTES)
    sums ^= lengths.view(np.uint64) * _ROW_SEED
    return _mix(sums)


def _hash_tails(loads: U64, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> U64:
    """Sum per value of the mixed words that come after its head; `lengths` are of these, and positive."""
    counts = (lengths + 7) >> 3
    ends = np.cumsum(counts)
    firsts = ends - counts
    numbers = np.arange(ends[-1]) - np.repeat(firsts, counts)
    at = numbers << 3
    words = _low_bytes(loads[np.repeat(starts, counts) + at], np.repeat(lengths, counts) - at)
    words += (numbers + (_HEAD_BYTES >> 3)).view(np.uint64) * _COMBINE
    return np.add.reduceat(_mix(words), firsts)


def _low_bytes(words: U64, counts: npt.NDArray[np.int64]) -> U64:
    """Only the first `counts` bytes of each little-endian word (all eight, if more)."""
    unused = np.maximum(64 - 8 * counts, 0).astype(np.uint64)
    words = words << unused
    words >>= unused
    return words


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
    return _mix(sums ^ (lengths.view(np.uint64) * _ROW_SEED))


def _powers(count: int) -> U64:
    factors = np.full(count, _POLYNOMIAL, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _mix(words: U64) -> U64:
    mixed = words >> np.uint64(30)
    mixed ^= words
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    shifted = mixed >> np.uint64(27)
    mixed ^= shifted
    mixed *= np.uint64(0x94D049BB133111EB)
    np.right_shift(mixed, np.uint64(31), out=shifted)
    mixed ^= shifted
    return mixed


def _is_null(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))
