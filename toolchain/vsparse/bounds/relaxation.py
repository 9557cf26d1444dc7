"""A linear relaxation: a line below and a line above a function of one variable."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LinearRelaxation(NamedTuple):
    """lower_slope · x + lower_intercept <= f(x) <= upper_slope · x + upper_intercept on [lower, upper], elementwise."""

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor
