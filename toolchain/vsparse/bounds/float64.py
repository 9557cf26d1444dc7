"""The verifier's own arithmetic: float64, its limits, and what sums of it may lose (docs/numerics.md, section 5)."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from vsparse.bounds.ball import Box

UNIT64 = 2.0**-53
# What one term of a sum in float64 costs on an accelerator, whose matrix units may align and truncate (docs/numerics.md, section 5.4).
DEVICE_UNIT64 = 4 * UNIT64
# Magnitudes beyond this are treated as overflow: it keeps every float64 product far from its own overflow and underflow.
RANGE64 = 2.0**200
# Far above what float64 underflow can lose within RANGE64 (2^-1074 · 2^200 for each product), far below anything that matters.
TINY = 2.0**-700


def gamma(n: float, u: float) -> float:
    """Returns γ_n = n·u / (1 − n·u), rounded up; inf where n·u >= 1 (Higham 2002, lemma 3.1)."""
    if u == 0:
        return 0.0
    return n * u / (1 - n * u) * (1 + 2.0**-48) if n * u < 1 - 2.0**-20 else inf


def unit64(device: torch.device) -> float:
    """Returns what one term of a sum of products in float64 costs on a device, relative to the sum of the magnitudes."""
    return UNIT64 if device.type == "cpu" else DEVICE_UNIT64


def gamma64(n: float, device: torch.device) -> float:
    """Returns γ_n of a sum of products that a device computes in float64."""
    return gamma(n, unit64(device))


def magnitude(box: Box) -> Tensor:
    """Returns max(|lower|, |upper|), exact."""
    return torch.maximum(box[0].abs(), box[1].abs())
