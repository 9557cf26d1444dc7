"""The order of summation of contract `sequential`: how often each term of a sum is rounded (Higham 2002, section 3.1)."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor


def sequential_growth(survivors: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Returns γ of what each weight's product and each bias goes through, shapes [out, …] and [out]; zero where a weight is pruned.

    s_0 = b and s_j = fl(s_{j−1} + w_j·x_j) over the n non-zero weights of a row in row-major order. Product j is rounded once (not at all
    in a fused multiply-add) and passes additions j to n: at most n − j + 2 factors 1 + δ with |δ| <= u, so it errs by γ_{n−j+2} of its
    magnitude (lemma 3.1). The bias passes n additions: γ_n. Adding an exact zero, for a pruned weight or in the padding, rounds nothing.
    An average is such a sum without bias: its element j passes additions j to n and one division, n − j + 2 roundings again.
    """
    flat = survivors.flatten(1)
    count = flat.sum(dim=1)
    roundings = (count[:, None] - flat.cumsum(dim=1) + 2) * flat
    return _gamma(roundings, unit).view_as(survivors), _gamma(count, unit)


def _gamma(n: Tensor, unit: float) -> Tensor:
    """Returns γ_n elementwise, rounded up; inf where n·u reaches 1."""
    nu = n * unit
    return torch.where(nu < 1 - 2.0**-20, nu / (1 - nu) * (1 + 2.0**-48), torch.full_like(nu, inf))
