"""A running error analysis (Higham 2002, section 3.3): the formats that it is made for, and what a stored parameter may be off by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format that both networks are run in: its unit roundoff and smallest normal number, and how far torch's sigmoid
    and tanh are from the functions (far closer than that, in truth)."""

    dtype: torch.dtype
    unit_roundoff: float
    smallest_normal: float
    function_error: float

    def rounding(self, output: Tensor) -> Tensor:
        """Returns what one rounding of a result may change."""
        return self.unit_roundoff * output.abs() * 1.001 + self.smallest_normal


FLOAT32 = Arithmetic(torch.float32, 2.0**-24, 2.0**-126, 2.0**-20)
FLOAT64 = Arithmetic(torch.float64, 2.0**-53, 2.0**-1022, 2.0**-44)


@dataclass(frozen=True)
class ParameterError:
    """How far a stored weight and bias may be, entry by entry, from the exact ones of the same function."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


@dataclass(frozen=True)
class NodeRun:
    """One node as it was computed in an arithmetic: float64 values of its inputs and output, the errors of the inputs, the graph's
    parameters, and how far the node's own are off, if they are."""

    params: Mapping[str, NDArray[np.float32]]
    inputs: list[Tensor]
    output: Tensor
    errors: list[Tensor]
    moved: ParameterError | None
    arithmetic: Arithmetic


def gamma(n: Tensor, u: float) -> Tensor:
    """Returns γ_n = n·u / (1 − n·u) (Higham 2002, lemma 3.1); infinite where n·u ≥ 1."""
    product = n * u
    return torch.where(product < 1, product / (1 - product), torch.inf)
