"""Rounding to the formats of a contract, in float64."""

from __future__ import annotations

import numpy as np

from vsparse.contract import LARGEST, SIGNIFICAND_BITS, SMALLEST_NORMAL, SMALLEST_SUBNORMAL


def round_to(x, fmt, truncate=False, flush=False):
    """Rounds float64 values to a format, to nearest even or toward zero, with gradual or flushed underflow."""
    if fmt == "real":
        return x
    x = np.asarray(x, dtype=np.float64)
    exponent = np.frexp(x)[1]
    quantum = np.maximum(np.ldexp(1.0, exponent - SIGNIFICAND_BITS[fmt]), SMALLEST_SUBNORMAL[fmt])
    with np.errstate(invalid="ignore"):
        value = (np.trunc if truncate else np.rint)(x / quantum) * quantum
    value = np.where(np.abs(value) > LARGEST[fmt], np.copysign(np.inf, value), value)
    return np.where(np.abs(value) < SMALLEST_NORMAL[fmt], 0.0, value) if flush else value
