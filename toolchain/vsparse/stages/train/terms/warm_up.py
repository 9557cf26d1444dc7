"""The warm-up regulariser of Shi et al.: keeps bounds tight and ReLUs balanced while the radius grows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph, Relu

TOLERANCE = 0.5
_TINY = 1e-12


def warm_up_regulariser(graph: Graph, enclosure: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the sum of the tightness and the ReLU balance terms over all ReLUs (a scalar; multiply it by λ·(1 − ε/ε_max)).

    `enclosure` maps activations to (lower, upper), each [batch, *shape]. Tightness: relu(τ − width₀/width_i)/τ, the mean width of
    the box entering the first affine layer against that at each ReLU. Balance: relu(τ − ratio)/τ for the ratio, inverted where
    above 1, of the active to the inactive neurons' contributions to mean and to variance of the centres. τ = 0.5; each term
    is averaged over the ReLUs (Shi et al., NeurIPS 2021, section 3.3, equations 7 to 9). A ReLU without active or without
    inactive neurons has no balance term.
    """
    first = next((node for node in graph.nodes if isinstance(node, Affine)), None)
    relus = [node for node in graph.nodes if isinstance(node, Relu) and node.inputs[0] in enclosure]
    if first is None or not relus:
        return next(iter(enclosure.values()))[0].new_zeros(())
    lower, upper = enclosure[first.inputs[0]]
    input_width = (upper - lower).mean()
    total = input_width.new_zeros(())
    for node in relus:
        lower, upper = enclosure[node.inputs[0]]
        width = (upper - lower).mean()
        total = total + torch.relu(TOLERANCE - input_width / width.clamp(min=_TINY))
        centre = (upper + lower) / 2
        active, inactive = (lower > 0).to(centre.dtype), (upper < 0).to(centre.dtype)
        spread = (centre - centre.mean()).square()
        total = total + _imbalance((centre * active).mean(), -(centre * inactive).mean())
        total = total + _imbalance((spread * active).mean(), (spread * inactive).mean())
    return total / (TOLERANCE * len(relus))


def _imbalance(active: Tensor, inactive: Tensor) -> Tensor:
    """Returns relu(τ − min(a/b, b/a)), or 0 where one side is empty; decided without branching on the values' graph."""
    small, large = torch.minimum(active, inactive), torch.maximum(active, inactive)
    if float(small.detach()) <= _TINY:
        return small.new_zeros(())
    return torch.relu(TOLERANCE - small / large)
