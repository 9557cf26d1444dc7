"""The numeric contracts: what a device promises about formats and order.

docs/numerics.md, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class NumberFormat(NamedTuple):
    """One format of numbers; real arithmetic is one without rounding and underflow."""

    u: float  # unit roundoff
    eta: float  # the smallest normal number: below it a device may flush to zero
    greatest: float  # what counts as overflow
    subnormal: float = 0.0  # the smallest subnormal number: what underflow costs without flushing


# 2^100 stands for the range of float32, 2^128: that keeps float64 away from its own overflow.
FORMATS = {
    "real": NumberFormat(0.0, 0.0, 2.0**100),
    "fp32": NumberFormat(2.0**-24, 2.0**-126, 2.0**100),
    "tf32": NumberFormat(2.0**-11, 2.0**-126, 2.0**100),
    "fp16": NumberFormat(2.0**-11, 2.0**-14, 65504.0, 2.0**-24),
    "bf16": NumberFormat(2.0**-8, 2.0**-126, 2.0**100),
    # Operands only: integers times a float32 scale.
    "int8": NumberFormat(2.0**-24, 2.0**-126, 2.0**100),
}
SIGNIFICAND = {"fp32": 24, "fp16": 11, "bf16": 8}  # bits of the formats that values are stored in
# How far a stored sigmoid or tanh may be from the exact one: an assumption (docs/numerics.md,
# section 3.2); and how far float64's own is.
FUNCTION_ERROR = {"real": 0.0, "fp32": 2.0**-19, "fp16": 2.0**-9, "bf16": 2.0**-6}
FUNCTION_ERROR_64 = 2.0**-44

FIELDS = ("name", "storage", "operand", "accumulate", "order", "convolution", "subnormals")
TABLE = (
    "real             real  real  real  any         direct  gradual",
    "fp32             fp32  fp32  fp32  any         direct  flush",
    "tf32             fp32  tf32  fp32  any         direct  flush",
    "fp16             fp16  fp16  fp32  any         direct  flush",
    "fp16-tensorrt    fp16  fp16  fp32  any         direct  flush",
    "fp16-accumulate  fp16  fp16  fp16  any         direct  flush",
    "fp16-chain       fp16  fp16  fp16  chain       direct  gradual",
    "bf16             bf16  bf16  fp32  any         direct  flush",
    "sequential       fp32  fp32  fp32  sequential  direct  flush",
    "int8             fp32  int8  fp32  any         direct  flush",
    "int8-exact       fp32  int8  fp32  any         direct  flush",
    "int8-tensorrt    fp32  int8  fp32  any         direct  flush",
)
CONTRACTS: Mapping[str, dict[str, str]] = {
    line.split()[0]: dict(zip(FIELDS, line.split(), strict=True)) for line in TABLE
}
