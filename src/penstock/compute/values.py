"""What kernels pass around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from penstock.compute.ir import Call

Value: TypeAlias = Any
"""`pa.Array` or, for constants, `pa.Scalar`."""

Kernel: TypeAlias = Callable[[list[Value], int], Value]
"""Operands' values and the number of rows to the result."""

KernelMaker: TypeAlias = Callable[[Call], Kernel | None]
"""The kernel for a call; None: no kernel covers it."""
