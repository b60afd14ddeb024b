"""Exact, order-independent sums of floating-point numbers, as fixed-point limbs.

Two replicas may add the same numbers in different order and must agree to the bit, and a retraction must undo
an insertion without a trace. So a sum is kept as an integer multiple of 2**-1074 (every finite double is
one), spread over limbs of 32 bits each in an int64. Contributions are added limb by limb without carrying:
addition is linear, exact, and cancels to zero. A limb has room for 2**29 numbers. Only limbs that some number
touched exist: ordinary data needs four or five.

Carrying and rounding happen when a sum is read; the result is the double nearest to the exact sum (ties to
even). The superaccumulator of Kulisch; limb layout as in Neal, "Fast exact summation using small and large
superaccumulators".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Limb = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def split(values: npt.NDArray[np.float64]) -> dict[int, Limb]:
    """Limb number -> contribution of each of n finite values (others count as zero)."""
    bits = values.view(np.uint64)
    exponents = ((bits >> np.uint64(52)) & np.uint64(0x7FF)).astype(np.int64)
    finite = exponents != 0x7FF
    fractions = bits & np.uint64((1 << 52) - 1)
    mantissas = np.where(exponents > 0, fractions | np.uint64(1 << 52), fractions)
    mantissas = np.where(finite, mantissas, np.uint64(0))
    positions = np.maximum(exponents, 1) - 1  # of the mantissa's lowest bit, in units of 2**-1074
    numbers = positions >> 5
    shifts = (positions & 31).astype(np.uint64)
    low = (mantissas & _LOW) << shifts
    high = (mantissas >> _32) << shifts
    signs = np.where(values < 0, np.int64(-1), np.int64(1))
    parts = (
        (low & _LOW).astype(np.int64) * signs,
        ((low >> _32) + (high & _LOW)).astype(np.int64) * signs,
        (high >> _32).astype(np.int64) * signs,
    )
    limbs: dict[int, Limb] = {}
    present = np.unique(numbers[mantissas != 0])
    for number in present.tolist():
        here = None if len(present) == 1 else numbers == number
        for offset, part in enumerate(parts):
            part = part if here is None else np.where(here, part, 0)
            if number + offset in limbs:
                limbs[number + offset] = limbs[number + offset] + part
            elif part.any():
                limbs[number + offset] = part
    return limbs


def round_to_double(limbs: dict[int, Limb], count: int) -> npt.NDArray[np.float64]:
    """The double nearest to each of `count` sums. Beyond the range: an infinity."""
    if not limbs:
        return np.zeros(count, np.float64)
    digits, negative = _carry(limbs, count)
    numbers = sorted(digits, reverse=True)
    # The 64 bits from the leading one on, with "anything below" folded into the last: enough to round once.
    top = np.zeros(count, np.uint64)
    scale = np.zeros(count, np.int64)
    state = np.zeros(count, np.int64)  # digits seen since (and with) the leading one
    sticky = np.zeros(count, dtype=bool)
    for number in numbers:
        digit = digits[number]
        leading = (state == 0) & (digit != 0)
        second = state == 1
        third = state == 2
        rest = state > 2
        if leading.any():
            top = np.where(leading, digit, top)
            scale = np.where(leading, number, scale)
        if second.any():
            top = np.where(second, (top << _32) | digit, top)
        if third.any():
            free = np.where(third, _leading_zeros(top), 0).astype(np.uint64)
            fill = np.where(free > 0, digit >> (_32 - np.minimum(free, _32)), np.uint64(0))
            left_over = np.where(free < 32, digit & (_LOW >> free), np.uint64(0))
            top = np.where(third, (top << free) | fill, top)
            sticky |= third & (left_over != 0)
            scale = np.where(third, scale * 32 - 32 - free.astype(np.int64), scale)
        sticky |= rest & (digit != 0)
        state = np.where(leading | (state > 0), state + 1, state)
    # sums whose digits ended early: one digit (scale counts limbs) or two
    short = state == 1
    scale = np.where(short, scale * 32, scale)
    pair = state == 2
    scale = np.where(pair, scale * 32 - 32, scale)
    # sticky only if the 64-bit window is full, hence its last bit is far below the rounding position
    top = np.where(sticky, top | np.uint64(1), top)
    with np.errstate(over="ignore"):
        magnitudes = np.ldexp(top.astype(np.float64), (scale - 1074).astype(np.int32))
    return np.where(negative, -magnitudes, magnitudes)


def _carry(limbs: dict[int, Limb], count: int) -> tuple[dict[int, U64], npt.NDArray[np.bool_]]:
    """Digits in ``[0, 2**32)`` of the magnitude, all positions from the lowest to the highest, and the sign."""
    first, last = min(limbs), max(limbs)
    zero = np.zeros(count, np.int64)
    negative = _is_negative(limbs, first, last, zero)
    flip = np.where(negative, np.int64(-1), np.int64(1))
    digits: dict[int, U64] = {}
    carry = zero
    number = first
    while number <= last or (carry != 0).any():
        value = limbs.get(number, zero) * flip + carry
        digits[number] = (value & np.int64(0xFFFFFFFF)).astype(np.uint64)
        carry = value >> 32
        number += 1
    return digits, negative


def _is_negative(limbs: dict[int, Limb], first: int, last: int, zero: Limb) -> npt.NDArray[np.bool_]:
    carry = zero
    for number in range(first, last + 1):
        carry = (limbs.get(number, zero) + carry) >> 32
    return np.asarray(carry < 0)


def _leading_zeros(words: U64) -> npt.NDArray[np.int64]:
    """Leading zero bits of 64-bit words (64 for zero)."""
    count = np.zeros(len(words), np.int64)
    rest = words.copy()
    for width in (32, 16, 8, 4, 2, 1):
        empty = rest < (np.uint64(1) << np.uint64(64 - width))
        count += np.where(empty, width, 0)
        rest = np.where(empty, rest << np.uint64(width), rest)
    return np.where(words == 0, 64, count)
