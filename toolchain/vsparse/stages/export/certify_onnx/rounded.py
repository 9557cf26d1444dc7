"""Constants of the certifying file: float32 numbers on the side that keeps a bound a bound, and the amounts that they must cover."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.bounds.float64 import gamma
from vsparse.contract import LARGEST, SIGNIFICAND_BITS, SMALLEST_NORMAL
from vsparse.errors import InputError

Numbers = NDArray[np.float64]
Float32s = NDArray[np.float32]

UNIT = 2.0 ** -SIGNIFICAND_BITS["fp32"]
ETA = SMALLEST_NORMAL["fp32"]
# Beside each charge that is relative to a value: far more than underflow costs it, far less than float32 keeps of weights in use.
SLOPE_FLOOR = 2.0**-100
# And beside each charge that is not.
CONSTANT_FLOOR = 2.0**-110
# Charges are evaluated in float64, in far fewer than 2^20 roundings each.
UP = 1 + 2.0**-30
# Sums so long that γ comes near 1 leave no bound; with this limit the square of γ is small against it.
MOST_GAMMA = 2.0**-6


def up32(value: Numbers) -> Float32s:
    """Returns the smallest float32 numbers that are at least `value`; InputError beyond the largest."""
    return _stored(value, np.inf)


def down32(value: Numbers) -> Float32s:
    """Returns the largest float32 numbers that are at most `value`; InputError beyond the largest."""
    return _stored(value, -np.inf)


def _stored(value: Numbers, side: float) -> Float32s:
    value = np.asarray(value, np.float64)
    if not (np.abs(value) < LARGEST["fp32"]).all():
        raise InputError("a constant of the certifying file is beyond float32; rescale the network, or leave deploy.live out")
    with np.errstate(under="ignore"):
        stored = value.astype(np.float32)
    short = stored.astype(np.float64) < value if side > 0 else stored.astype(np.float64) > value
    return np.where(short, np.nextafter(stored, np.float32(side)), stored).astype(np.float32)


def growth(terms: int, name: str) -> float:
    """Returns γ of so many roundings in float32; InputError, which names the node, where it is too large to leave a bound."""
    found = gamma(terms, UNIT)
    if not found <= MOST_GAMMA:
        raise InputError(f'node "{name}" adds up {terms:,} terms, too many for bounds in float32; leave deploy.live out')
    return found
